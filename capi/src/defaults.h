// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_CAPI_SRC_DEFAULTS_H_
#define MNEME_CAPI_SRC_DEFAULTS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "mneme.h"

namespace mneme::capi {

inline constexpr int64_t kDefaultTopK = 32;
inline constexpr int64_t kDefaultFileBytes = 5'000'000'000;  // as Hugging Face's libraries

// 1 / sqrt(key_dim): the scale where no card gives another.
inline float UsualScale(int64_t key_dim) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(key_dim)));
}

// Replaces zeros by the defaults that mneme.h promises. Structs that are not here have none but zero itself.

inline void SetDefaults(mneme_layer_desc& layer) {
  if (layer.scale == 0) layer.scale = UsualScale(std::max(1, layer.key_dim));
  if (layer.rotary_magnitude == 0) layer.rotary_magnitude = 1;
}

inline void SetDefaults(mneme_store_options& options) {
  if (options.threads == 0) options.threads = 1;
}

inline void SetDefaults(mneme_memory_options& options) {
  if (options.stored_dtype == MNEME_DTYPE_DEFAULT) options.stored_dtype = MNEME_DTYPE_F16;
}

inline void SetDefaults(mneme_attend_args& args) {
  if (args.position_policy == MNEME_POSITION_DEFAULT) args.position_policy = MNEME_POSITION_AS_STORED;
  if (args.default_top_k == 0) args.default_top_k = kDefaultTopK;
  if (args.decay_beyond == 0) args.decay_beyond = 1;
}

inline void SetDefaults(mneme_search_args& args) {
  if (args.position_policy == MNEME_POSITION_DEFAULT) args.position_policy = MNEME_POSITION_AS_STORED;
  if (args.top_k == 0) args.top_k = kDefaultTopK;
  if (args.decay_beyond == 0) args.decay_beyond = 1;
}

inline void SetDefaults(mneme_memory_export_args& args) {
  if (args.max_file_bytes == 0) args.max_file_bytes = kDefaultFileBytes;
}

inline void SetDefaults(mneme_attend_backward_args&) {}
inline void SetDefaults(mneme_memory_import_args&) {}
inline void SetDefaults(mneme_memory_append_args&) {}
inline void SetDefaults(mneme_memory_read_args&) {}
inline void SetDefaults(mneme_graph_update_args&) {}
inline void SetDefaults(mneme_merge_args&) {}
inline void SetDefaults(mneme_store_backup_args&) {}
inline void SetDefaults(mneme_store_restore_args&) {}

}  // namespace mneme::capi

#endif  // MNEME_CAPI_SRC_DEFAULTS_H_
