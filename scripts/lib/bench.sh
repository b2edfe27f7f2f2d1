# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by scripts/bench after common.sh and python.sh: the run itself, in steps.

build=$MNEME_ROOT/build/release
out=$MNEME_ROOT/build/bench
model=SmolLM2-135M-Instruct.Q4_1.gguf

# Peers as wheels; hnswlib has none and is left out where it cannot be compiled.
ensure_peers() {
  local pip=$MNEME_VENV/bin/pip
  ensure_venv
  "$MNEME_VENV/bin/python" -c 'import faiss, usearch' 2>/dev/null ||
    quietly "$MNEME_DEPS/log/peers.log" "$pip" install numpy faiss-cpu usearch
  "$MNEME_VENV/bin/python" -c 'import hnswlib' 2>/dev/null ||
    "$pip" install hnswlib >"$MNEME_DEPS/log/hnswlib.log" 2>&1 ||
    note "hnswlib cannot be built here and is left out"
}

# llama.cpp's attention, its models' decode and recordings are measured where scripts/fetch-llama, -models and -text were.
build_bench() {
  local llama=()
  [[ -e $MNEME_DEPS/llama.cpp/build/bin/libllama.so ]] && llama=(-DMNEME_LLAMA_DIR="$MNEME_DEPS/llama.cpp")
  say "Building mneme"
  quietly "$MNEME_DEPS/log/bench-configure.log" cmake --preset release "${llama[@]}"
  local targets=(mneme mneme_micro_bench mneme_engine_bench mneme_peers_read)
  ((${#llama[@]} == 0)) || targets+=(mneme_peers_dense mneme-llama)
  counted "$MNEME_DEPS/log/bench-build.log" cmake --build "$build" --target "${targets[@]}"
  dense=()
  host=
  ((${#llama[@]} > 0)) || return 0
  dense=(--dense "$build/bench/peers/libmneme_peers_dense.so")
  if [[ -e $MNEME_DEPS/models/$model && -e $MNEME_DEPS/text/hol-light.txt ]]; then
    host=$build/hosts/llamacpp/mneme-llama
  fi
}

# llama COMMAND argument...: mneme-llama on the model and text.
llama() {
  "$host" "$1" --model "$MNEME_DEPS/models/$model" --text "$MNEME_DEPS/text/hol-light.txt" --threads 2 "${@:2}"
}

# Keys and queries of the model: an easy layer and a hard one (docs/design/scan.md). They are kept, as making them takes minutes;
# with --quick they are used if they are there.
record() {
  [[ -n $host ]] || return 0
  local recording=$out/recorded.bin
  if [[ ! -e $recording ]]; then
    ((${#quick[@]} == 0)) || return 0
    say "Recording keys and queries of a model"
    quietly "$out/record.log" llama record --layers 3,20 --tokens 32768 --queries 64 --output "$recording"
  fi
  recordings+=(--recording "$recording")
}

measure_peers() {
  quietly "$out/quality.log" "$MNEME_VENV/bin/python" "$MNEME_ROOT/bench/peers/quality_test.py"
  "$MNEME_VENV/bin/python" "$MNEME_ROOT/bench/peers/peers.py" --mneme "$build/capi/libmneme.so" \
    --read "$build/bench/peers/libmneme_peers_read.so" "${dense[@]}" "${quick[@]}" "${recordings[@]}" \
    --out "$out/peers.json"
  "$MNEME_VENV/bin/python" "$MNEME_ROOT/bench/peers/table.py" "$out/peers.json" "$out"
}

measure_alone() {
  local scan=BM_CodeScan engine='^(Attend|BulkCommit)'
  if ((${#quick[@]} > 0)); then
    scan='BM_CodeScan/rows:(4096|16384|65536)/queries:[0-9]/.*steady:0/'
    engine='^(AttendRecorded|Attend/N:(16384|65536)/G:(4|8)/d:128/.*queries:1/.*type:1/k:32/|Attend/N:8192/.*queries:512/|BulkCommit)'
  fi
  quietly "$out/scan.log" "$build/bench/micro/mneme_micro_bench" --benchmark_filter="$scan" \
    --benchmark_out="$out/scan.json" --benchmark_out_format=json
  local files=() i
  for ((i = 1; i < ${#recordings[@]}; i += 2)); do files+=("${recordings[i]}"); done
  quietly "$out/engine.log" "$build/bench/micro/mneme_engine_bench" --benchmark_filter="$engine" \
    --benchmark_out="$out/engine.json" --benchmark_out_format=json "${files[@]}"
}

# With --quick a short past: what the model reads first takes most of the time.
measure_model() {
  rm -f -- "$out/speed.json"
  [[ -n $host ]] || return 0
  local past=(--past 2048,8192,65536 --read 2048)
  ((${#quick[@]} == 0)) || past=(--past 2048,16384 --read 2048 --tokens 32)
  llama speed "${past[@]}" --json >"$out/speed.json"
}

tabulate() {
  python3 "$MNEME_ROOT/bench/micro/table.py" "$out"
  {
    printf '# mneme\n\n%s; load at the start: %s\n\n' \
      "$(date +%F), $(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1), $(nproc) cores" "$load"
    cat -- "$out/kernels.md"
    printf '\n# Beside others\n\n'
    cat -- "$out/peers.md"
  } >"$out/table.md"
}

# The lines' colours are those of Okabe and Ito, which colour-blind readers can tell apart; points and dashes differ, too.
draw() {
  gnuplot <<GNUPLOT
set terminal pngcairo size 1060,620 font "sans,12"
set linetype 1 linecolor rgb "#0072b2" linewidth 2 pointtype 5 pointsize 1.2 dashtype 1
set linetype 2 linecolor rgb "#d55e00" linewidth 2 pointtype 7 pointsize 1.2 dashtype 2
set linetype 3 linecolor rgb "#009e73" linewidth 2 pointtype 9 pointsize 1.4 dashtype 4
set linetype 4 linecolor rgb "#cc79a7" linewidth 2 pointtype 11 pointsize 1.4 dashtype 5
set linetype 5 linecolor rgb "#e69f00" linewidth 2 pointtype 13 pointsize 1.4 dashtype 3
set linetype 6 linecolor rgb "#56b4e9" linewidth 2 pointtype 6 pointsize 1.2 dashtype 1
set linetype 7 linecolor rgb "#000000" linewidth 2 pointtype 4 pointsize 1.2 dashtype 2
set linetype cycle 7
set grid
set key at screen 0.5, screen 0.02 bottom center Left reverse maxrows 3 samplen 5 spacing 1.2
set logscale x 2
set format x "%.0f"
set rmargin 5
set bmargin 9
set xlabel "rows per head"

set output "$out/peers.png"
set title "One decode step of a layer: 8 KV heads, d = 128, G = 4, k = 32, random keys"
set ylabel "best time, ms"
set logscale y
plot for [i = 0:5] "$out/peers.dat" index i using 1:2 with linespoints linetype i + 1 title columnheader(1)

set output "$out/kernels.png"
set title "Exact search from codes: 8 KV heads, d = 128, k = 32, random keys"
set ylabel "share of the machine's limit"
unset logscale y
set yrange [0:*]
plot for [i = 0:2] "$out/kernels.dat" index i using 1:2 with linespoints linetype i + 1 dashtype 1 \
       title columnheader(1).", reading", \
     for [i = 0:2] "$out/kernels.dat" index i using 1:3 with linespoints linetype i + 1 pointtype 4 + 2 * i dashtype 2 \
       title columnheader(1).", products"
GNUPLOT
}
