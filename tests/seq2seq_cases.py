"""Tiny recurrent encoder–decoders of every kind, and padded batches for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_seqmodels.models.configuration_attention_rnn_seq2seq import AttentionRNNSeq2SeqConfig
from hf_seqmodels.models.modeling_attention_rnn_seq2seq import AttentionRNNSeq2SeqForSeq2SeqLM
from model_table import PADDINGS, make_ids, perturb

VOCABULARY = 23
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 6,
    "embedding_size": 5,
    "pad_token_id": 0,
    "decoder_start_token_id": 1,
}

SYSTEMS: dict[str, dict[str, Any]] = {
    "plain": {"num_hidden_layers": 2},
    "dot": {"score": "dot", "cell": "gru"},
    "general": {"score": "general", "bidirectional": True},
    "none": {"score": "none", "num_hidden_layers": 2},
    "none_bidirectional": {"score": "none", "cell": "rnn", "bidirectional": True},
    "dot_feeding": {"score": "dot", "input_feeding": True},
    "luong": {"score": "general", "input_feeding": True, "num_hidden_layers": 2, "bidirectional": True},
    "bahdanau": {"input_feeding": True, "cell": "gru", "reset_after": False, "bidirectional": True},
    "additive_rnn": {"input_feeding": True, "cell": "rnn", "num_hidden_layers": 2},
    "peephole": {"peephole": True, "score": "general"},
    "deep_encoder": {"score": "general", "num_hidden_layers": 3, "num_decoder_layers": 2, "input_feeding": True},
    "deep_decoder": {"num_decoder_layers": 3, "bidirectional": True},
    "tied": {"tie_word_embeddings": True, "share_embeddings": True, "lm_head_bias": True},
}
each_system = pytest.mark.parametrize("system", SYSTEMS)

# Rows of (source, target) with padding of every kind on both sides; the last target is whole, its source a token.
SOURCE_MASK = torch.tensor([[int(char) for char in row] for row in PADDINGS["mixed"]])
TARGET_MASK = SOURCE_MASK[[2, 3, 0, 1, 0]][:, :7]


def build_system(system: str, dtype: torch.dtype = torch.float32, seed: int = 0, noise: float = 0.3, **options) -> Any:
    """The language model of a system in eval mode, every parameter far from zero."""
    torch.manual_seed(seed)
    config = AttentionRNNSeq2SeqConfig(**(SIZES | SYSTEMS[system] | options))
    model = AttentionRNNSeq2SeqForSeq2SeqLM(config).to(dtype).eval()
    perturb(model, noise)
    return model


def make_batch() -> dict[str, torch.Tensor]:
    """A padded batch of sources (5, 8) and targets (5, 7)."""
    return {
        "input_ids": make_ids(*SOURCE_MASK.shape),
        "attention_mask": SOURCE_MASK,
        "decoder_input_ids": make_ids(*TARGET_MASK.shape, seed=2),
        "decoder_attention_mask": TARGET_MASK,
    }
