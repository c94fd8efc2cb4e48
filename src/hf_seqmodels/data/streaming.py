"""Text that is read as it comes: from shards, cut into windows on the way, divided over processes, never as a whole.

A pass over the data is divided into pieces, each some consecutive rows of one shard, and every piece is cut into
windows by itself. So the windows of a pass are the same for any number of processes, and each is seen once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, load_dataset
from datasets import IterableDataset as Rows
from transformers import PreTrainedTokenizerBase

from ..arguments import ConfigError
from ..recipes import one_line
from .encoding import Encoder, encoder_of
from .sources import check_texts, find_data, missing_column, of_lines, reads_lines, unreadable
from .text import read_text

PIECE_ROWS, PIECE_CHARACTERS = 1000, 1_000_000  # a piece ends after the row that reaches one of them
BUFFER = 1000  # windows among which the next one is drawn


def open_rows(
    path: str, data_dir: str | None, split: str, column: str = "text", keep_line_ends: bool = False
) -> tuple[Rows, str]:
    """A split whose rows come one after the other with the column `text`, and what to call it in errors.

    Args:
        path, data_dir: as for `find_data`; a folder may hold a split in one file (`train.parquet`, `train.txt`) or
            in shards, as the Hub names them (`train-00000-of-00008.parquet`).
        split: the data set's own name of it.
        column: the one that holds the text.
        keep_line_ends: rows of `.txt` files are lines; they keep their newline.

    Raises:
        FileNotFoundError, ValueError: nothing there, or no such split or column.
    """
    place = find_data(path, data_dir)
    told = f"{place}, split {split}"
    try:
        if isinstance(place, Path) and (place / f"{split}.parquet").is_file():
            told = str(place / f"{split}.parquet")
            rows = load_dataset("parquet", data_files={split: told}, split=split, streaming=True)
        elif isinstance(place, Path) and (place / f"{split}.txt").is_file():
            told = str(place / f"{split}.txt")
            rows = load_dataset(
                "text", data_files={split: told}, split=split, streaming=True, **of_lines(keep_line_ends)
            )
        else:
            name, _, configuration = str(place).partition(":") if isinstance(place, str) else (str(place), "", "")
            lines = of_lines(keep_line_ends) if reads_lines(name, configuration or None) else {}
            rows = load_dataset(name, configuration or None, split=split, streaming=True, **lines)
    except Exception as error:  # no file it knows, no network, no such repository, split or configuration, …
        raise ValueError(f"{unreadable(place)}; wanted was split '{split}' ({one_line(error)})") from None
    columns = rows.column_names
    if columns is not None and column not in columns:
        raise ValueError(missing_column(told, column, columns))
    return rows.select_columns([column]).rename_column(column, "text") if column != "text" else rows, told


def read_rows(
    path: str, data_dir: str | None, split: str, column: str = "text", keep_line_ends: bool = False
) -> Dataset:
    """The same, read to its end: a split of a data set whose other splits are left alone.

    Raises:
        FileNotFoundError, ValueError: as for [`open_rows`], or the split has no rows or one that is not text.
    """
    rows, told = open_rows(path, data_dir, split, column, keep_line_ends)
    try:
        texts = [row["text"] for row in rows]
    except Exception as error:  # the readers of files have errors of their own, and so has the network
        raise ValueError(_unread(told, error)) from None
    if not texts:
        raise ValueError(f"{told}: the split has no rows, and needs at least one; get the file again")
    try:
        dataset = Dataset.from_dict({"text": texts})
    except Exception as error:  # of Arrow, for rows of several types
        raise ValueError(f"{told}: column '{column}' does not hold text in every row ({one_line(error)})") from None
    check_texts(dataset, told, column)
    return dataset


def _unread(told: str, error: Exception, where: str = "") -> str:
    """Why rows cannot be read; of a file of text with its first byte that is not UTF-8."""
    if isinstance(error, UnicodeDecodeError) and Path(told).suffix == ".txt":
        try:
            read_text(Path(told))
        except ValueError as found:
            return str(found)
    return f"{told}: rows{where} cannot be read ({one_line(error)}); they must be text in UTF-8: get the file again"


@dataclass
class Division:
    """Which of several processes this one is, and how they agree.

    Attributes:
        rank, processes: this one of so many.
        anyone: asked by all processes at once, each with its own answer; whether any of them said yes.
    """

    rank: int = 0
    processes: int = 1
    anyone: Callable[[bool], bool] = bool


@dataclass
class StreamedText(torch.utils.data.IterableDataset):
    """Windows of a split that is read as it comes, for ever: one pass over the data after the other.

    A piece is the tokens of its rows, one after the other; with `row_end="eos"` each row is followed by the end token,
    and the piece is predicted from one, so every token is a target exactly once. With "nothing" the first token of a
    piece is context alone. A window is up to `block_size + 1` tokens, the first of which the window before it has
    predicted; `labels` are the tokens, and −100 for that first one.

    **Processes.** If the number of shards is a multiple of theirs, each reads shards of its own; otherwise all read
    every shard and take pieces in turn. In either case they have unequal numbers of windows. A process without windows
    gives samples without targets until all have none, and all begin the next pass together: each takes the same number
    of steps, and each window is seen by one of them in a pass.

    **Order.** Shards in an order that is drawn for each pass; windows drawn from the next thousand. All of it depends
    on `seed`, the pass and the division alone, so a resumed run that reads again what it has seen goes on bit-exactly
    with the same number of processes. There is no other way to go on: to skip is to read.

    Args:
        rows: a split, from `open_rows`.
        tokenizer: fitted beforehand; the text is never there as a whole to build one from.
        block_size: predictions per window.
        batch_size: samples that this process takes in a step; a pass ends with a step.
        row_end: "eos" or "nothing".
        seed: of the order; None keeps that of the data.
        name: of the split, for errors.
    """

    rows: Rows
    tokenizer: PreTrainedTokenizerBase
    block_size: int
    batch_size: int = 1
    row_end: str = "eos"
    seed: int | None = 0
    name: str = "train"
    division: Division = field(default_factory=Division)

    def __post_init__(self) -> None:
        if self.row_end == "eos" and self.tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no eos_token: texts are told apart by it; set tokenizer.eos_token")
        self._encoder: Encoder = encoder_of(self.tokenizer)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        number = 0
        while True:
            seen = False
            for sample in self.one_pass(number):
                seen = True
                yield sample
            if not seen:
                raise ConfigError(f"{self.name} has no row with text: a model needs tokens to learn from; add text")
            number += 1

    def one_pass(self, number: int) -> Iterator[dict[str, np.ndarray]]:
        """This process's samples of a pass, whole batches of them."""
        windows = self._shuffled(self.own_windows(number), number)
        while True:
            batch = list(islice(windows, self.batch_size))
            if not self.division.anyone(bool(batch)):
                return
            yield from batch
            yield from [self.sample_without_targets()] * (self.batch_size - len(batch))

    def own_windows(self, number: int) -> Iterator[dict[str, np.ndarray]]:
        """The windows of a pass that are this process's, in the order of the data."""
        shards, rank, processes = self.rows.num_shards, self.division.rank, self.division.processes
        order = (
            np.arange(shards) if self.seed is None else np.random.default_rng([self.seed, number]).permutation(shards)
        )
        whole = shards % processes == 0
        turn = 0
        for shard in order[rank::processes] if whole else order:
            for texts in self._pieces(int(shard)):
                if whole or turn % processes == rank:
                    yield from self._cut(texts)
                turn += 1

    def _pieces(self, shard: int) -> Iterator[list[str]]:
        piece: list[str] = []
        characters = 0
        for text in self._texts(shard):
            piece.append(text)
            characters += len(text)
            if len(piece) == PIECE_ROWS or characters >= PIECE_CHARACTERS:
                yield piece
                piece, characters = [], 0
        if piece:
            yield piece

    def _texts(self, shard: int) -> Iterator[str]:
        examples = iter(self.rows.shard(num_shards=self.rows.num_shards, index=shard))
        for row in count():
            try:
                example = next(examples, None)
            except Exception as error:  # the readers of files have errors of their own, and so has the network
                where = f" of shard {shard}, somewhere after row {row - 1}" if row else f" of shard {shard}"
                raise ConfigError(_unread(self.name, error, where)) from None
            if example is None:
                return
            text = example.get("text")
            if not isinstance(text, str):
                wrong = "has no text (null)" if text is None else f"holds {type(text).__name__} and must hold text"
                place = f"{self.name}: row {row} of shard {shard}"
                raise ConfigError(f"{place} {wrong}; give it some, or leave the row out")
            yield text

    def _cut(self, texts: list[str]) -> Iterator[dict[str, np.ndarray]]:
        ids, lengths = self._encoder(texts)
        stream = ids.astype(np.int64)
        if self.row_end == "eos":
            eos = self.tokenizer.eos_token_id
            stream = np.insert(np.insert(stream, np.cumsum(lengths), eos), 0, eos)
        for start in range(0, len(stream) - 1, self.block_size):
            window = stream[start : start + self.block_size + 1]
            yield {"input_ids": window, "labels": np.concatenate([[-100], window[1:]])}

    def _shuffled(self, windows: Iterator[dict], number: int) -> Iterator[dict]:
        if self.seed is None:
            yield from windows
            return
        rng = np.random.default_rng([self.seed, number, 1 + self.division.rank])
        buffer = list(islice(windows, BUFFER))
        for window in windows:
            place = int(rng.integers(len(buffer)))
            yield buffer[place]
            buffer[place] = window
        yield from (buffer[place] for place in rng.permutation(len(buffer)))

    def sample_without_targets(self) -> dict[str, np.ndarray]:
        """Adds nothing to a summed loss and its gradient."""
        return {"input_ids": np.zeros(2, np.int64), "labels": np.full(2, -100)}
