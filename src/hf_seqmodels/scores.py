"""Scores: predictions and truth to named numbers, by the metrics of this package."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from transformers import EvalPrediction, PreTrainedModel, Trainer

from .data.synthetic_memory import COPIED
from .metrics import load_metric

Scores = dict[str, float]


def argmax(logits: Any, labels: Any) -> torch.Tensor:
    """Logits (…, V) → class ids, before the Trainer collects them: V times less to keep."""
    return (logits[0] if isinstance(logits, tuple | list) else logits).argmax(-1)


def number(logits: Any, labels: Any) -> torch.Tensor:
    """Logits (B, 1) of a regression → the numbers (B,)."""
    return (logits[0] if isinstance(logits, tuple | list) else logits).squeeze(-1)


def token_scores(prediction: EvalPrediction) -> Scores:
    """Share of right tokens, and of rows in which every token is right (−100 is no target).

    For models that generate, each prediction is made after the true tokens before it. That leaves the second number
    what greedy generation would reach: the first token it gets wrong is wrong here too.
    """
    predicted, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    rows = {"predictions": list(predicted), "references": list(labels)}
    accuracy = load_metric("token_accuracy").compute(**rows)
    return {"accuracy": accuracy["token_accuracy"], **load_metric("exact_match").compute(**rows)}


def next_token_scores(prediction: EvalPrediction) -> Scores:
    """[`token_scores`] of a model that predicts at each position the token after it."""
    predicted, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    return token_scores(EvalPrediction(predictions=predicted[:, :-1], label_ids=labels[:, 1:]))


def copied_scores(prediction: EvalPrediction) -> Scores:
    """[`token_scores`] of the symbols that are to be copied, the last ones: the blanks before them say nothing."""
    predicted, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    return token_scores(EvalPrediction(predictions=predicted[:, -COPIED:], label_ids=labels[:, -COPIED:]))


def regression_scores(prediction: EvalPrediction) -> Scores:
    """Mean squared error of one number per row."""
    return load_metric("mse").compute(predictions=prediction.predictions, references=prediction.label_ids)


def text_scores(found: Scores, counts: Mapping[str, Any]) -> Scores:
    """What a text's bits per token are worth: perplexity, and bits per character where the tokens say it exactly.

    Nothing where every token is a character: bits per token are bits per character there. The first token, which
    nothing predicts, counts as the mean of the others.

    Args:
        found: `loss` (nats per token) and `tokens` of a split.
        counts: the split's characters, tokens, and whether they are exact (`RunData.counts`).
    """
    if counts["tokens"] == counts["characters"]:
        return {}
    nats = found["loss"] * found["tokens"]
    scores = load_metric("bits_per_token").compute(predictions=[nats], references=[int(found["tokens"])])
    named = {"perplexity": scores["perplexity"]}
    if counts["exact"]:
        whole = {"predictions": [found["loss"] * counts["tokens"]], "references": [counts["characters"]]}
        named |= load_metric("bits_per_character").compute(**whole)
    return {name: value for name, value in named.items() if math.isfinite(value)}


def class_scores(prediction: EvalPrediction) -> Scores:
    """Share of rows with the right class, and F1 averaged over the classes."""
    rows = {"predictions": prediction.predictions, "references": prediction.label_ids}
    return load_metric("accuracy").compute(**rows) | load_metric("f1").compute(**rows)


@torch.no_grad()
def forecast_error(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Squared error of each future value of a batch, flat: what `generate()` foresees, the mean of its paths."""
    true = batch["future_values"]
    past = {name: value for name, value in batch.items() if name != "future_values"}
    paths = cast(Any, model.eval()).generate(**past).sequences
    return (paths.mean(1) - true).square().flatten()


def roll_scores(trainer: Trainer, dataset: Dataset) -> Scores:
    """−log p in nats for each predicted step of the pieces just evaluated, and how many steps these are."""
    summed, steps = cast(Any, trainer).evaluated
    found = load_metric("nll_per_step").compute(predictions=[summed], references=[steps])
    return {"nll": found["nll"], "predicted_steps": steps}


def series_scores(trainer: Trainer, dataset: Dataset) -> Scores:
    """Mean squared error over all future values, none of which the model has seen."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    summed = torch.zeros(2, dtype=torch.float32, device=trainer.args.device)
    for batch in trainer.get_eval_dataloader(dataset):
        error = forecast_error(model, batch)
        summed += torch.stack([error.sum(), error.new_tensor(error.numel())])
    total, count = trainer.accelerator.reduce(summed, reduction="sum").tolist()
    return {"mse": total / count}
