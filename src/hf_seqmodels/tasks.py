"""What a run can learn, task by task: how it is batched and scored. `run.py` is the same for all of them.

A task has a line in `arguments.TASKS` (the Auto class) and one in `TASKS` here; data sets that are batched in another
way than their task have one in `DATASET_TASKS`. The data themselves are loaded by `loading.load_data`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers import EvalPrediction, PreTrainedModel, Trainer

from .config import RunConfig
from .data import (
    CausalLMCollator,
    FeaturesCollator,
    FramesCollator,
    PianoRollCollator,
    Seq2SeqCollator,
    SequenceClassificationCollator,
    StreamCollator,
    TokenCollator,
)
from .scores import (
    Scores,
    argmax,
    class_scores,
    copied_scores,
    next_token_scores,
    number,
    regression_scores,
    roll_scores,
    series_scores,
    token_scores,
)


@dataclass(frozen=True)
class Task:
    """How a task is batched and scored.

    Attributes:
        collator: (tokenizer, model) → what makes batches of rows.
        scores: all predictions and labels → named numbers; None where `generated` has them.
        generated: (trainer, split) → the scores of what the model generates.
        labels: the batch's entry that holds the truth.
        kept: (logits, labels) → what of the predictions `scores` reads.
    """

    collator: Callable[[Any, PreTrainedModel], Callable[..., dict[str, torch.Tensor]]]
    scores: Callable[[EvalPrediction], Scores] | None = None
    generated: Callable[[Trainer, Dataset], Scores] | None = None
    labels: str = "labels"
    kept: Callable[[Any, Any], torch.Tensor] = argmax


def _on_tokens(collator: type[TokenCollator]) -> Callable[[Any, PreTrainedModel], TokenCollator]:
    return lambda tokenizer, model: collator(tokenizer.pad_token_id, len(tokenizer))


def _on_features(tokenizer: Any, model: PreTrainedModel) -> FeaturesCollator:
    if "input_features" not in inspect.signature(model.forward).parameters:
        raise ValueError(
            f"model_type={model.config.model_type} reads tokens and this data set has features; choose one that reads "
            "input_features, as seq_gru does"
        )
    return FeaturesCollator(model.config.num_features)


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

STREAMS = Task(_on_tokens(StreamCollator))
DATASET_TASKS: dict[str, Task] = {
    "adding": Task(_on_features, regression_scores, kept=number),
    "copy_memory": Task(_on_tokens(TokenCollator), copied_scores),
    "piano_rolls": Task(lambda tokenizer, model: PianoRollCollator(), generated=roll_scores, labels="future_values"),
}


def task_of(config: RunConfig) -> Task:
    """How the run's data are batched and scored."""
    if config.data.windows == "streams":
        return STREAMS
    return DATASET_TASKS.get(config.data.dataset) or TASKS[config.run.task]
