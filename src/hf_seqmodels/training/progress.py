"""What a run shows while it runs, and the log it leaves."""

from __future__ import annotations

import json
import time
from pathlib import Path

from transformers import ProgressCallback, TrainerCallback
from transformers.trainer_utils import has_length


class Progress(ProgressCallback):
    """One bar with the last loss beside it; each evaluation leaves one line. `log.jsonl` has it all."""

    SHORT = 20  # batches; an evaluation of fewer is over before a bar could be read

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if has_length(eval_dataloader) and len(eval_dataloader) >= self.SHORT:
            super().on_prediction_step(args, state, control, eval_dataloader=eval_dataloader, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        if "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {float(logs['loss']):.3f}", refresh=False)
        elif "eval_loss" in logs:
            bits = f", {logs['eval_bits_per_token']:.3f} bits per token" if "eval_bits_per_token" in logs else ""
            self.training_bar.write(f"step {state.global_step}: validation loss {logs['eval_loss']:.3f}{bits}")


class LogFile(TrainerCallback):
    """Appends every logged line to a JSONL file: step, seconds since training began, and the numbers."""

    def __init__(self, path: Path):
        self.path, self.start = path, time.perf_counter()

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            seconds = round(time.perf_counter() - self.start, 3)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, "seconds": seconds, **(logs or {})}) + "\n")
