// SPDX-License-Identifier: Apache-2.0
#include "storage/version.h"

#include <rocksdb/version.h>

#include "absl/strings/str_cat.h"

namespace mneme {

std::string RocksDbVersion() {
  return absl::StrCat(ROCKSDB_MAJOR, ".", ROCKSDB_MINOR, ".", ROCKSDB_PATCH);
}

}  // namespace mneme
