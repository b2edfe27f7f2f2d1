// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <string>

#include "nlohmann/json.hpp"

#include "cli/commands.h"
#include "cli/format.h"
#include "cli/store_handle.h"

namespace mneme::cli {
namespace {

std::string DtypeName(int32_t dtype) {
  switch (dtype) {
    case MNEME_DTYPE_F32: return "f32";
    case MNEME_DTYPE_F16: return "f16";
    case MNEME_DTYPE_BF16: return "bf16";
    case MNEME_DTYPE_I8: return "i8";
    default: return "dtype " + std::to_string(dtype);
  }
}

void PrintInfoJson(const std::string& name, const mneme_memory_info& info) {
  PrintJson({{"name", name},
             {"model_name", info.model_name},
             {"weights_fingerprint", info.weights_fingerprint},
             {"layers", info.layers},
             {"stored_dtype", DtypeName(info.stored_dtype)},
             {"keys_rotated", info.keys_rotated != 0},
             {"normalise_keys", info.normalise_keys != 0},
             {"next_token", info.next_token},
             {"tokens", info.tokens},
             {"first_kept", info.first_kept},
             {"pinned_tokens", info.pinned_tokens},
             {"max_tokens", info.max_tokens},
             {"bytes", info.bytes},
             {"segments", info.segments},
             {"segment_tokens", info.segment_tokens},
             {"tail_tokens", info.tail_tokens},
             {"index", info.index},
             {"indexes", info.indexes}});
}

void PrintInfo(const std::string& name, const mneme_memory_info& info) {
  Table table({Table::Align::kLeft, Table::Align::kLeft});
  table.Add({"name", EscapeName(name)});
  table.Add({"model", EscapeName(info.model_name)});
  table.Add({"weights", EscapeName(info.weights_fingerprint)});
  table.Add({"layers", HumanCount(info.layers)});
  table.Add({"stored as", DtypeName(info.stored_dtype) + ", keys " + (info.keys_rotated ? "rotated" : "not rotated") +
                              (info.normalise_keys ? ", normalised" : "")});
  table.Add({"tokens", HumanCount(info.tokens)});
  if (info.first_kept > info.pinned_tokens) {
    table.Add({"evicted", Counted(info.first_kept - info.pinned_tokens, "token", "tokens") + " before token " +
                              HumanCount(info.first_kept)});
  }
  if (info.pinned_tokens > 0) table.Add({"pinned", "the first " + Counted(info.pinned_tokens, "token", "tokens")});
  table.Add({"bound", info.max_tokens > 0 ? Counted(info.max_tokens, "token", "tokens") : "none"});
  table.Add({"size", HumanBytes(info.bytes)});
  table.Add({"segments", HumanCount(info.segments) + ", and a tail of " + Counted(info.tail_tokens, "token", "tokens") +
                             " (sealed at " + HumanCount(info.segment_tokens) + ")"});
  table.Add({"index",
             EscapeName(info.index) + (info.indexes > 0 ? ", over " + Counted(info.indexes, "range", "ranges") : "")});
  std::fputs(table.ToString().c_str(), stdout);
}

}  // namespace

int Info(const Arguments& arguments, Console& console) {
  const StoreHandle store(arguments.store, MNEME_MODE_READ_ONLY,
                          [&](const std::string& text) { console.Message(text); });
  const MemoryHandle memory(store, arguments.name);
  const mneme_memory_info info = memory.Info();
  if (arguments.json) {
    PrintInfoJson(arguments.name, info);
  } else {
    PrintInfo(arguments.name, info);
  }
  return kExitOk;
}

}  // namespace mneme::cli
