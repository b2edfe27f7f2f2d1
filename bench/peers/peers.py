#!/usr/bin/env python3
"""Exact search and attention of one decode step, by mneme and by what else does that task, side by side on this machine.

A case is one layer-step: `group` queries for each KV head, one call a head, the k best of all rows by inner product.
Everyone gets the same rows (rounded to f16, so that nobody loses by storing f16) and the same queries, one step of
queries after another. Turns go round: in each round everyone answers one step that does not count and then some that
do, so that a busy moment of the machine hits all. Best and median are over all counted steps. Recall is the share of
the true k best (by f64) that was found.

Everyone works on as many threads: mneme and llama.cpp on their own, the others by a pool that takes one head at a time,
each call on one thread. Only the numbers beside each other count, and only of one run.

Writes one JSON document; table.py makes a table and pictures of it.
"""

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # the pool has the threads; read when the libraries are loaded

import argparse
import concurrent.futures
import ctypes
import importlib.metadata
import json
import shutil
import statistics
import sys
import tempfile
import time

import numpy as np

import mneme_abi
import recorded

LOCAL_ROWS = 512
STEPS = 32          # different steps of queries, taken in turn
RECALL_STEPS = 4    # of which recall is of the first few


def aligned(shape, dtype, boundary=64):
    """An uninitialised array that starts on a cache line."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(count + boundary, np.uint8)
    start = -raw.ctypes.data % boundary
    return raw[start:start + count].view(dtype).reshape(shape)


class Data:
    """keys, values f16 [heads, rows, dim]; queries(group) f32 [steps, heads * group, dim]."""

    def __init__(self, name, keys, queries, scale):
        self.name, self.keys, self.queries, self.scale = name, keys, queries, scale
        self.heads, self.rows, self.dim = keys.shape
        self.values = normal(np.random.default_rng(3), keys.shape, np.float16)
        self.keys32 = keys.astype(np.float32)

    def truth(self, queries, k):
        """For each query the least score of its k best, and all scores: [q_heads], [q_heads, rows] f64."""
        group = len(queries) // self.heads
        scores = np.concatenate([queries[h * group:(h + 1) * group].astype(np.float64) @ self.keys32[h].T.astype(np.float64)
                                 for h in range(self.heads)])
        return np.partition(scores, -k, axis=1)[:, -k], scores


def normal(generator, shape, dtype):
    values = np.empty(shape, dtype)
    for part in values:  # in parts: f32 of all of it would be twice as much
        part[...] = generator.standard_normal(part.shape, np.float32)
    return values


def random_data(rows, dim, heads=8):
    keys = normal(np.random.default_rng(1), (heads, rows, dim), np.float16)

    def queries(group):  # independent of each other: nothing that a step leaves helps the next
        return np.random.default_rng(2).standard_normal((STEPS, heads * group, dim), np.float32)
    return Data("random normal", keys, queries, dim ** -0.5)


def recorded_data(path, layer):
    keys = layer.keys[:, :layer.keys.shape[1] // 256 * 256].astype(np.float16)
    steps = np.ascontiguousarray(layer.queries.transpose(1, 0, 2))  # in the order of the text
    return Data(f"{os.path.basename(path)}, layer {layer.layer}", keys, lambda group: steps, 1.0)


# ---------------------------------------------------------------------------------------------- those that search

class PerHead:
    """What answers one head at a time on one thread; the pool has as many as everyone else."""
    task = "search"

    def __init__(self, data, pool):
        self.data, self.pool = data, pool
        self.heads = list(pool.map(self.build, range(data.heads)))

    def prepare(self, group, k):
        tokens = np.empty((self.data.heads * group, k), np.int64)

        def head(h, queries):
            part = slice(h * group, (h + 1) * group)
            tokens[part] = self.search(h, queries[part], k)

        def run(queries):
            list(self.pool.map(head, range(self.data.heads), [queries] * self.data.heads))
            return tokens
        return run

    def release(self):
        self.heads = None


class Faiss(PerHead):
    factory = None

    def build(self, head):
        import faiss
        index = faiss.index_factory(self.data.dim, self.factory, faiss.METRIC_INNER_PRODUCT)
        index.train(self.data.keys32[head])
        index.add(self.data.keys32[head])
        return index

    def search(self, head, queries, k):
        return self.heads[head].search(queries, k)[1]


class FaissFlat(Faiss):
    name, factory = "FAISS flat, f32", "Flat"


class FaissF16(Faiss):
    name, factory = "FAISS scalar quantiser, f16", "SQfp16"


class Faiss8Bit(Faiss):
    name, factory = "FAISS scalar quantiser, 8 bits", "SQ8"


class Blas(PerHead):
    name = "BLAS product and argpartition (numpy), f32"

    def build(self, head):
        return self.data.keys32[head]

    def search(self, head, queries, k):
        scores = queries @ self.heads[head].T
        best = np.argpartition(scores, -k, axis=1)[:, -k:]
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1)
        return np.take_along_axis(best, order, 1)


class Usearch(PerHead):
    name = "usearch exact, f16"

    def build(self, head):
        return self.data.keys[head]

    def search(self, head, queries, k):
        from usearch.index import MetricKind, search
        found = search(self.heads[head], queries.astype(np.float16), k, MetricKind.IP, exact=True, threads=1)
        return found.keys.reshape(len(queries), k)


class Hnswlib(PerHead):
    name = "hnswlib, M 16, ef 128 (approximate)"
    most_rows = 16384  # beyond, building takes longer than all the rest

    def build(self, head):
        import hnswlib
        index = hnswlib.Index(space="ip", dim=self.data.dim)
        index.init_index(self.data.rows, M=16, ef_construction=100)
        index.add_items(self.data.keys32[head], num_threads=1)
        return index

    def search(self, head, queries, k):
        self.heads[head].set_ef(max(128, k))
        return self.heads[head].knn_query(queries, k, num_threads=1)[0]


# ---------------------------------------------------------------------------------------------- those that attend

class FaissAttention(FaissFlat):
    """What one would write around a search: gather, softmax over retrieved and local rows, weighted sum."""
    task, name = "attend", "FAISS flat, then gather and softmax in numpy"

    def prepare(self, group, k):
        local_keys, local_values = (rows[:, :LOCAL_ROWS].astype(np.float32) for rows in (self.data.keys, self.data.values))
        output = np.empty((self.data.heads * group, self.data.dim), np.float32)
        tokens = np.empty((self.data.heads * group, k), np.int64)

        def head(h, queries):
            part = slice(h * group, (h + 1) * group)
            scores, found = self.heads[h].search(queries[part], k)
            tokens[part] = found
            logits = self.data.scale * np.concatenate([scores, queries[part] @ local_keys[h].T], axis=1)
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            retrieved = self.data.values[h][found].astype(np.float32)
            output[part] = np.einsum("gk,gkd->gd", weights[:, :k], retrieved) + weights[:, k:] @ local_values[h]

        def run(queries):
            list(self.pool.map(head, range(self.data.heads), [queries] * self.data.heads))
            return tokens
        return run


class Dense:
    """llama.cpp's attention over all rows, without selection and without further local rows."""
    task, name = "attend", "llama.cpp flash attention over all rows, f16"
    library = None

    def __init__(self, data, pool):
        self.data, self.step = data, None

    def prepare(self, group, k):
        self.release()
        data, library = self.data, Dense.library
        library.peers_dense_create.restype = ctypes.c_void_p
        self.step = ctypes.c_void_p(library.peers_dense_create(
            ctypes.c_int64(data.rows), ctypes.c_int64(data.heads), ctypes.c_int64(group), ctypes.c_int64(data.dim),
            ctypes.c_float(data.scale), ctypes.c_void_p(data.keys.ctypes.data), ctypes.c_void_p(data.values.ctypes.data),
            ctypes.c_int(data.threads)))
        output = np.empty((data.heads * group, data.dim), np.float32)

        def run(queries):
            if library.peers_dense_step(self.step, ctypes.c_void_p(queries.ctypes.data), ctypes.c_void_p(output.ctypes.data)):
                raise RuntimeError("llama.cpp did not compute")
        run(queries := data.queries(group)[0])
        self.check(queries, output, group)
        return run

    def check(self, queries, output, group):
        """That it is the attention meant: the first head's first query against f64."""
        logits = self.data.scale * (self.data.keys32[0].astype(np.float64) @ queries[0])
        weights = np.exp(logits - logits.max())
        expected = weights @ self.data.values[0].astype(np.float64) / weights.sum()
        if np.abs(output[0] - expected).max() > 1e-2:
            raise RuntimeError("llama.cpp's attention differs from softmax(qK)V")

    def release(self):
        if self.step is not None:
            self.library.peers_dense_destroy(self.step)
        self.step = None


