"""Token streams kept from run to run: a data set is tokenized once for each tokenizer and setting.

One safetensors file per data set and setting in `hf_seqmodels` inside the datasets cache of Hugging Face
(`HF_DATASETS_CACHE`), named by a hash of everything that decides its contents, so that it is never out of date. It can
be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerBase

from .encoding import TokenStream, encode, stream_settings

FORMAT = 2  # raised whenever the same text and tokenizer give another stream


def cache_folder() -> Path:
    """Where the streams are kept."""
    return Path(datasets.config.HF_DATASETS_CACHE, "hf_seqmodels")


def cache_file(content: str, tokenizer: PreTrainedTokenizerBase, row_end: str) -> Path:
    """The file of a data set's streams.

    Args:
        content: the data set's [`content_hash`].
        tokenizer, row_end: as for [`encode`].
    """
    settings = {"format": FORMAT, "content": content, **stream_settings(tokenizer, row_end)}
    key = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    return cache_folder() / f"{key}.safetensors"


def token_streams(
    splits: Mapping[str, Dataset], tokenizer: PreTrainedTokenizerBase, row_end: str, content: str
) -> dict[str, TokenStream]:
    """The stream of each split: from the cache, or by [`encode`] and then into the cache.

    A file that is cut, changed or unreadable is made anew; where the cache cannot be written, a warning says so and
    the streams are returned all the same.

    Args:
        splits: name → rows with a column `text`.
        tokenizer, row_end: as for [`encode`].
        content: the [`content_hash`] of `splits`.

    Raises:
        ValueError: as [`encode`].
    """
    file = cache_file(content, tokenizer, row_end)
    streams = read_streams(file)
    if streams is not None and streams.keys() == splits.keys():
        return streams
    streams = {split: encode(dataset, tokenizer, row_end) for split, dataset in splits.items()}
    try:
        write_streams(file, streams)
    except OSError as error:
        warnings.warn(f"the tokens are not kept: '{file}' cannot be written ({error.strerror})", stacklevel=2)
    return streams


def write_streams(file: Path, streams: Mapping[str, TokenStream]) -> None:
    """Write a file at once or not at all, with a checksum; several processes may do so at the same time."""
    arrays = {
        f"{split}.{name}": getattr(stream, name) for split, stream in streams.items() for name in ("ids", "starts")
    }
    counts = json.dumps({split: stream.counts for split, stream in streams.items()})
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
    os.close(handle)
    try:
        save_file(arrays, unfinished, {"counts": counts, "sha256": _digest(arrays, counts)})
        os.replace(unfinished, file)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise


def read_streams(file: Path) -> dict[str, TokenStream] | None:
    """What `write_streams` wrote; None if there is no such file, or it is not whole."""
    try:
        with safe_open(file, framework="numpy") as opened:
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # not a dict
            told: dict[str, str] = opened.metadata() or {}
    except (OSError, SafetensorError):
        return None
    if told.get("sha256") != _digest(arrays, told.get("counts", "")):
        return None
    counts: dict[str, Any] = json.loads(told["counts"])
    return {
        split: TokenStream(arrays[f"{split}.ids"], arrays[f"{split}.starts"], found) for split, found in counts.items()
    }


def _digest(arrays: Mapping[str, np.ndarray], counts: str) -> str:
    digest = hashlib.sha256(counts.encode())
    for name in sorted(arrays):
        digest.update(f"\n{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
