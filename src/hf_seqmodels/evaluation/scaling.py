"""Two processes with one thread each beside one process with one thread: tokens per second, and the loss of each step.

    python -m hf_seqmodels.evaluation.scaling results/scaling.json

The task is Zaremba's small language model in size (2014: two LSTM layers of 200, 10,000 words, windows of 35 steps,
40 of them in a step, SGD with rate 1) on a text made here, once as 1 · 40 windows and once as 2 · 20 with gloo. Both
learn from the same batches. Runs of the two kinds take turns; a run's speed is that of its median step, without the
first ones, and a kind's speed is the median of its runs. On a machine with other work to do the numbers mean nothing:
the load before the start is part of the result.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback, set_seed

from ..arguments import SeqTrainingArguments
from ..data import CausalLMCollator, window_dataset
from ..models import ARCHITECTURES
from ..training import SeqTrainer
from ..training.provenance import git_state, hardware, versions

WARM_UP = 3  # steps that do not count
REACH = {"ratio": 1.6, "loss_difference": 1e-5}  # at least; at most, relative


@dataclass(frozen=True)
class Setting:
    """What is trained.

    Attributes:
        hidden_size, vocab_size, block_size: of the language model, and its windows.
        batch: windows in a step, of all processes together.
        steps: of each run.
        bucket_mb: gradients that DDP sends at a time; None for torch's 25 MiB.
    """

    hidden_size: int = 200
    vocab_size: int = 10_000
    block_size: int = 35
    batch: int = 40
    steps: int = 33
    bucket_mb: int | None = None


def make_text(setting: Setting) -> Dataset:
    """Windows for all steps: words as frequent as in a language (Zipf 1949), every other one told by the last."""
    rng = np.random.default_rng(0)
    length = setting.steps * setting.batch * setting.block_size + 1
    frequency = 1 / np.arange(1, setting.vocab_size)
    words = 1 + rng.choice(setting.vocab_size - 1, length, p=frequency / frequency.sum())
    words[1::2] = 1 + (words[:-1:2] * 7) % (setting.vocab_size - 1)
    return window_dataset(words, setting.block_size)


class StepTimes(TrainerCallback):
    """Seconds from the beginning of a step to the beginning of the next: with data, gradients and optimizer."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.starts.append(time.perf_counter())

    def median(self) -> float:
        """Of the steps after the warm-up."""
        return statistics.median(np.diff(self.starts)[WARM_UP:].tolist())


