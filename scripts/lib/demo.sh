# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by scripts/demo after common.sh: the run itself, in steps.

mneme_llama=$MNEME_ROOT/build/release/hosts/llamacpp/mneme-llama
model=$MNEME_DEPS/models/SmolLM2-135M-Instruct.Q4_1.gguf
text=$MNEME_DEPS/text/hol-light.txt
out=$MNEME_ROOT/build/demo
store=$out/store
ingested=8704 # 8,192 tokens of memory and the block that the local window keeps
scored=2048
sizes=(16 2048 8192)

input=(--model "$model" --text "$text" --bytes 700000 --last $((ingested + scored)))

# llama COMMAND argument...: mneme-llama on the demo's model and text.
llama() {
  local command=$1 status=0
  shift
  "$mneme_llama" "$command" "${input[@]}" "$@" || status=$?
  ((status == 0)) || explain_end "$command" "$status"
}

# explain_end COMMAND STATUS: ends the demo with a sentence that says what to do.
explain_end() {
  local what="mneme-llama $1"
  ((${2} > 128)) || die "$what failed with status $2; its message stands above"
  case $(kill -l $(($2 - 128))) in
    ILL) die "$what was ended by SIGILL: llama.cpp was built for another CPU. Remove $MNEME_DEPS/llama.cpp/build and run" \
      "scripts/demo again; if that does not help, build plain code by MNEME_LLAMA_CPU=x64 scripts/demo" ;;
    KILL) die "$what was ended by SIGKILL: most likely memory ran out. The demo takes 2 GB; free some and run it again" ;;
    INT | TERM) die "$what was interrupted; scripts/demo begins anew when it is run again" ;;
    *) die "$what was ended by SIG$(kill -l $(($2 - 128))). That is a fault of mneme or of llama.cpp: please report it with" \
      "the lines above and the first lines of /proc/cpuinfo" ;;
  esac
}

# json_field FILE EXPRESSION: evaluates a Python expression over `d`, the document in FILE.
json_field() {
  python3 - "$1" "$2" <<'PY'
import json, sys

with open(sys.argv[1]) as file:
    d = json.load(file)
print(eval(sys.argv[2], {"d": d}))
PY
}

# Takes the same text into one memory for every size: what a model computes depends on what it could remember meanwhile.
ingest_all() {
  local size
  for size in "${sizes[@]}"; do
    llama ingest --store "$store" --memory "memory-$size" --memory-tokens "$size" --tokens "$ingested"
  done
}

# In a new process, scores the text that follows with each of the memories.
score_all() {
  local names
  names=$(printf ',memory-%s' "${sizes[@]}")
  llama perplexity --store "$store" --memories "${names:1}" --score "$scored" --json >"$out/perplexity.json"
  python3 - "$out/perplexity.json" "$out/perplexity.dat" <<'PY'
import json, sys

with open(sys.argv[1]) as file:
    rows = json.load(file)
print(f"   {'memory':<28}{'scored':>8}{'nats/token':>14}{'perplexity':>12}")
with open(sys.argv[2], "w") as data:
    for row in rows:
        tokens = row["tokens"]
        name = f"{tokens:,} tokens" if tokens > 16 else f"first {tokens} tokens (baseline)"
        print(f"   {name:<28}{row['scored']:>8}{row['nll']:>14.4f}{row['perplexity']:>12.2f}")
        print(tokens, row["perplexity"], file=data)
PY
}

draw() {
  gnuplot <<GNUPLOT
set terminal pngcairo size 900,560 font "sans,12"
set output "$out/perplexity.png"
set title "SmolLM2-135M on HOL Light: perplexity of $scored tokens against memory"
set xlabel "tokens in memory, beyond a window of 512 to 1,024"
set ylabel "perplexity"
set logscale x 2
set xtics ("16 (sinks only)" 16, "2,048" 2048, "8,192" 8192)
set xrange [8:16384]
stats "$out/perplexity.dat" using 2 nooutput
set yrange [0:1.15 * STATS_max]
set grid
set key off
plot "$out/perplexity.dat" using 1:2 with linespoints linewidth 2 linecolor rgb "#0072b2" pointtype 7 pointsize 1.5, \
     "$out/perplexity.dat" using 1:2:(sprintf("%.2f", \$2)) with labels left offset 0.8,0.8
GNUPLOT
}

# ended_early PROCESS: of the process that was to be killed.
ended_early() {
  local status=0
  wait "$1" || status=$?
  tail -n 20 -- "$out/killed.log" >&2
  ((status == 0)) || explain_end ingest "$status"
  die "the process to be killed took all of the text in before it could be; its output: $out/killed.log"
}

# Kills a process that is taking text in, once it has acknowledged some commits, and shows that what it acknowledged is
# there, token by token, and undamaged.
kill_and_look() {
  local acknowledged=$out/acknowledged process last found
  rm -rf -- "$acknowledged" "$store.killed"
  : >"$acknowledged"
  # Not by the function above: the signal is for the program, not for a shell around it.
  "$mneme_llama" ingest "${input[@]}" --store "$store.killed" --memory killed --ack-file "$acknowledged" \
    >"$out/killed.log" 2>&1 &
  process=$!
  while (($(wc -l <"$acknowledged") < 2)); do
    kill -0 "$process" 2>/dev/null || ended_early "$process"
    sleep 0.05
  done
  kill -KILL "$process"
  wait "$process" 2>/dev/null || true
  last=$(tail -n 1 -- "$acknowledged")
  note "killed with SIGKILL after it had acknowledged $last tokens"
  llama check --store "$store.killed" --memory killed --json >"$out/check.json"
  found=$(json_field "$out/check.json" 'd["next_token"]')
  note "reopened: $found tokens are there, each the one of the text," \
    "$(json_field "$out/check.json" 'd["damaged_values"]') values damaged"
  ((found >= last)) || die "tokens were lost: $last were acknowledged, $found are there"
}

# What the adapter costs while there is nothing to retrieve, and what appending and committing cost.
measure_cost() {
  llama overhead --rounds 3 --json >"$out/overhead.json"
  python3 - "$out/overhead.json" <<'PY'
import json, sys

with open(sys.argv[1]) as file:
    d = json.load(file)
print(f"   {'while the memory is empty':<34}{'model alone':>12}{'with mneme':>12}{'cost':>8}{'allowed':>9}")
def row(name, model, adapter, share, allowed):
    print(f"   {name:<34}{model:>12}{adapter:>12}{share:>8.1%}{allowed:>9.0%}")
row(f"a block of {d['block_tokens']} tokens", f"{d['model_block_seconds'] * 1e3:.0f} ms",
    f"{d['adapter_block_seconds'] * 1e3:.0f} ms", d["adapter_block_fraction"], 0.15)
row("one token", f"{d['model_token_seconds'] * 1e3:.2f} ms", f"{d['adapter_token_seconds'] * 1e3:.2f} ms",
    d["adapter_token_fraction"], 0.15)
row("append and commit of the block", "", f"{d['append_commit_block_seconds'] * 1e3:.0f} ms",
    d["append_commit_fraction"], 0.05)
PY
}
