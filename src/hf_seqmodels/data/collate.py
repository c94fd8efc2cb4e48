"""Batches. The only place that pads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from .music import to_roll

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class TokenCollator:
    """Rows with `input_ids` and a label for each token → tensors (B, T) int64, padded on the right to the longest row.

    `attention_mask` is always there (1 valid, 0 padding), so batches look alike whether or not one was padded.
    Padding is `pad_token_id` in `input_ids` and -100, which losses ignore, in `labels`.

    Raises:
        ValueError: no rows, a row whose `labels` are missing or differ in length, an empty row, or, given
            `vocab_size`, a token id outside it. Checked here, on the CPU: on a GPU it would cost a synchronisation.
    """

    pad_token_id: int
    vocab_size: int | None = None

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        _check_rows(rows)
        for row in rows:
            lengths = len(row["input_ids"]), len(row.get("labels", ()))
            if lengths[0] != lengths[1] or lengths[0] == 0:
                raise ValueError(
                    f"a row has {lengths[0]} input_ids and {lengths[1]} labels: both must be there and equally long; "
                    "make rows with window_dataset"
                )
        return self.pad_inputs(rows) | {"labels": _pad([row["labels"] for row in rows], -100)}

    def pad_inputs(self, rows: Rows) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask`, each (B, T)."""
        input_ids = [torch.as_tensor(row["input_ids"], dtype=torch.long) for row in rows]
        if self.vocab_size is not None:
            self._check_range(input_ids, self.vocab_size)
        return {
            "input_ids": _pad(input_ids, self.pad_token_id),
            "attention_mask": _pad([torch.ones_like(ids) for ids in input_ids], 0),
        }

    @staticmethod
    def _check_range(input_ids: list[torch.Tensor], vocab_size: int) -> None:
        ids = torch.cat(input_ids)
        bad = ids[(ids < 0) | (ids >= vocab_size)]
        if len(bad):
            raise ValueError(
                f"token id {int(bad[0])} is outside the vocabulary: ids must be 0 to {vocab_size - 1} "
                f"(vocab_size={vocab_size}); use the tokenizer the model was made for"
            )


class CausalLMCollator(TokenCollator):
    """[`TokenCollator`] for language models: the labels are the tokens again, the model shifts them."""


class StreamCollator(TokenCollator):
    """Rows of a `StreamDataset` → `input_ids`, `attention_mask`, `labels`, `shift_labels` (B, T) and `starts` (B,).

    The targets are the tokens after the inputs, the last one outside the window: heads read them as `shift_labels`.
    `labels` are the same, for who asks whether a batch has targets. Rows without tokens are all padding; a batch of
    nothing else is one step long, since models refuse to read none.
    """

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        _check_rows(rows)
        targets = _pad([row["shift_labels"] for row in rows], -100)
        starts = torch.tensor([bool(row["starts"]) for row in rows])
        batch = self.pad_inputs(rows) | {"labels": targets, "shift_labels": targets}
        if not targets.shape[1]:
            fill = {"input_ids": self.pad_token_id, "attention_mask": 0, "labels": -100, "shift_labels": -100}
            batch = {name: torch.full((len(rows), 1), value) for name, value in fill.items()}
        return batch | {"starts": starts}


class Seq2SeqCollator(TokenCollator):
    """Rows with `input_ids` (source) and `labels` (target) of any two lengths → (B, S), (B, S) and labels (B, T).

    The model makes the decoder's inputs from the labels.

    Raises:
        ValueError: no rows, an empty source or target, or a token id outside the vocabulary.
    """

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        _check_rows(rows)
        if not all(len(row["input_ids"]) and len(row.get("labels", ())) for row in rows):
            raise ValueError("a row has no source or no target: both need at least one token; leave such rows out")
        return self.pad_inputs(rows) | {"labels": _pad([row["labels"] for row in rows], -100)}


class SequenceClassificationCollator(TokenCollator):
    """Rows with `input_ids` and one class → `input_ids` and `attention_mask` (B, T), `labels` (B,).

    Raises:
        ValueError: no rows, an empty row, or a token id outside the vocabulary.
    """

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        _check_rows(rows)
        if not all(len(row["input_ids"]) for row in rows):
            raise ValueError("a row has no input_ids: a class needs at least one token; leave such rows out")
        return self.pad_inputs(rows) | {"labels": torch.tensor([int(row["labels"]) for row in rows])}


@dataclass(frozen=True)
class FeaturesCollator:
    """Rows with flat `input_features`, T steps, and a number → `input_features` (B, T, num_features), `labels` (B,).

    Both are float32. All rows of a batch are equally long, so there is no padding and no mask.

    Raises:
        ValueError: no rows, or rows of different lengths or of no whole number of steps.
    """

    num_features: int

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        _check_rows(rows)
        lengths = {len(row["input_features"]) for row in rows}
        if len(lengths) > 1 or lengths.pop() % self.num_features:
            raise ValueError(
                f"input_features must be equally many in every row, and {self.num_features} for each step; "
                f"the first row has {len(rows[0]['input_features'])}; check the data set"
            )
        flat = torch.from_numpy(np.stack([np.asarray(row["input_features"], np.float32) for row in rows]))
        labels = torch.tensor([float(row["labels"]) for row in rows])
        return {"input_features": flat.unflatten(1, (-1, self.num_features)), "labels": labels}


@dataclass(frozen=True)
class FramesCollator:
    """Rows with `frames`, flat, and their `shape` (T, C, H, W) → the first half of the frames, and the second half.

    A model that reads pictures (`main_input_name` is `pixel_values`) gets `pixel_values` and `future_values`, each
    (B, T/2, C, H, W); any other one gets series of pixels, `past_values` and `future_values`, each (B, T/2, C·H·W).
    """

    main_input_name: str

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        _check_rows(rows)
        frames = torch.stack(
            [torch.as_tensor(np.asarray(row["frames"], np.float32)).view(*map(int, row["shape"])) for row in rows]
        )
        if self.main_input_name != "pixel_values":
            frames = frames.flatten(2)
        past, future = frames.chunk(2, dim=1)
        return {"pixel_values" if self.main_input_name == "pixel_values" else "past_values": past} | {
            "future_values": future
        }


@dataclass(frozen=True)
class PianoRollCollator:
    """Rows with `pitches`, for each step the keys that sound → `past_values` (B, 1, 88), the first step;
    `future_values` (B, T − 1, 88), the steps to predict; `attention_mask` (B, T).

    Pieces are padded on the right to the longest, with silence that the mask hides, and to at least two steps: a row
    of one step has nothing to predict.

    Raises:
        ValueError: no rows, or a row without steps.
    """

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        _check_rows(rows)
        rolls = [torch.from_numpy(to_roll(row["pitches"])) for row in rows]
        lengths = torch.tensor([len(roll) for roll in rolls])
        if not lengths.all():
            raise ValueError("a row has no steps: a piece needs at least one; leave such rows out")
        values = pad_sequence([*rolls, torch.zeros(2, rolls[0].shape[1])], batch_first=True)[:-1]
        mask = (torch.arange(values.shape[1]) < lengths[:, None]).long()
        return {"past_values": values[:, :1], "future_values": values[:, 1:], "attention_mask": mask}


def _check_rows(rows: Rows) -> None:
    if not rows:
        raise ValueError("a batch of 0 rows cannot be collated: it needs at least one; check the data set")


def _pad(rows: Sequence[Any], value: int) -> torch.Tensor:
    tensors = [torch.as_tensor(row, dtype=torch.long) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value)
