# SPDX-License-Identifier: Apache-2.0
"""Threads, the GIL, fork, the end of the process, the command."""
from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
import time

import mneme
import numpy as np
from conftest import LAYER, make_card, random_rows


def run_python(code, *arguments, **options):
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code), *arguments], capture_output=True, text=True,
                          timeout=60, check=False, **options)


def test_threads_attend_while_one_appends(store):
    memory = store.create("m", make_card(), dtype="f32")
    rows = random_rows(1, 4000, 2, 64)
    memory.append(layer=LAYER, keys=rows[:100], values=rows[:100])
    query = random_rows(2, 1, 4, 64)
    expected = memory.attend(layer=LAYER, query=query, memory_end=100).output
    errors = []

    def read():
        try:
            for _ in range(100):
                np.testing.assert_array_equal(memory.attend(layer=LAYER, query=query, memory_end=100).output, expected)
                with memory.snapshot() as snapshot:
                    memory.search(layer=LAYER, query=query, snapshot=snapshot)
                memory.info()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for at in range(100, 4000, 100):
        memory.append(layer=LAYER, keys=rows[at : at + 100], values=rows[at : at + 100])
    for thread in threads:
        thread.join()
    assert errors == []
    assert memory.commit() == 4000


def test_the_gil_is_free_during_a_call(store):
    """Another thread counts on while one call of a second or so runs."""
    memory = store.create("m", make_card(), dtype="f32")
    rows = random_rows(1, 20000, 2, 64)
    memory.append(layer=LAYER, keys=rows, values=rows)
    query = random_rows(2, 600, 4, 64)
    during, ended = [], threading.Event()

    def attend():
        memory.attend(layer=LAYER, query=query, top_k=256)
        ended.set()

    thread = threading.Thread(target=attend)
    thread.start()
    while not ended.is_set():
        during.append(time.monotonic())
        time.sleep(0.001)
    thread.join()
    gaps = np.diff(during)
    assert during[-1] - during[0] > 0.1
    assert np.median(gaps) < 0.02


def test_a_forked_child_is_refused_and_the_parent_goes_on(store, memory):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        refused = 0
        for call in (memory.info, memory.commit, store.stats, lambda: mneme.open("/tmp/mneme-never-made")):
            try:
                call()
            except mneme.FailedPrecondition as error:
                refused += "fork" in str(error)
        os.write(writer, bytes([refused]))
        os._exit(0)
    os.close(writer)
    assert os.read(reader, 1) == b"\4"
    assert os.waitpid(child, 0)[1] == 0
    assert memory.commit() == 100
    assert not os.path.exists("/tmp/mneme-never-made")


def test_a_forked_child_ends_by_itself(folder):
    result = run_python("""
        import os, sys, mneme
        store = mneme.open(sys.argv[1])
        memory = store.create("m", mneme.Card("m", "f", [mneme.Layer(0, 1, 1, 16)]))
        child = os.fork()
        if child == 0:
            sys.exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), memory.info().tokens)
    """, folder)
    assert (result.returncode, result.stdout, result.stderr) == (0, "7 0\n", "")


def work(folder):
    with mneme.open(folder, mode="r") as store:
        return store["m"].info().tokens


def test_spawned_processes_read(folder, store, memory):
    memory.commit()
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(work, [folder] * 4) == [100] * 4


def test_a_process_that_ends_without_closing(folder):
    """The store is closed at exit, and what is committed is there."""
    result = run_python("""
        import sys, mneme, numpy as np
        store = mneme.open(sys.argv[1], background=True)
        memory = store.create("m", mneme.Card("m", "f", [mneme.Layer(8, 4, 2, 64)]), index="flat", segment_tokens=256)
        rows = np.ones((300, 2, 64), np.float32)
        memory.append(layer=8, keys=rows, values=rows)
        memory.commit()
        memory.append(layer=8, keys=rows[:7], values=rows[:7])
        snapshot = memory.snapshot()
    """, folder)
    assert result.returncode == 0
    # The background thread may say that it was stopped, too.
    assert result.stderr.startswith("a memory was closed with 7 tokens that were not committed; they are lost\n")
    assert "Traceback" not in result.stderr
    with mneme.open(folder) as store:
        assert store["m"].info().next_token == 300


def test_the_library_can_be_given(tmp_path):
    code = "import mneme"
    result = run_python(code, env={**os.environ, "MNEME_LIBRARY": str(tmp_path / "none.so")})
    assert "ImportError: mneme: cannot load" in result.stderr
    library = os.path.join(os.path.dirname(mneme.__file__), "lib", "libmneme.so.0")
    assert run_python(code, env={**os.environ, "MNEME_LIBRARY": library}).returncode == 0


def test_the_command(folder, store, memory):
    memory.commit()
    store.close()
    result = subprocess.run([sys.executable, "-m", "mneme", "list", folder], capture_output=True, text=True,
                            timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[3:5] == ["m", "100"]
    result = subprocess.run([sys.executable, "-m", "mneme", "list", folder + "-none"], capture_output=True, text=True,
                            timeout=60, check=False)
    assert result.returncode == 1
    assert "NOT_FOUND" in result.stderr
    assert mneme.library_version().startswith(mneme.__version__ + " (")
