// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_STORAGE_VERSION_H_
#define MNEME_STORAGE_VERSION_H_

#include <string>

namespace mneme {

// Of the RocksDB that is loaded: "7.8.3".
std::string RocksDbVersion();

}  // namespace mneme

#endif  // MNEME_STORAGE_VERSION_H_
