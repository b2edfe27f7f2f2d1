// SPDX-License-Identifier: Apache-2.0
// The attention kernels for any CPU.
#define MNEME_LANES 4

#include "attention/local-inl.h"
#include "attention/local_backward-inl.h"
#include "attention/retrieved-inl.h"

namespace mneme {

const AttendKernels kPlainAttendKernels = {
    .name = "plain",
    .attend_local = &AttendLocalRows,
    .attend_retrieved = &AttendRetrievedRows,
    .attend_local_backward = &AttendLocalRowsBackward,
    .add_rows = &AddEncodedRows,
    .exp = &ExpOfAll,
};

}  // namespace mneme
