#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times torch's scaled_dot_product_attention for one step of decoding over all rows: what G3 is held against.

Prints one JSON object a line, as attend_bench does; one with "missing" if torch or a device is not there.
"""

import json
import statistics
import sys

KV_HEADS, GROUP, DIM = 8, 4, 128


def main() -> int:
    try:
        import torch
        from torch.nn.functional import scaled_dot_product_attention
    except ImportError:
        print(json.dumps({"what": "dense", "missing": "torch cannot be imported"}))
        return 0
    if not torch.cuda.is_available():
        print(json.dumps({"what": "dense", "missing": "torch sees no device"}))
        return 0

    def microseconds(batch: int, rows: int) -> float:
        # The queries of a group stand as rows of one head: every row of keys and values is then read once.
        query = torch.randn(batch, KV_HEADS, GROUP, DIM, device="cuda", dtype=torch.float16)
        keys = torch.randn(batch, KV_HEADS, rows, DIM, device="cuda", dtype=torch.float16)
        values = torch.randn_like(keys)
        times = []
        for turn in range(20):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            for _ in range(10):
                scaled_dot_product_attention(query, keys, values)
            end.record()
            end.synchronize()
            if turn >= 5:
                times.append(100.0 * begin.elapsed_time(end))
        return statistics.median(times)

    for batch in (1, 64):
        try:
            time = microseconds(batch, 65536)
        except torch.cuda.OutOfMemoryError:
            print(json.dumps({"what": "dense", "batch": batch, "missing": "not enough device memory"}))
            continue
        print(json.dumps({"what": "dense", "batch": batch, "rows": 65536, "microseconds": round(time, 2),
                          "torch": torch.__version__}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
