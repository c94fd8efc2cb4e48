"""Does training run on what was asked for: processes, wrapper, device? And how long are its steps?"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback

from ..arguments import ConfigError, SeqTrainingArguments


def check_processes(got: int, args: SeqTrainingArguments) -> None:
    """Raise ConfigError unless training runs on as many processes as the launcher or `expect_processes` asked for."""
    environment = os.environ
    asked = args.expect_processes or int(environment.get("WORLD_SIZE", 0)) or got
    if got != asked:
        raise ConfigError(
            f"{asked} processes were asked for and training would run on {got}; "
            f"start it with torchrun --nproc_per_node {asked} (on GPUs also accelerate launch)"
        )
    # `accelerate launch --cpu --num_processes 2` sets an address to meet at, then starts one process without a rank.
    alone = "ACCELERATE_MIXED_PRECISION" in environment and "WORLD_SIZE" not in environment
    if alone and "MASTER_ADDR" in environment and args.expect_processes is None:
        raise ConfigError(
            "accelerate launch was asked for several processes and started one; use torchrun --nproc_per_node N, "
            "or say --expect_processes 1 if one is right"
        )


def wrapper_name(model: torch.nn.Module, wrapped: torch.nn.Module) -> str:
    """The class around the model in training, or "none". FSDP2 changes the model's own class: FSDPLSTMForCausalLM."""
    if isinstance(wrapped, FSDPModule):
        return type(wrapped).__name__
    return "none" if wrapped is model else type(wrapped).__name__


class Watch(TrainerCallback):
    """Before the first step: is the model wrapped as asked, on the device asked for? Then the time of each step."""

    def __init__(self, trainer: Any, quiet: bool):
        self.trainer, self.quiet, self.start = trainer, quiet, 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.resumed_at_step = state.global_step
        got, device, processes = self.trainer.wrapper(), args.device.type, self.trainer.accelerator.num_processes
        asked_fsdp = bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
        if asked_fsdp and "FSDP" not in got and "FullySharded" not in got:
            self._no_fsdp(got, device, args.allow_ddp, told=state.is_world_process_zero and not self.quiet)
        if processes > 1 and got == "none":
            raise ConfigError(f"{processes} processes run and the model is not wrapped: each would train alone")
        asked_cpu = args.use_cpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
        if asked_cpu and device != "cpu":
            raise ConfigError(f"the CPU was asked for and training would run on {device}; leave --use_cpu out")
        if state.is_world_process_zero and not self.quiet:
            print(f"training on {processes} process{'es' * (processes > 1)}, wrapper {got}, device {device}")

    def _no_fsdp(self, got: str, device: str, allowed: bool, told: bool) -> None:
        """Accelerate shards on GPUs alone, and takes DDP elsewhere without a word."""
        found = f"FSDP was asked for and the model is wrapped in '{got}' on {device}"
        if not allowed:
            raise ConfigError(f"{found}; use GPUs, leave FSDP out, or say --allow_ddp true")
        self.trainer.notes["fallback"] = f"{found} (allow_ddp)"
        if told:
            print(f"WARNING: {found}; --allow_ddp goes on: every process keeps the whole model", file=sys.stderr)

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.step_seconds += time.perf_counter() - self.start
