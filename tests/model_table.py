"""The table that the contract tests run over: a tiny model of every architecture × variant × head, and comparisons.

`HF_SEQMODELS_TEST_DEVICE=cuda` runs the same tests on another device (see conftest.py).
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import pytest
import torch

from hf_seqmodels.models import ARCHITECTURES, HEADS

SIZES = {"vocab_size": 23, "hidden_size": 12, "num_hidden_layers": 2, "num_labels": 3}
RECURRENT_SIZES = {"embedding_size": 10}
TRANSFORMER_SIZES = {"num_attention_heads": 2, "intermediate_size": 20, "max_position_embeddings": 256}

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}


class Case(NamedTuple):
    """One system under test."""

    architecture: str
    variant: str

    @property
    def options(self) -> dict[str, Any]:
        return ARCHITECTURES[self.architecture].variants[self.variant]

    @property
    def bidirectional(self) -> bool:
        return self.options.get("bidirectional", False)

    @property
    def recurrent(self) -> bool:
        return self.architecture != "seq_transformer_decoder"

    @property
    def cell_only(self) -> bool:
        """A plain recurrent network: its state is one vector (or two) a row, however long the text."""
        return self.architecture in ("seq_rnn", "seq_lstm", "seq_gru")

    @property
    def heads(self) -> list[str]:
        return [head for head in HEADS if not (self.bidirectional and head == "causal-lm")]

    def __str__(self) -> str:
        return f"{self.architecture}-{self.variant}"


CASES = [Case(name, variant) for name, architecture in ARCHITECTURES.items() for variant in architecture.variants]
CAUSAL_CASES = [case for case in CASES if not case.bidirectional]

each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_causal_case = pytest.mark.parametrize("case", CAUSAL_CASES, ids=str)
each_case_and_head = pytest.mark.parametrize(
    ("case", "head"), [pytest.param(case, head, id=f"{case}-{head}") for case in CASES for head in case.heads]
)


def build_config(case: Case, **options: Any) -> Any:
    """The variant's configuration at toy size; `options` win."""
    sizes = SIZES | (RECURRENT_SIZES if case.recurrent else TRANSFORMER_SIZES)
    return ARCHITECTURES[case.architecture].config(**(sizes | case.options | options))


def build(
    case: Case,
    head: str = "backbone",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    noise: float = 0.2,
    **options: Any,
) -> Any:
    """A model in eval mode whose every parameter is far from zero, so that no term of an equation can be lost."""
    torch.manual_seed(seed)
    model = ARCHITECTURES[case.architecture].models[head](build_config(case, **options)).to(dtype).eval()
    perturb(model, noise)
    return model


@torch.no_grad()
def perturb(module: torch.nn.Module, noise: float = 0.2) -> None:
    """Add noise to every parameter: many start at zero (biases, peepholes) or near it (embeddings)."""
    for parameter in module.parameters():
        parameter.add_(torch.randn_like(parameter) * noise)


def make_ids(batch: int, length: int, vocab_size: int = SIZES["vocab_size"], seed: int = 1) -> torch.Tensor:
    """Token ids (B, T) from 1 to V − 1; 0 is left for padding."""
    torch.manual_seed(seed)
    return torch.randint(1, vocab_size, (batch, length))


# Each (B, T) = (5, 8); the rows of "mixed" are: whole, left, right, holes, a single token.
PADDINGS = {
    "none": ["11111111"] * 5,
    "left": ["11111111", "00111111", "00000111", "00000001", "01111111"],
    "right": ["11100000", "11111111", "11111110", "10000000", "11111000"],
    "holes": ["10110111", "01010101", "11111111", "00100100", "11011011"],
    "mixed": ["11111111", "00011111", "11110000", "01101001", "00010000"],
}


def make_mask(padding: str) -> torch.Tensor:
    return torch.tensor([[int(char) for char in row] for row in PADDINGS[padding]])


def output_of(outputs: Any) -> torch.Tensor:
    """The tensor that a head is asked for."""
    return outputs["logits"] if "logits" in outputs else outputs["last_hidden_state"]


def named_gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Name → gradient, zeros where none arrived; clears them."""
    gradients = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }
    model.zero_grad(set_to_none=True)
    return gradients


# -- comparing --------------------------------------------------------------------------------------------------------
largest_errors: dict[str, float] = defaultdict(float)  # row of the table of promises → error; printed after the run


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float, row: str, what: str = "") -> None:
    """|actual − expected| ≤ tolerance · max(1, |expected|max), no NaN; notes the largest error of each `row`."""
    assert actual.shape == expected.shape, f"{row} {what}: shape {actual.shape}, expected {expected.shape}"
    if expected.numel() == 0:
        return
    scale = max(1.0, expected.abs().max().item())
    error = (actual.double() - expected.double()).abs().max().item() / scale
    assert error == error, f"{row} {what}: NaN"
    largest_errors[row] = max(largest_errors[row], error)
    assert error <= tolerance, f"{row} {what}: error {error:.3g}, allowed {tolerance:.0e}"


def assert_same_gradients(
    actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float, row: str
) -> None:
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_close(actual[name], gradient, tolerance, row, f"gradient of {name}")


# -- single layers ----------------------------------------------------------------------------------------------------
CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "tanh": ("seq_rnn", {}),
    "relu": ("seq_rnn", {"nonlinearity": "relu"}),
    "lstm": ("seq_lstm", {}),
    "peephole": ("seq_lstm", {"peephole": True}),
    "gru": ("seq_gru", {}),
    "reset_before": ("seq_gru", {"reset_after": False}),
}


def build_layer(cell: str, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """One recurrent layer of a cell of `CELLS`, from 5 to 4 columns a direction, every parameter far from zero."""
    architecture, cell_options = CELLS[cell]
    sizes = {"hidden_size": 4, "embedding_size": 5, "num_hidden_layers": 1}
    config = ARCHITECTURES[architecture].config(**(sizes | cell_options | options))
    layer = ARCHITECTURES[architecture].models["backbone"].layer_class(config, 0).to(dtype)
    layer.init_weights(config)
    perturb(layer, 0.5)
    return layer
