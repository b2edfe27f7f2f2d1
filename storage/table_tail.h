// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_STORAGE_TABLE_TAIL_H_
#define MNEME_STORAGE_TABLE_TAIL_H_

#include <string>

#include "rocksdb/file_system.h"

namespace mneme {

// RocksDB checks the blocks of a table file before it parses them, except those at the file's end that tell it how: the
// footer has no checksum, and the properties are parsed first. Damage there may end the process (an assertion in
// Debian's build) or be read out of bounds. This checks them, in files written with the settings of MakeFamilies:
// footers of version 5, XXH3.
//
// Corruption that names the file, also for a sound file with other settings. Errors of the file's own are passed on.
// https://github.com/facebook/rocksdb/wiki/Rocksdb-BlockBasedTable-Format
rocksdb::IOStatus CheckTableTail(const std::string& name, const rocksdb::FSRandomAccessFile& file, uint64_t file_bytes);

}  // namespace mneme

#endif  // MNEME_STORAGE_TABLE_TAIL_H_
