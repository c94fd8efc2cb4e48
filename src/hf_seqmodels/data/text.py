"""Text for language models: documents → one token stream → windows.

Every data set here is a `datasets.DatasetDict` with the splits train, validation and test and the columns
`topic` (the document's name) and `text`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from .encoding import encode

SPLITS = ("train", "validation", "test")


def load_pydoc_topics() -> DatasetDict:
    """The English help topics that every Python carries (`pydoc_data.topics`), split by topic, about 80/10/10.

    The split is measured in characters and depends on the topics alone, so every machine with the same Python has the
    same one. Python versions differ in the text itself: 3.11.7 has 79 topics and 464,970 characters.
    """
    from pydoc_data.topics import topics

    return _to_dataset_dict({split: {n: topics[n] for n in names} for split, names in _split_topics(topics).items()})


def _split_topics(topics: Mapping[str, str], held_out: float = 0.1) -> dict[str, list[str]]:
    """Fills test, then validation, with whole groups of topics in the order of a hash, `held_out` of the text each.

    The hash makes the choice independent of the alphabet and leaves most topics in their split when others change.
    A group too large for the room left goes to train.
    """
    limit = held_out * sum(len(text) for text in topics.values())
    room = {"test": limit, "validation": limit, "train": float("inf")}
    split: dict[str, list[str]] = {name: [] for name in SPLITS}
    for group in sorted(_groups_sharing_text(topics), key=lambda group: hashlib.sha256(group[0].encode()).digest()):
        size = sum(len(topics[name]) for name in group)
        part = next(part for part, left in room.items() if size <= left)
        split[part] += group
        room[part] -= size
    return {part: sorted(names) for part, names in split.items()}


def _groups_sharing_text(topics: Mapping[str, str], min_length: int = 80) -> list[list[str]]:
    """Topics that share a paragraph of at least `min_length` characters, directly or through others, as sorted lists.

    The topics are cut from overlapping chapters ("if" and "else" are the same text, "specialnames" holds all of
    "customization"): split apart, a model would be tested on what it was trained on.
    """
    parent = {name: name for name in topics}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    first_with: dict[str, str] = {}
    for name in sorted(topics):
        for block in topics[name].split("\n\n"):
            paragraph = " ".join(block.split())
            if len(paragraph) >= min_length:
                first, second = sorted((root(first_with.setdefault(paragraph, name)), root(name)))
                parent[second] = first
    groups: dict[str, list[str]] = {}
    for name in sorted(topics):
        groups.setdefault(root(name), []).append(name)
    return list(groups.values())


def load_text_files(train: str | PathLike, validation: str | PathLike, test: str | PathLike) -> DatasetDict:
    """Three UTF-8 text files, each one document of its split. Line ends become `\\n`, a byte order mark is dropped.

    Raises:
        FileNotFoundError: a path is not a file.
        ValueError: a file is empty or not UTF-8, or two splits hold the same text.
    """
    texts = {name: read_text(Path(path)) for name, path in zip(SPLITS, (train, validation, test), strict=True)}
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        if texts[first] == texts[second]:
            raise ValueError(f"{first} and {second} hold the same text: scores need unseen text; give different files")
    paths = dict(zip(SPLITS, (train, validation, test), strict=True))
    return _to_dataset_dict({name: {Path(paths[name]).name: text} for name, text in texts.items()})


def read_text(path: Path) -> str:
    """A UTF-8 text file; line ends become `\\n`, a byte order mark is dropped.

    Raises:
        FileNotFoundError: not a file.
        ValueError: it is empty or not UTF-8.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no text file at '{path}': each split needs one existing file; check the path")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"'{path}' is not UTF-8 (byte {error.start}): text files must be; convert it, e.g. with `iconv -t UTF-8`"
        ) from None
    if not text.strip():
        raise ValueError(f"'{path}' is empty: every split needs text; give a file with some")
    return text


def _to_dataset_dict(documents: Mapping[str, Mapping[str, str]]) -> DatasetDict:
    """{split: {topic: text}} as a DatasetDict."""
    return DatasetDict(
        {
            split: Dataset.from_dict({"topic": list(texts.keys()), "text": list(texts.values())})
            for split, texts in documents.items()
        }
    )


def token_stream(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """All texts of one split in order, each followed by the end-of-sequence token: int64 (T,).

    Raises:
        ValueError: the split has no rows, no column `text`, or the tokenizer no end-of-sequence token.
    """
    return encode(dataset, tokenizer).ids.astype(np.int64)


def out_of_vocabulary_share(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> float:
    """Share (0 to 1) of a split's tokens that the tokenizer does not know, `</s>` counted among the tokens."""
    return float(np.mean(token_stream(dataset, tokenizer) == tokenizer.unk_token_id))


def window_dataset(stream: np.ndarray, block_size: int, stride: int | None = None) -> Dataset:
    """Cuts a stream (T,) into overlapping windows so that every token after the first is a target exactly once.

    Window i is `stream[i*stride : i*stride + block_size + 1]`, `block_size` predictions long; the last one may be
    shorter and is kept. `labels` equals `input_ids` except for -100 at the first position, which nothing predicts,
    and, with `stride < block_size`, at the targets that the window before has already: they are context only. So
    `sum(labels != -100)` is T - 1 over the whole data set. Causal heads shift the labels themselves.

    Args:
        stream: token ids, (T,), T ≥ 2.
        block_size: predictions per window, ≥ 2.
        stride: tokens from one window to the next, 1 to `block_size` (the default, right for training).
    """
    stride = block_size if stride is None else stride
    stream = np.asarray(stream, dtype=np.int64)
    if block_size < 2:
        raise ValueError(f"block_size={block_size} is out of range: it must be at least 2; try 128")
    if not 1 <= stride <= block_size:
        raise ValueError(f"stride={stride} is out of range: it must be 1 to block_size ({block_size}); leave it out")
    if stream.ndim != 1 or len(stream) < 2:
        raise ValueError(f"a stream of shape {stream.shape} has nothing to predict: it must be (T,), T ≥ 2; add text")
    starts = [0, *range(stride, len(stream) - 1 - (block_size - stride), stride)]
    input_ids = [stream[start : start + block_size + 1] for start in starts]
    labels = [window.copy() for window in input_ids]
    for i, window in enumerate(labels):
        window[: 1 if i == 0 else block_size - stride + 1] = -100
    return Dataset.from_dict({"input_ids": input_ids, "labels": labels})
