"""A run of `auto_micro_batch` whose model really runs out of memory; alone, under torchrun, or from a test.

python micro_batch_training.py LIMIT late|early FAILING_RANK ARGUMENT …
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from hf_seqmodels import LSTMForCausalLM
from hf_seqmodels.config import parse
from hf_seqmodels.run import run

BEYOND = 1 << 60  # bytes: no machine has them, so the allocator says what it says when memory is short
WHOLE = LSTMForCausalLM.forward


@contextmanager
def little_memory(limit: int, rank: int = -1, late: bool = False, first: int = 0) -> Iterator[None]:
    """LSTMs that need more memory than there is for more than `limit` rows in training; `late`: in the backward pass.

    Args:
        rank: of the only process that has so little; −1 for all of them.
        first: so many batches have enough memory.
    """
    seen = 0

    @wraps(WHOLE)  # the Trainer looks at the names of its arguments
    def forward(self: Any, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        nonlocal seen
        seen += self.training
        short = self.training and len(input_ids) > limit and rank in (-1, int(os.environ.get("RANK", 0)))
        short = short and seen > first
        outputs = WHOLE(self, input_ids, **kwargs)
        if short and late:
            outputs.loss.register_hook(lambda gradient: torch.empty(BEYOND, dtype=torch.uint8))
        elif short:
            torch.empty(BEYOND, dtype=torch.uint8)
        return outputs

    LSTMForCausalLM.forward = forward
    try:
        yield
    finally:
        LSTMForCausalLM.forward = WHOLE


def write_texts(folder: Path) -> list[str]:
    """Three files and the arguments that name them."""
    argv = []
    for number, split in enumerate(("train", "validation", "test"), 2):
        text = "".join(f"{n * number} sheep, {n % number} goats. " for n in range(60))
        (folder / f"{split}.txt").write_text(text)
        argv += [f"--{split}_file", str(folder / f"{split}.txt")]
    return argv


def arguments(folder: Path, out: str, batch: int, accumulation: int, *more: str) -> list[str]:
    sizes = ["--model_type", "seq_lstm", "--hidden_size", "8", "--block_size", "16", "--num_train_epochs", "1"]
    sizes += ["--per_device_train_batch_size", str(batch), "--gradient_accumulation_steps", str(accumulation)]
    return [*sizes, "--output_dropout", "0.1", "--logging_steps", "1", "--output_dir", str(folder / out), *more]


if __name__ == "__main__":
    limit, late, rank = int(sys.argv[1]), sys.argv[2] == "late", int(sys.argv[3])
    with little_memory(limit, rank, late):
        run(parse(sys.argv[4:]), quiet=True)
    torch.distributed.destroy_process_group()
