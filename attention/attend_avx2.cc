// SPDX-License-Identifier: Apache-2.0
// The attention kernels for x86-64 CPUs with AVX2, FMA and F16C.
#define MNEME_LANES 8

#include "attention/local-inl.h"
#include "attention/local_backward-inl.h"
#include "attention/retrieved-inl.h"

namespace mneme {

const AttendKernels kAvx2AttendKernels = {
    .name = "avx2",
    .attend_local = &AttendLocalRows,
    .attend_retrieved = &AttendRetrievedRows,
    .attend_local_backward = &AttendLocalRowsBackward,
    .add_rows = &AddEncodedRows,
    .exp = &ExpOfAll,
};

}  // namespace mneme
