"""Rows of text to one stream of token ids, a thousand rows at a time. Shapes: T tokens, N rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from .tokenizers import BYTES, EVERY_CHARACTER, split_words

BATCH = 1000  # rows
# Rows, and characters of each, that are decoded again, to know whether tokens say the text exactly.
SAMPLE = (100, 10_000)
ROW_ENDS = ("eos", "nothing")
_CODE_POINTS = 0x110000
# A batch of rows → their ids, one after the other, and how many each row has.
Encoder = Callable[[list[str]], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class TokenStream:
    """A split as tokens.

    Attributes:
        ids: (T,) int32, the rows one after the other.
        starts: (N,) int64, where each row begins; a row without tokens begins where the next one does.
        counts: `rows`, `blank_rows` (nothing but white space; they are kept), `characters` (each end token counts as
            one, the newline that it stands for), `tokens`, `unknown_tokens`, and `exact`: whether the tokens say the
            text exactly, that is, none is unknown and the first hundred rows decode to themselves.
    """

    ids: np.ndarray
    starts: np.ndarray
    counts: dict[str, int | bool]


def encode(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, row_end: str = "eos") -> TokenStream:
    """All rows of the column `text` in order, each followed by the end-of-sequence token or by nothing.

    Rows are tokenized one by one: no token reaches over the end of a row. An empty row is its end token alone.

    Args:
        dataset: a split with a column `text` of strings.
        tokenizer: any of transformers; nothing is added to what it makes of a row.
        row_end: "eos" or "nothing".

    Raises:
        ValueError: the split has no rows, no column `text`, or the tokenizer no end-of-sequence token.
    """
    if row_end not in ROW_ENDS:
        raise ValueError(f"row_end='{row_end}' is not a choice; use one of {', '.join(ROW_ENDS)}")
    if row_end == "eos" and tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no eos_token: texts are told apart by it; set tokenizer.eos_token")
    encoder = encoder_of(tokenizer)
    ids, lengths, characters, blank = [], [], 0, 0
    for rows in text_rows(dataset):
        batch = encoder(rows)
        ids.append(batch[0].astype(np.int32))
        lengths.append(batch[1])
        characters += sum(map(len, rows))
        blank += sum(not row.strip() for row in rows)
    stream, sizes = np.concatenate(ids), np.concatenate(lengths).astype(np.int64)
    unknown = 0 if tokenizer.unk_token_id is None else int((stream == tokenizer.unk_token_id).sum())
    sample = [row[: SAMPLE[1]] for row in next(text_rows(dataset))[: SAMPLE[0]]]
    exact = unknown == 0 and _decodes(sample, encoder, tokenizer)
    if row_end == "eos":
        stream = np.insert(stream, np.cumsum(sizes), tokenizer.eos_token_id)
        sizes += 1
        characters += len(sizes)
    counts = {"rows": len(sizes), "blank_rows": blank, "characters": characters, "tokens": len(stream)}
    return TokenStream(stream, np.cumsum(sizes) - sizes, counts | {"unknown_tokens": unknown, "exact": exact})


def text_rows(dataset: Dataset) -> Iterator[list[str]]:
    """The column `text`, a batch of rows at a time.

    Raises:
        ValueError: the split has no rows or no column `text`.
    """
    if "text" not in dataset.column_names:
        raise ValueError(f"no column 'text' among {dataset.column_names}: documents must stand there; rename yours")
    if len(dataset) == 0:
        raise ValueError("the data set is empty (0 rows): a split needs at least one text; check the source")
    for batch in dataset.select_columns("text").with_format("arrow").iter(batch_size=BATCH):
        yield batch["text"].to_pylist()


def _decodes(rows: list[str], encoder: Encoder, tokenizer: PreTrainedTokenizerBase) -> bool:
    ids, lengths = encoder(rows)
    parts = np.split(ids, np.cumsum(lengths)[:-1])
    return all(tokenizer.decode(part.tolist()) == row for part, row in zip(parts, rows, strict=True))


# ---- ways to encode ---------------------------------------------------------------------------------------------


def encoder_of(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """What turns rows into ids with this tokenizer, the fastest way there is."""
    return _shortcut(tokenizer) or _by_tokenizer(tokenizer)


def _by_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    def encoder(rows: list[str]) -> tuple[np.ndarray, np.ndarray]:
        found = tokenizer(rows, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        return np.fromiter((number for row in found for number in row), np.int64), np.array([*map(len, found)])

    return encoder


def _shortcut(tokenizer: PreTrainedTokenizerBase) -> Encoder | None:
    """The same ids ten times as fast, where a token is one character, byte or word; None for other tokenizers."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not getattr(tokenizer, "split_special_tokens", False):
        return None
    parts = json.loads(backend.to_str())
    model, before = parts["model"], parts["pre_tokenizer"] or {}
    if parts["normalizer"] or not all(token["special"] for token in parts["added_tokens"]):
        return None
    if model["type"] == "WordLevel" and before.get("pattern") == {"Regex": EVERY_CHARACTER}:
        return _by_character(model["vocab"], tokenizer.unk_token_id)
    if model["type"] == "WordLevel" and before == {"type": "WhitespaceSplit"}:
        return _by_word(model["vocab"], tokenizer.unk_token_id)
    plain = before.get("use_regex") is before.get("add_prefix_space") is False
    if model["type"] == "BPE" and not model["merges"] and plain:
        return _by_byte(model["vocab"])
    return None


def _by_character(vocabulary: Mapping[str, int], unknown: int) -> Encoder:
    table = np.full(_CODE_POINTS, unknown, np.int32)
    for token, number in vocabulary.items():
        if len(token) == 1:
            table[ord(token)] = number

    def encoder(rows: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return table[np.frombuffer("".join(rows).encode("utf-32-le"), np.uint32)], np.array([*map(len, rows)])

    return encoder


def _by_byte(vocabulary: Mapping[str, int]) -> Encoder:
    symbols = bytes_to_unicode()
    table = np.array([vocabulary[symbols[byte]] for byte in range(BYTES)], np.int32)

    def encoder(rows: list[str]) -> tuple[np.ndarray, np.ndarray]:
        coded = [row.encode() for row in rows]
        return table[np.frombuffer(b"".join(coded), np.uint8)], np.array([*map(len, coded)])

    return encoder


def _by_word(vocabulary: Mapping[str, int], unknown: int) -> Encoder:
    def encoder(rows: list[str]) -> tuple[np.ndarray, np.ndarray]:
        found = [[vocabulary.get(word, unknown) for word in split_words(row)] for row in rows]
        return np.fromiter((number for row in found for number in row), np.int64), np.array([*map(len, found)])

    return encoder


def stream_settings(tokenizer: PreTrainedTokenizerBase, row_end: str) -> dict[str, Any]:
    """Everything beside the text that decides a stream, as JSON values: to know an old one again."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # What decides the tokens of one written in Python (merges, lower case, …) only the whole of it says.
    parts = json.loads(backend.to_str()) if backend is not None else {"pickled": Hasher.hash(tokenizer)}
    for name in ("padding", "truncation"):  # of the last call, not of the tokenizer
        parts.pop(name, None)
    return {
        "tokenizer": parts,
        "class": type(tokenizer).__name__,
        # Decides whether the tokens say the text exactly, which is counted once.
        "cleans": bool(getattr(tokenizer, "clean_up_tokenization_spaces", False)),
        "split_special_tokens": bool(getattr(tokenizer, "split_special_tokens", False)),
        "eos": tokenizer.eos_token_id,
        "unknown": tokenizer.unk_token_id,
        "row_end": row_end,
    }
