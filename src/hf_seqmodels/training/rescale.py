"""Windows of random length, each with a learning rate that fits its length (Merity 2017, section 5)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from transformers import TrainerCallback


def largest(value: float, device: torch.device) -> float:
    """The largest of what all processes bring."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    found = torch.tensor(value, device=device, dtype=torch.float32)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return found.item()


class Rescale(TrainerCallback):
    """The learning rate of a step × its length / `reference`; the schedule's own is back before it is logged.

    The length is that of the longest micro-batch of the step, on any process.

    Args:
        reference: steps of a window for which the learning rate is meant.
    """

    def __init__(self, reference: int):
        self.reference, self.length = reference, 0
        self._rates: list[Any] = []

    def read(self, inputs: dict[str, torch.Tensor]) -> None:
        """Take note of a micro-batch with `input_ids` (B, T)."""
        self.length = max(self.length, inputs["input_ids"].shape[1])

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        share = largest(self.length, args.device) / self.reference
        self._rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] *= share

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate
        self.length = 0
