"""What is measured on public data, with which seeds, and the published numbers that stand beside it.

A folder of recipes (`configs/<task>`) is a benchmark if it has an entry in `BENCHMARKS`; `python -m
hf_seqmodels.results` runs its recipes. The numbers were taken from the papers' tables; where a paper gives none for a
model, none is made up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

# A run of more than so many minutes is made with one seed, a shorter one with all that its benchmark names.
ONE_SEED_MINUTES = 10.0
MOST_MINUTES = 100.0  # a run's limit, unless its recipe sets another


@dataclass(frozen=True)
class Reference:
    """A published number.

    Attributes:
        value: in the benchmark's measure.
        source: paper or repository, and the year.
        goal: what is to be reached here; None where the number only stands beside ours.
        comparable: False where the published number cannot be had from the files used here.
    """

    value: float
    source: str
    goal: float | None = None
    comparable: bool = True


@dataclass(frozen=True)
class Benchmark:
    """A folder of recipes, and how their results are read.

    Attributes:
        what: the task in a few words.
        group: `make results TASK=<group>` runs all folders of a group.
        measure, split: the score that counts; a key of `MEASURES`.
        seeds: each recipe is trained with each, or with the first alone where that took more than
            `ONE_SEED_MINUTES`.
        every_seed: all seeds, however long a run takes.
        lower_is_better: of the measure.
        references: pattern of recipe names → published number; the first pattern that fits counts.
        note: what a reader has to know about the numbers.
    """

    what: str
    group: str
    measure: str
    split: str = "test"
    seeds: Sequence[int] = (0, 1, 2)
    every_seed: bool = False
    lower_is_better: bool = True
    references: Mapping[str, Reference] = field(default_factory=dict)
    note: str = ""

    def reference(self, architecture: str) -> Reference | None:
        """The published number for a recipe of this folder."""
        return next((found for pattern, found in self.references.items() if fnmatchcase(architecture, pattern)), None)

    def reaches(self, value: float, goal: float) -> bool:
        """Whether a score is at least as good as a goal."""
        return value <= goal if self.lower_is_better else value >= goal


# Measure → in words, digits, and how it follows from the loss (nats per target) where a run does not record it.
MEASURES: dict[str, tuple[str, int, Callable[[float], float]]] = {
    "nll": ("negative log-likelihood per step (nats)", 3, lambda loss: loss),
    "perplexity": ("perplexity per token", 2, lambda loss: math.exp(min(loss, 700.0))),
    "bits_per_character": ("bits per character", 3, lambda loss: loss / math.log(2)),
    "loss": ("cross-entropy (nats)", 4, lambda loss: loss),
    "mse": ("mean squared error", 5, lambda loss: loss),
}


def published(value: float, source: str) -> Reference:
    """A number that is to be reached."""
    return Reference(value, source, goal=value)


CHUNG, BAI = "Chung 2014", "Bai 2018"
_OTHER_FILES = "The paper's figures cannot be had from these files (their README says why): no goal."
GROUPS = ("synthetic", "music", "language", "lm")

BENCHMARKS: dict[str, Benchmark] = {
    "adding": Benchmark(
        "adding two marked numbers, T = 600",
        "synthetic",
        "mse",
        references={
            "gru*": Reference(5.3e-5, BAI, goal=1e-3),
            "lstm*": Reference(0.164, BAI),
            "rnn*": Reference(0.177, BAI),
        },
    ),
    "copy_memory": Benchmark(
        "copying ten symbols over T = 1,000 steps",
        "synthetic",
        "loss",
        references={
            "gru*": Reference(0.0197, BAI),
            "lstm*": Reference(0.0204, BAI),
            "rnn*": Reference(0.0202, BAI),
        },
    ),
    "jsb_chorales": Benchmark(
        "JSB Chorales, the next step of a piano roll",
        "music",
        "nll",
        seeds=(0, 1, 2, 3, 4),
        every_seed=True,
        references={
            "rnn*300k*": published(8.91, BAI),
            "gru*300k*": published(8.43, BAI),
            "lstm*300k*": published(8.45, BAI),
            "rnn*": published(9.10, CHUNG),
            "gru*": published(8.54, CHUNG),
            "lstm*": published(8.67, CHUNG),
        },
    ),
    "musedata": Benchmark(
        "MuseData, the next step of a piano roll",
        "music",
        "nll",
        references={
            "rnn*": Reference(6.23, CHUNG, comparable=False),
            "gru*": Reference(5.99, CHUNG, comparable=False),
            "lstm*": Reference(6.23, CHUNG, comparable=False),
        },
        note=_OTHER_FILES,
    ),
    "piano_midi": Benchmark(
        "Piano-midi.de, the next step of a piano roll",
        "music",
        "nll",
        references={
            "rnn*": Reference(9.03, CHUNG, comparable=False),
            "gru*": Reference(8.82, CHUNG, comparable=False),
            "lstm*": Reference(9.03, CHUNG, comparable=False),
        },
        note=_OTHER_FILES,
    ),
    "ptb_word": Benchmark(
        "Penn Treebank, words",
        "language",
        "perplexity",
        references={
            "*awd_small*": Reference(58.8, "awd-lstm-lm, 24 million parameters, without finetuning"),
            "*awd*": published(58.8, "awd-lstm-lm, without finetuning"),
            # Ours is of Zaremba's size, but with dropout and tied embeddings, which his small one has not.
            "lstm*": published(114.5, "Zaremba 2014, 2 × 200 without dropout; Bai 2018, 13 million parameters: 78.93"),
            "gru*": Reference(92.48, "Bai 2018, 13 million parameters"),
            "rnn*": Reference(114.50, "Bai 2018, 13 million parameters"),
        },
    ),
    "ptb_char": Benchmark(
        "Penn Treebank, characters",
        "language",
        "bits_per_character",
        references={
            "lstm*": published(1.36, BAI),
            "gru*": Reference(1.37, BAI),
            "rnn*": Reference(1.48, BAI),
        },
    ),
    "tiny_shakespeare": Benchmark(
        "tiny Shakespeare, characters",
        "language",
        "loss",
        split="validation",
        references={"transformer_decoder*": published(1.88, "nanoGPT, the small setting for a CPU")},
    ),
    "war_and_peace": Benchmark("War and Peace, characters", "language", "bits_per_character"),
    "lm": Benchmark("the help topics of Python, characters", "lm", "bits_per_character", seeds=(42,)),
}
