"""What a run can learn, task by task: how it is batched and scored. `run.py` is the same for all of them.

A task has a line in `arguments.TASKS` (the Auto class) and one in `TASKS` here; data sets that are batched in another
way than their task have one in `DATASET_TASKS`. The data themselves are loaded by `loading.load_data`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers import EvalPrediction, PreTrainedModel, Trainer

from .config import RunConfig
from .data import (
    CausalLMCollator,
    FramesCollator,
    Seq2SeqCollator,
    SequenceClassificationCollator,
    TokenCollator,
)
from .scores import Scores, class_scores, next_token_scores, series_scores, token_scores


@dataclass(frozen=True)
class Task:
    """How a task is batched and scored.

    Attributes:
        collator: (tokenizer, model) → what makes batches of rows.
        scores: all predictions and labels → named numbers; None where `generated` has them.
        generated: (trainer, split) → the scores of what the model generates.
        labels: the batch's entry that holds the truth.
    """

    collator: Callable[[Any, PreTrainedModel], Callable[..., dict[str, torch.Tensor]]]
    scores: Callable[[EvalPrediction], Scores] | None = None
    generated: Callable[[Trainer, Dataset], Scores] | None = None
    labels: str = "labels"


def _on_tokens(collator: type[TokenCollator]) -> Callable[[Any, PreTrainedModel], TokenCollator]:
    return lambda tokenizer, model: collator(tokenizer.pad_token_id, len(tokenizer))


TASKS: dict[str, Task] = {
    "causal-lm": Task(_on_tokens(CausalLMCollator), next_token_scores),
    "masked-lm": Task(_on_tokens(TokenCollator), token_scores),
    "seq2seq-lm": Task(_on_tokens(Seq2SeqCollator), token_scores),
    "sequence-classification": Task(_on_tokens(SequenceClassificationCollator), class_scores),
    "token-classification": Task(_on_tokens(TokenCollator), token_scores),
    "time-series-prediction": Task(
        lambda tokenizer, model: FramesCollator(model.main_input_name), generated=series_scores, labels="future_values"
    ),
}

DATASET_TASKS: dict[str, Task] = {}


def task_of(config: RunConfig) -> Task:
    """How the run's data are batched and scored."""
    return DATASET_TASKS.get(config.data.dataset) or TASKS[config.run.task]
