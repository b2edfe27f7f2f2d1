// SPDX-License-Identifier: Apache-2.0
#include "memory/device/device.h"

#include <utility>

#include "absl/strings/str_cat.h"

#include "base/status.h"

namespace mneme {

Device::Device(int32_t ordinal, std::unique_ptr<cuda::Runtime> runtime, int64_t budget_bytes,
               std::function<void(absl::string_view)> log)
    : ordinal_(ordinal),
      runtime_(std::move(runtime)),
      row_budget_(budget_bytes - budget_bytes / 8),
      call_budget_(budget_bytes / 8),
      staging_(*runtime_),
      log_(std::move(log)) {}

absl::StatusOr<std::shared_ptr<Device>> Device::Open(int32_t ordinal, int64_t budget_bytes,
                                                     std::function<void(absl::string_view)> log) {
  const int32_t devices = cuda::DeviceCount();
  if (devices > 0 && (ordinal < 0 || ordinal >= devices)) {
    return absl::InvalidArgumentError(
        absl::StrCat("options.device_ordinal: expected 0 to ", devices - 1, ", the devices there are, got ", ordinal));
  }
  std::unique_ptr<cuda::Runtime> runtime;
  if (const std::string error = cuda::OpenRuntime(ordinal, &runtime); !error.empty()) {
    return absl::FailedPreconditionError(error);
  }
  return std::shared_ptr<Device>(new Device(ordinal, std::move(runtime), budget_bytes, std::move(log)));
}

Device::~Device() {
  MutexLock lock(&mutex_);
  contexts_.clear();
}

absl::StatusOr<std::unique_ptr<CallContext>> Device::BorrowContext() {
  {
    MutexLock lock(&mutex_);
    const bool must_reuse = contexts_.size() >= kMostBusyContexts;
    for (auto idle = contexts_.begin(); idle != contexts_.end(); ++idle) {
      if (idle->busy && must_reuse) MNEME_RETURN_IF_ERROR(DeviceStatus(runtime_->Synchronise(idle->context->event())));
      if (idle->busy && !must_reuse && !runtime_->Done(idle->context->event())) continue;
      std::unique_ptr<CallContext> context = std::move(idle->context);
      contexts_.erase(idle);
      return context;
    }
  }
  return CallContext::New(*runtime_, call_budget_);
}

void Device::ReturnContext(std::unique_ptr<CallContext> context, bool busy) {
  MutexLock lock(&mutex_);
  last_logged_.clear();
  contexts_.push_back({std::move(context), busy});
}

void Device::LogFailure(const absl::Status& status) {
  {
    MutexLock lock(&mutex_);
    if (last_logged_ == status.message()) return;
    last_logged_ = std::string(status.message());
  }
  if (log_) log_(absl::StrCat(status.message(), "; the CPU answers instead"));
}

}  // namespace mneme
