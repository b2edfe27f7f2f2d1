# shellcheck shell=bash
# Sourced by scripts/bench after common.sh and python.sh: the run itself, in steps.

build=$MNEME_ROOT/build/release
out=$MNEME_ROOT/build/bench

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

build_bench() {
  local llama=()
  [[ -e $MNEME_DEPS/llama.cpp/build/bin/libllama.so ]] && llama=(-DMNEME_LLAMA_DIR="$MNEME_DEPS/llama.cpp")
  say "Building mneme"
  quietly "$MNEME_DEPS/log/bench-configure.log" cmake --preset release "${llama[@]}"
  local targets=(mneme mneme_micro_bench mneme_engine_bench mneme_peers_read)
  ((${#llama[@]} == 0)) || targets+=(mneme_peers_dense)
  quietly "$MNEME_DEPS/log/bench-build.log" cmake --build "$build" --target "${targets[@]}"
  dense=()
  ((${#llama[@]} == 0)) || dense=(--dense "$build/bench/peers/libmneme_peers_dense.so")
}

measure_peers() {
  "$MNEME_VENV/bin/python" "$MNEME_ROOT/bench/peers/peers.py" --mneme "$build/capi/libmneme.so" \
    --read "$build/bench/peers/libmneme_peers_read.so" "${dense[@]}" "${quick[@]}" "${recordings[@]}" \
    --out "$out/peers.json"
  "$MNEME_VENV/bin/python" "$MNEME_ROOT/bench/peers/table.py" "$out/peers.json" "$out"
}

measure_alone() {
  local scan=BM_CertifiedScan engine=^Attend
  if ((${#quick[@]} > 0)); then
    scan='BM_CertifiedScan/rows:65536/queries:(4|8)/dim:128/.*steady:0/k:32/'
    engine='^Attend/N:65536/G:(4|8)/d:128/.*queries:1/like:0/'
  fi
  quietly "$out/scan.log" "$build/bench/micro/mneme_micro_bench" --benchmark_filter="$scan" \
    --benchmark_out="$out/scan.json" --benchmark_out_format=json
  quietly "$out/engine.log" "$build/bench/micro/mneme_engine_bench" --benchmark_filter="$engine" \
    --benchmark_out="$out/engine.json" --benchmark_out_format=json
  note "scan.json, engine.json"
}

draw() {
  gnuplot <<GNUPLOT
set terminal pngcairo size 900,560 font "sans,12"
set output "$out/peers.png"
set title "One decode step of a layer: 8 KV heads, d = 128, G = 4, k = 32, random keys"
set xlabel "rows a head"
set ylabel "best time, ms"
set logscale x 2
set logscale y
set grid
set key left top
plot for [i = 0:5] "$out/peers.dat" index i using 1:2 with linespoints linewidth 2 title columnheader(1)
GNUPLOT
}
