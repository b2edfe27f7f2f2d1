// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/floating_point.h"
#include "base/status.h"
#include "capi/src/boundary.h"
#include "capi/src/handles.h"

namespace mneme::capi {
namespace {

constexpr size_t kMaxBytes = size_t{1} << 30;

absl::StatusOr<std::string> ReadName(const char* name) {
  if (name == nullptr) return NullArgument("name");
  return std::string(name);  // Memory checks the length
}

}  // namespace
}  // namespace mneme::capi

using namespace mneme;        // NOLINT: the entry points only
using namespace mneme::capi;  // NOLINT

extern "C" {

mneme_status mneme_memory_set_attachment(mneme_memory* memory, const char* name, const void* bytes, size_t size,
                                         int64_t tokens) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<MemoryObject> object, FindHandle<MemoryObject>("memory", memory));
    MNEME_ASSIGN_OR_RETURN(const std::string text, ReadName(name));
    if (size > kMaxBytes) {
      return absl::InvalidArgumentError(absl::StrCat("size: expected at most ", kMaxBytes, " bytes, got ", size));
    }
    std::optional<absl::string_view> given;
    if (bytes != nullptr) given.emplace(static_cast<const char*>(bytes), size);
    if (bytes == nullptr && size > 0) {
      return absl::InvalidArgumentError(absl::StrCat("bytes: expected ", size, " (size), got NULL"));
    }
    return object->memory->SetAttachment(text, given, tokens);
  });
}

mneme_status mneme_memory_get_attachment(mneme_memory* memory, const char* name, void* bytes, size_t capacity,
                                         size_t* size, int64_t* tokens) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<MemoryObject> object, FindHandle<MemoryObject>("memory", memory));
    MNEME_ASSIGN_OR_RETURN(const std::string text, ReadName(name));
    const auto describe = [&](const AttachmentRef& ref) {
      if (size != nullptr) *size = ref.bytes;
      if (tokens != nullptr) *tokens = ref.tokens;
    };
    if (bytes == nullptr) {
      MNEME_ASSIGN_OR_RETURN(const AttachmentRef ref, object->memory->DescribeAttachment(text));
      describe(ref);
      return absl::OkStatus();
    }
    MNEME_ASSIGN_OR_RETURN(const auto found, object->memory->GetAttachment(text));
    describe(found.first);
    if (found.second.size() > capacity) {
      return absl::InvalidArgumentError(absl::StrCat("capacity: expected at least ", found.second.size(),
                                                     " (the attachment's bytes), got ", capacity));
    }
    std::memcpy(bytes, found.second.data(), found.second.size());
    return absl::OkStatus();
  });
}

mneme_status mneme_memory_list_attachments(mneme_memory* memory, mneme_attachment_visitor_fn visitor, void* context) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<MemoryObject> object, FindHandle<MemoryObject>("memory", memory));
    if (visitor == nullptr) return NullArgument("visitor");
    for (const AttachmentRef& ref : object->memory->Attachments()) {
      const HostFloatingPointScope environment;
      if (visitor(context, ref.name.c_str(), ref.bytes, ref.tokens) != 0) break;
    }
    return absl::OkStatus();
  });
}

}  // extern "C"
