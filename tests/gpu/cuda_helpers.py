"""Helpers of the GPU checks: what to skip, warnings of cuDNN, and small models of every architecture."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from hf_seqmodels.models import ARCHITECTURES
from hf_seqmodels.models.shared_recurrence import RecurrentLayer
from model_table import Case

needs_cuda = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here (make gpu-check on a GPU machine)"),
]
needs_two = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason=f"{torch.cuda.device_count()} CUDA devices, not 2"
)

PLAIN = [Case(architecture, "plain") for architecture in ARCHITECTURES]
RECURRENT = [case for case in PLAIN if case.recurrent]
WITH_KERNEL = [*RECURRENT, Case("seq_lstm", "bidirectional"), Case("seq_gru", "stacked"), Case("seq_rnn", "relu")]

each_plain = pytest.mark.parametrize("case", PLAIN, ids=str)
each_recurrent = pytest.mark.parametrize("case", WITH_KERNEL, ids=str)


def layers_of(model: torch.nn.Module) -> list[RecurrentLayer]:
    """The layers that have a kernel of torch's."""
    return [each for each in model.modules() if isinstance(each, RecurrentLayer) and each.kernel() is not None]


def is_flat(layer: RecurrentLayer) -> bool:
    """Do the layer's parameters lie in one block of memory?"""
    return len({parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}) == 1


@contextmanager
def cudnn_warnings() -> Iterator[list[str]]:
    """Collects what cuDNN says about parameters that are not in one block, every time it says so."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
        found += [str(each.message) for each in caught if "contiguous chunk" in str(each.message)]


def train_step(model: torch.nn.Module, optimizer: Any = None, length: int = 9) -> torch.Tensor:
    """One forward and backward pass over a padded batch, and the optimizer's step; returns the loss."""
    torch.manual_seed(5)
    device = next(model.parameters()).device
    ids = torch.randint(1, 23, (4, length)).to(device)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    mask[1, -2:] = 0
    outputs = model(input_ids=ids, attention_mask=mask)
    loss = outputs[0].float().square().mean()
    loss.backward()
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()
    return loss.detach()
