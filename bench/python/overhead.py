# SPDX-License-Identifier: Apache-2.0
"""What a call of the Python package costs beyond the call of the C ABI in it.

The package's call and the ABI's, with arguments that are ready, alternate; both are timed by one clock, in rounds. The
overhead is the difference of their medians in a round, and the median over the rounds is told.

    overhead.py [--at-most MICROSECONDS]     PYTHONPATH leads to the package; exit status 1 where a call takes more
"""
from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time

import mneme
import numpy as np
from mneme import _attend, _memory
from mneme._native import lib

ROUNDS, CALLS, TOKENS, Q_HEADS, KV_HEADS, DIM, LOCAL = 15, 40, 256, 32, 8, 128, 128


class Spy:
    """Stands in for the library: times the one function, and passes everything else through."""

    def __init__(self, name):
        self.name, self.seconds = name, 0.0
        self.function = getattr(lib, name)

    def __getattr__(self, name):
        return self.timed if name == self.name else getattr(lib, name)

    def timed(self, *arguments):
        begin = time.perf_counter()
        status = self.function(*arguments)
        self.seconds = time.perf_counter() - begin
        return status


def overhead(call, name, module):
    """Microseconds of a call beyond the library's; what the measuring itself takes is taken off."""
    spy = Spy("mneme_abi_version")
    itself = min(difference(spy.mneme_abi_version, spy) for _ in range(ROUNDS * CALLS))
    spy = Spy(name)
    module.lib = spy
    rounds = []
    for _ in range(ROUNDS):
        taken = []
        for _ in range(CALLS):
            taken.append(difference(call, spy))
        rounds.append(statistics.median(taken))
    module.lib = lib
    return (statistics.median(rounds) - itself) * 1e6


def difference(call, spy):
    """Seconds of a call less those in the library."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin - spy.seconds


def calls_of(store):
    card = mneme.Card("m", "f", [mneme.Layer(0, Q_HEADS, KV_HEADS, DIM)])
    memory, other = store.create("m", card), store.create("other", card, max_tokens=4096)
    random = np.random.default_rng(1)
    rows = random.standard_normal((TOKENS, KV_HEADS, DIM)).astype(np.float16)
    memory.append(layer=0, keys=rows, values=rows)
    query, local = random.standard_normal((1, Q_HEADS, DIM)).astype(np.float16), rows[:LOCAL]
    out, token = np.empty_like(query), rows[:1]
    return {
        "attend, output given, no details": (lambda: memory.attend(
            layer=0, query=query, local_keys=local, local_values=local, out=out, want=()), "mneme_attend", _attend),
        "attend, new output, all details": (lambda: memory.attend(
            layer=0, query=query, local_keys=local, local_values=local), "mneme_attend", _attend),
        "search": (lambda: memory.search(layer=0, query=query), "mneme_search", _attend),
        "append of a token": (lambda: other.append(layer=0, keys=token, values=token), "mneme_memory_append", _memory),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--at-most", type=float, metavar="MICROSECONDS")
    most = parser.parse_args().at_most
    too_slow = False
    with tempfile.TemporaryDirectory(prefix="mneme-bench-") as folder, mneme.open(folder) as store:
        for name, (call, function, module) in calls_of(store).items():
            microseconds = overhead(call, function, module)
            too_slow |= most is not None and microseconds > most
            print(f"{microseconds:6.1f} us  {name}")
        store["other"].truncate(0)
    return 1 if too_slow else 0


if __name__ == "__main__":
    sys.exit(main())
