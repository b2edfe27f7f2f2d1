#!/usr/bin/env python3
"""table.py DOCUMENT FOLDER: makes of what peers.py wrote FOLDER/peers.md and FOLDER/peers.dat (for gnuplot)."""

import json
import os
import sys

BASELINES = {"search": "mneme search", "attend": "mneme attend, with 512 local rows"}
DRAWN = ("mneme search", "FAISS flat, f32", "FAISS scalar quantiser, f16", "BLAS product and argpartition (numpy), f32",
         "mneme attend, with 512 local rows", "llama.cpp flash attention over all rows, f16")


def heading(case):
    return (f"{case['data']}, N = {case['rows']:,}, d = {case['dim']}, {case['heads']} KV heads, G = {case['group']}, "
            f"k = {case['k']}, threads: {case['threads']}; read at {case['read_gb_s']:.1f} GB/s")


def lines_of(document):
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    yield f"{document['date']}; mneme {document['mneme']}; {versions}."
    yield ""
    yield "× mneme: best time over that of mneme's search, or of its attend with local rows. × read: best time over that"
    yield "of reading one byte for each element of the keys, at the bandwidth measured in the same rounds."
    for case in document["cases"]:
        read_ms = case["rows"] * case["dim"] * case["heads"] / case["read_gb_s"] / 1e6
        best = {row["name"]: row["best_ms"] for row in case["results"]}
        yield ""
        yield f"**{heading(case)}**"
        yield ""
        yield "| | task | best ms | median ms | × mneme | × read | recall |"
        yield "|---|---|---|---|---|---|---|"
        for row in case["results"]:
            found = "–" if row["recall"] is None else f"{row['recall']:.3f}"
            ratio = row["best_ms"] / best[BASELINES[row["task"]]]
            yield (f"| {row['name']} | {row['task']} | {row['best_ms']:.2f} | {row['median_ms']:.2f} | {ratio:.2f} | "
                   f"{row['best_ms'] / read_ms:.2f} | {found} |")


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
