// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <limits>
#include <utility>

#include "base/floating_point.h"
#include "base/status.h"
#include "capi/src/handles.h"
#include "capi/src/host_executor.h"
#include "capi/src/host_progress.h"
#include "capi/src/metrics.h"
#include "capi/src/structs.h"
#include "memory/segment/segment_rows.h"

namespace mneme::capi {
namespace {

absl::Status ExpectFlag(absl::string_view name, int32_t value) {
  if (value == 0 || value == 1) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, ": expected 0 or 1, got ", value));
}

absl::Status CheckOptions(const mneme_store_options& options) {
  if (options.mode < MNEME_MODE_READ_WRITE || options.mode > MNEME_MODE_FOLLOW) {
    return absl::InvalidArgumentError(
        absl::StrCat("options.mode: expected a mneme_store_mode (0 to 2), got ", options.mode));
  }
  if (options.ram_budget_bytes < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("options.ram_budget_bytes: expected 0 or more, got ", options.ram_budget_bytes));
  }
  if (options.disk_budget_bytes < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("options.disk_budget_bytes: expected 0 or more, got ", options.disk_budget_bytes));
  }
  if (options.device_budget_bytes < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("options.device_budget_bytes: expected 0 or more, got ", options.device_budget_bytes));
  }
  if (options.device_ordinal < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("options.device_ordinal: expected 0 or more, got ", options.device_ordinal));
  }
  if (options.parallel_for != nullptr && (options.parallel_for_width < 1 || options.parallel_for_width > 4096)) {
    return absl::InvalidArgumentError(
        absl::StrCat("options.parallel_for_width: expected 1 to 4096, got ", options.parallel_for_width));
  }
  if (options.threads < 1 || options.threads > 1024) {
    return absl::InvalidArgumentError(absl::StrCat("options.threads: expected 0 to 1024, got ", options.threads));
  }
  absl::Status flags[] = {ExpectFlag("options.must_exist", options.must_exist),
                          ExpectFlag("options.background", options.background),
                          ExpectFlag("options.ignore_index_blobs", options.ignore_index_blobs),
                          ExpectFlag("options.measure_latency", options.measure_latency)};
  for (const absl::Status& flag : flags) {
    if (!flag.ok()) return flag;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<StoreObject>> OpenStore(const std::string& path, const mneme_store_options& given) {
  MNEME_RETURN_IF_ERROR(CheckOptions(given));
  auto object = std::make_shared<StoreObject>();
  object->inner_executor = given.parallel_for != nullptr
                               ? MakeHostExecutor(given.parallel_for, given.parallel_for_context,
                                                  static_cast<size_t>(given.parallel_for_width))
                               : MakeThreadPool(static_cast<size_t>(given.threads));
  object->executor = MakeCatchingExecutor(*object->inner_executor);
  if (given.measure_latency != 0) object->latencies = std::make_unique<CallLatencies>();

  StoreOptions options;
  options.executor = object->executor.get();
  options.background = given.background != 0;
  options.ignore_index_blobs = given.ignore_index_blobs != 0;
  options.ram_budget_bytes = static_cast<size_t>(given.ram_budget_bytes);
  options.disk_budget_bytes = given.disk_budget_bytes;
  options.device_ordinal = given.device_ordinal;
  options.device_budget_bytes = given.device_budget_bytes;
  options.database.create_if_missing = given.must_exist == 0;
  options.database.mode = given.mode == MNEME_MODE_READ_WRITE  ? DatabaseOptions::Mode::kReadWrite
                          : given.mode == MNEME_MODE_READ_ONLY ? DatabaseOptions::Mode::kReadOnly
                                                               : DatabaseOptions::Mode::kFollow;
  if (given.log != nullptr) {
    options.database.log = [log = given.log, context = given.log_context](absl::string_view message) {
      const HostFloatingPointScope environment;
      log(context, MNEME_LOG_WARNING, std::string(message).c_str());
    };
  }
  MNEME_ASSIGN_OR_RETURN(object->store, Store::Open(path, options));
  return object;
}

}  // namespace
}  // namespace mneme::capi

