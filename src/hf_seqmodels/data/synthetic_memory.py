"""Synthetic tests of a long memory, as Bai, Kolter & Koltun 2018 (arXiv 1803.01271, section 4.1) set them.

Where the paper is silent, their code (github.com/locuslab/TCN) decides. Each function makes many examples at once:
columns as arrays, one row an example.
"""

from __future__ import annotations

import math

import numpy as np
from datasets import Dataset

from .symbols import FIRST

Columns = dict[str, np.ndarray]

COPIED = 10
BLANK, COPY_NOW = 0, 9
MEMORY_SYMBOLS = tuple("0123456789")
FEATURES = 2


def adding(rng: np.random.Generator, length: int, number: int) -> Columns:
    """A series of `length` steps of two features, a number drawn from [0, 1) and a mark; the sum of the two marked.

    `input_features`, (number, 2·length) float32: number and mark of the first step, of the second, and so on; the
    marks are 1 at two different steps, any two equally likely, and 0 elsewhere. `labels`, (number,) float32. First in
    Hochreiter & Schmidhuber 1997, section 5.4; so in Bai 2018, who train on 50,000 examples of 200 to 600 steps.
    Guess to beat (mean squared error): 1 for every series, 1/6.

    Raises:
        ValueError: `length` below 2.
    """
    if length < 2:
        raise ValueError(f"length={length} leaves no room for 2 marked numbers: it must be at least 2; try 600")
    series = np.zeros((number, length, FEATURES), dtype=np.float32)
    series[..., 0] = rng.random((number, length), dtype=np.float32)
    first = rng.integers(length, size=number)
    second = (first + rng.integers(1, length, size=number)) % length
    rows = np.arange(number)
    series[rows, first, 1] = series[rows, second, 1] = 1
    return {
        "input_features": series.reshape(number, length * FEATURES),
        "labels": series[rows, first, 0] + series[rows, second, 0],
    }


def copy_memory(rng: np.random.Generator, length: int, number: int) -> Columns:
    """Ten symbols of 1 … 8, `length` − 1 blanks (0) and eleven times 9; at the last ten steps, the symbols again.

    `input_ids` and `labels`, (number, length + 20): the labels, of ten classes, are 0 everywhere but there. First in
    Hochreiter & Schmidhuber 1997; so in Arjovsky 2016 and Bai 2018, who train on 10,000 examples of 500 to 2,000
    blanks. Guess to beat (loss, the mean over all steps): 0 first and then any of the eight, 10·ln 8 / (length + 20).
    """
    symbols = rng.integers(1, 9, size=(number, COPIED), dtype=np.int8)
    seen = np.full((number, length + 2 * COPIED), BLANK, dtype=np.int8)
    wanted = np.zeros_like(seen)
    seen[:, :COPIED] = wanted[:, -COPIED:] = symbols
    seen[:, COPIED + length - 1 :] = COPY_NOW
    return {"input_ids": FIRST + seen, "labels": wanted}


def error_of_one(dataset: Dataset) -> float:
    """The guess to beat of `adding`: mean squared error where each sum is said to be 1."""
    return float(np.square(np.asarray(dataset["labels"], dtype=np.float64) - 1).mean())


def loss_of_eight(dataset: Dataset) -> float:
    """The guess to beat of `copy_memory`: mean loss where the zeros are known, and the ten are any of eight."""
    return COPIED * math.log(8) / len(dataset[0]["labels"])
