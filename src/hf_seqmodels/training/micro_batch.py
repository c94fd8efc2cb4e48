"""Micro-batches that fit: out of memory, they are halved, accumulated twice as often, and training starts anew.

The effective batch, micro-batch · accumulation steps · processes, stays the same, and so do the batches, their order
and the number of steps. A run that had to try is, weight for weight, the run that had these settings from the start:
nothing of a failed attempt is kept. (transformers' `auto_find_batch_size` changes the effective batch, and goes on
from weights that the failed attempt has changed.)

What the operating system kills cannot be caught: Linux does so where it promised more memory than it has.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from accelerate.state import GradientState
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers import Trainer

from ..arguments import ConfigError, SeqTrainingArguments
from ..recipes import one_line
from .rescale import largest


class MicroBatchTooLarge(RuntimeError):
    """Forward and backward pass of a micro-batch did not fit the memory of this process, or of another one."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch may help, on any device that accelerate knows."""
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def smaller(batch: int, accumulation: int) -> tuple[int, int]:
    """Half the micro-batch, or the next lower size that divides it, and as many more accumulation steps.

    Raises:
        ConfigError: the micro-batch is one sequence.
    """
    if batch == 1:
        raise ConfigError(
            "out of memory with a micro-batch of 1: a single sequence does not fit; shorten it (block_size), make the "
            "model smaller, or try --bf16 true or, without carry_state, --gradient_checkpointing true"
        )
    fitting = next(size for size in range(batch // 2, 0, -1) if batch % size == 0)
    return fitting, accumulation * (batch // fitting)


class Fitting(Trainer):
    """`transformers.Trainer` that tells, on all processes at once, that a micro-batch was too large.

    A process that fails alone would leave the others waiting for its gradients. So with `auto_micro_batch` a
    micro-step runs without communication, all processes then say whether it fitted, and only then are gradients
    averaged: they are not sent while the backward pass still runs, as DDP does.

    Raises:
        ConfigError: the model is sharded, whose forward pass already communicates.
    """

    args: SeqTrainingArguments

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.args.auto_micro_batch and self.is_fsdp_enabled:
            raise ConfigError("auto_micro_batch and FSDP exclude each other; leave one of them out")

    def training_step(self, model, inputs, num_items_in_batch=None):
        """As in the stock Trainer; with `auto_micro_batch` raises MicroBatchTooLarge, on every process."""
        if not self.args.auto_micro_batch:
            return super().training_step(model, inputs, num_items_in_batch)
        several = self.accelerator.num_processes > 1
        sends = several and self.accelerator.sync_gradients
        failure, loss, gradients = "", None, None
        with self.accelerator.no_sync(model) if several else contextlib.nullcontext():
            try:
                loss = super().training_step(model, inputs, num_items_in_batch)
                gradients = _flat_gradients(model) if sends else None
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                failure = one_line(error)
        if largest(float(bool(failure)), self.args.device):  # outside `except`, which would keep the frames in memory
            raise MicroBatchTooLarge(failure or "another process ran out of memory")
        if gradients is not None:
            torch.distributed.all_reduce(gradients)
            _set_gradients(model, gradients / self.accelerator.num_processes)
        return loss


def _flat_gradients(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in _trained(model)])


def _set_gradients(model: torch.nn.Module, flat: torch.Tensor) -> None:
    trained = _trained(model)
    for parameter, gradient in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
        parameter.grad.copy_(gradient.view_as(parameter.grad))


def _trained(model: torch.nn.Module) -> list[Any]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def train_fitting(
    args: SeqTrainingArguments,
    build: Callable[[], Any],
    train: Callable[[Any], None],
    prepare: Callable[[Any], None] = lambda trainer: None,
    checkpoint: str | None = None,
    quiet: bool = False,
) -> Any:
    """Build a trainer and train; after a micro-batch that was too large, build another one with smaller ones.

    Args:
        args: of every trainer; micro-batch and accumulation steps are changed in them.
        build: makes model and trainer from the seed.
        train: trains one.
        prepare: is called once, with the first trainer, before it trains.
        checkpoint: what training goes on from. It begins with the micro-batch that the checkpoint was made with.
        quiet: print nothing.

    Returns:
        The trainer that went through. Its record has `micro_batch`, where another one was used than was asked for.

    Raises:
        ConfigError: one sequence alone does not fit, or a resumed run ran out of memory.
    """
    asked, failures = _sizes(args), []
    if args.auto_micro_batch and checkpoint is not None:
        _begin_as_before(args, checkpoint)
    trainer = build()
    prepare(trainer)
    while True:
        try:
            train(trainer)
            break
        except MicroBatchTooLarge as error:
            failure = str(error)
        before = _sizes(args)
        failures.append({**before, "step": trainer.state.global_step + 1, "reason": failure[:300]})
        after = smaller(**before)
        _refuse_resumed(trainer, after)
        if trainer.is_world_process_zero():
            clear_attempt(Path(str(args.output_dir)))
            if not quiet:
                told = f"out of memory with a micro-batch of {before['batch']}; starting anew with {after[0]}"
                print(f"{told} and {after[1]} accumulation steps")
        trainer.accelerator.wait_for_everyone()
        args.per_device_train_batch_size, args.gradient_accumulation_steps = after
        del trainer
        GradientState._reset_state()  # it still knows the data loader that was left in the middle
        clear_device_cache(garbage_collection=True)
        trainer = build()
    if _sizes(args) != asked:
        trainer.notes["micro_batch"] = {"asked": asked, "used": _sizes(args), "failures": failures}
    return trainer


def _sizes(args: SeqTrainingArguments) -> dict[str, int]:
    return {"batch": args.per_device_train_batch_size, "accumulation": args.gradient_accumulation_steps}


def _begin_as_before(args: SeqTrainingArguments, checkpoint: str) -> None:
    """A checkpoint that was made with a smaller micro-batch and the same effective batch had to be."""
    state = json.loads(Path(checkpoint, "trainer_state.json").read_text(encoding="utf-8"))
    batch, times = args.per_device_train_batch_size, args.gradient_accumulation_steps
    used = state.get("train_batch_size") or batch
    if used < batch and batch % used == 0:
        args.per_device_train_batch_size, args.gradient_accumulation_steps = used, times * (batch // used)


def _refuse_resumed(trainer: Any, after: tuple[int, int]) -> None:
    """The state that such a run began with may be gone, since checkpoints rotate: it could not start anew."""
    if trainer.resumed_at_step:
        raise ConfigError(
            f"out of memory in a run that was resumed at step {trainer.resumed_at_step}; start it anew with "
            f"--overwrite --per_device_train_batch_size {after[0]} --gradient_accumulation_steps {after[1]}"
        )


def clear_attempt(folder: Path) -> None:
    """Delete what a failed attempt wrote: its checkpoints and its log."""
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    (folder / "log.jsonl").unlink(missing_ok=True)
