"""The stock transformers.Trainer, unchanged, trains every head of every architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_seqmodels.data import CausalLMCollator
from hf_seqmodels.models import ARCHITECTURES
from model_table import Case, build, each_pair

PLAIN = [Case(architecture, "plain") for architecture in ARCHITECTURES]
VOCABULARY = 23


def bare_tokenizer() -> PreTrainedTokenizerFast:
    """Knows how to pad, which is all that the stock collators ask of it."""
    words = {"<pad>": 0} | {f"w{index}": index for index in range(1, VOCABULARY)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words)), pad_token="<pad>")


def arguments(folder: Any, **options: Any) -> TrainingArguments:
    defaults = {
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1000,
    }
    return TrainingArguments(str(folder), **(defaults | options))


def ragged(rows: int, labels: str, seed: int = 0) -> Dataset:
    """Rows of 2 to 9 tokens; labels as the head wants them, a third of a language model's −100."""
    generator = torch.Generator().manual_seed(seed)
    table: dict[str, list] = {"input_ids": [], "labels": []}
    for _ in range(rows):
        ids = torch.randint(1, VOCABULARY, (int(torch.randint(2, 10, (), generator=generator)),), generator=generator)
        dropped = torch.rand(len(ids), generator=generator) < 0.33
        table["input_ids"].append(ids.tolist())
        if labels in ("causal-lm", "seq2seq-lm"):
            table["labels"].append(ids.masked_fill(dropped, -100).tolist())
        elif labels == "token-classification":
            table["labels"].append((ids % 3).masked_fill(dropped, -100).tolist())
        else:
            table["labels"].append(int(ids[0]) % 3)
    return Dataset.from_dict(table)


def collator(head: str) -> Any:
    if head == "causal-lm":
        return CausalLMCollator(pad_token_id=0)
    if head == "seq2seq-lm":
        return DataCollatorForSeq2Seq(bare_tokenizer())
    stock = DataCollatorForTokenClassification if head == "token-classification" else DataCollatorWithPadding
    return stock(bare_tokenizer())


# -- A16 --------------------------------------------------------------------------------------------------------------
@each_pair(
    [
        (case, head)
        for case in PLAIN
        for head in ("causal-lm", "token-classification", "sequence-classification", "seq2seq-lm")
        if head in case.heads
    ]
)
def test_accumulation_is_one_large_batch(case, head, tmp_path):
    """A16: 3 steps of 2 rows and 1 step of 6 rows: same losses, same gradient norm, same weights."""
    outcomes = []
    for batch, accumulation in ((2, 3), (6, 1)):
        model = build(case, head, dropout=0.0)
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        # SGD: the weights then differ by what the gradients differ by; AdamW would divide a difference by itself.
        options |= {"optim": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "constant", "logging_steps": 1}
        trainer = Trainer(
            model,
            arguments(tmp_path, max_steps=2, max_grad_norm=1e9, **options),
            train_dataset=ragged(12, head),
            data_collator=collator(head),
        )
        trainer.train()
        logs = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
        outcomes.append((logs, {name: value.detach().clone() for name, value in model.named_parameters()}))
    (small_logs, small), (large_logs, large) = outcomes
    assert len(small_logs) == len(large_logs) == 2
    for one, other in zip(small_logs, large_logs, strict=True):
        assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=1e-6, abs=1e-6)
        assert float(one["grad_norm"]) == pytest.approx(float(other["grad_norm"]), rel=1e-5)
    start = build(case, head, dropout=0.0).state_dict()
    assert max(float((start[name] - large[name]).abs().max()) for name in large) > 1e-2, "training moved the weights"
    for name in small:
        assert float((small[name] - large[name]).abs().max()) <= 2e-6, name


# -- from a language model to a classifier ----------------------------------------------------------------------------
def which_came_last(rows: int, seed: int) -> Dataset:
    """Is the last of the marks 1 and 2 in a row of other tokens a 1 or a 2?"""
    generator = torch.Generator().manual_seed(seed)
    table: dict[str, list] = {"input_ids": [], "labels": []}
    for _ in range(rows):
        ids = torch.randint(3, VOCABULARY, (int(torch.randint(6, 12, (), generator=generator)),), generator=generator)
        place = int(torch.randint(0, 4, (), generator=generator))
        ids[place], ids[-2] = torch.randint(1, 3, (2,), generator=generator)
        table["input_ids"].append(ids.tolist())
        table["labels"].append(int(ids[-2]) - 1)
    return Dataset.from_dict(table)


@pytest.mark.parametrize("case", [case for case in PLAIN if "sequence-classification" in case.heads], ids=str)
def test_language_model_becomes_a_classifier(case, tmp_path):
    """A saved language model, the Auto class, the stock Trainer and collator: nearly every held-out row is right."""
    set_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "pad_token_id": 0}
    ARCHITECTURES[case.architecture].models[case.main_head](
        ARCHITECTURES[case.architecture].config(**sizes)
    ).save_pretrained(tmp_path / "lm")
    model, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "lm", num_labels=2, output_loading_info=True
    )
    assert all(key.startswith(("score.", "pooling.", "pooler.")) for key in info["missing_keys"])
    trainer = Trainer(
        model,
        arguments(
            tmp_path / "run",
            max_steps=150,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            learning_rate=1e-2,
            warmup_steps=10,
        ),
        train_dataset=which_came_last(512, seed=1),
        eval_dataset=which_came_last(128, seed=2),
        data_collator=collator("sequence-classification"),
        compute_metrics=lambda seen: {"accuracy": float((seen.predictions.argmax(-1) == seen.label_ids).mean())},
    )
    before = trainer.evaluate()["eval_accuracy"]
    trainer.train()
    after = trainer.evaluate()["eval_accuracy"]
    assert before < 0.75
    assert after > 0.95, f"{after:.1%} of the held-out rows after training"
    trainer.save_model(tmp_path / "final")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "final")
    ids = torch.tensor([which_came_last(1, seed=3)["input_ids"][0]])
    with torch.no_grad():
        assert torch.equal(again.eval()(ids).logits, model.eval()(ids).logits)
