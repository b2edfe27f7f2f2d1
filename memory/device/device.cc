// SPDX-License-Identifier: Apache-2.0
#include "memory/device/device.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/status.h"

namespace mneme {

absl::Status DeviceStatus(const std::string& error) {
  return error.empty() ? absl::OkStatus() : absl::UnavailableError(absl::StrCat("device: ", error));
}

absl::StatusOr<std::shared_ptr<DeviceStream>> DeviceStream::New(Device& device) {
  void* stream = nullptr;
  MNEME_RETURN_IF_ERROR(DeviceStatus(device.runtime().NewStream(&stream)));
  return std::shared_ptr<DeviceStream>(new DeviceStream(device, stream));
}

DeviceStream::~DeviceStream() {
  device_.runtime().DeleteStream(stream_);
}

absl::StatusOr<std::unique_ptr<DeviceMemory>> DeviceMemory::New(std::shared_ptr<DeviceStream> stream,
                                                                cuda::DeviceBudget& budget, int64_t bytes) {
  if (!budget.Take(bytes)) {
    return absl::ResourceExhaustedError(absl::StrCat("device_budget_bytes: expected room for ", bytes,
                                                     " bytes more, got ", budget.bytes() - budget.used()));
  }
  // From here on the destructor gives back what was taken.
  std::unique_ptr<DeviceMemory> made(new DeviceMemory(std::move(stream), budget, bytes));
  void* data = nullptr;
  MNEME_RETURN_IF_ERROR(DeviceStatus(made->stream_->device().runtime().Allocate(bytes, made->stream_->get(), &data)));
  made->data_ = static_cast<char*>(data);
  return made;
}

DeviceMemory::~DeviceMemory() {
  if (data_ != nullptr) stream_->device().runtime().Free(data_, stream_->get());
  budget_.Give(bytes_);
}

absl::StatusOr<std::unique_ptr<DeviceDesk>> DeviceDesk::New(Device& device) {
  MNEME_ASSIGN_OR_RETURN(std::shared_ptr<DeviceStream> stream, DeviceStream::New(device));
  std::unique_ptr<DeviceDesk> desk(new DeviceDesk(std::move(stream)));
  MNEME_RETURN_IF_ERROR(DeviceStatus(device.runtime().NewEvent(&desk->event_)));
  return desk;
}

DeviceDesk::~DeviceDesk() {
  cuda::Runtime& runtime = stream_->device().runtime();
  if (event_ != nullptr) runtime.DeleteEvent(event_);
  if (host_data_ != nullptr) runtime.FreeHost(host_data_);
}

absl::Status DeviceDesk::Grow(std::unique_ptr<DeviceMemory>& memory, int64_t bytes) {
  if (bytes == 0 || (memory != nullptr && memory->bytes() >= bytes)) return absl::OkStatus();
  memory.reset();
  MNEME_ASSIGN_OR_RETURN(memory, DeviceMemory::New(stream_, stream_->device().call_budget(), bytes));
  return absl::OkStatus();
}

absl::Status DeviceDesk::Reserve(int64_t bytes) {
  MNEME_RETURN_IF_ERROR(Grow(device_data_, bytes));
  return ReserveHost(bytes);
}

absl::Status DeviceDesk::ReserveHost(int64_t bytes) {
  if (host_bytes_ >= bytes) return absl::OkStatus();
  cuda::Runtime& runtime = stream_->device().runtime();
  if (host_data_ != nullptr) runtime.FreeHost(host_data_);
  host_data_ = nullptr;
  host_bytes_ = 0;
  void* data = nullptr;
  MNEME_RETURN_IF_ERROR(DeviceStatus(runtime.AllocateHost(bytes, &data)));
  host_data_ = static_cast<char*>(data);
  host_bytes_ = bytes;
  return absl::OkStatus();
}

Device::Device(int32_t ordinal, std::unique_ptr<cuda::Runtime> runtime, int64_t budget_bytes,
               std::function<void(absl::string_view)> log)
    : ordinal_(ordinal),
      runtime_(std::move(runtime)),
      row_budget_(budget_bytes - budget_bytes / 8),
      call_budget_(budget_bytes / 8),
      log_(std::move(log)) {}

absl::StatusOr<std::shared_ptr<Device>> Device::Open(int32_t ordinal, int64_t budget_bytes,
                                                     std::function<void(absl::string_view)> log) {
  const int32_t devices = cuda::DeviceCount();
  if (devices > 0 && (ordinal < 0 || ordinal >= devices)) {
    return absl::InvalidArgumentError(
        absl::StrCat("options.device_ordinal: expected 0 to ", devices - 1, ", the devices there are, got ", ordinal));
  }
  std::unique_ptr<cuda::Runtime> runtime;
  if (const std::string wrong = cuda::OpenRuntime(ordinal, &runtime); !wrong.empty()) {
    return absl::FailedPreconditionError(wrong);
  }
  return std::shared_ptr<Device>(new Device(ordinal, std::move(runtime), budget_bytes, std::move(log)));
}

Device::~Device() {
  desks_.clear();
  for (const Piece& piece : pieces_) runtime_->DeleteEvent(piece.event);
  if (staging_ != nullptr) runtime_->FreeHost(staging_);
}

absl::StatusOr<std::unique_ptr<DeviceDesk>> Device::Borrow() {
  {
    MutexLock lock(&desks_mutex_);
    const bool many = desks_.size() >= kMostBusyDesks;
    for (auto desk = desks_.begin(); desk != desks_.end(); ++desk) {
      std::unique_ptr<DeviceDesk> found;
      if ((*desk)->busy_ && many) MNEME_RETURN_IF_ERROR(DeviceStatus(runtime_->Synchronise((*desk)->event())));
      if (!(*desk)->busy_ || many || runtime_->Done((*desk)->event())) found = std::move(*desk);
      if (found == nullptr) continue;
      desks_.erase(desk);
      found->busy_ = false;
      return found;
    }
  }
  return DeviceDesk::New(*this);
}

void Device::Return(std::unique_ptr<DeviceDesk> desk, bool busy) {
  desk->busy_ = busy;
  MutexLock lock(&desks_mutex_);
  told_.clear();
  desks_.push_back(std::move(desk));
}

absl::Status Device::Stage(int64_t bytes, void* stream, const std::function<void(char* to)>& fill,
                           const std::function<absl::Status(const char* from)>& queue) {
  if (bytes > kPieceBytes) {
    return absl::InternalError(absl::StrCat("device: expected at most ", kPieceBytes, " bytes a piece, got ", bytes));
  }
  MutexLock lock(&staging_mutex_);
  if (staging_ == nullptr) {
    void* data = nullptr;
    MNEME_RETURN_IF_ERROR(DeviceStatus(runtime_->AllocateHost(static_cast<int64_t>(kPieces) * kPieceBytes, &data)));
    staging_ = static_cast<char*>(data);
  }
  while (pieces_.size() < kPieces) {
    Piece piece;
    MNEME_RETURN_IF_ERROR(DeviceStatus(runtime_->NewEvent(&piece.event)));
    pieces_.push_back(piece);
  }
  for (size_t tried = 0; tried < kPieces && pieces_[next_piece_].lost; ++tried)
    next_piece_ = (next_piece_ + 1) % kPieces;
  const size_t number = next_piece_;
  Piece& piece = pieces_[number];
  if (piece.lost) return absl::UnavailableError("device: no pinned memory is known to be free any more");
  if (piece.used && !runtime_->Done(piece.event)) {
    MNEME_RETURN_IF_ERROR(DeviceStatus(runtime_->Synchronise(piece.event)));
  }
  next_piece_ = (number + 1) % kPieces;
  char* const at = staging_ + static_cast<int64_t>(number) * kPieceBytes;
  fill(at);
  // What was queued before an error still reads the piece.
  absl::Status status = queue(at);
  const absl::Status recorded = DeviceStatus(runtime_->Record(piece.event, stream));
  piece.used = true;
  piece.lost = !recorded.ok();  // nothing tells any more when it is free
  status.Update(recorded);
  return status;
}

void Device::Failed(const absl::Status& status) {
  {
    MutexLock lock(&desks_mutex_);
    if (told_ == status.message()) return;
    told_ = std::string(status.message());
  }
  if (log_) log_(absl::StrCat(status.message(), "; the CPU answers instead"));
}

}  // namespace mneme
