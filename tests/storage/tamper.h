// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_TESTS_STORAGE_TAMPER_H_
#define MNEME_TESTS_STORAGE_TAMPER_H_

#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "rocksdb/db.h"
#include "rocksdb/table.h"

namespace mneme {

inline std::string ReadFile(const std::filesystem::path& path) {
  std::ostringstream out;
  out << std::ifstream(path, std::ios::binary).rdbuf();
  return out.str();
}

inline void WriteFile(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

// Changes a store from outside with RocksDB itself; `change` gets the column family `default`. Creates what is
// missing.
inline void Tamper(const std::string& path,
                   const std::function<void(rocksdb::DB&, rocksdb::ColumnFamilyHandle&)>& change,
                   const std::vector<std::string>& names = {"default", "log", "rows", "index"}) {
  std::vector<rocksdb::ColumnFamilyDescriptor> families;
  rocksdb::BlockBasedTableOptions table;  // as MakeFamilies has it, which tests of the C library cannot call
  table.format_version = 5;
  table.checksum = rocksdb::kXXH3;
  rocksdb::ColumnFamilyOptions family_options;
  family_options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  for (const std::string& name : names) families.emplace_back(name, family_options);
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  rocksdb::DB* db = nullptr;
  rocksdb::DBOptions options;
  options.create_if_missing = true;
  options.create_missing_column_families = true;
  const rocksdb::Status status = rocksdb::DB::Open(options, path, families, &handles, &db);
  ASSERT_TRUE(status.ok()) << status.ToString();
  change(*db, *handles[0]);
  for (rocksdb::ColumnFamilyHandle* handle : handles) db->DestroyColumnFamilyHandle(handle);
  delete db;
}

}  // namespace mneme

#endif  // MNEME_TESTS_STORAGE_TAMPER_H_
