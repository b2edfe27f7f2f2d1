// SPDX-License-Identifier: Apache-2.0
#include "cli/store_handle.h"

#include <utility>

namespace mneme::cli {

StoreHandle::StoreHandle(const std::string& path, mneme_store_mode mode, Log log, int threads, bool create)
    : log_(std::move(log)) {
  mneme_store_options options = MNEME_STORE_OPTIONS_INIT;
  options.mode = mode;
  options.must_exist = create ? 0 : 1;
  options.threads = threads;
  options.log = [](void* context, mneme_log_level, const char* message) {
    static_cast<StoreHandle*>(context)->Tell(message);
  };
  options.log_context = this;
  const mneme_status status = mneme_store_open(path.c_str(), &options, &store_);
  std::vector<std::string> untold;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    opening_ = false;
    untold.swap(untold_);
  }
  // A refusal, such as that of a store with another writer, needs no more words than its own.
  if (mneme_status_classify(status) != MNEME_CLASS_CALLER) {
    for (const std::string& message : untold) log_(message);
  }
  Check(status);
}

void StoreHandle::Tell(const std::string& message) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (opening_) {
      untold_.push_back(message);
      return;
    }
  }
  log_(message);
}

StoreHandle::~StoreHandle() {
  mneme_store_close(store_);
}

std::vector<ListedMemory> StoreHandle::List() const {
  std::vector<ListedMemory> memories;
  const auto visit = [](void* context, const char* name, int64_t tokens, int64_t bytes) {
    static_cast<std::vector<ListedMemory>*>(context)->push_back({name, tokens, bytes});
    return 0;
  };
  Check(mneme_store_list(store_, visit, &memories));
  return memories;
}

mneme_store_stats StoreHandle::Stats() const {
  mneme_store_stats stats = MNEME_STORE_STATS_INIT;
  Check(mneme_store_get_stats(store_, &stats));
  return stats;
}

std::string StoreHandle::Metrics() const {
  std::string metrics;
  const auto append = [](void* context, const char* text, size_t size) {
    static_cast<std::string*>(context)->append(text, size);
  };
  Check(mneme_store_write_metrics(store_, append, &metrics));
  return metrics;
}

mneme_store_verify_report StoreHandle::Verify(mneme_progress_fn progress, void* context) const {
  mneme_store_verify_report report = MNEME_STORE_VERIFY_REPORT_INIT;
  Check(mneme_store_verify(store_, progress, context, &report));
  return report;
}

void StoreHandle::Drop(const std::vector<std::string>& names) {
  std::vector<const char*> pointers;
  pointers.reserve(names.size());
  for (const std::string& name : names) pointers.push_back(name.c_str());
  Check(mneme_memory_drop_many(store_, pointers.data(), pointers.size()));
}

void StoreHandle::Compact() {
  Check(mneme_store_compact(store_));
}

void StoreHandle::Close() {
  Check(mneme_store_close(store_));
  store_ = nullptr;
}

MemoryHandle::MemoryHandle(const StoreHandle& store, const std::string& name) {
  Check(mneme_memory_open(store.get(), name.c_str(), nullptr, &memory_));
}

MemoryHandle::~MemoryHandle() {
  mneme_memory_close(memory_);
}

mneme_memory_info MemoryHandle::Info() const {
  mneme_memory_info info = MNEME_MEMORY_INFO_INIT;
  Check(mneme_memory_get_info(memory_, &info));
  return info;
}

void MemoryHandle::Maintain(mneme_progress_fn progress, void* context) {
  Check(mneme_memory_maintain(memory_, progress, context));
}

void MemoryHandle::Evict(int64_t keep_tokens) {
  Check(mneme_memory_evict(memory_, keep_tokens));
}

void MemoryHandle::Close() {
  Check(mneme_memory_close(memory_));
  memory_ = nullptr;
}

}  // namespace mneme::cli
