"""Batches of a split that is read as it comes, for one process among others."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from ..arguments import ConfigError
from ..data import Division, StreamedText
from .rescale import largest


def streamed_loader(trainer: Any, dataset: StreamedText) -> DataLoader:
    """The batches of this process, without accelerate's own ways to divide such data.

    One of those reads everything on the first process and sends it to the others; the other gives processes unequal
    numbers of batches.

    Raises:
        ConfigError: several processes, and a model whose loss is a mean: it has none for a sample without targets.
    """
    accelerator, args = trainer.accelerator, trainer.args
    if accelerator.num_processes > 1 and not trainer.model_accepts_loss_kwargs:
        raise ConfigError(
            f"streaming on {accelerator.num_processes} processes needs a loss that takes num_items_in_batch, and that "
            f"of {type(trainer.model).__name__} does not; use one process, or leave streaming out"
        )

    def anyone(answer: bool) -> bool:
        return bool(largest(float(answer), args.device))

    dataset.division = Division(accelerator.process_index, accelerator.num_processes, anyone)
    dataset.batch_size = trainer._train_batch_size * args.gradient_accumulation_steps
    return DataLoader(
        dataset,
        batch_size=trainer._train_batch_size,
        collate_fn=trainer.data_collator,
        pin_memory=args.dataloader_pin_memory,
    )
