"""Which samples form which batch: the same for any number of processes, and a digest that proves it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler


class BatchSampler(Sampler[int]):
    """Indices of one epoch, then `fill` indices beyond the data.

    Process r of W takes batches r, r + W, r + 2W, … of b samples, so step i sees the same W·b samples as one process
    with batches of W·b. That needs an order that depends on nothing but seed and epoch, and a length that divides by
    W·b: otherwise accelerate repeats samples of the first batch in the last one, and the loss of the last step would
    depend on W. The indices beyond the data stand for samples without targets (see `FilledDataset`).

    Args:
        size: number of samples.
        fill: number of indices after them.
        seed: None for the order of the data.
        epoch: returns the current epoch, which is part of the seed. It is asked for, not told, because a resumed
            data loader on several processes never passes `set_epoch` on to its sampler.
    """

    def __init__(self, size: int, fill: int = 0, seed: int | None = None, epoch: Callable[[], int] = lambda: 0):
        self.size, self.fill, self.seed, self.epoch = size, fill, seed, epoch

    def __len__(self) -> int:
        return self.size + self.fill

    def __iter__(self) -> Iterator[int]:
        if self.seed is None:
            yield from range(self.size)
        else:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch())
            yield from torch.randperm(self.size, generator=generator).tolist()
        yield from range(self.size, self.size + self.fill)


class FilledDataset(Dataset):
    """A dataset of n samples whose index n (and all above) is a sample without targets.

    The fill is the first sample with every label −100, or the first step of the first piece, which leaves nothing to
    predict: it adds nothing to a summed loss and nothing to its gradient.
    """

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < len(self.dataset):
            return self.dataset[index]
        sample = dict(self.dataset[0])
        if "pitches" in sample:
            return sample | {"pitches": sample["pitches"][:1]}
        return sample | {"labels": [-100] * len(sample["labels"])}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self[index] for index in indices]


def has_rolls(dataset: Any) -> bool:
    """Whether the rows are piano rolls, which can be cut until nothing is left to predict."""
    return "pitches" in (getattr(dataset, "column_names", None) or ())


class BatchOrder:
    """A digest of which samples were learned from in which step.

    Each row of the input (tokens, features or pictures) is hashed to 64 bits (padding does not count); the hashes of
    all rows of one optimizer step are added modulo 2⁶⁴, over micro-steps and processes; the sums are chained with
    sha256, step by step. So the digest depends on the samples of each step and the order of the steps, not on how a
    step is divided over accumulation and processes. Sums stay on the device until `flush`, which costs one transfer.

    Attributes:
        digest: of all steps up to the last flush.
        steps: how many these are.
        at: step → the first 16 digits of the digest so far, for 1, 2, 4, 8, … steps: runs of different lengths saw
            the same batches if they agree at the last of these that both have.
    """

    def __init__(self) -> None:
        self.digest, self.steps = "", 0
        self.at: dict[str, str] = {}
        self._sums: list[torch.Tensor] = []

    def add(self, inputs: dict[str, torch.Tensor], starts_step: bool) -> None:
        """Count one micro-batch in; `starts_step` says that it is the first of its optimizer step.

        A batch with none of the inputs in `READ` is not counted.
        """
        if not any(inputs.get(name) is not None for name in READ):
            return
        total = _row_hashes(inputs).sum()
        if starts_step:
            self._sums.append(total)
        else:
            self._sums[-1] = self._sums[-1] + total

    def flush(self, add_across_processes: Callable[[torch.Tensor], torch.Tensor]) -> str:
        """Chain the steps since the last flush (all processes must call it); returns the digest so far."""
        if self._sums:
            for total in add_across_processes(torch.stack(self._sums)).tolist():
                self.digest = hashlib.sha256(f"{self.digest} {total}".encode()).hexdigest()
                self.steps += 1
                if self.steps & (self.steps - 1) == 0:
                    self.at[str(self.steps)] = self.digest[:16]
            self._sums = []
        return self.digest

    def record(self) -> dict[str, Any]:
        """`digest`, `steps` and `at`, as JSON values."""
        return {"digest": self.digest, "steps": self.steps, "at": dict(self.at)}

    def save(self, folder: Path) -> None:
        """Write what `record` says beside a checkpoint."""
        (folder / "batch_order.json").write_text(json.dumps(self.record()))

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote."""
        saved = json.loads((folder / "batch_order.json").read_text())
        self.digest, self.steps, self._sums = saved["digest"], saved["steps"], []
        self.at = saved.get("at", {})


# What a model reads; a batch holds one of them.
READ = ("input_ids", "input_features", "past_values", "pixel_values")


def _row_hashes(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """A 64-bit hash per row of the input (B, T, …) that has a target, 0 for the others; int64 arithmetic wraps."""
    read = next(inputs[name] for name in READ if inputs.get(name) is not None)
    seen, future = read.shape[1], inputs.get("future_values")
    read = read if future is None else torch.cat([read, future], dim=1)
    ids = read.to(torch.int64) if not read.is_floating_point() else read.float().view(torch.int32).to(torch.int64)
    if ids.ndim > 2:  # a hash for each step
        ids = ids.flatten(2)
        ids = _mix(_mix(torch.arange(1, ids.shape[2] + 1, device=ids.device)) + ids).sum(2)
    mask = inputs.get("attention_mask")
    mask = ids.new_ones(ids.shape[:2]) if mask is None else mask[:, : ids.shape[1]].to(torch.int64)
    mask = torch.cat([mask, mask.new_ones(len(mask), ids.shape[1] - mask.shape[1])], dim=1)  # of the past alone
    position = mask.cumsum(1)  # counts from 1, padding on either side does not shift it
    row = (_mix(_mix(position) + ids) * mask).sum(1)
    labels = inputs.get("labels")
    if labels is not None and labels.ndim == 2:
        row = row * labels.ne(-100).any(1)
    if future is not None:
        row = row * mask[:, seen:].any(1)
    return _mix(row)


def _mix(value: torch.Tensor) -> torch.Tensor:
    """The finaliser of splitmix64 (Steele 2014) without its last shift; keeps 0 at 0."""
    value = (value ^ ((value >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    return (value ^ ((value >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