class Mneme:
    """Three rows from one memory: search, attention to what it found, and that with a local window in one softmax."""
    names = (("search", "mneme search"), ("attend", "mneme attend, memory alone"),
             ("attend", f"mneme attend, with {LOCAL_ROWS} local rows"))
    library = None

    def __init__(self, data):
        self.data, self.memory, self.folder = data, None, None
        self.keys, self.values = (np.ascontiguousarray(rows.transpose(1, 0, 2)) for rows in (data.keys, data.values))

    def prepare(self, group, k):
        self.release()
        self.folder = tempfile.mkdtemp(prefix="mneme-peers-")
        self.memory = mneme_abi.Memory(Mneme.library, self.folder, self.keys, self.values, group, self.data.scale,
                                       self.data.threads)
        alone = self.memory.attender(k)
        local = self.memory.attender(k, self.keys[:LOCAL_ROWS], self.values[:LOCAL_ROWS])
        return self.memory.searcher(k), lambda queries: alone(queries)[1], lambda queries: local(queries)[1]

    def release(self):
        if self.memory is not None:
            self.memory.close()
            shutil.rmtree(self.folder)
        self.memory = None


# ---------------------------------------------------------------------------------------------- a case

def available():
    """The peers that are installed, and their versions."""
    import faiss
    peers, versions = [FaissFlat, FaissF16, Faiss8Bit, Blas], {"FAISS": faiss.__version__, "numpy": np.__version__}
    try:
        import usearch
        peers.append(Usearch)
        versions["usearch"] = usearch.__version__
    except ImportError:
        pass
    try:
        import hnswlib
        peers.append(Hnswlib)
        versions["hnswlib"] = importlib.metadata.version("hnswlib")
    except ImportError:
        pass
    peers.append(FaissAttention)
    if Dense.library is not None:
        peers.append(Dense)
    return peers, versions


