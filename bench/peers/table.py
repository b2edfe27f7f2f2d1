#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""table.py DOCUMENT FOLDER: makes of what peers.py wrote FOLDER/peers.md and FOLDER/peers.dat (for gnuplot)."""

import json
import os
import sys

BASELINES = {"search": "mneme search", "attend": "mneme attend, with 512 local rows"}
DRAWN = ("mneme search", "FAISS flat, f32", "FAISS scalar quantiser, f16", "BLAS product and argpartition (numpy), f32",
         "mneme attend, with 512 local rows", "llama.cpp flash attention over all rows, f16")


ABOUT = """× mneme: best time over that of mneme's search, or of its attend with local rows. × read: best time over that of
reading one byte for each element of the keys, at the bandwidth measured in the same rounds.

How good the answers are, against double precision over the same rows: *recall*, the share of the true k best found;
*mass*, the share of the softmax's mass over the whole memory that the rows found keep, which is small where attention is
spread over many rows, as it is with random ones; *error, k best*, |output − exact| / |exact| where exact is attention
over the true k best; *error, all rows*, the same where exact is attention over the whole memory. The output of a mere
search is computed from its rows in f32; where local rows are attended to, they are part of what is exact. Values are
random, of recorded keys too."""


def figure(number):
    if number is None or number == 0:
        return "–" if number is None else "0"
    return f"{number:.1e}" if number < 0.01 else f"{number:.4f}" if number < 10 else f"{number:.0f}"


def heading(case):
    return (f"{case['data']}, N = {case['rows']:,}, d = {case['dim']}, {case['heads']} KV heads, G = {case['group']}, "
            f"k = {case['k']}, threads: {case['threads']}; read at {case['read_gb_s']:.1f} GB/s")


def lines_of(document):
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    yield f"{document['date']}; mneme {document['mneme']}; {versions}."
    yield ""
    yield ABOUT
    for name, reason in document["left_out"].items():
        yield ""
        yield f"Left out: {name} ({reason})."
    for case in document["cases"]:
        read_ms = case["rows"] * case["dim"] * case["heads"] / case["read_gb_s"] / 1e6
        best = {row["name"]: row["best_ms"] for row in case["results"]}
        exact = case["k_best"]
        yield ""
        yield f"**{heading(case)}**"
        yield ""
        yield (f"The true k best: mass {figure(exact['mass'])}; attention over them is {figure(exact['error_all'])} from "
               "that over all rows.")
        for name, reason in case["left_out"].items():
            yield f"Left out: {name} ({reason})."
        yield ""
        yield "| | task | best ms | median ms | × mneme | × read | recall | mass | error, k best | error, all rows |"
        yield "|---|---|---|---|---|---|---|---|---|---|"
        for row in case["results"]:
            found = "–" if row["recall"] is None else f"{row['recall']:.3f}"
            ratio = row["best_ms"] / best[BASELINES[row["task"]]]
            yield (f"| {row['name']} | {row['task']} | {row['best_ms']:.2f} | {row['median_ms']:.2f} | {ratio:.2f} | "
                   f"{row['best_ms'] / read_ms:.2f} | {found} | {figure(row['mass'])} | {figure(row['error_best'])} | "
                   f"{figure(row['error_all'])} |")


def points_of(document):
    """One block for each of DRAWN: N and best ms, of the random cases with d 128, G 4, k 32."""
    cases = [case for case in document["cases"]
             if case["data"] == "random normal" and (case["dim"], case["group"], case["k"]) == (128, 4, 32)]
    for name in DRAWN:
        yield f'"{name}"'
        for case in cases:
            for row in case["results"]:
                if row["name"] == name:
                    yield f"{case['rows']} {row['best_ms']}"
        yield "\n"


def main():
    with open(sys.argv[1]) as file:
        document = json.load(file)
    for name, lines in (("peers.md", lines_of), ("peers.dat", points_of)):
        with open(os.path.join(sys.argv[2], name), "w") as file:
            file.write("\n".join(lines(document)) + "\n")


if __name__ == "__main__":
    main()
