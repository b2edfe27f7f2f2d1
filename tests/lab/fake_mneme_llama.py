# SPDX-License-Identifier: Apache-2.0
"""Stands in for mneme-llama where a test is about running cells: text goes into a file, and the loss follows a law.

FAKE_CALLS names a file that gets a line for each call. The call with the number in FAKE_DIE is killed, that with
the number in FAKE_SLEEP takes a minute.
"""
from __future__ import annotations

import itertools
import json
import math
import os
import pathlib
import signal
import sys
import time


def main(words):
    if words == ["--version"]:
        print("fake 1")
        return
    calls = pathlib.Path(os.environ["FAKE_CALLS"])
    with calls.open("a") as file:
        file.write(words[0] + "\n")
    if len(calls.read_text().splitlines()) == int(os.environ.get("FAKE_SLEEP", "-1")):
        time.sleep(60)
    dies = len(calls.read_text().splitlines()) == int(os.environ.get("FAKE_DIE", "-1"))
    options = {word: value for word, value in itertools.pairwise(words) if word.startswith("--")}
    store = pathlib.Path(options["--store"]) if "--store" in options else None
    if words[0] == "ingest":
        store.mkdir(parents=True, exist_ok=True)
        (store / "tokens").write_text(options["--tokens"])
        (store / "memory").write_text(options["--memory-tokens"])
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        print(json.dumps({"next_token": int(options["--tokens"])}))
        return
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    memory = int((store / "memory").read_text()) if store else int(options["--native"])
    scored = int(options["--score"]) - 1
    decay = float(options.get("--decay", 0))
    losses = [1.0 + 0.1 * decay + (i % 7) + 9.0 * (memory + 768) ** -0.4 for i in range(scored)]
    lines = [f"0\t{i}\t{i % 50}\t{loss:.9g}" for i, loss in enumerate(losses)]
    pathlib.Path(options["--losses"]).write_text("row\tposition\ttoken\tnll\n" + "\n".join(lines) + "\n")
    nll = sum(losses) / scored
    print(json.dumps([{"memory": "m", "tokens": memory, "scored": scored, "nll": nll, "perplexity": math.exp(nll),
                       "seconds": 0.5, "settings": {"decay": decay}}]))


main(sys.argv[1:])
