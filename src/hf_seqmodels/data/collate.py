"""Batches. The only place that pads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class CausalLMCollator:
    """Rows with `input_ids` and `labels` → tensors (B, T) int64, padded on the right to the longest row.

    `attention_mask` is always there (1 valid, 0 padding), so batches look alike whether or not one was padded.
    Padding is `pad_token_id` in `input_ids` and -100, which losses ignore, in `labels`.

    Raises:
        ValueError: no rows, a row whose `labels` are missing or differ in length, an empty row, or, given
            `vocab_size`, a token id outside it. Checked here, on the CPU: on a GPU it would cost a synchronisation.
    """

    pad_token_id: int
    vocab_size: int | None = None

    def __call__(self, rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
        if not rows:
            raise ValueError("a batch of 0 rows cannot be collated: it needs at least one; check the data set")
        for row in rows:
            lengths = len(row["input_ids"]), len(row.get("labels", ()))
            if lengths[0] != lengths[1] or lengths[0] == 0:
                raise ValueError(
                    f"a row has {lengths[0]} input_ids and {lengths[1]} labels: both must be there and equally long; "
                    "make rows with window_dataset"
                )
        input_ids = [torch.as_tensor(row["input_ids"], dtype=torch.long) for row in rows]
        labels = [torch.as_tensor(row["labels"], dtype=torch.long) for row in rows]
        if self.vocab_size is not None:
            self._check_range(input_ids, self.vocab_size)
        mask = [torch.ones_like(ids) for ids in input_ids]
        return {
            "input_ids": pad_sequence(input_ids, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad_sequence(mask, batch_first=True, padding_value=0),
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
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
