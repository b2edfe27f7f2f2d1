# SPDX-License-Identifier: Apache-2.0
"""A run is resumable: whatever ends it, the next one goes on, and the numbers are those of a run that did not end."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from mneme_lab import __main__, grid, program


def test_every_cell_is_measured_once(laboratory):
    assert laboratory.run() == 0
    assert list(laboratory.results().load()) == [cell.id for cell in laboratory.grid.cells]
    calls = laboratory.calls()
    # 1528, 2024, 3560, 9704 tokens in slices of 4096; the second cell with 2,048 tokens shares the state of the first.
    assert calls.count("ingest") == 1 + 1 + 1 + 3
    assert calls.count("perplexity") == 6
    assert laboratory.run() == 0
    assert laboratory.calls() == []
    assert not any((laboratory.folder / "out/states").iterdir())


def test_a_result_says_what_it_was_measured_with(laboratory):
    laboratory.run()
    result = next(iter(laboratory.results().load().values()))
    assert result["program"] == "fake 1"
    assert result["machine"]["cores"] >= 1
    assert result["model_sha256"] == "9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4"
    assert result["settings"] == {"decay": 0}
    assert [words[0] for words in result["commands"]] == ["ingest", "perplexity"]
    assert result["commands"][0][-2:] == ["1528", "--json"]
    assert result["interrupted"] is False


@pytest.mark.parametrize("die", range(1, 13))
def test_killed_at_any_call(laboratory, die):
    """At most the cell under way is lost: no cell is scored twice, and no whole slice is taken in twice."""
    laboratory.run("whole")
    calls = laboratory.calls()
    with pytest.raises(program.ProgramError, match="ended with"):
        laboratory.run(die=die)
    before = laboratory.calls()
    measured = len(laboratory.results().load())
    assert measured == before[:-1].count("perplexity")
    assert laboratory.run() == 0
    assert before[:-1] + laboratory.calls() == calls
    assert laboratory.numbers() == laboratory.numbers("whole")
    broken = [result["interrupted"] for result in laboratory.results().load().values()]
    assert any(broken) == (calls[die - 1] == "ingest")
    # The seconds of all runs together.
    assert all((result["ingest_seconds"] > 0) == (result["kind"] == "memory")
               for result in laboratory.results().load().values())


def test_out_of_time(laboratory):
    assert laboratory.run(minutes=0.0) == len(laboratory.grid.cells)
    assert laboratory.calls() == []
    assert laboratory.run(minutes=60.0) == 0


def test_several_at_once(laboratory):
    laboratory.run("one")
    calls = laboratory.calls()
    assert laboratory.run("six", jobs=6) == 0
    assert laboratory.numbers("six") == laboratory.numbers("one")
    assert sorted(laboratory.calls()) == sorted(calls)  # a state that two cells share is made once


def test_states_are_kept_if_asked_for(laboratory):
    laboratory.run(keep_states=True)
    assert len(list((laboratory.folder / "out/states").iterdir())) == 4


def test_options_of_the_program(laboratory):
    parsed = grid.parse('models = { a = "a" }\ntexts = { t = "t" }\n[[block]]\nmemory = 512\nscored = 100\n'
                        'warm_up = 10\nlayers = [3, 4]\nstored_type = "i8"\ntop_k = 8\npolicy = "clamped"\n'
                        'ingest = { top_k = 4 }')
    cell, store = parsed.cells[0], laboratory.folder / "s"
    ingest = " ".join(laboratory.program.ingest(parsed, cell, store, 700))
    score = " ".join(laboratory.program.score(parsed, cell, store, laboratory.folder / "l"))
    assert "--layers 3,4 --policy clamped --top-k 4 --stored-type i8 --store" in ingest
    assert "--memory-tokens 512 --tokens 700 --json" in ingest
    assert "--layers 3,4 --policy clamped --top-k 8 --score 101" in score
    assert "--stored-type" not in score
    for command in (ingest, score):
        assert f"--bytes 0 --last {512 + 512 + 10 + 100 + 1} " in command


def test_interrupted(laboratory):
    """Ctrl-C goes to the program, too; nothing more begins, and the next run goes on."""
    laboratory.run("whole")
    calls = laboratory.calls()
    words = [sys.executable, "-m", "mneme_lab", "run", "grid.toml", "--out", "out", "--models", ".", "--texts", ".",
             "--program", str(laboratory.program.path)]
    process = subprocess.Popen(words, cwd=laboratory.folder, start_new_session=True, stderr=subprocess.DEVNULL,
                               env={**os.environ, "FAKE_SLEEP": "3"})
    while not laboratory.calls_path.exists() or len(laboratory.calls_path.read_text().splitlines()) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=30) == 130
    before = laboratory.calls()
    assert before == calls[:3]
    assert laboratory.run() == 0
    assert before[:-1] + laboratory.calls() == calls
    assert laboratory.numbers() == laboratory.numbers("whole")


def test_the_command_line(laboratory, capsys):
    path = laboratory.folder / "grid.toml"
    path.write_text('name = "g"\nmodels = { a = "tiny.gguf" }\ntexts = { t = "words.txt" }\n[[block]]\nnative = 64')
    words = ["run", str(path), "--out", str(laboratory.folder / "out"), "--models", str(laboratory.folder), "--texts",
             str(laboratory.folder), "--program", str(laboratory.program.path)]
    assert __main__.main([*words, "--minutes", "0"]) == 75
    assert "0 of 1 cells are measured" in capsys.readouterr().out
    assert __main__.main(words) == 0
    assert json.loads((laboratory.folder / "out/results.jsonl").read_text())["kind"] == "native"
    path.write_text("nonsense")
    assert __main__.main(words) == 1
    assert "mneme-lab: not TOML" in capsys.readouterr().err
