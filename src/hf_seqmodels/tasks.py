"""What a run can learn, task by task: the data, the batches and the scores. `run.py` is the same for all of them.

A task has a line in `arguments.TASKS` (the Auto class) and one in `TASKS` here (batches and scores); its data sets
stand in `arguments.DATASETS` and are loaded by `load_data`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer, EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase, Trainer

from .arguments import ConfigError
from .config import RunConfig, one_line
from .data import (
    SYNTHETIC,
    CausalLMCollator,
    FramesCollator,
    Seq2SeqCollator,
    SequenceClassificationCollator,
    TokenCollator,
    build_character_tokenizer,
    chance_level,
    content_hash,
    load_pydoc_topics,
    load_text_files,
    make_synthetic,
    token_stream,
    window_dataset,
)
from .metrics import load_metric

Scores = dict[str, float]


@dataclass(frozen=True)
class RunData:
    """What a model learns from; load it once and give it to several runs.

    Attributes:
        windows: splits train, validation and test as rows that the task's collator reads.
        tokenizer: reads the text; None where the input is none.
        hash: sha256 of the contents.
        texts: for language models, the splits with the columns topic and text.
        options: what the data decide about the model (the number of classes, …).
        chance: the score of a guess, by the name of the score; empty where none is known.
    """

    windows: dict[str, Dataset]
    tokenizer: PreTrainedTokenizerBase | None
    hash: str
    texts: DatasetDict | None = None
    options: dict[str, Any] = field(default_factory=dict)
    chance: Scores = field(default_factory=dict)


# ---- data -------------------------------------------------------------------------------------------------------


def load_data(config: RunConfig) -> RunData:
    """The data that `config` names, for its task.

    Raises:
        ConfigError: a file cannot be read, a split is empty, the tokenizer does not exist, or the task cannot have
            examples of this length or so many of them.
    """
    try:
        return _load_synthetic(config) if config.data.dataset in SYNTHETIC else _load_texts(config)
    except (ValueError, OSError) as error:
        raise ConfigError(one_line(error)) from None


def _load_texts(config: RunConfig) -> RunData:
    """Texts, tokenizer (from the training texts only) and windows of `block_size` predictions."""
    wanted = config.data
    if wanted.train_file is None:
        texts = load_pydoc_topics()
    else:
        texts = load_text_files(wanted.train_file, str(wanted.validation_file), str(wanted.test_file))
    tokenizer = load_tokenizer(wanted.tokenizer, texts["train"]["text"])
    windows = {
        split: window_dataset(token_stream(dataset, tokenizer), wanted.block_size) for split, dataset in texts.items()
    }
    return RunData(windows, tokenizer, content_hash(texts), texts)


def load_tokenizer(name: str, texts: Sequence[str]) -> PreTrainedTokenizerBase:
    """The character tokenizer of `texts`, or the tokenizer in a folder or on the Hub; it can pad."""
    if name == "characters":
        return build_character_tokenizer(texts)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # each kind of tokenizer has errors of its own
        rule = "it must be 'characters', the folder of a saved tokenizer or a name on the Hub"
        raise ConfigError(f"tokenizer '{name}' cannot be loaded: {rule} ({one_line(error)})") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load_synthetic(config: RunConfig) -> RunData:
    wanted = config.data
    options = {"num_examples": wanted.num_examples, "length": wanted.length, "seed": wanted.examples_seed}
    given = {name: value for name, value in options.items() if value is not None}
    splits, tokenizer = make_synthetic(wanted.dataset, **given)
    task = SYNTHETIC[wanted.dataset]
    decided: dict[str, Any] = {}
    if task.labels:
        decided["id2label"] = dict(enumerate(task.labels))
        decided["label2id"] = {label: number for number, label in enumerate(task.labels)}
    chance = {task.measure: chance_level(wanted.dataset, splits["test"])}
    return RunData(dict(splits), tokenizer, content_hash(splits), options=decided, chance=chance)


# ---- scores -----------------------------------------------------------------------------------------------------


def argmax(logits: Any, labels: Any) -> torch.Tensor:
    """Logits (…, V) → class ids, before the Trainer collects them: V times less to keep."""
    return (logits[0] if isinstance(logits, tuple | list) else logits).argmax(-1)


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


def series_scores(trainer: Trainer, dataset: Dataset) -> Scores:
    """Mean squared error over all future values, none of which the model has seen."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    summed = torch.zeros(2, dtype=torch.float32, device=trainer.args.device)
    for batch in trainer.get_eval_dataloader(dataset):
        error = forecast_error(model, batch)
        summed += torch.stack([error.sum(), error.new_tensor(error.numel())])
    total, count = trainer.accelerator.reduce(summed, reduction="sum").tolist()
    return {"mse": total / count}


# ---- the table --------------------------------------------------------------------------------------------------


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
