# SPDX-License-Identifier: Apache-2.0
"""Those who answer a step of queries: mneme, and what else does that task. Each is built once for some data; `prepare`
gives what answers, a call for a step."""

import ctypes
import importlib.metadata
import shutil
import tempfile
from typing import Callable, NamedTuple

import numpy as np

import mneme_abi

LOCAL_ROWS = 512


class Contestant(NamedTuple):
    """run(queries f32 [heads * group, dim]) -> (tokens [heads * group, k], or None: all rows; output, or None: it only
    searches). Both may be overwritten by the next call."""
    task: str
    name: str
    run: Callable
    local: bool = False  # attends to local rows as well


class PerHead:
    """What answers one head at a time on one thread; the pool has as many as everyone else."""
    task = "search"
    local = False
    element_bytes = 0  # of RAM, beside the data, for each element of the keys
    most_keys = None   # of all heads, where more would take too long
    too_long = None    # and why

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
            return tokens, None
        return [Contestant(self.task, self.name, run, self.local)]

    def release(self):
        self.heads = None


class Faiss(PerHead):
    factory = None

    def build(self, head):
        import faiss
        index = faiss.index_factory(self.data.dim, self.factory, faiss.METRIC_INNER_PRODUCT)
        keys = self.data.keys[head].astype(np.float32)
        index.train(keys)
        index.add(keys)
        return index

    def search(self, head, queries, k):
        return self.heads[head].search(queries, k)[1]


class FaissFlat(Faiss):
    """Keeps its indices with the data: those derived from it go through the same rows, and take no RAM beside it."""
    name, factory, element_bytes = "FAISS flat, f32", "Flat", 4

    def build(self, head):
        if head not in self.data.flat:
            self.data.flat[head] = super().build(head)
        return self.data.flat[head]


class FaissF16(Faiss):
    name, factory, element_bytes = "FAISS scalar quantiser, f16", "SQfp16", 2


class Faiss8Bit(Faiss):
    name, factory, element_bytes = "FAISS scalar quantiser, 8 bits", "SQ8", 1


class Blas(FaissFlat):
    name = "BLAS product and argpartition (numpy), f32"  # multiplies the rows of the flat indices

    def build(self, head):
        import faiss
        index = super().build(head)
        return index, faiss.rev_swig_ptr(index.get_xb(), self.data.rows * self.data.dim).reshape(-1, self.data.dim)

    def search(self, head, queries, k):
        scores = queries @ self.heads[head][1].T
        best = np.argpartition(scores, -k, axis=1)[:, -k:]
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1)
        return np.take_along_axis(best, order, 1)


class Usearch(PerHead):
    name = "usearch exact, f16"
    most_keys = 8 << 18
    too_long = "a step would take longer than everyone else's together"

    def build(self, head):
        return self.data.keys[head]

    def search(self, head, queries, k):
        from usearch.index import MetricKind, search
        found = search(self.heads[head], queries.astype(np.float16), k, MetricKind.IP, exact=True, threads=1)
        return found.keys.reshape(len(queries), k)


class Hnswlib(PerHead):
    name, element_bytes = "hnswlib, M 16, ef 128 (approximate)", 5
    most_keys = 8 << 14
    too_long = "building its graph would take longer than all the rest"

    def build(self, head):
        import hnswlib
        index = hnswlib.Index(space="ip", dim=self.data.dim)
        index.init_index(self.data.rows, M=16, ef_construction=100)
        index.add_items(self.data.keys[head].astype(np.float32), num_threads=1)
        return index

    def search(self, head, queries, k):
        self.heads[head].set_ef(max(128, k))
        return self.heads[head].knn_query(queries, k, num_threads=1)[0]


class FaissAttention(FaissFlat):
    """What one would write around a search: gather, softmax over retrieved and local rows, weighted sum."""
    task, local = "attend", True
    name = "FAISS flat, then gather and softmax in numpy"

    def prepare(self, group, k):
        local_keys, local_values = (rows[:, :LOCAL_ROWS].astype(np.float32)
                                    for rows in (self.data.keys, self.data.values))
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
            return tokens, output
        return [Contestant(self.task, self.name, run, self.local)]


class Dense:
    """llama.cpp's attention over all rows, without selection and without further local rows."""
    name = "llama.cpp flash attention over all rows, f16"
    element_bytes, most_keys = 0, None  # it reads the data where they are
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
            return None, output
        return [Contestant("attend", self.name, run)]

    def release(self):
        if self.step is not None:
            self.library.peers_dense_destroy(self.step)
        self.step = None


class Mneme:
    """Three rows from one memory: search, attention to what it found, and that with a local window in one softmax. Of
    memories that store other than f16 the second alone."""
    library = None

    def __init__(self, data, stored):
        """stored: names of types; f16 is always one."""
        self.data, self.stored, self.memories, self.group = data, ["f16", *stored], {}, None
        self.local = [np.ascontiguousarray(rows[:, :LOCAL_ROWS].transpose(1, 0, 2)) for rows in (data.keys, data.values)]

    @staticmethod
    def element_bytes(stored):
        """Of keys and values, and of codes with their bounds."""
        return sum(2 * mneme_abi.BYTES[one] + 1.1 for one in ["f16", *stored])

    def prepare(self, group, k):
        if group != self.group:  # a card says how many query heads there are
            self.release()
            self.memories = {one: self._memory(group, one) for one in self.stored}
            self.group = group
        memory = self.memories["f16"]
        search = memory.searcher(k)
        contestants = [
            Contestant("search", "mneme search", lambda queries: (search(queries), None)),
            Contestant("attend", "mneme attend, memory alone", self._attender("f16", k)),
            Contestant("attend", f"mneme attend, with {LOCAL_ROWS} local rows", self._attender("f16", k, *self.local),
                       local=True)]
        return contestants + [Contestant("attend", f"mneme attend, memory alone, stored {one}", self._attender(one, k))
                              for one in self.stored[1:]]

    def _memory(self, group, stored):
        folder = tempfile.mkdtemp(prefix="mneme-peers-")
        memory = mneme_abi.Memory(Mneme.library, folder, self.data.keys, self.data.values, group, self.data.scale,
                                  self.data.threads, stored)
        memory.folder = folder
        return memory

    def _attender(self, stored, k, *local):
        attend = self.memories[stored].attender(k, *local)

        def run(queries):
            output, tokens = attend(queries)
            return tokens, output
        return run

    def release(self):
        for memory in self.memories.values():
            memory.close()
            shutil.rmtree(memory.folder)
        self.memories, self.group = {}, None


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
