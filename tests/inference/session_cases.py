"""What the tests of sessions share: which systems read a stream, what they are fed, and comparing answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_seqmodels import StreamingSession
from model_table import ENCODER_DECODER, PAIRS, Case, build, make_inputs


def reads_streams(case: Case, head: str) -> bool:
    """One direction, and an answer that needs no later token."""
    if case.bidirectional or case.architecture in (*ENCODER_DECODER, "seq_transformer_encoder"):
        return False
    weighs_all = case.architecture == "seq_attention_rnn" and head == "sequence-classification"
    return head != "question-answering" and not weighs_all


STREAMING = [pair for pair in PAIRS if reads_streams(*pair)]
REFUSED = [pair for pair in PAIRS if not reads_streams(*pair)]
LSTM = Case("seq_lstm", "plain")


def constant(case: Case) -> bool:
    """Whether the state has the same size however long the stream is, once a window is full."""
    return case.cell_only or "window" in case.variant or case.architecture == "seq_conv_lstm"


def make_stream(case: Case, head: str, batch: int = 2, length: int = 12) -> torch.Tensor:
    """What the model reads, (B, T, …)."""
    (inputs,) = make_inputs(case, head, batch, length).values()
    return inputs


def quick_first(pairs: list[tuple[Case, str]]) -> pytest.MarkDecorator:
    """The plain variants with each head, and every variant as a language model or over frames; the rest is slow."""
    params = [
        pytest.param(
            *pair,
            id="-".join(map(str, pair)),
            marks=[] if pair[0].variant == "plain" or pair[1] == pair[0].main_head else pytest.mark.slow,
        )
        for pair in pairs
    ]
    return pytest.mark.parametrize(("case", "head"), params)


def tensor_of(answer: Any) -> torch.Tensor:
    """What `feed` returned as one tensor; of a series (parts, B, T, V)."""
    return torch.stack(answer[0]) if isinstance(answer, tuple) else answer


def feed_pieces(session: StreamingSession, stream: torch.Tensor, sizes: list[int]) -> list[torch.Tensor]:
    assert sum(sizes) == stream.shape[1]
    return [tensor_of(session.feed(piece)) for piece in stream.split(sizes, dim=1)]


def join(pieces: list[torch.Tensor], whole: torch.Tensor, length: int) -> torch.Tensor:
    """Pieces side by side where there is an answer for each step, the last one where there is one for all."""
    axis = whole.ndim - 2 if whole.ndim == 4 and len(whole) != len(pieces[0][0]) else 1
    axis = next((axis for axis in (axis, 2, 1) if axis < whole.ndim and whole.shape[axis] == length), None)
    return pieces[-1] if axis is None else torch.cat(pieces, dim=axis)


def start(case: Case, head: str, batch: int = 2, **options: Any) -> tuple[StreamingSession, torch.Tensor]:
    """A session of a toy model, and its stream."""
    return StreamingSession(build(case, head, **options), batch), make_stream(case, head, batch)
