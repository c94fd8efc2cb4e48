"""Contiguous streams: a text cut into as many rows as a batch has, each read from left to right, window after window.

So a row's window goes on where its last one ended, and a recurrent model can start it from the state it ended with
(truncated back-propagation through time; Mikolov 2010, Zaremba 2014). Every token after the first of a row is a target
exactly once, in whatever windows the row is read. Shapes: T tokens, R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

SHORTEST = 5  # steps of a window of random length (Merity 2017, section 5)
HALF_AS_LONG, DEVIATION = 0.05, 5.0  # probability of half the length; steps


class StreamDataset(Dataset):
    """R rows side by side; item w·R + r is window w of row r, so that a batch of R items is one window of all rows.

    An item holds `input_ids` and `shift_labels`, the token after each of them, both int64 of the window's length, and
    `starts`: whether the window does not go on from the one before it. Items are asked for by number, or, where the
    windows differ from epoch to epoch, by (epoch, number).

    Args:
        stream: token ids (T,).
        rows: R, at least 1.
        block_size: steps per window.
        random_lengths: draw the windows' lengths around `block_size` (Merity 2017, section 5), in another order in
            each epoch. They are the same lengths in each, so that every epoch has as many steps.
        seed: of the lengths.
        documents: where in the stream each document begins; with it no window holds tokens of two documents, and the
            first of each has `starts`. A document is predicted from `start_id`. Its last window may be shorter than
            those of other rows, and rows that have no more documents get windows without tokens.
        start_id: the token before a document; needed with `documents`.

    Raises:
        ValueError: rows with nothing to predict, or random lengths with documents.
    """

    def __init__(
        self,
        stream: np.ndarray,
        rows: int,
        block_size: int,
        random_lengths: bool = False,
        seed: int = 0,
        documents: Sequence[int] | np.ndarray | None = None,
        start_id: int | None = None,
    ):
        self.rows, self.block_size, self.seed = rows, block_size, seed
        self._windows: list[np.ndarray] | None = None
        self.stream = np.asarray(stream)
        if documents is not None:
            if random_lengths:
                raise ValueError("documents are cut into windows of block_size: random_lengths must be False")
            if start_id is None:
                raise ValueError(
                    "each document is predicted from a start_id and there is none: choose a tokenizer with an end "
                    "token, or leave reset_at_documents out"
                )
            self._windows = _document_windows(self.stream, np.asarray(documents), rows, block_size)
            self._start_id, self.num_windows = start_id, max(map(len, self._windows))
            return
        targets = len(self.stream) - 1
        if targets < rows:
            raise ValueError(
                f"a stream of {len(self.stream)} tokens is too short for {rows} rows: each needs a token to predict; "
                f"lower the batch size to at most {max(targets, 0)}, or add text"
            )
        # The first rows are one step longer where the targets do not divide evenly: nothing is cut off.
        shorter, longer = divmod(targets, rows)
        self._offsets = np.array([row * shorter + min(row, longer) for row in range(rows + 1)])
        self._steps = shorter + (longer > 0)
        self._lengths = self._draw_lengths() if random_lengths else None
        self._cuts: dict[int, np.ndarray] = {}
        self.num_windows = len(self.cuts(0)) - 1

    def __len__(self) -> int:
        return self.rows * self.num_windows

    @property
    def longest(self) -> int:
        """Steps of the longest window of any epoch."""
        if self._windows is not None:
            return int(max((last - first).max() for first, last, _ in (rows.T for rows in self._windows)))
        return int(np.diff(self.cuts(0)).max())

    @property
    def num_targets(self) -> int:
        """Predictions in an epoch."""
        return len(self.stream) - (self._windows is None)

    def _draw_lengths(self) -> np.ndarray:
        rng = np.random.default_rng([self.seed, 0])
        lengths: list[int] = []
        left = self._steps
        while left > 0:
            mean = self.block_size if rng.random() >= HALF_AS_LONG else self.block_size / 2
            lengths.append(max(SHORTEST, int(rng.normal(mean, DEVIATION))))
            left -= lengths[-1]
        lengths[-1] += left
        return np.array(lengths)

    def cuts(self, epoch: int) -> np.ndarray:
        """Where the windows of an epoch begin in each row, and at the end the number of steps of the longest row."""
        if self._lengths is None:
            return np.append(np.arange(0, self._steps, self.block_size), self._steps)
        if epoch not in self._cuts:
            order = np.random.default_rng([self.seed, 1, epoch]).permutation(len(self._lengths))
            self._cuts = {epoch: np.concatenate([[0], np.cumsum(self._lengths[order])])}
        return self._cuts[epoch]

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        epoch, number = index if isinstance(index, tuple) else (0, index)
        if not 0 <= number < len(self):
            raise IndexError(f"window {number} of {len(self)}")
        window, row = divmod(number, self.rows)
        if self._windows is not None:
            return self._document_item(window, row)
        start, end = self.cuts(epoch)[window : window + 2]
        first, last = self._offsets[row] + start, min(self._offsets[row] + end, self._offsets[row + 1])
        span = self.stream[first : last + 1].astype(np.int64)
        return {"input_ids": span[:-1], "shift_labels": span[1:], "starts": window == 0}

    def _document_item(self, window: int, row: int) -> dict[str, Any]:
        assert self._windows is not None
        if window >= len(self._windows[row]):
            nothing = np.empty(0, np.int64)
            return {"input_ids": nothing, "shift_labels": nothing, "starts": True}
        first, last, starts = self._windows[row][window]
        targets = self.stream[first:last].astype(np.int64)
        before = self._start_id if starts else self.stream[first - 1]
        return {"input_ids": np.append(before, targets[:-1]), "shift_labels": targets, "starts": bool(starts)}


def _document_windows(stream: np.ndarray, documents: np.ndarray, rows: int, block_size: int) -> list[np.ndarray]:
    """For each row its windows (first, last, starts) of the stream: documents in their order, rows about as long."""
    ends = np.append(documents[1:], len(stream))
    windows = [
        (first, min(first + block_size, end), first == start)
        for start, end in zip(documents, ends, strict=True)
        for first in range(start, end, block_size)
    ]
    begins = np.flatnonzero([starts for _, _, starts in windows])
    if len(begins) < rows:
        raise ValueError(
            f"{len(begins)} documents are too few for {rows} rows: each row needs one; "
            f"lower the batch size to at most {len(begins)}, or leave reset_at_documents out"
        )
    # A row ends at the document's begin nearest to its share, and leaves one at least for each row after it.
    table = np.array(windows)
    cuts = [0]
    for row in range(1, rows):
        nearest = int(np.abs(begins - row * len(windows) / rows).argmin())
        earliest = int(np.searchsorted(begins, cuts[-1], side="right"))
        cuts.append(int(begins[min(max(nearest, earliest), len(begins) - (rows - row))]))
    return np.split(table, cuts[1:])
