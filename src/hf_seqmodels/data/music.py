"""Piano rolls: which keys of the piano sound in each step of a piece (Boulanger-Lewandowski 2012).

A data set has one row for each piece, with the columns `id`, `n_steps` and `pitches`: for each step the list of MIDI
pitches that sound in it. `collate.py` makes rolls of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from datasets import Dataset, DatasetDict

from .sources import SPLITS, find_data, load_splits

KEYS, LOWEST = 88, 21  # of a piano; MIDI counts its lowest key, A0, as 21
HIGHEST = LOWEST + KEYS - 1
COLUMNS = ("id", "n_steps", "pitches")


def load_piano_rolls(
    path: str, data_dir: str | None = None, wanted: Mapping[str, str] = SPLITS
) -> tuple[DatasetDict, dict[str, int]]:
    """Read a data set of piano rolls and check every piece.

    A piece of one step is read and has nothing to predict: it is left out and counted.

    Args:
        path, data_dir, wanted: as for [`load_splits`].

    Returns:
        The splits with the columns `id` and `pitches`, and how many pieces of each split were left out.

    Raises:
        FileNotFoundError: as [`load_splits`].
        ValueError: as [`load_splits`]; or pitches are no lists of whole numbers, a pitch is outside the keyboard or
            twice in a step, `n_steps` is another number than the steps there, a piece has no step, or a split no piece
            of two steps.
    """
    place = find_data(path, data_dir)
    rows, splits, left_out = load_splits(path, data_dir, wanted, COLUMNS), {}, {}
    for split, name in wanted.items():
        file = Path(place, f"{name}.parquet")
        where = str(file) if file.is_file() else f"{place}, split {name}"
        check_kind(rows[split].features.arrow_schema.field("pitches").type, where)
        pieces, kept = rows[split].to_list(), []
        for number, piece in enumerate(pieces):
            check_piece(piece, f"{where}: row {number} (id {piece['id']})")
            if len(piece["pitches"]) > 1:
                kept.append(number)
        if not kept:
            raise ValueError(f"{where}: none of {len(pieces)} pieces has two steps, the fewest with one to predict")
        splits[split] = Dataset.from_list([{name: pieces[i][name] for name in ("id", "pitches")} for i in kept])
        left_out[split] = len(pieces) - len(kept)
    return DatasetDict(splits), left_out


def check_kind(kind: pyarrow.DataType, where: str) -> None:
    """Raise ValueError, beginning with `where`, unless a column's type is lists of lists of whole numbers.

    Lists that are empty or missing in every row say nothing of what they would hold; `check_piece` reads them.
    """
    found, depth = kind, 0
    while hasattr(found, "value_type") and depth < 3:
        found, depth = found.value_type, depth + 1
    whole_numbers, nothing = pyarrow.types.is_integer(found) and depth == 2, pyarrow.types.is_null(found) and depth < 3
    if not (whole_numbers or nothing):
        rule = "must hold for each step the list of its MIDI pitches, which are whole numbers"
        raise ValueError(f"{where}: column 'pitches' holds {kind} and {rule}; write the file again so")


def cut_pieces(pieces: Dataset, length: int) -> tuple[Dataset, int]:
    """Pieces as stretches of at most `length` steps, and how many of them were cut.

    The last step of a stretch is also the first of the next one, which is given and not predicted: so every step but
    the first of a piece is predicted once, as without cutting.

    Raises:
        ValueError: `length` is below 2.
    """
    if length < 2:
        raise ValueError(f"length={length} leaves nothing to predict; a stretch of a piece has at least 2 steps")
    rows, cut = [], 0
    for piece in pieces:
        steps = piece["pitches"]
        starts = range(0, len(steps) - 1, length - 1)
        rows += [{"id": piece["id"], "pitches": steps[start : start + length]} for start in starts]
        cut += len(starts) > 1
    return Dataset.from_list(rows), cut


def check_piece(piece: Mapping[str, Any], where: str) -> None:
    """Raise ValueError, beginning with `where`, unless a row of a data set is a piece that a piano can play."""
    steps, told = piece["pitches"], piece["n_steps"]
    if not steps:
        raise ValueError(f"{where} has no steps; a piece has at least one, so take the row out or mend it")
    if told != len(steps):
        raise ValueError(f"{where} has n_steps={told} and {len(steps)} steps in pitches; they must agree, mend one")
    for number, pitches in enumerate(steps):
        if pitches is None:
            raise ValueError(f"{where}, step {number} is missing; a silent step is an empty list")
        for pitch in pitches:
            if pitch is None or not LOWEST <= pitch <= HIGHEST:
                rule = f"a piano's keys are the MIDI pitches {LOWEST} to {HIGHEST}; transpose the piece or take it out"
                raise ValueError(f"{where}, step {number} has pitch {pitch}; {rule}")
        if len(set(pitches)) < len(pitches):
            raise ValueError(f"{where}, step {number} has a pitch twice: {list(pitches)}; each key sounds once")


def to_roll(pitches: Sequence[Sequence[int]]) -> np.ndarray:
    """(T, 88) float32, 1 where a key sounds: pitch p of step t is at [t, p − 21]."""
    roll = np.zeros((len(pitches), KEYS), dtype=np.float32)
    steps = np.repeat(np.arange(len(pitches)), [len(step) for step in pitches])
    roll[steps, np.fromiter((pitch - LOWEST for step in pitches for pitch in step), dtype=np.int64)] = 1
    return roll


def to_pitches(roll: np.ndarray) -> list[list[int]]:
    """The pitches of each step of a roll (T, 88), in rising order."""
    return [[int(key) + LOWEST for key in np.flatnonzero(step)] for step in np.asarray(roll)]
