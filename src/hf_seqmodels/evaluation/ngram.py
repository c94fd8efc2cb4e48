"""An interpolated n-gram model: what counting alone reaches, for neural models to beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass
class _Level:
    """Counts after contexts of one length k; a context is numbered 0… in the order of its key.

    Keys chain the levels (context k+1 = context k and one more token to the left): V**order would overflow.
    """

    grams: IntArray  # sorted keys: context * V + next token
    counts: IntArray  # per gram
    lefts: IntArray  # sorted keys: context * V + token to its left; the position is the context's number one level up
    totals: FloatArray  # per context: sum of counts
    discounts: FloatArray  # taken off a count of 0, 1, 2, 3 and more
    backoff: FloatArray  # per context: sum of what was taken off, given to the shorter context


class InterpolatedNGram:
    """Order-n model over token ids with interpolated modified Kneser–Ney smoothing.

    p_k(w|h) = (c(hw) − D(c(hw))) / c(h) + γ(h) p_{k−1}(w|h'), where h' is h without its oldest token, down to the
    uniform distribution; below the highest order c counts the distinct tokens seen to the left of hw. Everything comes
    from the training stream, so validation scores are as clean as test scores.
    (Chen & Goodman 1999, "An empirical study of smoothing techniques for language modeling", section 3.)

    Args:
        order: tokens per n-gram, ≥ 1; 3 predicts a token from the two before it.
        vocab_size: number of token ids; every one of them gets a probability above 0.
    """

    def __init__(self, order: int, vocab_size: int) -> None:
        if order < 1:
            raise ValueError(f"order={order} is out of range: it must be at least 1; 3 is a trigram")
        if vocab_size < 1:
            raise ValueError(f"vocab_size={vocab_size} is out of range: it must be at least 1; use len(tokenizer)")
        self.order = order
        self.vocab_size = vocab_size
        self._levels: list[_Level] = []

    def fit(self, train_stream: npt.ArrayLike) -> InterpolatedNGram:
        """Counts a stream of token ids (T,), T > order. Returns self."""
        stream = self._checked(train_stream, self.order + 1)
        history = self._history(stream)
        tables: list[tuple[IntArray, IntArray, IntArray]] = []
        context = np.zeros_like(stream)
        for k in range(self.order):
            known = context >= 0
            grams, counts = np.unique(context[known] * self.vocab_size + stream[known], return_counts=True)
            lefts = np.empty(0, dtype=np.int64)
            if k + 1 < self.order:
                longer = history[k] >= 0
                keys = context[longer] * self.vocab_size + history[k][longer]
                lefts, numbers = np.unique(keys, return_inverse=True)
                context = np.full_like(stream, -1)
                context[longer] = numbers
            tables.append((grams, counts, lefts))
        self._levels = [self._level(tables, k) for k in range(self.order)]
        return self

    def bits_per_token(self, stream: npt.ArrayLike) -> float:
        """Mean of −log2 p over every token of a stream (T,), T ≥ 2, after the first, as for neural models."""
        tokens = self._checked(stream, 2)
        return float(-np.log2(self._probabilities(tokens, self._history(tokens))[1:]).mean())

    def next_token_probabilities(self, context: npt.ArrayLike) -> FloatArray:
        """Distribution (V,) over the token after `context` (T,), T ≥ 0, of which the last `order` − 1 tokens count."""
        before = self._checked(context, 0)
        tokens = np.arange(self.vocab_size)
        history = [np.full_like(tokens, before[-k] if k <= len(before) else -1) for k in range(1, self.order)]
        return self._probabilities(tokens, history)

    def _history(self, stream: IntArray) -> list[IntArray]:
        """For k = 1 … order − 1 the token k places to the left, (T,); −1 before the start."""
        return [np.concatenate([np.full(k, -1), stream])[: len(stream)] for k in range(1, self.order)]

    def _level(self, tables: list[tuple[IntArray, IntArray, IntArray]], k: int) -> _Level:
        grams, counts, lefts = tables[k]
        if k + 1 < self.order:  # Kneser-Ney: count the distinct longer grams that end in this one, not its occurrences
            longer = tables[k + 1][0]
            shorter = lefts[longer // self.vocab_size] // self.vocab_size
            grams, counts = np.unique(shorter * self.vocab_size + longer % self.vocab_size, return_counts=True)
        discounts = _discounts(counts)
        context = grams // self.vocab_size
        size = 1 if k == 0 else len(tables[k - 1][2])
        totals = np.bincount(context, weights=counts, minlength=size).astype(np.float64)
        taken = np.bincount(context, weights=discounts[np.minimum(counts, 3)], minlength=size).astype(np.float64)
        return _Level(grams, counts, lefts, totals, discounts, backoff=taken)

    def _probabilities(self, tokens: IntArray, history: list[IntArray]) -> FloatArray:
        """p(tokens[i] | history[0][i], history[1][i], …), (N,); unseen contexts keep the shorter one's."""
        if not self._levels:
            raise RuntimeError("this n-gram model has no counts: it must be fitted before it scores; call fit first")
        probabilities = np.full(len(tokens), 1 / self.vocab_size)
        context = np.zeros_like(tokens)
        for k, level in enumerate(self._levels):
            if k > 0:
                context = _find(self._levels[k - 1].lefts, context, history[k - 1], self.vocab_size)
            gram = _find(level.grams, context, tokens, self.vocab_size)
            counts = np.where(gram >= 0, level.counts[gram], 0)
            totals = np.where(context >= 0, level.totals[context], 0)
            kept = counts - level.discounts[np.minimum(counts, 3)]
            mixed = (kept + level.backoff[context] * probabilities) / np.maximum(totals, 1)
            probabilities = np.where(totals > 0, mixed, probabilities)
        return probabilities

    def _checked(self, stream: npt.ArrayLike, min_length: int) -> IntArray:
        tokens = np.asarray(stream, dtype=np.int64)
        if tokens.ndim != 1 or len(tokens) < min_length:
            raise ValueError(
                f"a stream of shape {tokens.shape} does not do: it must be (T,), T ≥ {min_length}; add text"
            )
        bad = tokens[(tokens < 0) | (tokens >= self.vocab_size)]
        if len(bad):
            raise ValueError(f"token id {bad[0]} is outside the vocabulary: ids must be 0 to {self.vocab_size - 1}")
        return tokens


def _find(keys: IntArray, first: IntArray, second: IntArray, vocab_size: int) -> IntArray:
    """Positions of the pairs in the sorted keys, −1 where a pair is absent or has a part below 0."""
    wanted = np.where((first >= 0) & (second >= 0), first * vocab_size + second, -1)
    position = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[position] == wanted, position, -1)


def _discounts(counts: IntArray) -> FloatArray:
    """D(0) = 0, D1, D2, D3+: D_i = i − (i + 1) Y n_{i+1} / n_i, Y = n1 / (n1 + 2 n2), n_i grams counted i times.

    Where the estimate leaves (0, i), as when few grams are rare, 0.75 stands in.
    """
    n = np.bincount(np.minimum(counts, 5), minlength=6).astype(np.float64)
    i = np.arange(1, 4)
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = i - (i + 1) * n[1] / (n[1] + 2 * n[2]) * n[2:5] / n[1:4]
    return np.concatenate([[0.0], np.where((estimate > 0) & (estimate < i), estimate, 0.75)])
