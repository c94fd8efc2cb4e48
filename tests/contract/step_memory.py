"""Memory that one backward pass through many steps takes, in a process that has done nothing else.

In a process with a history a tensor may lie in a hole of earlier work, and what is measured depends on that work.

Usage: step_memory.py ARCHITECTURE {"whole" | "pieces"} OPTIONS_AS_JSON — writes the MB for each of `LENGTHS`, as JSON.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import DynamicCache, PreTrainedModel

from hf_seqmodels.models import ARCHITECTURES

LENGTHS = (25_000, 50_000, 100_000)
CUT = 1_000
WARM_UP = 3_000  # what the first call of all allocates for good
PROC = Path("/proc/self")
LIBC = ctypes.CDLL(None)
MMAP_THRESHOLD, PAGES = -3, 2**16  # malloc.h's M_MMAP_THRESHOLD; bytes


def build(architecture: str, **options: object) -> PreTrainedModel:
    torch.manual_seed(0)
    known = ARCHITECTURES[architecture]
    model: PreTrainedModel = known.models["causal-lm"](known.config(vocab_size=10, hidden_size=32, **options))
    return model.train()


def read(name: str) -> float:
    """A size in /proc/self/status, in MB."""
    return next(int(line.split()[1]) for line in (PROC / "status").read_text().splitlines() if name in line) / 1024


def peak_memory(work: Callable[[], object]) -> float:
    """MB that `work` needs at its peak, of memory that the process holds: also what autograd's nodes take."""
    LIBC.malloc_trim(0)  # memory that was freed is taken anew, and counted
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


def measure(architecture: str, work: str, **options: object) -> list[float]:
    LIBC.mallopt(MMAP_THRESHOLD, PAGES)  # tensors have pages of their own, which go back when they do
    torch.set_num_threads(1)
    learning = {"whole": learn, "pieces": learn_in_pieces}[work]
    model, ids = build(architecture, **options), torch.randint(10, (1, LENGTHS[-1]))
    learning(model, ids[:, :WARM_UP])
    return [peak_memory(lambda n=n: learning(model, ids[:, :n])) for n in LENGTHS]


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3]))))