extern "C" {

using namespace mneme;        // NOLINT: the entry points only
using namespace mneme::capi;  // NOLINT

mneme_status mneme_store_open(const char* path, const mneme_store_options* options, mneme_store** store) {
  return Guard([&]() -> absl::Status {
    if (path == nullptr) return NullArgument("path");
    if (store == nullptr) return NullArgument("store");
    const mneme_store_options none = MNEME_STORE_OPTIONS_INIT;
    MNEME_ASSIGN_OR_RETURN(const mneme_store_options given,
                           ReadStruct("options", options != nullptr ? options : &none));
    if (*path == '\0') return absl::InvalidArgumentError("path: expected the path of a folder, got an empty string");
    MNEME_ASSIGN_OR_RETURN(std::shared_ptr<StoreObject> object, OpenStore(path, given));
    *store = NewHandle(std::move(object));
    return absl::OkStatus();
  });
}

mneme_status mneme_store_close(mneme_store* store) {
  if (store == nullptr) return MNEME_OK;
  return Guard([&]() -> absl::Status {
    {
      MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<StoreObject> object, FindHandle<StoreObject>("store", store));
      if (const int graphs = object->graphs; graphs > 0) {
        return absl::FailedPreconditionError(absl::StrCat(
            "store: expected its graphs to be released (mneme_graph_release), got ", graphs, " that are not"));
      }
      if (const int snapshots = object->snapshots; snapshots > 0) {
        return absl::FailedPreconditionError(absl::StrCat(
            "store: expected its snapshots to be released (mneme_snapshot_release), got ", snapshots, " that are not"));
      }
      MNEME_RETURN_IF_ERROR(object->store->Close());
    }
    return RemoveHandle<StoreObject>("store", store);
  });
}

mneme_status mneme_store_list(mneme_store* store, mneme_memory_visitor_fn visitor, void* context) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<StoreObject> object, FindHandle<StoreObject>("store", store));
    if (visitor == nullptr) return NullArgument("visitor");
    return object->store->List([&](const std::string& name, const MemoryManifest& manifest) {
      MemoryState state;
      state.pinned_tokens = manifest.options.pinned_tokens;
      state.first_kept = manifest.first_kept;
      const int64_t end = manifest.segments.empty()
                              ? manifest.first_kept
                              : manifest.segments.back().first_token + manifest.segments.back().rows;
      const int64_t tokens = state.HeldBelow(end);
      const HostFloatingPointScope environment;
      return visitor(context, name.c_str(), tokens,
                     tokens * TokenBytes(manifest.card, manifest.options.stored_dtype)) == 0;
    });
  });
}

mneme_status mneme_store_verify(mneme_store* store, mneme_progress_fn progress, void* context,
                                mneme_store_verify_report* report) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<StoreObject> object, FindHandle<StoreObject>("store", store));
    if (report == nullptr) return NullArgument("report");
    MNEME_RETURN_IF_ERROR(CheckStructSize("report", report->struct_size));
    VerifyReport found;
    MNEME_RETURN_IF_ERROR(object->store->Verify(WrapProgress(progress, context), &found));
    mneme_store_verify_report result = MNEME_STORE_VERIFY_REPORT_INIT;
    result.memories = found.memories;
    result.damaged_memories = found.damaged_memories;
    result.damaged_values = found.damaged_values;
    result.damaged_indexes = found.damaged_indexes;
    result.bytes_read = found.bytes_read;
    return WriteStruct("report", result, report);
  });
}

mneme_status mneme_store_compact(mneme_store* store) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<StoreObject> object, FindHandle<StoreObject>("store", store));
    return object->store->Compact();
  });
}

mneme_status mneme_store_get_stats(mneme_store* store, mneme_store_stats* stats) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<StoreObject> object, FindHandle<StoreObject>("store", store));
    if (stats == nullptr) return NullArgument("stats");
    MNEME_ASSIGN_OR_RETURN(const StoreStats found, object->store->Stats());
    return WriteStruct("stats", StatsStruct(found), stats);
  });
}

mneme_status mneme_store_write_metrics(mneme_store* store, mneme_text_fn write, void* context) {
  return Guard([&]() -> absl::Status {
    MNEME_ASSIGN_OR_RETURN(const std::shared_ptr<StoreObject> object, FindHandle<StoreObject>("store", store));
    if (write == nullptr) return NullArgument("write");
    MNEME_ASSIGN_OR_RETURN(const StoreStats found, object->store->Stats());
    const std::string text = PrometheusText(StatsStruct(found), object->latencies.get());
    const HostFloatingPointScope environment;
    write(context, text.c_str(), text.size());
    return absl::OkStatus();
  });
}

}  // extern "C"
