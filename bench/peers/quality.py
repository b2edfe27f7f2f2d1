# SPDX-License-Identifier: Apache-2.0
"""How good an answer is, beside exact ones computed in double precision over the same rows (as given, in f16).

Of each query the share of its softmax's mass over the whole memory that the answer's rows keep; and how far the
attention's output is from two exact ones: over the true k best, which is what a search is asked for, and over all rows,
which is what the model would have computed. Memory is gone through a block at a time, so that what this takes does not
grow with it."""

import numpy as np

BLOCK_ROWS = 1 << 13


class Attention:
    """softmax(logits) values for some queries, of rows that come a part at a time, in the precision of `dtype`."""

    def __init__(self, queries, dim, dtype=np.float64):
        self.highest = np.full((queries, 1), -np.inf, dtype)
        self.total = np.zeros((queries, 1), dtype)
        self.weighted = np.zeros((queries, dim), dtype)

    def add(self, logits, values):
        """logits [queries, n], -inf where a row does not count; values [n, dim], or [queries, n, dim] if each query has
        its own."""
        highest = np.maximum(self.highest, logits.max(axis=1, keepdims=True))
        shift = np.where(np.isfinite(highest), highest, 0)  # nothing counts yet
        shrink, weights = np.exp(self.highest - shift), np.exp(logits - shift)
        self.highest = highest
        self.total = self.total * shrink + weights.sum(axis=1, keepdims=True)
        self.weighted = self.weighted * shrink
        self.weighted += weights @ values if values.ndim == 2 else np.einsum("qn,qnd->qd", weights, values)
        return self

    def output(self):
        """[queries, dim]; zeros where no row counted."""
        return np.divide(self.weighted, self.total, out=np.zeros_like(self.weighted), where=self.total > 0)


class Head:
    """One KV head: keys, values [rows, dim]; local_keys, local_values [local rows, dim]."""

    def __init__(self, keys, values, local_keys, local_values, scale):
        self.keys, self.values, self.scale = keys, values, scale
        self.local_keys, self.local_values = local_keys, local_values

    def scores(self, queries, tokens):
        """The inner products with these rows, [queries, k], in the queries' precision; -inf for a row that is none (-1)
        or that the query has already."""
        order = np.argsort(tokens, axis=1)
        ordered = np.take_along_axis(tokens, order, 1)
        again = np.zeros(tokens.shape, bool)
        np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], 1)
        scores = np.einsum("qd,qkd->qk", queries, self.keys[np.maximum(tokens, 0)].astype(queries.dtype))
        return np.where((tokens < 0) | again, -np.inf, scores)

    def attend(self, queries, tokens, local):
        """Attention over these rows, and the local ones if asked, in the queries' precision."""
        attention = Attention(*queries.shape, queries.dtype)
        attention.add(self.scale * self.scores(queries, tokens),
                      self.values[np.maximum(tokens, 0)].astype(queries.dtype))
        return (self.add_local(attention, queries) if local else attention).output()

    def add_local(self, attention, queries):
        keys, values = (rows.astype(queries.dtype) for rows in (self.local_keys, self.local_values))
        return attention.add(self.scale * (queries @ keys.T), values)