def recall(run, data, queries, k):
    found = total = 0
    for step in queries[:RECALL_STEPS]:
        tokens = run(step)
        if tokens is None:
            return None
        least, scores = data.truth(step, k)
        for i, row in enumerate(tokens):
            ids = np.unique(row[row >= 0])
            found += int((scores[i, ids] >= least[i] - 1e-5 * abs(least[i])).sum())
            total += k
    return found / total


def measure(data, contestants, bandwidth, group, k, rounds, counted):
    """contestants: [(task, name, run)]. One case of the document."""
    queries = data.queries(group)
    rows = [{"task": task, "name": name, "recall": recall(run, data, queries, k)} for task, name, run in contestants]
    times = [[] for _ in contestants]
    speeds = []
    for turn in range(rounds):
        speeds.append(bandwidth())
        for own, (_, _, run) in zip(times, contestants):
            for i in range(1 + counted):
                step = queries[(turn * (1 + counted) + i) % len(queries)]
                start = time.perf_counter()
                run(step)
                if i > 0:
                    own.append(time.perf_counter() - start)
    for row, own in zip(rows, times):
        row["best_ms"], row["median_ms"] = min(own) * 1e3, statistics.median(own) * 1e3
    return {"data": data.name, "rows": data.rows, "dim": data.dim, "heads": data.heads, "group": group, "k": k,
            "threads": data.threads, "read_gb_s": max(speeds) / 1e9, "results": rows}


