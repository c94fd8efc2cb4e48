"""The table that the contract tests run over: a tiny model of every architecture × variant × head, and comparisons.

`HF_SEQMODELS_TEST_DEVICE=cuda` runs the same tests on another device (see conftest.py).
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import pytest
import torch

from hf_seqmodels.models import ARCHITECTURES, HEADS

SIZES = {"vocab_size": 23, "hidden_size": 12, "num_hidden_layers": 2}
LABELS = {"num_labels": 3}
EMBEDDING = {"embedding_size": 10}
HEADS_AND_LAYERS = {"num_attention_heads": 2, "intermediate_size": 20, "max_position_embeddings": 256}
FEATURES = 6  # width of input_features
FRAME = (1, 6, 6)  # channels, height and width of pixel_values
# What a family's toy models have beside SIZES.
RECURRENT = ("seq_rnn", "seq_lstm", "seq_gru", "seq_attention_rnn")
ENCODER_DECODER = ("seq_attention_rnn_seq2seq", "seq_transformer")
TRANSFORMERS = ("seq_transformer", "seq_transformer_encoder", "seq_transformer_decoder")
FEATURE_HEADS = ("ctc", "audio-classification", "time-series-prediction")
SEQUENCE_HEADS = ("sequence-classification", "audio-classification")  # one answer for a row, not one for each token

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
        return self.architecture in RECURRENT

    @property
    def cell_only(self) -> bool:
        """A plain recurrent network: its state is one vector (or two) a row, however long the text."""
        return self.architecture in ("seq_rnn", "seq_lstm", "seq_gru")

    @property
    def stateful(self) -> bool:
        """What is carried from step to step cannot be taken back: a state, or the memory of an attention pattern."""
        return self.recurrent or "attention_pattern" in self.options

    @property
    def reads_tokens(self) -> bool:
        """One stack of layers over tokens (or, with the heads for them, features)."""
        return self.architecture not in (*ENCODER_DECODER, "seq_conv_lstm")

    @property
    def heads(self) -> list[str]:
        """The heads that this variant can have: those that predict what comes next need one direction."""
        unfit = {"causal-lm", "time-series-prediction"} if self.bidirectional else set()
        if self.recurrent and not self.bidirectional:
            unfit = {"masked-lm"}
        return [head for head in HEADS if head in ARCHITECTURES[self.architecture].models and head not in unfit]

    @property
    def main_head(self) -> str:
        """The head that the system is best known with."""
        wanted = ("seq2seq-lm", "causal-lm", "masked-lm", "token-classification", "time-series-prediction")
        return next(head for head in wanted if head in self.heads)

    def __str__(self) -> str:
        return f"{self.architecture}-{self.variant}"


CASES = [Case(name, variant) for name, architecture in ARCHITECTURES.items() for variant in architecture.variants]
TOKEN_CASES = [case for case in CASES if case.reads_tokens]
CAUSAL_CASES = [case for case in TOKEN_CASES if "causal-lm" in case.heads]

each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_token_case = pytest.mark.parametrize("case", TOKEN_CASES, ids=str)
each_causal_case = pytest.mark.parametrize("case", CAUSAL_CASES, ids=str)


def each_pair(pairs: list[tuple[Case, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("case", "head"), [pytest.param(*pair, id="-".join(map(str, pair))) for pair in pairs]
    )


PAIRS = [(case, head) for case in CASES for head in case.heads]
each_case_and_head = each_pair(PAIRS)
# Series come in and go out in shapes of their own; those heads have tests of their own for what depends on that.
each_case_and_plain_head = each_pair([pair for pair in PAIRS if pair[1] != "time-series-prediction"])


def build_config(case: Case, head: str = "backbone", **options: Any) -> Any:
    """The variant's configuration at toy size; `options` win."""
    sizes: dict[str, Any] = dict(SIZES)
    if case.recurrent or case.architecture == "seq_attention_rnn_seq2seq":
        sizes |= EMBEDDING
    if case.architecture in TRANSFORMERS:
        sizes |= HEADS_AND_LAYERS
    if case.reads_tokens:
        sizes |= LABELS
    if head in FEATURE_HEADS and case.reads_tokens:
        sizes = {name: value for name, value in sizes.items() if name != "embedding_size"} | {"num_features": FEATURES}
    if head == "ctc" or case.architecture in ENCODER_DECODER:
        sizes |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
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
    model = ARCHITECTURES[case.architecture].models[head](build_config(case, head, **options)).to(dtype).eval()
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


def make_inputs(case: Case, head: str, batch: int = 5, length: int = 8, seed: int = 1) -> dict[str, torch.Tensor]:
    """What the model reads, each (B, T, …)."""
    ids = make_ids(batch, length, seed=seed)
    if case.architecture == "seq_conv_lstm":
        return {"pixel_values": torch.rand(batch, length, *FRAME)}
    if case.architecture in ENCODER_DECODER:
        return {"input_ids": ids, "decoder_input_ids": make_ids(batch, length, seed=seed + 100)}
    if head == "time-series-prediction":
        return {"past_values": torch.randn(batch, length, FEATURES)}
    return {"input_features": torch.randn(batch, length, FEATURES)} if head in FEATURE_HEADS else {"input_ids": ids}


def poisonable(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Inputs of floating point: features as they are, instead of tokens random embeddings of them."""
    found = {}
    for name, value in inputs.items():
        if not value.is_floating_point():
            name = name.replace("input_ids", "inputs_embeds")
            value = torch.randn(*value.shape, model.get_input_embeddings().embedding_dim)
        found[name] = value
    return found


def make_masks(inputs: dict[str, torch.Tensor], mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """The padding of all that the model reads."""
    return {"attention_mask": mask} | ({"decoder_attention_mask": mask.clone()} if len(inputs) > 1 else {})


def make_labels(case: Case, head: str, mask: torch.Tensor, seed: int = 3) -> dict[str, torch.Tensor]:
    """What the head learns from, −100 under padding; empty for a backbone."""
    torch.manual_seed(seed)
    batch, classes = len(mask), LABELS["num_labels"]
    tokens, tags = (torch.randint(1, high, mask.shape) for high in (SIZES["vocab_size"], classes))
    if head in SEQUENCE_HEADS:
        return {"labels": torch.arange(batch) % classes}
    if head == "question-answering":
        first = mask.int().argmax(-1)
        return {"start_positions": first, "end_positions": first}
    if head == "token-classification":
        return {"labels": torch.where(mask.bool(), tags, -100)}
    if head in ("causal-lm", "masked-lm", "seq2seq-lm"):
        return {"labels": torch.where(mask.bool(), tokens, -100)}
    if head == "ctc":
        return {"labels": torch.where(mask.bool(), tokens, -100)[:, :1]}
    return {}


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


def cast(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Floating point to `dtype`; token ids stay."""
    return value.to(dtype) if value.is_floating_point() else value


def output_of(outputs: Any) -> torch.Tensor:
    """The tensor that a head is asked for."""
    if "start_logits" in outputs:
        return torch.stack([outputs["start_logits"], outputs["end_logits"]], dim=-1)
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
