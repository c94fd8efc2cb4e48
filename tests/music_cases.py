"""Small piano rolls made in code, as a data set on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

SCALE = (48, 50, 52, 53, 55, 57, 59, 60)
SIZES = {"train": 10, "validation": 5, "test": 3}
# How every model of piano rolls is told to score them.
ROLLS = {"num_features": 88, "distribution_output": "bernoulli", "context_loss": False}


def make_pieces(count: int, seed: int = 0, shortest: int = 2, longest: int = 12) -> list[dict[str, Any]]:
    """Pieces of different lengths: a voice that climbs a scale, now and then a second one, a silent step here and
    there."""
    rng, pieces = np.random.default_rng(seed), []
    for number in range(count):
        steps: list[list[int]] = []
        start = int(rng.integers(len(SCALE)))
        for step in range(int(rng.integers(shortest, longest + 1))):
            pitch = SCALE[(start + step) % len(SCALE)]
            choice = rng.random()
            steps.append([] if choice < 0.1 else [pitch] if choice < 0.7 else [pitch, pitch + 16])
        pieces.append({"id": number, "n_steps": len(steps), "pitches": steps})
    return pieces


def write_split(folder: Path, split: str, pieces: list[dict[str, Any]]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(pieces), folder / f"{split}.parquet")


def write_music(folder: Path, **changed: list[dict[str, Any]]) -> Path:
    """A data set with the splits of `SIZES`; a split may be given."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate(SIZES.items()):
        write_split(folder, split, changed.get(split) or make_pieces(count, seed))
    return folder


def music_argv(data: Path, output: Path, *more: str, model_type: str = "seq_gru") -> list[str]:
    """A command line that trains a small model on it."""
    options = {"task": "time-series-prediction", "model_type": model_type, "hidden_size": 8, **ROLLS}
    options |= {"dataset": "piano_rolls", "path": data, "output_dir": output, "use_cpu": "true"}
    argv = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [*argv, "--per_device_train_batch_size", "4", "--num_train_epochs", "2", *more]
