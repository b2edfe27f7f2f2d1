// SPDX-License-Identifier: Apache-2.0
#include "memory/store_context.h"

#include <utility>

#include "absl/strings/str_cat.h"

#include "base/out_of_memory.h"
#include "base/status.h"
#include "memory/device/device.h"

namespace mneme {

StoreContext::StoreContext(std::unique_ptr<Database> database, const StoreOptions& options)
    : options_(options),
      database_(std::move(database)),
      own_executor_(options.executor != nullptr ? nullptr : MakeThreadPool(static_cast<size_t>(options.threads))),
      executor_(options.executor != nullptr ? options.executor : own_executor_.get()),
      segments_(database_.get(), std::make_shared<SegmentContext>(options.ram_budget_bytes, options.row_read_cost,
                                                                  options.database.log)) {}

absl::StatusOr<std::unique_ptr<StoreContext>> StoreContext::New(std::unique_ptr<Database> database,
                                                                const StoreOptions& options) {
  std::unique_ptr<StoreContext> context(new StoreContext(std::move(database), options));
  MNEME_RETURN_IF_ERROR(context->OpenDevice());
  if (options.background && context->writable()) context->background_ = std::make_unique<BackgroundThread>();
  return context;
}

StoreContext::~StoreContext() {
  background_.reset();
  if (writable()) segments_.FreeDropped(SegmentRegistry::Urgency::kNow);
}

absl::Status StoreContext::OpenDevice() {
  if (options_.device_budget_bytes <= 0) return absl::OkStatus();
  absl::StatusOr<std::shared_ptr<Device>> device =
      Device::Open(options_.device_ordinal, options_.device_budget_bytes, options_.database.log);
  if (device.ok()) {
    device_ = *std::move(device);
    return absl::OkStatus();
  }
  if (!absl::IsFailedPrecondition(device.status())) return device.status();
  Log(absl::StrCat("device_budget_bytes: ", device.status().message(), "; memories stay with the CPU"));
  return absl::OkStatus();
}

void StoreContext::Log(absl::string_view message) const noexcept {
  if (!options_.database.log) return;
  CatchExceptions("log", [&] {
    options_.database.log(message);
    return absl::OkStatus();
  }).IgnoreError();  // out of memory, or a host's callback that throws: the message is lost
}

absl::StatusOr<int64_t> StoreContext::BytesOverBudget(int64_t more_bytes) {
  MNEME_ASSIGN_OR_RETURN(const DatabaseStats stats, database_->Stats());
  return static_cast<int64_t>(stats.disk_bytes) + more_bytes - options_.disk_budget_bytes;
}

absl::Status StoreContext::CheckDiskBudget(int64_t more_bytes) {
  if (options_.disk_budget_bytes <= 0) return absl::OkStatus();
  MNEME_ASSIGN_OR_RETURN(int64_t over, BytesOverBudget(more_bytes));
  if (over <= 0) return absl::OkStatus();
  segments_.FreeDropped(SegmentRegistry::Urgency::kNow);
  MNEME_ASSIGN_OR_RETURN(over, BytesOverBudget(more_bytes));
  if (over <= 0) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("disk_budget_bytes: the commit would take the store to about ",
                                                   options_.disk_budget_bytes + over, " bytes, the budget is ",
                                                   options_.disk_budget_bytes));
}

}  // namespace mneme
