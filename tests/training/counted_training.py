"""Trains tiny models whose targets are no labels of tokens; run alone, under torchrun, or from a test.

python counted_training.py OUT.json KIND PER_DEVICE_BATCH ACCUMULATION ROWS
"""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any

import torch
from transformers import set_seed

from hf_seqmodels.arguments import SeqTrainingArguments
from hf_seqmodels.models import ARCHITECTURES
from hf_seqmodels.training import SeqTrainer

Rows = list[dict[str, Any]]


def make_series(count: int) -> Rows:
    """From no observed step to nearly all of 6 + 3."""
    rows = []
    for index in range(count):
        past, future = torch.rand(6) < index / count, torch.rand(3) < index / count
        rows.append({"past_values": torch.randn(6), "past_observed_mask": past.long()})
        rows[-1] |= {"future_values": torch.randn(3), "future_observed_mask": future.long()}
    return rows


def make_frames(count: int) -> Rows:
    rows: Rows = [
        {"pixel_values": torch.rand(3, 1, 4, 4), "future_values": torch.rand(2, 1, 4, 4)} for _ in range(count)
    ]
    for index, row in enumerate(rows):
        row["future_observed_mask"] = (torch.rand(2, 1, 4, 4) < index / count).long()
    return rows


def make_texts(count: int) -> Rows:
    """Every other row of the first half has no label."""
    labels = [-100 if index % 2 and index < count // 2 else index % 3 for index in range(count)]
    return [{"input_ids": torch.randint(0, 11, (5,)), "labels": label} for label in labels]


def make_numbers(count: int) -> Rows:
    return [{"input_ids": torch.randint(0, 11, (5,)), "labels": float(index)} for index in range(count)]


SERIES = {"num_features": 1, "embedding_size": None, "distribution_output": "normal", "prediction_length": 3}
FRAMES = {"hidden_size": 2, "num_hidden_layers": 1, "prediction_length": 2}
TEXTS = {"vocab_size": 11, "hidden_size": 8}
KINDS: dict[str, tuple[str, str, dict[str, Any], Any]] = {
    "series": ("seq_gru", "time-series-prediction", SERIES | {"hidden_size": 8}, make_series),
    "frames": ("seq_conv_lstm", "time-series-prediction", FRAMES, make_frames),
    "class ids": ("seq_gru", "sequence-classification", TEXTS | {"num_labels": 3}, make_texts),
    "numbers": ("seq_gru", "sequence-classification", TEXTS | {"num_labels": 1}, make_numbers),
}


def build_trainer(kind: str, batch: int, accumulation: int, folder: str, count: int = 10) -> tuple[SeqTrainer, Rows]:
    architecture, head, options, make = KINDS[kind]
    set_seed(0)
    model, rows = ARCHITECTURES[architecture].models[head](ARCHITECTURES[architecture].config(**options)), make(count)
    arguments = SeqTrainingArguments(
        folder, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, logging_steps=1,
        per_device_eval_batch_size=batch, num_train_epochs=2, learning_rate=1e-2, use_cpu=True, save_strategy="no",
        load_best_model_at_end=False, label_names=["future_values"] if kind == "frames" else None,
    )  # fmt: skip
    return SeqTrainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows, quiet=True), rows


def train(kind: str, batch: int, accumulation: int, folder: str, count: int = 10) -> list[float]:
    """Two epochs: loss and gradient norm of each step, the size of each weight, the targets, the evaluation."""
    trainer, _ = build_trainer(kind, batch, accumulation, folder, count)
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    weights = [parameter.detach().double().norm().item() for parameter in trainer.model.parameters()]
    numbers = [entry[key] for key in ("loss", "grad_norm") for entry in history]
    return [*numbers, *weights, trainer.record()["targets"], trainer.evaluate()["eval_loss"]]


if __name__ == "__main__":
    out, kind, *sizes = sys.argv[1:]
    batch, accumulation, count = map(int, sizes)
    with tempfile.TemporaryDirectory() as folder:
        numbers = train(kind, batch, accumulation, folder, count)
    rank = torch.distributed.get_rank()
    torch.distributed.destroy_process_group()
    if rank == 0:
        with open(out, "w") as file:
            json.dump(numbers, file)
