// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_CAPI_REPLACED_NEW_H_
#define MNEME_TESTS_CAPI_REPLACED_NEW_H_

namespace mneme {

// Called by every operator new of a program with replaced_new.cc, its libraries included, before it allocates. The
// program defines it. May throw std::bad_alloc, and must not allocate by operator new.
void BeforeNew();

}  // namespace mneme

#endif  // MNEME_TESTS_CAPI_REPLACED_NEW_H_