def bandwidth_of(library, data):
    """Reads as many bytes as the case has elements of keys: the least that a byte an element takes."""
    library.peers_read_bandwidth.restype = ctypes.c_double
    size = data.heads * data.rows * data.dim
    buffer = aligned((size,), np.uint8)
    buffer[:] = 1

    def measured():
        return library.peers_read_bandwidth(ctypes.c_void_p(buffer.ctypes.data), ctypes.c_size_t(size),
                                            ctypes.c_size_t(data.threads), ctypes.c_size_t(6))
    return measured


def cases_of(data, shapes, peers, read_library, threads, rounds, counted):
    # As many threads as share the heads evenly: nobody who takes whole heads shall wait for one.
    data.threads = max(t for t in range(1, threads + 1) if data.heads % t == 0)
    with concurrent.futures.ThreadPoolExecutor(data.threads) as pool:
        mneme = Mneme(data)
        others = [peer(data, pool) for peer in peers if data.rows <= getattr(peer, "most_rows", data.rows)]
        bandwidth = bandwidth_of(read_library, data)
        for group, k in shapes:
            contestants = [(*name, run) for name, run in zip(Mneme.names, mneme.prepare(group, k))]
            contestants += [(other.task, other.name, other.prepare(group, k)) for other in others]
            yield measure(data, contestants, bandwidth, group, k, rounds, counted)
        for one in [mneme, *others]:
            one.release()


def plan(quick, recordings):
    """[(a function that makes the data, [(group, k)])]"""
    if quick:
        sizes = {(4096, 128): [(4, 32)], (16384, 128): [(4, 32)], (65536, 128): [(4, 32), (8, 32)]}
    else:
        sizes = {(4096, 128): [(4, 32)], (16384, 128): [(1, 32), (4, 32), (8, 32)],
                 (65536, 128): [(1, 32), (3, 32), (4, 32), (8, 32), (4, 8), (4, 256)],
                 (65536, 64): [(3, 32), (4, 32)], (65536, 256): [(4, 32)], (262144, 128): [(4, 32), (8, 32)]}
    for (rows, dim), shapes in sizes.items():
        yield lambda rows=rows, dim=dim: random_data(rows, dim), shapes
    for path in recordings:
        layers = recorded.layers_of(path)
        for number in ([0, len(layers) - 1] if quick else range(len(layers))):
            layer = layers[number]
            yield lambda layer=layer: recorded_data(path, layer), [(len(layer.queries) // len(layer.keys), 32)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mneme", required=True, help="libmneme.so")
    parser.add_argument("--read", required=True, help="libmneme_peers_read.so")
    parser.add_argument("--dense", help="libmneme_peers_dense.so, where llama.cpp was built")
    parser.add_argument("--recording", action="append", default=[], help="a file of `mneme-llama record`")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, help="7, 4 with --quick")
    parser.add_argument("--quick", action="store_true", help="fewer shapes")
    parser.add_argument("--out", required=True, help="the document")
    args = parser.parse_args()
    Mneme.library = mneme_abi.Library(args.mneme)
    read_library = ctypes.CDLL(args.read)
    if args.dense:
        Dense.library = ctypes.CDLL(args.dense)
    peers, versions = available()
    if args.quick:
        Hnswlib.most_rows = 4096
    document = {"date": time.strftime("%Y-%m-%d"), "mneme": Mneme.library.version(), "versions": versions, "cases": []}
    for make, shapes in plan(args.quick, args.recording):
        data = make()
        for case in cases_of(data, shapes, peers, read_library, args.threads, args.rounds or (4 if args.quick else 7), 3):
            document["cases"].append(case)
            print(f"   {case['data']}, N {case['rows']}, d {case['dim']}, G {case['group']}, k {case['k']}: "
                  f"mneme {case['results'][0]['best_ms']:.2f} ms", file=sys.stderr, flush=True)
            with open(args.out, "w") as file:
                json.dump(document, file, indent=1)


if __name__ == "__main__":
    main()
