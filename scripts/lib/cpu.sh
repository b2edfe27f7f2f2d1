# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by scripts/fetch-llama after common.sh: which build of llama.cpp this CPU runs.
#
# The variants are those that ggml itself builds for x86-64, least first, by its own names. The one with AMX is left out:
# gcc 12 drops the stores to a tile configuration, and a program built by it ends with "Illegal instruction".

# name: switches of ggml. What a switch needs of the CPU: switch_flags.
cpu_variants=(
  'x64:'
  'sse42: SSE42'
  'sandybridge: SSE42 AVX'
  'ivybridge: SSE42 AVX F16C'
  'haswell: SSE42 AVX F16C FMA AVX2 BMI2'
  'alderlake: SSE42 AVX F16C FMA AVX2 BMI2 AVX_VNNI'
  'skylakex: SSE42 AVX F16C FMA AVX2 BMI2 AVX512'
  'cascadelake: SSE42 AVX F16C FMA AVX2 BMI2 AVX512 AVX512_VNNI'
  'icelake: SSE42 AVX F16C FMA AVX2 BMI2 AVX512 AVX512_VBMI AVX512_VNNI'
  'zen4: SSE42 AVX F16C FMA AVX2 BMI2 AVX512 AVX512_VBMI AVX512_VNNI AVX512_BF16'
)
all_switches='SSE42 AVX F16C FMA AVX2 BMI2 AVX_VNNI AVX512 AVX512_VBMI AVX512_VNNI AVX512_BF16 AMX_TILE AMX_INT8 AMX_BF16'

# switch_flags SWITCH: the flags of /proc/cpuinfo that code built with it needs.
switch_flags() {
  case $1 in
    SSE42) echo sse4_2 ssse3 popcnt ;;
    AVX) echo avx ;;
    F16C) echo f16c ;;
    FMA) echo fma ;;
    AVX2) echo avx2 ;;
    BMI2) echo bmi2 ;;
    AVX_VNNI) echo avx_vnni ;;
    AVX512) echo avx512f avx512cd avx512vl avx512dq avx512bw ;;
    AVX512_VBMI) echo avx512vbmi ;;
    AVX512_VNNI) echo avx512_vnni ;;
    AVX512_BF16) echo avx512_bf16 ;;
    *) die "no switch of ggml: $1" ;;
  esac
}

# cpu_flags: this CPU's, on one line.
cpu_flags() { sed -n 's/^flags[[:space:]]*: //p' /proc/cpuinfo | head -n 1; }

# variant_switches NAME
variant_switches() {
  local variant
  for variant in "${cpu_variants[@]}"; do
    [[ ${variant%%:*} != "$1" ]] || { echo "${variant#*:}" && return; }
  done
  die "MNEME_LLAMA_CPU: expected one of ${cpu_variants[*]%%:*}, got $1"
}

# runs_variant NAME FLAGS: whether a CPU with these flags runs it.
runs_variant() {
  local switch flag
  for switch in $(variant_switches "$1"); do
    for flag in $(switch_flags "$switch"); do
      [[ " $2 " == *" $flag "* ]] || return 1
    done
  done
}

# runnable_variants FLAGS: the names, least first.
runnable_variants() {
  local variant
  for variant in "${cpu_variants[@]}"; do
    ! runs_variant "${variant%%:*}" "$1" || echo "${variant%%:*}"
  done
}

# variant_options NAME: CMake's options of ggml for it.
variant_options() {
  local switches switch
  switches=$(variant_switches "$1") || return
  for switch in $all_switches; do
    [[ " $switches " == *" $switch "* ]] && echo "-DGGML_$switch=ON" || echo "-DGGML_$switch=OFF"
  done
}
