#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Exact search and attention of one decode step, by mneme and by what else does that task, side by side on this machine.

A case is one layer-step: `group` queries for each KV head, one call a head, the k best of all rows by inner product.
Everyone gets the same rows (rounded to f16, so that nobody loses by storing f16) and the same queries, one step of
queries after another. Turns go round: in each round everyone answers one step that does not count and then some that
do, so that a busy moment of the machine hits all. Best and median are over all counted steps.

Everyone works on as many threads: mneme and llama.cpp on their own, the others by a pool that takes one head at a time,
each call on one thread. Only the numbers beside each other count, and only of one run.

How good the answers are is judged before anything is timed, by quality.py in double precision, of the first steps:
  recall      share of the true k best that was found
  mass        share of the softmax's mass over the whole memory (its local rows apart) that the rows found keep; mean
  error_best  |output - exact| / |exact|, over all outputs of these steps, where exact is attention in double precision
              over the true k best
  error_all   the same where exact is attention over all rows
The output of what only searches is computed from the rows it found, in f32; that of what attends is its own, and where
local rows are part of it, they are part of what is exact.

Writes one JSON document; table.py makes a table and pictures of it.
"""

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # the pool has the threads; read when the libraries are loaded

import argparse
import concurrent.futures
import ctypes
import json
import statistics
import sys
import time
from typing import NamedTuple

import numpy as np

import mneme_abi
import recorded
from contestants import LOCAL_ROWS, Dense, FaissFlat, Hnswlib, Mneme, available
from data import random_data, recorded_data
from quality import Judge

CHECKED_STEPS = 4  # of which the answers are judged


def judged(data, contestants, queries, k, pool):
    """What the k best themselves keep, and of each contestant its row of the case without times."""
    steps = queries[:CHECKED_STEPS]
    judge = Judge(data, steps, k, LOCAL_ROWS, pool)
    rows = []
    for one in contestants:
        answers = [[None if part is None else part.copy() for part in one.run(step)] for step in steps]
        tokens, output = (None if parts[0] is None else np.stack(parts) for parts in zip(*answers))
        row = {"task": one.task, "name": one.name, **judge.judge(tokens, output, one.local)}
        if tokens is None and row["error_all"] > 0.5:  # more than sums in f16 lose
            raise RuntimeError(f"{one.name}: differs from softmax(qK)V by {row['error_all']:.2f} of it")
        rows.append(row)
    return judge.best(), rows


def measure(data, contestants, bandwidth, group, k, rounds, counted, pool):
    """One case of the document."""
    queries = data.queries(group)
    best, rows = judged(data, contestants, queries, k, pool)
    times = [[] for _ in contestants]
    speeds = []
    for turn in range(rounds):
        speeds.append(bandwidth())
        for own, one in zip(times, contestants):
            for i in range(1 + counted):
                step = queries[(turn * (1 + counted) + i) % len(queries)]
                start = time.perf_counter()
                one.run(step)
                if i > 0:
                    own.append(time.perf_counter() - start)
    for row, own in zip(rows, times):
        row["best_ms"], row["median_ms"] = min(own) * 1e3, statistics.median(own) * 1e3
    return {"data": data.name, "rows": data.rows, "dim": data.dim, "heads": data.heads, "group": group, "k": k,
            "threads": data.threads, "read_gb_s": max(speeds) / 1e9, "k_best": best, "results": rows}


def bandwidth_of(library, data):
    """Reads as many bytes of the keys as they have elements: the least that a byte an element takes."""
    library.peers_read_bandwidth.restype = ctypes.c_double

    def measured():
        return library.peers_read_bandwidth(ctypes.c_void_p(data.keys.ctypes.data), ctypes.c_size_t(data.keys.size),
                                            ctypes.c_size_t(data.threads), ctypes.c_size_t(6))
    return measured


def free_bytes():
    """Of RAM, with some left for everyone else."""
    with open("/proc/meminfo") as file:
        fields = dict(line.split(":") for line in file)
    return int(fields["MemAvailable"].split()[0]) * 1024 * 9 // 10


def who_takes_part(peers, rows, elements, free):
    """Those of `peers` that can take so many rows of all heads and elements of keys within `free` bytes, and
    {name: why not} of the others."""
    taking, left_out = [], {}
    for peer in peers:
        has_flat = issubclass(peer, FaissFlat) and any(issubclass(other, FaissFlat) for other in taking)
        needed = 0 if has_flat else peer.element_bytes * elements
        if peer.most_keys is not None and rows > peer.most_keys:
            left_out[peer.name] = peer.too_long
        elif needed > free:
            left_out[peer.name] = (f"needs {needed / 1e9:.1f} GB of RAM, {max(free, 0) / 1e9:.1f} are free beside the "
                                   "others")
        else:
            taking.append(peer)
            free -= needed
    return taking, left_out


class Shape(NamedTuple):
    group: int
    k: int = 32


class Plan(NamedTuple):
    """Data of this many elements of keys, made when its turn comes, and what is asked of them. stored: types that mneme
    stores rows as beside f16."""
    name: str
    make: object
    elements: int
    shapes: list
    stored: tuple = ()


def cases_of(plan, peers, read_library, threads, rounds, counted):
    data = plan.make()
    # As many threads as share the heads evenly: nobody who takes whole heads shall wait for one.
    data.threads = max(t for t in range(1, threads + 1) if data.heads % t == 0)
    free = free_bytes() - Mneme.element_bytes(plan.stored) * plan.elements
    taking, left_out = who_takes_part(peers, data.heads * data.rows, plan.elements, free)
    with concurrent.futures.ThreadPoolExecutor(data.threads) as pool:
        mneme = Mneme(data, plan.stored)
        others = [peer(data, pool) for peer in taking]
        bandwidth = bandwidth_of(read_library, data)
        for group, k in plan.shapes:
            contestants = [one for peer in (mneme, *others) for one in peer.prepare(group, k)]
            yield {**measure(data, contestants, bandwidth, group, k, rounds, counted, pool), "left_out": left_out}
        for one in (mneme, *others):
            one.release()


def random_plan(rows, dim, *shapes, stored=(), heads=8):
    return Plan(f"random normal, N {rows}, d {dim}", lambda: random_data(rows, dim, heads), heads * rows * dim,
                [Shape(*shape) for shape in shapes], stored)


def plans(quick, recordings):
    """N, d, G, k and stored types, each changed by itself from N = 65,536, d = 128, G = 4, k = 32, f16; N with more G."""
    if quick:
        yield random_plan(4096, 128, (4,))
        yield random_plan(16384, 128, (4,))
        yield random_plan(65536, 128, (4,), (8,))
    else:
        yield random_plan(4096, 128, (1,), (4,), (8,))
        yield random_plan(16384, 128, (1,), (4,), (8,))
        yield random_plan(65536, 128, (1,), (3,), (8,), (4, 8), (4, 256))
        yield random_plan(65536, 128, (4,), stored=("f32", "bf16", "i8"))
        yield random_plan(65536, 64, (3,), (4,))
        yield random_plan(65536, 256, (4,))
        yield random_plan(262144, 128, (4,), (8,))
        yield random_plan(1048576, 128, (4,))
    for path in recordings:
        layers = recorded.layers_of(path)
        for number in ([0, len(layers) - 1] if quick else range(len(layers))):
            layer = layers[number]
            yield Plan(f"{os.path.basename(path)}, layer {layer.layer}",
                       lambda path=path, layer=layer: recorded_data(path, layer), layer.keys.size,
                       [Shape(len(layer.queries) // len(layer.keys))], () if quick else ("bf16", "i8"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mneme", required=True, help="libmneme.so")
    parser.add_argument("--read", required=True, help="libmneme_peers_read.so")
    parser.add_argument("--dense", help="libmneme_peers_dense.so, where llama.cpp was built")
    parser.add_argument("--recording", action="append", default=[], help="a file of `mneme-llama record`")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, help="7; 4 with --quick, or for the greatest data")
    parser.add_argument("--quick", action="store_true", help="fewer shapes")
    parser.add_argument("--out", required=True, help="the document")
    args = parser.parse_args()
    Mneme.library = mneme_abi.Library(args.mneme)
    read_library = ctypes.CDLL(args.read)
    if args.dense:
        Dense.library = ctypes.CDLL(args.dense)
    peers, versions = available()
    if args.quick:
        Hnswlib.most_keys = 8 * 4096
    document = {"date": time.strftime("%Y-%m-%d"), "mneme": Mneme.library.version(), "versions": versions, "cases": [],
                "left_out": {}}
    for plan in plans(args.quick, args.recording):
        # The data, keys and values in f16, and mneme's memory of them; what else there is has to find room beside.
        needed = (4 + Mneme.element_bytes(plan.stored)) * plan.elements
        if needed > free_bytes():
            document["left_out"][plan.name] = f"needs {needed / 1e9:.1f} GB of RAM, {free_bytes() / 1e9:.1f} are free"
            print(f"   {plan.name}: left out, {document['left_out'][plan.name]}", file=sys.stderr, flush=True)
        else:
            rounds = args.rounds or (4 if args.quick or plan.elements > 65536 * 8 * 256 else 7)
            for case in cases_of(plan, peers, read_library, args.threads, rounds, 3):
                document["cases"].append(case)
                print(f"   {case['data']}, N {case['rows']}, d {case['dim']}, G {case['group']}, k {case['k']}: "
                      f"mneme {case['results'][0]['best_ms']:.2f} ms", file=sys.stderr, flush=True)
        with open(args.out, "w") as file:
            json.dump(document, file, indent=1)


if __name__ == "__main__":
    main()
