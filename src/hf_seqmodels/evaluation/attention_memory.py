"""Memory that training takes with each attention pattern, for longer and longer texts.

    python -m hf_seqmodels.evaluation.attention_memory results/attention_memory.csv

Each length of each pattern runs forward and backward once, in a process of its own (forked: Linux, macOS). Two
measures, in MiB: what autograd saves for the backward pass (each block of memory counted once, without the weights),
and how far the process's peak of resident memory rises. The last columns are the exponents of a power of the length,
fitted to all lengths of the pattern: about 1 is linear growth, 2 is quadratic.
"""

from __future__ import annotations

import csv
import multiprocessing
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.autograd.graph import saved_tensors_hooks

from hf_seqmodels.models import ARCHITECTURES

LENGTHS = (512, 1024, 2048, 4096, 8192)
# "full_sdpa" is full attention by torch's fused kernel, which never writes the T² scores down.
PATTERNS: dict[str, dict[str, Any]] = {
    "full": {"attention_pattern": "full", "attn_implementation": "eager"},
    "full_sdpa": {"attention_pattern": "full", "attn_implementation": "sdpa"},
    "sliding_window": {"attention_pattern": "sliding_window", "attention_window": 128},
    "lsh": {"attention_pattern": "lsh", "lsh_chunk_length": 64, "num_buckets": 16, "num_hashes": 2},
}
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "positions": "rotary",
}
MIB = 2**20


def build_model(pattern: str) -> Any:
    """A small decoder of one layer with a pattern of `PATTERNS`."""
    architecture = ARCHITECTURES["seq_transformer_decoder"]
    torch.manual_seed(0)
    return architecture.models["backbone"](architecture.config(**SIZES, **PATTERNS[pattern]))


def train_once(model: Any, length: int) -> int:
    """Forward and backward on one text of `length` tokens; bytes that autograd saved in between."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.arange(length)[None] % model.config.vocab_size
    with saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(ids, use_cache=False).last_hidden_state.square().mean()
    loss.backward()
    return sum(saved.values())


def peak_bytes() -> int:
    """The largest resident memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(pattern: str, length: int) -> dict[str, Any]:
    """One row of the table, in a fresh process."""
    torch.set_num_threads(1)
    model = build_model(pattern)
    train_once(model, 64)  # what torch loads once is not counted
    before = peak_bytes()
    saved = train_once(model, length)
    return {
        "pattern": pattern,
        "tokens": length,
        "saved_mib": round(saved / MIB, 3),
        "peak_mib": round((peak_bytes() - before) / MIB, 3),
    }


def exponent(rows: Sequence[Mapping[str, Any]], column: str) -> float:
    """k of column ≈ c · tokens^k, by least squares on logarithms."""
    tokens, values = (np.log([row[name] for row in rows]) for name in ("tokens", column))
    return round(float(np.polyfit(tokens, values, 1)[0]), 2)


def measure_all(lengths: Sequence[int] = LENGTHS) -> list[dict[str, Any]]:
    """The whole table."""
    table = []
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        for pattern in PATTERNS:
            rows = pool.starmap(measure, [(pattern, length) for length in lengths], chunksize=1)
            fitted = {f"{name}_exponent": exponent(rows, f"{name}_mib") for name in ("saved", "peak")}
            table += [row | fitted for row in rows]
    return table


def write(table: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The table as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, table[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    write(measure_all(), Path(sys.argv[1]))
