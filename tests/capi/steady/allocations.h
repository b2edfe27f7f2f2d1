// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_CAPI_STEADY_ALLOCATIONS_H_
#define MNEME_TESTS_CAPI_STEADY_ALLOCATIONS_H_

#include <cstdint>

namespace mneme {

// Calls of any operator new so far, in the whole process, its libraries included: on all threads, and on those that run
// the engine, which say so. (RocksDB has threads of its own, which allocate when they like.)
int64_t AllAllocations();
int64_t Allocations();

// The calling thread runs the engine.
void CountThisThread();

}  // namespace mneme

#endif  // MNEME_TESTS_CAPI_STEADY_ALLOCATIONS_H_
