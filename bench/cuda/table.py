#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the table of scripts/gpu-check from its logs: table.py FOLDER > table.md."""

import datetime
import json
import pathlib
import sys


def targets(results: list[dict]) -> list[list[str]]:
    """One row a target of docs/performance.md that something was measured for."""
    rows = []
    dense = {r["batch"]: r for r in results if r["what"] == "dense" and "microseconds" in r}
    for r in results:
        if r["what"] in ("G1", "G2"):
            name = (f"{r['what']}: {r['batch']} x {r['rows']:,} rows, {r['kv_heads']} heads, G = {r['group']}, "
                    f"k = {r['top_k']}, {r['type']}, local {r['local']}")
            rows.append([name, f"{r['microseconds']:.1f} µs", f"keys at copy speed {r['floor']:.1f} µs",
                         f"{r['of_copy']:.2f} of it"])
            peer = dense.get(r["batch"])
            if peer and r["rows"] == peer["rows"] and r["top_k"] == 32 and r["group"] == 4:
                rows.append([f"G3: the same, {r['type']}", f"{r['microseconds']:.1f} µs",
                             f"torch {peer['torch']} dense {peer['microseconds']:.1f} µs",
                             f"{peer['microseconds'] / r['microseconds']:.2f} x as fast"])
        elif r["what"] == "prefill":
            against = f"cuBLAS product {r['product']:.0f} µs" if r["product"] else "cuBLAS is not there"
            ratio = f"{r['microseconds'] / r['product']:.2f} x its time" if r["product"] else ""
            rows.append([f"G6: {r['queries']} queries, {r['rows']:,} rows, {r['type']}",
                         f"{r['microseconds']:.0f} µs", against, ratio])
        elif r["what"] == "append":
            rows.append([f"append of {r['tokens']:,} tokens, 8 heads", f"{r['microseconds']:.1f} µs", "", ""])
    return rows


def main() -> int:
    folder = pathlib.Path(sys.argv[1])
    results = [json.loads(line) for line in (folder / "bench.jsonl").read_text().splitlines() if line.startswith("{")]
    check = (folder / "check.txt").read_text().rstrip()
    print(f"# GPU check of {datetime.date.today().isoformat()}\n")
    print("```\n" + check + "\n" + (folder / "sanitizer.txt").read_text().rstrip() + "\n```\n")
    for r in results:
        if r["what"] == "copy":
            print(f"Copy within the device's memory: {r['terabytes_a_second']:.2f} TB/s, read and written. Times are "
                  "medians of replayed graphs, all in: search, local rows, selection, gathering, softmax, fusion.\n")
        if "missing" in r:
            print(f"Dense attention was not timed: {r['missing']}.\n")
    rows = targets(results)
    if rows:
        print("| | mneme | against | ratio |\n|---|---|---|---|")
        for row in rows:
            print("| " + " | ".join(row) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
