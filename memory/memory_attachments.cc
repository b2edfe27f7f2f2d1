// SPDX-License-Identifier: Apache-2.0
// Attachments of a memory: bytes that the host keeps with it under a name.

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/status.h"
#include "memory/memory.h"

namespace mneme {
namespace {

constexpr size_t kMaxNameBytes = 255;
constexpr size_t kMaxAttachments = 1024;

// A reader meets a commit that replaces what it reads at most so often in a row.
constexpr int kMaxAttempts = 10;

absl::Status CheckAttachmentName(absl::string_view name) {
  if (!name.empty() && name.size() <= kMaxNameBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("name: expected 1 to ", kMaxNameBytes, " bytes, got ", name.size()));
}

}  // namespace

absl::StatusOr<Attachment> Memory::FindAttachment(absl::string_view name) const {
  MNEME_RETURN_IF_ERROR(CheckAttachmentName(name));
  const std::shared_ptr<const MemoryState> now = state();
  for (const Attachment& attachment : now->attachments) {
    if (attachment.ref.name == name) return attachment;
  }
  return absl::NotFoundError(absl::StrCat("memory \"", name_, "\" has no attachment \"", name, "\""));
}

absl::Status Memory::SetAttachment(absl::string_view name, std::optional<absl::string_view> bytes, int64_t tokens) {
  MNEME_RETURN_IF_ERROR(CheckAttachmentName(name));
  TryMutexLock lock(&mutator_);
  if (!lock.held()) return BusyError(name_);
  MNEME_RETURN_IF_ERROR(CheckWritable());
  const std::shared_ptr<const MemoryState> now = state();
  if (tokens < 0 || tokens > now->WholeEnd()) {
    return absl::OutOfRangeError(
        absl::StrCat("tokens: expected 0 to ", now->WholeEnd(), " (the next token), got ", tokens));
  }
  if (bytes && now->attachments.size() >= kMaxAttachments && !FindAttachment(name).ok()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("memory \"", name_, "\" has ", kMaxAttachments, " attachments, which is the most"));
  }
  Attachment added;
  if (bytes) {
    added.ref = {.name = std::string(name),
                 .id = store_->database().NewIndexId(),
                 .tokens = tokens,
                 .bytes = static_cast<uint64_t>(bytes->size())};
    added.bytes = std::make_shared<const std::string>(*bytes);
  }
  MutexLock state_lock(&state_mutex_);
  auto next = std::make_shared<MemoryState>(*state_);
  std::erase_if(next->attachments, [&](const Attachment& old) { return old.ref.name == name; });
  if (bytes) next->attachments.push_back(std::move(added));
  state_ = std::move(next);
  return absl::OkStatus();
}

absl::StatusOr<std::string> Memory::ReadAttachment(const Attachment& attachment) const {
  if (attachment.bytes != nullptr) return *attachment.bytes;
  absl::StatusOr<std::string> bytes = store_->database().GetAttachment(attachment.ref);
  if (bytes.ok()) return bytes;
  const absl::Status& status = bytes.status();
  const std::string what = absl::StrCat("attachment \"", attachment.ref.name, "\" of memory \"", name_, "\": ");
  if (!absl::IsNotFound(status)) return absl::Status(status.code(), absl::StrCat(what, status.message()));
  return store_->writable() ? absl::DataLossError(absl::StrCat(what, "its bytes are missing"))
                            : absl::UnavailableError(absl::StrCat(what,
                                                                  "the writer has replaced it; open the memory "
                                                                  "again"));
}

absl::StatusOr<std::pair<AttachmentRef, std::string>> Memory::GetAttachment(absl::string_view name) const {
  absl::Status status;
  IndexId tried = 0;
  for (int attempt = 0; attempt < kMaxAttempts; ++attempt) {
    MNEME_ASSIGN_OR_RETURN(Attachment found, FindAttachment(name));
    // Only another attachment in its place is worth another attempt.
    if (found.ref.id == tried) break;
    tried = found.ref.id;
    absl::StatusOr<std::string> bytes = ReadAttachment(found);
    if (bytes.ok()) return std::pair(std::move(found.ref), *std::move(bytes));
    status = bytes.status();
  }
  return status;
}

absl::StatusOr<AttachmentRef> Memory::DescribeAttachment(absl::string_view name) const {
  MNEME_ASSIGN_OR_RETURN(Attachment found, FindAttachment(name));
  return std::move(found.ref);
}

std::vector<AttachmentRef> Memory::Attachments() const {
  const std::shared_ptr<const MemoryState> now = state();
  std::vector<AttachmentRef> refs;
  for (const Attachment& attachment : now->attachments) refs.push_back(attachment.ref);
  std::sort(refs.begin(), refs.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return refs;
}

}  // namespace mneme
