// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_CAPI_SRC_HOST_PROGRESS_H_
#define MNEME_CAPI_SRC_HOST_PROGRESS_H_

#include "base/floating_point.h"
#include "memory/store.h"
#include "mneme.h"

namespace mneme::capi {

// The host's progress callback as the engine calls it, in the host's own floating-point environment. Null for NULL.
inline Progress WrapProgress(mneme_progress_fn progress, void* context) {
  if (progress == nullptr) return nullptr;
  return [progress, context](int64_t done, int64_t total) {
    const HostFloatingPointScope environment;
    return progress(context, done, total) == 0;
  };
}

}  // namespace mneme::capi

#endif  // MNEME_CAPI_SRC_HOST_PROGRESS_H_
