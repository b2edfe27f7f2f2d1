// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_CAPI_SRC_PENDING_HANDLE_H_
#define MNEME_CAPI_SRC_PENDING_HANDLE_H_

#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "capi/src/boundary.h"
#include "capi/src/handles.h"
#include "memory/memory.h"

namespace mneme::capi {

inline absl::StatusOr<std::string> ReadName(absl::string_view field, const char* name) {
  if (name == nullptr) return NullArgument(field);
  return std::string(name);  // Store checks the length
}

// All that the handle of a memory takes, before the memory is made or opened: what comes after that cannot fail.
class PendingHandle {
 public:
  PendingHandle(std::shared_ptr<StoreObject> store, const std::string& name)
      : object_(std::make_shared<MemoryObject>(MemoryObject{std::move(store), nullptr})) {
    StoreObject::OpenedMemories one;
    one[name];
    entry_ = one.extract(one.begin());
  }

  // The one handle of `memory`, counted.
  mneme_memory* HandleOf(std::shared_ptr<Memory> memory) noexcept {
    StoreObject& store = *object_->store;
    MutexLock lock(&store.mutex);
    StoreObject::Opened& opened = store.opened.insert(std::move(entry_)).position->second;
    if (opened.count++ > 0) return opened.handle;
    object_->memory = std::move(memory);
    return opened.handle = place_.Fill(std::move(object_));
  }

 private:
  ReservedHandle<MemoryObject> place_;
  std::shared_ptr<MemoryObject> object_;
  StoreObject::OpenedMemories::node_type entry_;
};

}  // namespace mneme::capi

#endif  // MNEME_CAPI_SRC_PENDING_HANDLE_H_
