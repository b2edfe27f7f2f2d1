#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Which build of llama.cpp is made for which CPU (scripts/lib/cpu.sh).
set -euo pipefail
# shellcheck source=../../scripts/lib/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../../scripts/lib/common.sh"
# shellcheck source=../../scripts/lib/cpu.sh
source "$MNEME_ROOT/scripts/lib/cpu.sh"

# expect WHAT EXPECTED ACTUAL
failed=0
expect() {
  [[ $2 == "$3" ]] || { echo "$1: expected '$2', got '$3'" && failed=1; }
}
best() { runnable_variants "$1" | tail -n 1; }

plain='fpu sse sse2 cx16'
sse="$plain ssse3 sse4_1 sse4_2 popcnt"
avx2="$sse avx f16c fma avx2 bmi1 bmi2"
avx512="$avx2 avx512f avx512dq avx512cd avx512bw avx512vl"
expect 'a first x86-64' x64 "$(best "$plain")"
expect 'Nehalem' sse42 "$(best "$sse")"
expect 'Sandy Bridge' sandybridge "$(best "$sse avx")"
expect 'Haswell, Zen 3' haswell "$(best "$avx2")"
expect 'Alder Lake' alderlake "$(best "$avx2 avx_vnni")"
expect 'Skylake server' skylakex "$(best "$avx512")"
expect 'Ice Lake' icelake "$(best "$avx512 avx512vbmi avx512_vnni")"
expect 'Zen 4' zen4 "$(best "$avx512 avx512vbmi avx512_vnni avx512_bf16")"
expect 'Sapphire Rapids' zen4 "$(best "$avx512 avx512vbmi avx512_vnni avx512_bf16 avx_vnni amx_bf16 amx_tile amx_int8")"
# A flag's name within another's is not that flag.
expect 'no AVX' sse42 "$(best "$sse avx_vnni notavx")"

for variant in $(runnable_variants "$avx512 avx512vbmi avx512_vnni avx512_bf16 avx_vnni amx_tile amx_int8"); do
  options=$(variant_options "$variant")
  expect "AMX in $variant" 3 "$(grep -c -E '^-DGGML_AMX_[A-Z0-9]+=OFF$' <<<"$options")"
  expect "switches of $variant" 14 "$(grep -c -E '^-DGGML_[A-Z0-9_]+=(ON|OFF)$' <<<"$options")"
done
expect 'AVX2 of haswell' -DGGML_AVX2=ON "$(variant_options haswell | grep _AVX2=)"
expect 'AVX512 of haswell' -DGGML_AVX512=OFF "$(variant_options haswell | grep _AVX512=)"
if (variant_options sapphirerapids) >/dev/null 2>&1; then expect 'a name that is none' refused taken; fi
exit "$failed"
