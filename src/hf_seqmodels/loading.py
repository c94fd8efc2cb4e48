"""The data of a run: what its configuration names, read, cut into rows and counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .arguments import ConfigError, DataArguments
from .config import RunConfig, one_line
from .data import (
    BUILT,
    KEYS,
    SYNTHETIC,
    StreamedText,
    build_tokenizer,
    chance_level,
    content_hash,
    cut_pieces,
    load_piano_rolls,
    load_pydoc_topics,
    load_text_files,
    load_texts,
    make_synthetic,
    open_rows,
    read_rows,
    text_rows,
    token_streams,
    window_dataset,
)
from .scores import Scores


@dataclass(frozen=True)
class RunData:
    """What a model learns from; load it once and give it to several runs.

    Attributes:
        windows: splits train, validation and test as rows that the task's collator reads; train may come one row
            after the other, without a length (`streaming`); empty where they are to be
            cut from `streams` (`windows=streams`).
        tokenizer: reads the text; None where the input is none.
        hash: sha256 of the contents.
        texts: for language models, the splits with the column text (and topic, where texts have names).
        options: what the data decide about the model (the number of classes, …).
        chance: the score of a guess, by the name of the score; empty where none is known.
        skipped: split → how many examples were left out, each for a reason that the reader of the data gives.
        cut: split → how many examples were cut into several rows.
        streams: for language models, split → all its token ids, (T,) int32.
        documents: split → where in its stream each row of the data begins, (N,) int64.
        counts: for language models, split → rows, blank rows, characters, tokens, unknown tokens, whether the
            tokens say the text exactly, and of a split shorter than one window the window's predictions.
    """

    windows: dict[str, Dataset]
    tokenizer: PreTrainedTokenizerBase | None
    hash: str
    texts: DatasetDict | None = None
    options: dict[str, Any] = field(default_factory=dict)
    chance: Scores = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    streams: dict[str, np.ndarray] | None = None
    documents: dict[str, np.ndarray] | None = None
    counts: dict[str, Any] = field(default_factory=dict)


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
    """Texts, tokenizer (from the training texts only), streams, and windows of `block_size` predictions."""
    wanted = config.data
    if wanted.streaming:
        seeds = config.training.data_seed, config.training.seed
        return _load_streamed(wanted, seeds[0] if seeds[0] is not None else seeds[1])
    texts = read_texts(wanted)
    tokenizer = load_tokenizer(wanted.tokenizer, texts["train"], wanted.vocabulary_size)
    return _tokenized(wanted, texts, content_hash(texts), tokenizer)


def _load_streamed(wanted: DataArguments, seed: int | None) -> RunData:
    """The training split as it comes; the others, which are scored, as a whole. The hash is theirs alone."""
    place, lines = (str(wanted.path), wanted.data_dir), wanted.row_end == "nothing"
    names = {"validation": "validation", "test": wanted.test_split}
    texts = DatasetDict({split: read_rows(*place, name, wanted.column, lines) for split, name in names.items()})
    rows, name = open_rows(*place, "train", wanted.column, lines)
    tokenizer = load_tokenizer(wanted.tokenizer, Dataset.from_dict({"text": [""]}))
    train = StreamedText(rows, tokenizer, wanted.block_size, row_end=wanted.row_end, seed=seed, name=name)
    data = _tokenized(wanted, texts, content_hash(texts), tokenizer)
    return replace(data, windows={"train": train, **data.windows})


def _tokenized(wanted: DataArguments, texts: DatasetDict, content: str, tokenizer: PreTrainedTokenizerBase) -> RunData:
    found = token_streams(texts, tokenizer, wanted.row_end, content)
    streams = {split: stream.ids for split, stream in found.items()}
    counts = {split: dict(stream.counts) for split, stream in found.items()}
    for split, ids in streams.items():
        if wanted.windows != "streams" and len(ids) <= wanted.block_size:  # kept whole, as one shorter window
            counts[split]["shorter_than_window"] = wanted.block_size
    return RunData(
        windows={} if wanted.windows == "streams" else make_windows(streams, wanted.block_size),
        tokenizer=tokenizer,
        hash=content,
        texts=texts,
        streams=streams,
        documents={split: stream.starts for split, stream in found.items()},
        counts=counts,
    )


def load_split(config: RunConfig, split: str, tokenizer: PreTrainedTokenizerBase | None) -> RunData:
    """One split alone, under its own name, read by a tokenizer that is there already: to score a model on it.

    Raises:
        ConfigError: as [`load_data`], or there is no such split.
    """
    wanted = config.data
    try:
        if wanted.dataset == "piano_rolls":
            rolls, skipped = load_piano_rolls(str(wanted.path), wanted.data_dir, {split: split})
            return RunData(dict(rolls), None, content_hash(rolls), skipped=skipped)
        if wanted.dataset in SYNTHETIC:
            data = _load_synthetic(config)
            alone = DatasetDict({split: _named(data.windows, split)})
            return replace(data, windows=dict(alone), hash=content_hash(alone))
        if tokenizer is None:
            raise ConfigError("the model has no tokenizer to read text with; save one beside it")
        texts = read_texts(wanted, split)
        return _tokenized(wanted, texts, content_hash(texts), tokenizer)
    except (ValueError, OSError) as error:
        raise ConfigError(one_line(error)) from None


def _named(splits: Mapping[str, Dataset], split: str) -> Dataset:
    if split not in splits:
        raise ConfigError(f"there is no split '{split}'; use one of {', '.join(splits)}")
    return splits[split]


def read_texts(wanted: DataArguments, only: str | None = None) -> DatasetDict:
    """The splits of a language model's data set, or one of them under its own name, with the column text.

    Raises:
        ValueError, OSError: a file, split, column or row cannot be read.
    """
    if wanted.dataset == "text":
        splits = {"train": "train", "validation": "validation", "test": wanted.test_split}
        splits = splits if only is None else {only: only}
        whole_lines = wanted.row_end == "nothing"
        return load_texts(str(wanted.path), wanted.data_dir, splits, wanted.column, whole_lines)
    if wanted.train_file is None:
        texts = load_pydoc_topics()
    else:
        texts = load_text_files(wanted.train_file, str(wanted.validation_file), str(wanted.test_file))
    return texts if only is None else DatasetDict({only: _named(texts, only)})


def make_windows(streams: Mapping[str, np.ndarray], block_size: int) -> dict[str, Dataset]:
    """Windows of each split, shuffled later, all tokens but the first predicted once.

    Raises:
        ValueError: a split has fewer than two tokens.
    """
    for split, stream in streams.items():
        if len(stream) < 2:
            raise ValueError(f"{split} has {len(stream)} tokens and nothing to predict: it needs two; add text")
    return {split: window_dataset(stream, block_size) for split, stream in streams.items()}


def counted(
    skipped: Mapping[str, int], counts: Mapping[str, Mapping[str, int]], cut: Mapping[str, int] | None = None
) -> list[str]:
    """What was left out of the data or cut, and what the splits hold: a line each, where there is something to say."""
    lines = []
    if any(skipped.values()):
        lines.append("examples left out: " + ", ".join(f"{split} {count:,}" for split, count in skipped.items()))
    if cut:
        lines.append("examples cut: " + ", ".join(f"{split} {count:,}" for split, count in cut.items()))
    return [*lines, f"data: {counts_in_words(counts)}"] if counts else lines


def counts_in_words(counts: Mapping[str, Mapping[str, int]]) -> str:
    """What the splits hold, in a line."""
    parts = []
    for split, found in counts.items():
        part = f"{split} {found['tokens']:,} tokens in {found['rows']:,} rows"
        for name in ("blank_rows", "unknown_tokens"):
            part += f", {found[name]:,} {name.replace('_', ' ')}" if found[name] else ""
        if window := found.get("shorter_than_window"):
            part += f", shorter than a window of {window:,} predictions: kept as one shorter window"
        parts.append(part)
    return "; ".join(parts)


def _load_rolls(config: RunConfig) -> RunData:
    """Piano rolls, one row for each piece; the model's loss must be what they are scored by."""
    wanted, scored = config.data, {"num_features": KEYS, "distribution_output": "bernoulli", "context_loss": False}
    for name, value in scored.items():
        if config.model.get(name) != value:
            raise ConfigError(f"{name}={config.model.get(name)} does not fit piano rolls; it must be {value}")
    splits = {"train": "train", "validation": "validation", "test": wanted.test_split}
    rolls, skipped = load_piano_rolls(str(wanted.path), wanted.data_dir, splits)
    model = config.model_config()
    most = getattr(model, "max_position_embeddings", None)
    steps = max(len(pitches) for rows in rolls.values() for pitches in rows["pitches"])
    if most is not None and getattr(model, "positions", "learned") == "learned" and steps > most:
        raise ConfigError(
            f"pieces have up to {steps} steps and the model {most} positions; use --positions rotary, or "
            f"--max_position_embeddings {steps}"
        )
    found = RunData(dict(rolls), None, content_hash(rolls), skipped=skipped)
    if wanted.length is not None:
        found.windows["train"], count = cut_pieces(rolls["train"], wanted.length)
        found.cut["train"] = count
    return found


def load_tokenizer(name: str, train: Dataset, vocabulary_size: int | None = None) -> PreTrainedTokenizerBase:
    """One of `data.BUILT` from the training texts, or the tokenizer in a folder or on the Hub; it can pad.

    Raises:
        ConfigError: there is no such tokenizer, or it has neither a token to pad with nor one that ends a text.
    """
    if name in BUILT:
        return build_tokenizer(name, (row for rows in text_rows(train) for row in rows), vocabulary_size)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # each kind of tokenizer has errors of its own
        rule = f"it must be one of {', '.join(BUILT)}, the folder of a saved tokenizer or a name on the Hub"
        raise ConfigError(f"tokenizer '{name}' cannot be loaded: {rule} ({one_line(error)})") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ConfigError(f"tokenizer '{name}' has neither pad_token nor eos_token; save it again with one of them")
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
