"""Synthetic video: squares that move."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

SIZE, SIDE = 16, 4


def moving_squares(rng: np.random.Generator, length: int) -> dict[str, np.ndarray]:
    """`length` frames seen and as many to predict, (2·length, 1, 16, 16), 0 or 1: one or two squares of 4 × 4 with
    a constant velocity of −2 to 2 pixels per step and axis, not standing, bouncing off the walls.

    Moving MNIST of Srivastava 2015 (section 4.1), which Shi 2015 (section 4.1) use too, small enough for a CPU.
    Guess to beat (mean squared error): the last frame seen, repeated.
    """
    frames = np.zeros((2 * length, 1, SIZE, SIZE), dtype=np.float32)
    free = SIZE - SIDE
    for _ in range(int(rng.integers(1, 3))):
        start = rng.integers(free + 1, size=2)
        velocity = np.zeros(2, dtype=int)
        while not velocity.any():
            velocity = rng.integers(-2, 3, size=2)
        for t in range(2 * length):
            path = (start + velocity * t) % (2 * free)  # there and back again
            y, x = np.where(path > free, 2 * free - path, path)
            frames[t, 0, y : y + SIDE, x : x + SIDE] = 1
    return {"frames": frames}


def last_frame_error(dataset: Dataset) -> float:
    """The guess to beat: mean squared error of the last frame seen, repeated."""
    errors = []
    for row in dataset:
        past, future = np.split(np.asarray(row["frames"]).reshape(row["shape"]), 2)
        errors.append(np.square(future - past[-1]).mean())
    return float(np.mean(errors))
