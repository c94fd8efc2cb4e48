"""A21: 100,000 steps forward and backward: finite, in memory that grows as the steps do, and flat when cut."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from hf_seqmodels.models import ARCHITECTURES

LENGTHS = (25_000, 50_000, 100_000)
CUT = 1_000
WARM_UP = 3_000  # what the first call of all allocates for good
SLIDING = {"attention_pattern": "sliding_window", "attention_window": 8, "positions": "rotary"}
SMALL = {"num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 8}
PROC = Path("/proc/self")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (PROC / "clear_refs").exists(), reason="only Linux lets a process forget its peak memory"),
]


def build(architecture: str, **options: object) -> PreTrainedModel:
    torch.manual_seed(0)
    known = ARCHITECTURES[architecture]
    model: PreTrainedModel = known.models["causal-lm"](known.config(vocab_size=10, hidden_size=8, **options))
    return model.train()


def read(name: str) -> float:
    """A size in /proc/self/status, in MB."""
    return next(int(line.split()[1]) for line in (PROC / "status").read_text().splitlines() if name in line) / 1024


def peak_memory(work: Callable[[], object]) -> float:
    """MB that `work` needs at its peak, of memory that the process holds: also what autograd's nodes take."""
    ctypes.CDLL(None).malloc_trim(0)  # memory that was freed is taken anew, and counted
    (PROC / "clear_refs").write_text("5")  # the peak is what is held now
    before = read("VmRSS")
    work()
    return read("VmHWM") - before


def learn(model: PreTrainedModel, ids: torch.Tensor) -> None:
    """One backward pass through all steps."""
    model.zero_grad()
    loss = model(ids, labels=ids, use_cache=False).loss
    loss.backward()
    check(model, loss)


def learn_in_pieces(model: PreTrainedModel, ids: torch.Tensor) -> None:
    """Truncated back-propagation through time: the state is carried, the gradient is not."""
    model.zero_grad()
    cache = DynamicCache(config=model.config)
    for piece in ids.split(CUT, dim=1):
        loss = model(piece, labels=piece, past_key_values=cache, use_cache=True).loss
        loss.backward()
        for layer in cache.layers:
            layer.detach()
    assert cache.get_seq_length() == ids.shape[1]
    check(model, loss)


def check(model: PreTrainedModel, loss: torch.Tensor) -> None:
    assert torch.isfinite(loss)
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all() and parameter.grad.any(), name


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        pytest.param("seq_rnn", {}, id="rnn"),
        pytest.param("seq_lstm", {}, id="lstm"),
        pytest.param("seq_gru", {}, id="gru"),
        pytest.param("seq_transformer_decoder", SLIDING | SMALL, id="sliding window"),
    ],
)
def test_memory_grows_as_the_length(architecture, options):
    model, ids = build(architecture, **options), torch.randint(10, (1, LENGTHS[-1]))
    learn(model, ids[:, :WARM_UP])
    quarter, half, whole = (peak_memory(lambda n=n: learn(model, ids[:, :n])) for n in LENGTHS)
    assert quarter > 5, "enough to measure"
    assert half / quarter == pytest.approx(2, rel=0.1)
    assert whole / half == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("architecture", ["seq_rnn", "seq_lstm", "seq_gru"])
def test_memory_is_flat_where_the_gradient_is_cut(architecture):
    """Within a tenth of what the quarter takes; a megabyte of that is the allocator's."""
    model, ids = build(architecture), torch.randint(10, (1, LENGTHS[-1]))
    learn_in_pieces(model, ids[:, :WARM_UP])
    quarter, whole = (peak_memory(lambda n=n: learn_in_pieces(model, ids[:, :n])) for n in (LENGTHS[0], LENGTHS[-1]))
    assert whole == pytest.approx(quarter, rel=0.1, abs=1)
