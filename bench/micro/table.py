#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""table.py FOLDER: makes of what the benchmarks wrote there (scan.json, engine.json; speed.json of `mneme-llama speed`
where it is) FOLDER/kernels.md, and for gnuplot FOLDER/kernels.dat: the share of read bandwidth and of the dot-product
peak by rows, one block for each G."""

import json
import os
import re
import sys

TYPES = {0: "f32", 1: "f16", 2: "bf16", 3: "i8"}  # DType; mneme_dtype counts from 1


def benchmarks_of(path):
    """[(name without arguments, {argument: number}, counters)]; repetitions that failed are left out."""
    with open(path) as file:
        runs = json.load(file)["benchmarks"]
    for run in runs:
        if not run.get("error_occurred"):
            name = run["name"].split("/")[0]
            yield name, {key: int(value) for key, value in re.findall(r"/(\w+):(-?\d+)", run["name"])}, run


def share(run, name):
    """Where the machine has no figure to compare with, a run has no share of it."""
    return f"{run[name]:.2f}" if name in run else "–"


def machine_of(scans):
    most = max(a["rows"] * a["dim"] for _, a, _ in scans)
    far = max(run["read_GB/s"] for _, a, run in scans if a["rows"] * a["dim"] == most)
    near = max(run["read_GB/s"] for _, _, run in scans)
    peaks = [run["peak_GMAC/s"] for _, _, run in scans if "peak_GMAC/s" in run]
    threads = max(arguments["threads"] for _, arguments, _ in scans)
    peak = f"{max(peaks):.0f} billion products of bytes a second" if peaks else "no figure for products of bytes"
    return (f"The machine, {threads} threads: reads the keys of the greatest case at {far:.1f} GB/s, those of the fastest at "
            f"{near:.1f}; {peak} with all operands in the first-level cache.")


def scan_lines(scans):
    yield "**Exact search from codes, 8 KV heads.** Of reading: the speed at which the codes were gone through, against a"
    yield "plain read of the keys' memory in the same run. Of the peak: products of bytes against the machine's. Keys: read"
    yield "exactly for each query. Seeded: thresholds as the last step leaves them, for the same queries."
    yield ""
    yield "| rows | d | G | k | stored | seeded | best ms | of reading | of the peak | keys |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for _, a, run in scans:
        yield (f"| {a['rows']:,} | {a['dim']} | {a['queries']} | {a['k']} | {TYPES[a['type']]} | "
               f"{'yes' if a['steady'] else 'no'} | {run['best_ms']:.2f} | {run['of_read']:.2f} | {share(run, 'of_peak')} | "
               f"{run['keys']:.0f} |")


def attend_lines(attends):
    yield "**Attention, all in, with 512 local rows, through the ABI.** Alike: how neighbouring queries correlate. Of reading"
    yield "codes: one byte for each element of the keys, against the machine's bandwidth. Of the peak: queries × rows × d of all"
    yield "heads, against the machine's products of bytes; several queries at once are a block of prefill, which this bounds."
    yield ""
    yield "| N | d | G | KV heads | queries | k | stored | alike | best ms | median ms | of reading codes | of the peak | keys |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    for _, a, run in attends:
        shares = [share(run, "of_codes"), share(run, "of_peak")]
        if a["queries"] > 1:
            shares[0] = "–"  # products, not reading, bound a block
        yield (f"| {a['N']:,} | {a['d']} | {a['G']} | {a['heads']} | {a['queries']} | {a['k']} | {TYPES[a['type'] - 1]} | "
               f"{a['like'] / 100:.1f} | {run['best_ms']:.2f} | {run['median_ms']:.2f} | {shares[0]} | {shares[1]} | "
               f"{run['keys']:.0f} |")


def recorded_lines(attends):
    yield "**The same on keys and queries of a model**, the layers of a recording side by side as the heads of one."
    yield ""
    yield "| recording | N | d | G | KV heads | best ms | median ms | of reading codes, best | median | of the peak | keys |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for _, _, run in attends:
        yield (f"| {run['name'].split('/')[1]} | {run['N']:,.0f} | {run['d']:.0f} | {run['G']:.0f} | {run['heads']:.0f} | "
               f"{run['best_ms']:.2f} | {run['median_ms']:.2f} | {run['of_codes']:.2f} | {run['of_codes_median']:.2f} | "
               f"{share(run, 'of_peak')} | {run['keys']:.0f} |")


def commit_lines(commits):
    yield "**Bulk append and commit** beside the same bytes through a bare RocksDB WriteBatch."
    yield ""
    yield "| | engine MB/s | batch and log MB/s | batch and flush MB/s | engine : log | engine : flush |"
    yield "|---|---|---|---|---|---|"
    for _, a, run in commits:
        yield (f"| {'synced' if a['synced'] else 'buffered'} | {run['engine_MB/s']:.0f} | {run['batch_log_MB/s']:.0f} | "
               f"{run['batch_flush_MB/s']:.0f} | {run['of_batch_log']:.2f} | {run['of_batch_flush']:.2f} |")


def speed_lines(report):
    yield (f"**Decode of a real model**, window {report['window']}, k = {report['top_k']}, middle layers "
           f"{', '.join(map(str, report['middle_layers']))}; of the memory {report['read_tokens']:,} tokens were read by the "
           "model, the rest are noisy copies.")
    yield ""
    yield "| past | | tokens/s, median | × the time of the window alone | tokens/s, best | × the best of the window alone |"
    yield "|---|---|---|---|---|---|"
    for past in report["pasts"]:
        alone = next(one for one in past["variants"] if one["name"] == "window alone")["best_token_seconds"]
        for one in past["variants"]:
            yield (f"| {past['past_tokens']:,} | {one['name']} | {one['tokens_per_second']:.1f} | "
                   f"{one['times_window_alone']:.2f} | {1 / one['best_token_seconds']:.1f} | "
                   f"{one['best_token_seconds'] / alone:.2f} |")


def points_of(scans):
    chosen = [(a, run) for _, a, run in scans
              if (a["dim"], a["k"], a["type"], a["steady"]) == (128, 32, 1, 0) and a["queries"] <= 8]
    for group in (1, 4, 8):
        yield f'"G = {group}"'
        for a, run in sorted(chosen, key=lambda one: one[0]["rows"]):
            if a["queries"] == group:
                yield f"{a['rows']} {run['of_read']} {run.get('of_peak', 'nan')}"
        yield "\n"


def main():
    folder = sys.argv[1]
    scans = list(benchmarks_of(os.path.join(folder, "scan.json")))
    engine = list(benchmarks_of(os.path.join(folder, "engine.json")))
    parts = [[machine_of(scans)], scan_lines(scans),
             attend_lines([one for one in engine if one[0] == "Attend"]),
             recorded_lines([one for one in engine if one[0] == "AttendRecorded"]),
             commit_lines([one for one in engine if one[0] == "BulkCommit"])]
    speed = os.path.join(folder, "speed.json")
    if os.path.exists(speed):
        with open(speed) as file:
            parts.append(speed_lines(json.load(file)))
    for name, text in (("kernels.md", "\n\n".join("\n".join(part) for part in parts)),
                       ("kernels.dat", "\n".join(points_of(scans)))):
        with open(os.path.join(folder, name), "w") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