class Exact:
    """What double precision says for some queries, f32 [queries, dim], of a head.

    tokens [queries, k]: the k best rows, in no order; least [queries, 1]: the score of the last of them;
    log_total [queries, 1]: the logarithm of the softmax's sum over all rows of the memory;
    best, all {local: [queries, dim]}: attention over the k best, and over all rows, without or with the local ones."""

    def __init__(self, head, queries, k):
        self.head, self.queries = head, queries
        exact = queries.astype(np.float64)
        scores, tokens = np.full((len(queries), 0), -np.inf), np.zeros((len(queries), 0), np.int64)
        attention = Attention(*queries.shape)
        for begin in range(0, len(head.keys), BLOCK_ROWS):
            block = slice(begin, begin + BLOCK_ROWS)
            found = exact @ head.keys[block].astype(np.float64).T
            attention.add(head.scale * found, head.values[block].astype(np.float64))
            scores = np.concatenate([scores, found], axis=1)
            rows = np.arange(begin, begin + found.shape[1])
            tokens = np.concatenate([tokens, np.broadcast_to(rows, found.shape)], axis=1)
            if scores.shape[1] > k:
                best = np.argpartition(scores, -k, axis=1)[:, -k:]
                scores, tokens = (np.take_along_axis(all_, best, 1) for all_ in (scores, tokens))
        self.tokens, self.least = tokens, scores.min(axis=1, keepdims=True)
        self.log_total = attention.highest + np.log(attention.total)
        self.all = {False: attention.output()}
        self.all[True] = head.add_local(attention, exact).output()
        self.best = {local: head.attend(exact, tokens, local) for local in (False, True)}

    def found(self, tokens):
        """How many of the k best these rows are, [queries]. A row as good as the last, but for rounding, is one."""
        scores = self.head.scores(self.queries.astype(np.float64), tokens)
        return (scores >= self.least - 1e-5 * np.abs(self.least)).sum(axis=1)

    def mass(self, tokens):
        """The share of the softmax over the whole memory that these rows keep, [queries]."""
        logits = self.head.scale * self.head.scores(self.queries.astype(np.float64), tokens)
        return np.exp(logits - self.log_total).sum(axis=1)


def relative_error(pairs):
    """The norm of all differences over the norm of all that is exact; pairs: [(computed, exact)]."""
    difference = sum(float(((computed - exact) ** 2).sum()) for computed, exact in pairs)
    return (difference / sum(float((exact ** 2).sum()) for _, exact in pairs)) ** 0.5


class Judge:
    """Judges what was answered to `queries`, f32 [steps, heads * group, dim]. `pool` has threads for the heads."""

    def __init__(self, data, queries, k, local_rows, pool):
        def exact(h):
            keys, values = data.keys[h], data.values[h]
            head = Head(keys, values, keys[:local_rows], values[:local_rows], data.scale)
            return Exact(head, self._of_head(queries, h), k)
        self._heads, self._k = data.heads, k
        self._exact = list(pool.map(exact, range(data.heads)))

    def _of_head(self, rows, h):
        """[steps, heads * group, n] -> [steps * group, n] of one KV head."""
        steps, _, n = rows.shape
        return rows.reshape(steps, self._heads, -1, n)[:, h].reshape(-1, n)

    def best(self):
        """What the k best themselves keep of all rows."""
        return {"mass": float(np.mean([e.mass(e.tokens) for e in self._exact])),
                "error_all": relative_error([(e.best[False], e.all[False]) for e in self._exact])}

    def judge(self, tokens, output, local):
        """tokens [steps, heads * group, k]: none if all rows were attended to; output f32 [steps, heads * group, dim]:
        none of a mere search, whose output is computed from its rows here, in f32. local: with the local rows."""
        heads = list(enumerate(self._exact))
        if output is None:
            outputs = [e.head.attend(e.queries, self._of_head(tokens, h), local) for h, e in heads]
        else:
            outputs = [self._of_head(output, h) for h, _ in heads]
        error_all = relative_error([(o, e.all[local]) for o, e in zip(outputs, self._exact)])
        if tokens is None:
            return {"recall": None, "mass": 1.0, "error_best": None, "error_all": error_all}
        of_heads = [self._of_head(tokens, h) for h, _ in heads]
        return {"recall": float(np.mean([e.found(t) for e, t in zip(self._exact, of_heads)])) / self._k,
                "mass": float(np.mean([e.mass(t) for e, t in zip(self._exact, of_heads)])),
                "error_best": relative_error([(o, e.best[local]) for o, e in zip(outputs, self._exact)]),
                "error_all": error_all}
