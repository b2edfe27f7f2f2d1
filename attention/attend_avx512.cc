// SPDX-License-Identifier: Apache-2.0
// The attention kernels for x86-64 CPUs with AVX-512 F, BW, VL and DQ.
#define MNEME_LANES 16

#include "attention/local-inl.h"
#include "attention/local_backward-inl.h"
#include "attention/retrieved-inl.h"

namespace mneme {

const AttendKernels kAvx512AttendKernels = {
    .name = "avx512",
    .attend_local = &AttendLocalRows,
    .attend_retrieved = &AttendRetrievedRows,
    .attend_local_backward = &AttendLocalRowsBackward,
    .add_rows = &AddEncodedRows,
    .exp = &ExpOfAll,
};

}  // namespace mneme
