"""Real runs of two steps, for tests of what comes after training."""

from __future__ import annotations

from pathlib import Path

from hf_seqmodels.config import parse
from hf_seqmodels.run import run

QUICK = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--eval_strategy", "no", "--save_strategy", "no"]
QUICK += ["--load_best_model_at_end", "false"]


def tiny_run(recipe: str, folder: Path, *options: str) -> Path:
    """A recipe trained for two steps; returns the run's folder."""
    small = [] if "transformer" in recipe else ["--hidden_size", "8"]
    run(parse(["--config", recipe, "--output_dir", str(folder), *QUICK, *small, *options]), quiet=True)
    return folder
