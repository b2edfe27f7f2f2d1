// SPDX-License-Identifier: Apache-2.0
// The table from the operating system's errors to statuses.

#include "storage/errno_status.h"

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "rocksdb/io_status.h"
#include "storage/rocks.h"
#include "tests/storage/testing.h"

namespace mneme {
namespace {

using Code = absl::StatusCode;

const std::vector<std::pair<int, Code>> kExpected = {
    {EACCES, Code::kPermissionDenied},
    {EPERM, Code::kPermissionDenied},
    {EROFS, Code::kPermissionDenied},
    {ENOSPC, Code::kResourceExhausted},
    {EDQUOT, Code::kResourceExhausted},
    {EFBIG, Code::kResourceExhausted},
    {EMFILE, Code::kResourceExhausted},
    {ENFILE, Code::kResourceExhausted},
    {ENOMEM, Code::kResourceExhausted},
    {ENOLCK, Code::kResourceExhausted},
    {ENAMETOOLONG, Code::kInvalidArgument},
    {ELOOP, Code::kInvalidArgument},
    {ENOTDIR, Code::kInvalidArgument},
    {EISDIR, Code::kInvalidArgument},
    {ENOENT, Code::kNotFound},
    {EEXIST, Code::kAlreadyExists},
    {ENOSYS, Code::kUnimplemented},
    {EOPNOTSUPP, Code::kUnimplemented},
    {EUCLEAN, Code::kDataLoss},
    {EBADMSG, Code::kDataLoss},
    {EIO, Code::kUnavailable},
    {ENODEV, Code::kUnavailable},
    {ESTALE, Code::kUnavailable},
    {EAGAIN, Code::kUnavailable},
    {EBUSY, Code::kUnavailable},
    {EINTR, Code::kUnavailable},
    {ETIMEDOUT, Code::kUnavailable},
    {EINVAL, Code::kInternal},
};

TEST(ErrnoStatusTest, EachErrorHasItsCode) {
  for (const auto& [error, code] : kExpected) {
    EXPECT_EQ(CodeOfErrno(error), code) << std::strerror(error);
    const absl::Status status = FromErrno(error, "open /some/path");
    EXPECT_EQ(status.code(), code);
    EXPECT_THAT(std::string(status.message()),
                ::testing::StartsWith("open /some/path: " + std::string(std::strerror(error))));
  }
}

TEST(ErrnoStatusTest, ErrorsOutsideTheTableMayPass) {
  EXPECT_EQ(CodeOfErrno(4000), Code::kUnavailable);
}

TEST(ErrnoStatusTest, RightsAndRoomComeWithAdvice) {
  for (const int error : {EACCES, EPERM, EROFS, ENOSPC, EDQUOT, EMFILE, ENFILE, ENAMETOOLONG, EIO}) {
    EXPECT_FALSE(AdviceOnErrno(error).empty()) << std::strerror(error);
    EXPECT_THAT(std::string(FromErrno(error, "x").message()),
                ::testing::EndsWith("; " + std::string(AdviceOnErrno(error))));
  }
}

TEST(ErrnoStatusTest, FindsTheErrorInAMessageOfRocksDb) {
  for (const auto& [error, code] : kExpected) {
    const std::string text = std::strerror(error);
    EXPECT_EQ(ErrnoOfText("IO error: While open a file for appending: /a/b: " + text), error) << text;
    EXPECT_EQ(ErrnoOfText("IO error: While x: /a: " + text + " The file /a may be corrupted."), error) << text;
  }
  EXPECT_EQ(ErrnoOfText("IO error: lock hold by current process"), 0);
  EXPECT_EQ(ErrnoOfText(""), 0);
  // A folder's name is not the error.
  EXPECT_EQ(ErrnoOfText("IO error: While stat: /a: Permission denied/b: Input/output error"), EIO);
}

TEST(ErrnoStatusTest, StatusesOfRocksDbGetTheSameCodes) {
  for (const auto& [error, code] : kExpected) {
    if (error == ENOSPC || error == ENOENT || error == ESTALE) continue;  // RocksDB has subcodes for them
    const rocksdb::IOStatus status =
        rocksdb::IOStatus::IOError("While open a file for appending: /a/b", std::strerror(error));
    const absl::Status mapped = FromRocks(status, "commit");
    EXPECT_EQ(mapped.code(), code) << mapped;
    EXPECT_EQ(FromRocksRead(status, "read").code(), code);
    EXPECT_THAT(std::string(mapped.message()), ::testing::HasSubstr("/a/b"));
  }
  EXPECT_EQ(FromRocks(rocksdb::Status::NoSpace(), "commit").code(), Code::kResourceExhausted);
  EXPECT_EQ(FromRocks(rocksdb::Status::PathNotFound("/a"), "commit").code(), Code::kNotFound);
  EXPECT_EQ(FromRocksRead(rocksdb::Status::PathNotFound("/a"), "read").code(), Code::kDataLoss);
  EXPECT_EQ(FromRocks(rocksdb::Status::IOError("of no known kind"), "commit").code(), Code::kUnavailable);
}

}  // namespace
}  // namespace mneme
