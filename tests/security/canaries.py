"""Pickles and code that leave a file when they are run, and tiny checkpoints to put them into."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from hf_seqmodels.models import ARCHITECTURES

SIZES = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1}


class Canary:
    """Whoever unpickles it creates `file`."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.file), "w")


def pickled(file: Path) -> bytes:
    """Bytes that create `file` when they are unpickled."""
    return pickle.dumps(Canary(file))


def save_canary(path: Path, file: Path) -> None:
    """As `torch.save` writes, tensors beside the canary."""
    torch.save({"state": {"weight": torch.zeros(2)}, "canary": Canary(file)}, path)


def build(model_type: str = "seq_gru", head: str = "causal-lm", **options: Any) -> Any:
    torch.manual_seed(0)
    architecture = ARCHITECTURES[model_type]
    sizes = dict(SIZES)
    if model_type.startswith("seq_transformer"):
        sizes |= {"num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 32}
    if model_type == "seq_conv_lstm":
        sizes.pop("vocab_size")
    if model_type in ("seq_transformer", "seq_attention_rnn_seq2seq"):
        sizes |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    models = architecture.models
    return models[head if head in models else "backbone"](architecture.config(**(sizes | options))).eval()


def in_one_line(error: BaseException) -> str:
    """The message, which must be a single line."""
    text = str(error)
    assert text.strip() and "\n" not in text, text
    return text
