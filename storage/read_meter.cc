// SPDX-License-Identifier: Apache-2.0
#include "storage/read_meter.h"

#include <algorithm>
#include <chrono>
#include <future>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "rocksdb/file_system.h"

#include "storage/rocks.h"

namespace mneme {
namespace {

constexpr auto kReportInterval = std::chrono::milliseconds(50);

class MeteredSource : public rocksdb::FSSequentialFileOwnerWrapper {
 public:
  MeteredSource(std::unique_ptr<rocksdb::FSSequentialFile> file, std::string name, std::shared_ptr<ReadMeter> meter)
      : FSSequentialFileOwnerWrapper(std::move(file)), name_(std::move(name)), meter_(std::move(meter)) {}

  rocksdb::IOStatus Read(size_t n, const rocksdb::IOOptions& options, rocksdb::Slice* result, char* scratch,
                         rocksdb::IODebugContext* context) override {
    if (meter_->stopped()) return rocksdb::IOStatus::Aborted("stopped");
    const rocksdb::IOStatus status = FSSequentialFileOwnerWrapper::Read(n, options, result, scratch, context);
    if (status.ok()) meter_->CountRead(name_, end_ += result->size());
    return status;
  }

 private:
  const std::string name_;
  const std::shared_ptr<ReadMeter> meter_;
  uint64_t end_ = 0;
};

class MeteredSink : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  MeteredSink(std::unique_ptr<rocksdb::FSWritableFile> file, std::shared_ptr<ReadMeter> meter)
      : FSWritableFileOwnerWrapper(std::move(file)), meter_(std::move(meter)) {}

  rocksdb::IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& options,
                           rocksdb::IODebugContext* context) override {
    meter_->CountWritten(data.size());
    return FSWritableFileOwnerWrapper::Append(data, options, context);
  }
  rocksdb::IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& options,
                           const rocksdb::DataVerificationInfo& verification,
                           rocksdb::IODebugContext* context) override {
    meter_->CountWritten(data.size());
    return FSWritableFileOwnerWrapper::Append(data, options, verification, context);
  }

 private:
  const std::shared_ptr<ReadMeter> meter_;
};

class MeteredFileSystem : public rocksdb::FileSystemWrapper {
 public:
  MeteredFileSystem(const std::shared_ptr<rocksdb::FileSystem>& target, std::shared_ptr<ReadMeter> meter)
      : FileSystemWrapper(target), meter_(std::move(meter)) {}
  const char* Name() const override { return "MnemeMeteredFileSystem"; }

  rocksdb::IOStatus NewSequentialFile(const std::string& name, const rocksdb::FileOptions& options,
                                      std::unique_ptr<rocksdb::FSSequentialFile>* file,
                                      rocksdb::IODebugContext* context) override {
    const rocksdb::IOStatus status = target()->NewSequentialFile(name, options, file, context);
    if (status.ok()) *file = std::make_unique<MeteredSource>(std::move(*file), name, meter_);
    return status;
  }

  rocksdb::IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                                    std::unique_ptr<rocksdb::FSWritableFile>* file,
                                    rocksdb::IODebugContext* context) override {
    const rocksdb::IOStatus status = target()->NewWritableFile(name, options, file, context);
    if (status.ok()) *file = std::make_unique<MeteredSink>(std::move(*file), meter_);
    return status;
  }

 private:
  const std::shared_ptr<ReadMeter> meter_;
};

}  // namespace

void ReadMeter::CountRead(const std::string& file, uint64_t end) {
  const std::lock_guard lock(mutex_);
  uint64_t& known = ends_[file];
  if (end <= known) return;
  read_ += end - known;
  known = end;
}

std::shared_ptr<rocksdb::Env> MakeMeteredEnv(std::shared_ptr<ReadMeter> meter) {
  const std::shared_ptr<rocksdb::Env> env = MakeEnv(nullptr);
  return rocksdb::NewCompositeEnv(std::make_shared<MeteredFileSystem>(env->GetFileSystem(), std::move(meter)));
}

absl::Status RunMetered(absl::string_view doing, ReadMeter& meter,
                        const std::function<bool(uint64_t, uint64_t)>& progress,
                        const std::function<absl::Status()>& operation) {
  if (!progress) return operation();
  if (!progress(0, meter.total())) return absl::CancelledError(absl::StrCat(doing, ": cancelled"));
  std::future<absl::Status> result;
  try {
    result = std::async(std::launch::async, operation);
  } catch (const std::system_error& error) {
    return absl::ResourceExhaustedError(absl::StrCat(doing, ": no thread can be started: ", error.what()));
  }
  bool cancelled = false;
  while (result.wait_for(kReportInterval) != std::future_status::ready) {
    const uint64_t total = meter.total();
    if (cancelled || progress(std::min(meter.read(), total), total)) continue;
    cancelled = true;
    meter.Stop();
  }
  const absl::Status status = result.get();
  if (status.ok()) {
    // It is done: what the callback says now comes too late.
    progress(meter.total(), meter.total());
    return status;
  }
  return cancelled ? absl::CancelledError(absl::StrCat(doing, ": cancelled")) : status;
}

}  // namespace mneme
