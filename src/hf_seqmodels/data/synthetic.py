"""Synthetic tasks: data sets made in code, seeded, with a chance level that can be counted.

One function makes one example (`synthetic_text.py`, `synthetic_tags.py`, `synthetic_frames.py`) or, where there are
many long ones, a block of them (`synthetic_memory.py`); `SYNTHETIC` below says for each task what goes in, what comes
out and what guessing reaches; `make_synthetic` draws the three splits.
A new task is one such function and one line here, a name in `arguments.DATASETS`, and a recipe.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict
from datasets.table import InMemoryTable
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from . import synthetic_frames as frames
from . import synthetic_memory as memory
from . import synthetic_tags as tags
from . import synthetic_text as text
from .symbols import EOS, MASK, PAD, SPECIAL

Row = Mapping[str, Any]
SPLITS = ("train", "validation", "test")
# After so many draws in a row that stand in another split, there are too few different examples.
PATIENCE = 1_000
# Examples drawn at once. Whole blocks are drawn, so that the first examples do not depend on how many are wanted.
BLOCK = 1_000


@dataclass(frozen=True)
class SyntheticTask:
    """One task.

    Attributes:
        example: (random generator, length) → one example, columns as the task's collator reads them; `at_once`:
            (random generator, length, number) → as many, columns as arrays.
        length: default of the length, in whatever the example's function counts.
        chance: what the best guess without the input reaches of `measure`, or a function of a split that says so.
        measure: the score that `chance` is about.
        symbols: the vocabulary without special tokens; empty where the input is no text.
        labels: names of the classes, for classification.
        easier: makes the training examples where they differ from the others (a curriculum).
        at_once: `example` makes many examples at once.
        options: what the data decide about the model, beside its vocabulary and its classes.
    """

    example: Callable[..., Row]
    length: int
    chance: float | Callable[[Dataset], float]
    measure: str
    symbols: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    easier: Callable[[np.random.Generator, int], Row] | None = None
    at_once: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


SYNTHETIC: dict[str, SyntheticTask] = {
    "reverse": SyntheticTask(text.reverse, 20, text.CHANCE_REVERSE, "exact_match", text.LETTERS),
    "prefixed": SyntheticTask(text.prefixed, 8, text.CHANCE_PREFIXED, "exact_match", text.PREFIXED),
    "selective_copy": SyntheticTask(text.selective_copy, 40, text.CHANCE_COPY, "accuracy", text.COPY_SYMBOLS),
    "next_token": SyntheticTask(text.next_token, 64, text.CHANCE_BITS, "bits_per_token", text.MARKOV_SYMBOLS),
    "cloze": SyntheticTask(text.cloze, 8, text.CHANCE_CLOZE, "accuracy", text.CLOZE_SYMBOLS),
    "parity": SyntheticTask(tags.parity, 40, 1 / 2, "accuracy", tags.BITS, ("even", "odd"), tags.parity_up_to),
    "recall": SyntheticTask(tags.recall, 256, tags.CHANCE_RECALL, "accuracy", tags.RECALL_SYMBOLS, tags.VALUES),
    "lookahead_tags": SyntheticTask(tags.lookahead_tags, 30, 1 / 2, "accuracy", tags.BITS, ("even", "odd")),
    "bracketed_tags": SyntheticTask(
        tags.bracketed_tags, 20, tags.CHANCE_BRACKETED, "accuracy", tags.BRACKETED_WORDS, tags.BRACKETED_TAGS
    ),
    "nested_brackets": SyntheticTask(
        tags.nested_brackets, 48, tags.CHANCE_NESTED, "accuracy", tags.BRACKETS, tags.CLOSING
    ),
    "spike_timing": SyntheticTask(tags.spike_timing, 12, 1 / 2, "exact_match", tags.SPIKE_SYMBOLS, ("none", "spike")),
    "moving_squares": SyntheticTask(frames.moving_squares, 10, frames.last_frame_error, "mse"),
    "adding": SyntheticTask(
        memory.adding,
        600,
        memory.error_of_one,
        "mse",
        at_once=True,
        options={"num_features": memory.FEATURES, "num_labels": 1, "problem_type": "regression"},
    ),
    "copy_memory": SyntheticTask(
        memory.copy_memory,
        1_000,
        memory.loss_of_eight,
        "loss",
        memory.MEMORY_SYMBOLS,
        memory.MEMORY_SYMBOLS,
        at_once=True,
    ),
}


def make_synthetic(
    name: str, num_examples: int = 10_000, length: int | None = None, seed: int = 0
) -> tuple[DatasetDict, PreTrainedTokenizerBase | None]:
    """The splits train (`num_examples`), validation and test (a tenth each), and the tokenizer of the symbols.

    No input of one split stands in another; within a split it may stand twice. The same arguments give the same
    examples everywhere, and test does not depend on `num_examples` beyond its size.

    Raises:
        ValueError: unknown task, fewer than 10 examples, a length the task cannot have, or too few different examples.
    """
    if name not in SYNTHETIC:
        raise ValueError(f"there is no synthetic task '{name}': it must be one of {', '.join(SYNTHETIC)}")
    if num_examples < 10:
        raise ValueError(f"num_examples={num_examples} is out of range: it must be at least 10; try 1000")
    task = SYNTHETIC[name]
    length = task.length if length is None else length
    seen: dict[bytes, str] = {}
    splits = {}
    for split in reversed(SPLITS):
        rng = np.random.default_rng([seed, zlib.crc32(f"{name} {split}".encode())])
        draw = task.easier if split == "train" and task.easier else task.example
        number = num_examples if split == "train" else num_examples // 10

        def is_new(row: Row, split: str = split) -> bool:
            return seen.setdefault(_input(row), split) == split

        made = _blocks(draw, rng, length, number, is_new) if task.at_once else _rows(draw, rng, length, number, is_new)
        if made is None:
            raise ValueError(
                f"{name} with length={length} has too few different examples for {num_examples}; "
                "raise length or lower num_examples"
            )
        splits[split] = made
    ordered = DatasetDict({split: splits[split] for split in SPLITS})
    return ordered, symbol_tokenizer(task.symbols) if task.symbols else None


def _rows(
    draw: Callable[..., Row], rng: np.random.Generator, length: int, number: int, is_new: Callable[[Row], bool]
) -> Dataset | None:
    """`number` examples drawn one by one, or None where there are not so many."""
    rows: list[Row] = []
    misses = 0
    while len(rows) < number:
        row = draw(rng, length)
        if is_new(row):
            rows.append(row)
            misses = 0
        elif (misses := misses + 1) > PATIENCE:
            return None
    return _dataset(rows)


def _blocks(
    draw: Callable[..., Row], rng: np.random.Generator, length: int, number: int, is_new: Callable[[Row], bool]
) -> Dataset | None:
    """`number` examples drawn in blocks, as arrays of one size; or None where there are not so many."""
    tables: list[pa.Table] = []
    # What decides the contents; left to itself `datasets` would pickle them all, several times over.
    decisive = repr((draw.__name__, length, number, rng.bit_generator.state))
    fingerprint = blake2b(decisive.encode(), digest_size=8).hexdigest()
    while (missing := number - sum(map(len, tables))) > 0:
        block = draw(rng, length, BLOCK)
        rows = ({name: column[i] for name, column in block.items()} for i in range(BLOCK))
        kept = np.flatnonzero([is_new(row) for row in rows])[:missing]
        if not len(kept):
            return None
        tables.append(pa.table({name: _column(column[kept]) for name, column in block.items()}))
    return Dataset(InMemoryTable(pa.concat_tables(tables)), fingerprint=fingerprint).with_format("numpy")


def _column(values: np.ndarray) -> pa.Array:
    """(N,) or (N, W) numbers, the latter as lists of W each."""
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def chance_level(name: str, split: Dataset) -> float:
    """What a guess reaches on a split, of the task's measure."""
    chance = SYNTHETIC[name].chance
    return chance(split) if callable(chance) else chance


def _input(row: Row) -> bytes:
    """A digest of what must not stand in two splits."""
    name = next(name for name in ("input_ids", "input_features", "frames") if name in row)
    return blake2b(np.asarray(row[name]).tobytes(), digest_size=16).digest()


def _dataset(rows: list[Row]) -> Dataset:
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    if "frames" in columns:  # arrays of one size: kept as numbers, not as nested lists
        stacked = np.stack(columns.pop("frames"))
        shape = list(stacked.shape[1:])
        dataset = Dataset.from_dict({"frames": list(stacked.reshape(len(stacked), -1)), "shape": [shape] * len(rows)})
        return dataset.with_format("numpy")
    return Dataset.from_dict(columns)


def symbol_tokenizer(symbols: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """One token per symbol; symbols stand apart by spaces ("a b c"). Ids 0–3 are pad, unknown, end and mask."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *symbols])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[PAD],
        unk_token=SPECIAL[1],
        eos_token=SPECIAL[EOS],
        mask_token=SPECIAL[MASK],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
