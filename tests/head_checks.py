"""What the tests of several heads share: a loss row by row, accumulated steps, a tokenizer, the stock Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import EvalPrediction, PreTrainedTokenizerFast, Trainer, TrainingArguments

from model_table import SIZES, Case, assert_close, assert_same_gradients, named_gradients

Batch = dict[str, torch.Tensor]
# A cell and a Transformer stand for the others where a test is about transformers rather than about the model.
QUICK = ("seq_lstm", "seq_transformer_decoder", "seq_transformer_encoder")


def one_each(pairs: list[tuple[Case, str]]) -> pytest.MarkDecorator:
    """The first variant of each architecture that has the head; what is not in `QUICK` is slow."""
    first = {case.architecture: (case, head) for case, head in reversed(pairs)}
    params = [
        pytest.param(*pair, id="-".join(map(str, pair)), marks=[] if name in QUICK else pytest.mark.slow)
        for name, pair in first.items()
    ]
    return pytest.mark.parametrize(("case", "head"), params)


def rows_alone(batch: Batch, mask: torch.Tensor) -> list[Batch]:
    """Each row by itself, as a batch of one without its padding; what is not (B, T, …) keeps its columns."""
    rows = []
    for index, tokens in enumerate(mask.bool()):
        row = {}
        for name, value in batch.items():
            per_token = value.ndim > 1 and value.shape[1] == mask.shape[1]
            row[name] = (value[index][tokens] if per_token else value[index])[None]
        rows.append(row)
    return rows


def check_loss_is_sum_of_rows(
    model: Any, batch: Batch, mask: torch.Tensor, weights: list[float], tolerance: float, row: str
) -> None:
    """The padded batch's loss and gradients are those of Σ weights[i] · loss of row i alone."""
    loss = model(**batch, attention_mask=mask).loss
    loss.backward()
    gradients, expected = named_gradients(model), torch.zeros((), dtype=loss.dtype)
    for weight, alone in zip(weights, rows_alone(batch, mask), strict=True):
        if weight:
            part = weight * model(**alone).loss
            part.backward()
            expected = expected + part.detach()
    assert expected != 0
    assert_close(loss, expected, tolerance, row, "loss")
    assert_same_gradients(gradients, named_gradients(model), tolerance, row)


def check_accumulation(model: Any, batch: Batch, count: int, tolerance: float, row: str) -> None:
    """A16: parts of 2 rows, given the targets of the whole batch, add up to it."""
    loss = model(**batch).loss
    loss.backward()
    gradients, total = named_gradients(model), 0.0
    size = len(next(iter(batch.values())))
    for start in range(0, size, 2):
        part = {name: value[start : start + 2] for name, value in batch.items()}
        piece = model(**part, num_items_in_batch=torch.tensor(count)).loss
        piece.backward()
        total = total + piece.detach()
    assert_close(loss, torch.as_tensor(total), tolerance, row, "loss")
    assert_same_gradients(gradients, named_gradients(model), tolerance, row)


def pair_tokenizer() -> PreTrainedTokenizerFast:
    """Words w3 … w22 with the ids 3 … 22; a <sep> (1) after each text; <mask> (2); token types 0 and 1."""
    words = ["<pad>", "<sep>", "<mask>"] + [f"w{index}" for index in range(3, SIZES["vocab_size"])]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single="$A <sep>", pair="$A <sep> $B:1 <sep>:1", special_tokens=[("<sep>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        sep_token="<sep>",
        mask_token="<mask>",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def train_two_steps(
    model: Any, rows: list[dict[str, Any]], collator: Any, folder: Path
) -> tuple[dict, EvalPrediction]:
    """The stock Trainer: two steps of two accumulated batches, then evaluation.

    Returns:
        The metrics of the evaluation, and what `compute_metrics` was given.
    """
    seen: list[EvalPrediction] = []
    options = {"report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
    trainer = Trainer(
        model.cpu(),
        TrainingArguments(
            str(folder),
            max_steps=2,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            per_device_eval_batch_size=4,
            learning_rate=1e-2,
            use_cache=model.config.use_cache,  # where there is one: it must not come with the predictions
            **options,
        ),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows),
        data_collator=collator,
        compute_metrics=lambda prediction: seen.append(prediction) or {"seen": len(seen)},
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.train()
    after = model.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before), "training moved no weight"
    metrics = trainer.evaluate()
    assert metrics["eval_seen"] == len(seen) == 1
    return metrics, seen[0]
