// SPDX-License-Identifier: Apache-2.0
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

#include "base/status.h"
#include "capi/src/boundary.h"
#include "capi/src/handles.h"
#include "capi/src/host_progress.h"
#include "capi/src/pending_handle.h"
#include "capi/src/structs.h"
#include "memory/exchange/export_memory.h"
#include "memory/exchange/import_memory.h"

namespace mneme::capi {
namespace {

absl::StatusOr<TensorWriter::Options> ReadExportArgs(const mneme_memory_export_args& args) {
  if (args.path == nullptr) return NullArgument("args.path");
  if (args.overwrite != 0 && args.overwrite != 1) {
    return absl::InvalidArgumentError(absl::StrCat("args.overwrite: expected 0 or 1, got ", args.overwrite));
  }
  if (args.max_file_bytes < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("args.max_file_bytes: expected 0 (the default) or more, got ", args.max_file_bytes));
  }
  return TensorWriter::Options{.path = args.path,
                               .overwrite = args.overwrite != 0,
                               .max_file_bytes = static_cast<uint64_t>(args.max_file_bytes)};
}

}  // namespace
}  // namespace mneme::capi

using namespace mneme;        // NOLINT: the entry points only
using namespace mneme::capi;  // NOLINT

extern "C" {

mneme_status mneme_memory_export(mneme_memory* memory, const mneme_memory_export_args* args) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<MemoryObject> object, FindHandle<MemoryObject>("memory", memory));
    MNEME_ASSIGN_OR_RETURN(const mneme_memory_export_args given, ReadStruct("args", args));
    MNEME_ASSIGN_OR_RETURN(const TensorWriter::Options options, ReadExportArgs(given));
    return ExportMemory(*object->memory, options, WrapProgress(given.progress, given.context));
  });
}

mneme_status mneme_memory_import(mneme_store* store, const mneme_memory_import_args* args, mneme_memory** memory) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<StoreObject> object, FindHandle<StoreObject>("store", store));
    MNEME_ASSIGN_OR_RETURN(const mneme_memory_import_args given, ReadStruct("args", args));
    if (given.path == nullptr) return NullArgument("args.path");
    std::shared_ptr<CardObject> expected;
    if (given.expected != nullptr) {
      MNEME_ASSIGN_OR_RETURN(expected, FindHandle<CardObject>("args.expected", given.expected));
    }
    if (memory == nullptr) return NullArgument("memory");
    MNEME_ASSIGN_OR_RETURN(const std::unique_ptr<MemoryImport> import,
                           MemoryImport::Open(&object->store->context(), given.path));
    const std::string name = given.name != nullptr ? std::string(given.name) : import->contents().name;
    PendingHandle handle(object, name);
    MNEME_ASSIGN_OR_RETURN(std::shared_ptr<Memory> imported,
                           object->store->ImportMemory(*import, name, expected != nullptr ? &expected->card : nullptr,
                                                       WrapProgress(given.progress, given.context)));
    *memory = handle.HandleOf(std::move(imported));
    return absl::OkStatus();
  });
}

}  // extern "C"
