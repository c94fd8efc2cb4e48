"""The data of a run: what its configuration names, read, cut into rows and counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .arguments import ConfigError
from .config import RunConfig, one_line
from .data import (
    KEYS,
    SYNTHETIC,
    build_character_tokenizer,
    chance_level,
    content_hash,
    load_piano_rolls,
    load_pydoc_topics,
    load_text_files,
    make_synthetic,
    token_stream,
    window_dataset,
)
from .scores import Scores


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
        skipped: split → how many examples were left out, each for a reason that the reader of the data gives.
    """

    windows: dict[str, Dataset]
    tokenizer: PreTrainedTokenizerBase | None
    hash: str
    texts: DatasetDict | None = None
    options: dict[str, Any] = field(default_factory=dict)
    chance: Scores = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)


# ---- data -------------------------------------------------------------------------------------------------------


def load_data(config: RunConfig) -> RunData:
    """The data that `config` names, for its task.

    Raises:
        ConfigError: a file cannot be read, a split is empty, the tokenizer does not exist, or the task cannot have
            examples of this length or so many of them.
    """
    try:
        if config.data.dataset == "piano_rolls":
            return _load_rolls(config)
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


def _load_rolls(config: RunConfig) -> RunData:
    """Piano rolls, one row for each piece; the model's loss must be what they are scored by."""
    wanted, scored = config.data, {"num_features": KEYS, "distribution_output": "bernoulli", "context_loss": False}
    for name, value in scored.items():
        if config.model.get(name) != value:
            raise ConfigError(f"{name}={config.model.get(name)} does not fit piano rolls; it must be {value}")
    splits = {"train": "train", "validation": "validation", "test": wanted.test_split}
    rolls, skipped = load_piano_rolls(str(wanted.path), wanted.data_dir, splits)
    return RunData(dict(rolls), None, content_hash(rolls), skipped=skipped)


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
    decided: dict[str, Any] = dict(task.options)
    if task.labels:
        decided["id2label"] = dict(enumerate(task.labels))
        decided["label2id"] = {label: number for number, label in enumerate(task.labels)}
    chance = {task.measure: chance_level(wanted.dataset, splits["test"])}
    return RunData(dict(splits), tokenizer, content_hash(splits), options=decided, chance=chance)
