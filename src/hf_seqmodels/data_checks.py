"""What of the data options can be known to be wrong before anything is read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .arguments import DATASETS, READ, ConfigError, DataArguments

# Options of data sets made in code.
_MADE = ("length", "num_examples", "examples_seed")
_TEXTS = ("pydoc_topics", "text")
BUILT_FROM_TEXT = ("characters", "words", "bpe")
_FROM_PATH = ("text", "piano_rolls")
# Option → the data sets that have it; for others it must stay as it is when left out.
_APPLIES = {
    "path": _FROM_PATH,
    "data_dir": _FROM_PATH,
    "test_split": _FROM_PATH,
    "column": ("text",),
    "row_end": ("text",),
    "streaming": ("text",),
    "tokenizer": _TEXTS,
    "vocabulary_size": _TEXTS,
    "windows": _TEXTS,
}
_SMALLEST_BPE = 258  # 256 bytes and two special tokens


def check_data(task: str, data: DataArguments, carry_state: bool) -> None:
    """The data set teaches the task, its files exist, and the options given are ones that it has.

    Raises:
        ConfigError: one line with the option, the rule and the way out.
    """
    _check_files(data)
    _check_task(task, data)
    _check_applies(data)
    _check_tokenizer(data)
    _check_streams(data, carry_state)


def _check_files(data: DataArguments) -> None:
    files = {name: getattr(data, name) for name in ("train_file", "validation_file", "test_file")}
    missing = [name for name, file in files.items() if file is None]
    if len(missing) < len(files) and data.path is not None:
        given = next(name for name in files if name not in missing)
        raise ConfigError(f"path={data.path} and {given} both say what to read; leave one of them out")
    if 0 < len(missing) < len(files):
        raise ConfigError(f"{' and '.join(missing)} missing; name all of train_file, validation_file and test_file")
    for name, file in files.items():
        if file is not None and not os.path.isfile(file):  # False too where a folder is locked
            raise ConfigError(f"{name} '{file}' does not exist; give the path of a text file")


def _check_task(task: str, data: DataArguments) -> None:
    if task != DATASETS[data.dataset]:
        taught, fitting = DATASETS[data.dataset], ", ".join(name for name in DATASETS if DATASETS[name] == task)
        raise ConfigError(
            f"dataset={data.dataset} teaches {taught} and not task={task}; use --task {taught}, or --dataset {fitting}"
        )
    made = data.dataset not in READ
    music = data.dataset == "piano_rolls"  # whose length is that of the stretches that pieces are cut into
    for name in ("train_file",) if made else [name for name in _MADE if not (music and name == "length")]:
        if getattr(data, name) is not None:
            reason = "made in code and reads no file" if made else f"{_kind(data)} as it is"
            raise ConfigError(f"{name} does not apply: dataset={data.dataset} is {reason}; leave {name} out")
    if data.train_file is not None and data.dataset != "pydoc_topics":
        raise ConfigError(
            f"train_file does not apply to dataset={data.dataset}, which is read from path; leave one of them out"
        )


def _kind(data: DataArguments) -> str:
    return "music" if data.dataset == "piano_rolls" else "text"


def _check_applies(data: DataArguments) -> None:
    for name, owners in _APPLIES.items():
        value = getattr(data, name)
        if data.dataset not in owners and value != DataArguments.__dataclass_fields__[name].default:
            raise ConfigError(
                f"{name}={value} does not apply to dataset={data.dataset}; leave {name} out, or choose "
                f"--dataset {' or '.join(owners)}"
            )
    if data.dataset in _FROM_PATH and data.path is None:
        raise ConfigError(
            f"dataset={data.dataset} is read from a path and none is given; --path takes a folder, its name in "
            "data_dir, or a Hub id user/name"
        )


def _check_tokenizer(data: DataArguments) -> None:
    size = data.vocabulary_size
    if size is not None and data.tokenizer not in ("words", "bpe"):
        raise ConfigError(
            f"vocabulary_size={size} does not apply to tokenizer={data.tokenizer}; leave it out, or choose words or "
            "bpe"
        )
    if size is not None and data.tokenizer == "bpe" and size < _SMALLEST_BPE:
        raise ConfigError(
            f"vocabulary_size={size} is out of range for tokenizer=bpe; it must be at least {_SMALLEST_BPE}, to have "
            "every byte"
        )


def _check_streams(data: DataArguments, carry_state: bool) -> None:
    chosen = {
        "random_lengths": data.random_lengths,
        "reset_at_documents": data.reset_at_documents,
        "carry_state": carry_state,
    }
    for name, wanted in chosen.items():
        if wanted and data.windows != "streams":
            way_out = f"leave {name} out, or add --windows streams" if data.dataset in _TEXTS else f"leave {name} out"
            raise ConfigError(f"{name} does not apply to windows={data.windows}; {way_out}")
    if data.random_lengths and data.reset_at_documents:
        raise ConfigError("random_lengths and reset_at_documents cannot go together; leave one of them out")
    if data.streaming and data.windows == "streams":
        raise ConfigError(
            "streaming never has the text as a whole, which windows=streams needs; leave one of them out"
        )


def check_streaming(data: DataArguments, training: Mapping[str, Any]) -> None:
    """What is read as it comes has no length and no epochs, and nothing can be built from it beforehand.

    Raises:
        ConfigError: one line with the option, the rule and the way out.
    """
    if not data.streaming:
        return
    if data.tokenizer in BUILT_FROM_TEXT:
        raise ConfigError(
            f"tokenizer={data.tokenizer} is built from the training text, which streaming never has as a whole; use "
            "--tokenizer bytes, or the folder or Hub name of a saved one"
        )
    if training["max_steps"] < 1:
        raise ConfigError("streaming has no length, so the end of training must be said; add --max_steps N")
    if training["dataloader_num_workers"]:
        raise ConfigError(
            f"dataloader_num_workers={training['dataloader_num_workers']} does not apply to streaming, whose "
            "processes agree on the end of each pass; leave it out"
        )
    if training["lr_scheduler_type"] == "epoch_decay":
        raise ConfigError(
            "lr_scheduler_type=epoch_decay does not apply to streaming, which has no epochs; use constant, plateau, "
            "linear or cosine"
        )
    for name in ("eval_strategy", "save_strategy"):
        if getattr(training[name], "value", training[name]) == "epoch":
            raise ConfigError(
                f"{name}=epoch does not apply to streaming, which has no epochs; use --{name} steps or no"
            )