def train(setting: Setting) -> dict[str, Any]:
    """One run, as one of however many processes there are: tokens per second of all of them, and the losses."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    set_seed(0)
    sizes: dict[str, Any] = {"vocab_size": setting.vocab_size, "hidden_size": setting.hidden_size}
    sizes |= {"num_hidden_layers": 2, "pad_token_id": 0}
    config = ARCHITECTURES["seq_lstm"].config(**sizes)
    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        args = SeqTrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=setting.batch // processes,
            max_steps=setting.steps,
            optim="sgd",
            learning_rate=1.0,
            lr_scheduler_type="constant",
            warmup_steps=0,
            weight_decay=0.0,
            max_grad_norm=5.0,
            logging_steps=1,
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
            use_cpu=True,
            ddp_bucket_cap_mb=setting.bucket_mb,
            report_to="none",
        )
        trainer = SeqTrainer(
            model=AutoModelForCausalLM.from_config(config),
            args=args,
            train_dataset=make_text(setting),
            data_collator=CausalLMCollator(0, setting.vocab_size),
            quiet=True,
            callbacks=[times],
        )
        trainer.train()
    record = trainer.record()
    return {
        "tokens_per_second": round(setting.batch * setting.block_size / times.median(), 1),
        "losses": [line["loss"] for line in trainer.state.log_history if "loss" in line],
        "parameters": trainer.model.num_parameters(),
        **{name: record[name] for name in ("world_size", "wrapper", "backend", "batch_order")},
    }


def launch(processes: int, setting: Setting) -> dict[str, Any]:
    """`train` in so many new processes with one thread each.

    Raises:
        RuntimeError: a process failed; with the end of what it said.
    """
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        out = Path(folder, "run.json")
        command = [sys.executable, "-m"]
        if processes > 1:
            command += ["torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", port, "-m"]
        command += ["hf_seqmodels.evaluation.scaling", str(out), "--worker", json.dumps(asdict(setting))]
        free.close()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{processes} processes failed: {done.stderr[-2000:]}")
        return json.loads(out.read_text(encoding="utf-8"))


def measure(setting: Setting, repetitions: int) -> dict[str, Any]:
    """Both kinds in turns; their speeds, the ratio, and how far their losses are apart."""
    load, runs = os.getloadavg()[0], {1: [], 2: []}  # type: tuple[float, dict[int, list[dict[str, Any]]]]
    for _ in range(repetitions):
        for processes, found in runs.items():
            found.append(launch(processes, setting))
            print(
                f"{processes} · {setting.batch // processes}: {found[-1]['tokens_per_second']:,.0f} tokens/s",
                flush=True,
            )
    speeds = {processes: [run["tokens_per_second"] for run in found] for processes, found in runs.items()}
    curves = {processes: found[0]["losses"] for processes, found in runs.items()}
    difference = max(abs(one - two) / one for one, two in zip(curves[1], curves[2], strict=True))
    ratio = statistics.median(speeds[2]) / statistics.median(speeds[1])
    return {
        "setting": asdict(setting),
        "runs": {
            f"{processes} x {setting.batch // processes}": {
                "tokens_per_second": speeds[processes],
                "median": statistics.median(speeds[processes]),
                "losses": curves[processes],
                **{name: found[0][name] for name in ("parameters", "wrapper", "backend", "batch_order")},
            }
            for processes, found in runs.items()
        },
        "ratio": round(ratio, 3),
        "loss_difference": difference,
        "reach": REACH,
        "reached": ratio >= REACH["ratio"] and difference <= REACH["loss_difference"],
        "load_before": round(load, 2),
        "hardware": hardware() | {"torch_threads": 1},  # in each process that was measured
        "versions": versions(),
        "git": git_state(),
    }


def table(result: dict[str, Any]) -> str:
    """The two curves side by side, every few steps, and what came of it."""
    (name_one, one), (name_two, two) = result["runs"].items()
    lines = [f"{'step':>6}  {name_one:>12}  {name_two:>12}  loss"]
    shown = range(0, len(one["losses"]), max(1, len(one["losses"]) // 10))
    lines += [f"{step + 1:>6}  {one['losses'][step]:>12.6f}  {two['losses'][step]:>12.6f}" for step in shown]
    lines += [f"{'':>6}  {one['median']:>12,.0f}  {two['median']:>12,.0f}  tokens/s, median"]
    lines += [f"ratio {result['ratio']:.2f}, largest relative difference of a loss {result['loss_difference']:.1e}"]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON file."""
    parser = argparse.ArgumentParser(prog="scaling", description="Two processes beside one, one thread each.")
    parser.add_argument("out", type=Path, help="the JSON file to write")
    parser.add_argument("--repetitions", type=int, default=5, help="of each kind (%(default)s)")
    parser.add_argument("--steps", type=int, default=Setting.steps, help="of each run (%(default)s)")
    parser.add_argument("--bucket_mb", type=int, help="gradients that DDP sends at a time, in MiB")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.steps < WARM_UP + 2:
        parser.error(f"--steps {given.steps} leaves nothing to measure; at least {WARM_UP + 2}")
    if given.worker is not None:
        torch.set_num_threads(1)
        found = train(Setting(**given.worker))
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        if os.environ.get("RANK", "0") == "0":
            given.out.write_text(json.dumps(found), encoding="utf-8")
        return 0
    result = measure(Setting(steps=given.steps, bucket_mb=given.bucket_mb), given.repetitions)
    print(table(result))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
