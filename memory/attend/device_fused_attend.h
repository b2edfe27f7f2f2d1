// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_MEMORY_ATTEND_DEVICE_FUSED_ATTEND_H_
#define MNEME_MEMORY_ATTEND_DEVICE_FUSED_ATTEND_H_

#include "absl/status/statusor.h"

#include "memory/attend/device_launch.h"
#include "memory/attend/request.h"

namespace mneme {

// Search, local attention and fusion in two kernels, for a request whose tensors all lie on `device`. The calling
// thread waits only if the request has outputs in host memory (log_sum_exp, memory_mass, retrieved rows), or without a
// stream; then work that writes the tensors must have ended. A query with NaN gets outputs with NaN.
// Requires: CheckDeviceSupport(request, DevicePart::kAll). Returns: false if the device does not support a memory, or
// has no room; then no work was queued. Errors: Unavailable if the device failed.
absl::StatusOr<bool> DeviceFusedAttend(const AttendRequest& request, Device& device, const StreamChoice& choice);

}  // namespace mneme

#endif  // MNEME_MEMORY_ATTEND_DEVICE_FUSED_ATTEND_H_
