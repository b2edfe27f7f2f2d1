// SPDX-License-Identifier: Apache-2.0
#ifndef MNEME_CAPI_SRC_ATTEND_INPUTS_H_
#define MNEME_CAPI_SRC_ATTEND_INPUTS_H_

#include <memory_resource>
#include <vector>

#include "absl/status/status.h"

#include "capi/src/attend_args.h"
#include "capi/src/device_tensors.h"
#include "memory/attend/request.h"
#include "mneme.h"

namespace mneme::capi {

// What mneme_attend and mneme_attend_backward share of mneme_attend_args.

absl::Status CheckFusion(const mneme_attend_args& args);

// Checks inputs and rules and fills `request`, whose spans then point to `heads` and `sequences`. of_tensors: becomes
// the layer's card if the batch has no memory; the request's layer is this one then.
absl::Status ReadAttendInputs(const mneme_attend_args& args, const Batch& batch, LayerCard& of_tensors,
                              DeviceTensors& on_device, AttendRequest& request, std::pmr::vector<HeadRule>& heads,
                              std::pmr::vector<Sequence>& sequences);

}  // namespace mneme::capi

#endif  // MNEME_CAPI_SRC_ATTEND_INPUTS_H_
