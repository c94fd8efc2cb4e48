"""torch.nn.RNN, LSTM and GRU into ours, alone or between an embedding and a linear layer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from .files import read_tensors
from .recurrent import GATES, Stack, compare, count_gates
from .report import ImportReport
from .tensors import Tensors

EMBEDDINGS = ("embedding", "encoder", "embed_tokens")  # usual names, the second in PyTorch's word_language_model
DECODERS = ("decoder", "linear", "fc", "lm_head")
MODULES: dict[str, Any] = {"seq_rnn": nn.RNN, "seq_lstm": nn.LSTM, "seq_gru": nn.GRU}


def from_torch(
    source: nn.Module | Mapping[str, torch.Tensor],
    *,
    prefix: str | None = None,
    embedding: str | None = None,
    decoder: str | None = None,
    nonlinearity: str | None = None,
) -> tuple[PreTrainedModel, ImportReport]:
    """A torch.nn.RNN, LSTM or GRU as a model of ours.

    Cell, sizes, depth and directions are read off the tensors. What is imported depends on what is there:

    - the layers alone: `…Model` of features, `model(input_features=x)` with x (B, T, I);
    - behind an `nn.Embedding`: `…Model` of tokens;
    - between an embedding and an `nn.Linear` to the vocabulary: `…ForCausalLM` (tied if both matrices are equal);
    - the same with another number of outputs, or in both directions: `…ForTokenClassification`.

    Args:
        source: a module, or a state dict: of the layers, or of a whole small model that has them as one part.
        prefix: the name of the layers in a whole model ("rnn"); if they are its only ones they are found. Given
            without `embedding` and `decoder`, nothing else is read.
        embedding: name of the embedding; "embedding", "encoder" and "embed_tokens" are found.
        decoder: name of the linear layer; "decoder", "linear", "fc" and "lm_head" are found.
        nonlinearity: "tanh" (default) or "relu", of an RNN's state dict, which does not tell.

    Returns:
        The model in eval mode and fp32, without dropout, and its report.

    Raises:
        ValueError: a tensor is missing, unexpected or of the wrong shape (the first is named), the network has an
            option that ours lacks (`proj_size`), or the outputs differ.
    """
    if isinstance(source, nn.Module):
        nonlinearity = nonlinearity or _find_nonlinearity(source)
        source = source.state_dict()
    alone = prefix is not None and embedding is None and decoder is None
    prefix = _find_layers(source) if prefix is None else prefix
    prefix = f"{prefix}." if prefix and not prefix.endswith(".") else prefix
    layers = {name: tensor for name, tensor in source.items() if name.startswith(prefix)}
    tensors = Tensors(layers if alone else source, "torch.nn")
    stack = read_stack(tensors, prefix, nonlinearity)
    tensors.source = f"torch.nn.{MODULES[stack.model_type].__name__}"
    layers = {name.removeprefix(prefix): tensor for name, tensor in layers.items() if name not in tensors}
    model, reference = _assemble(stack, layers, tensors, embedding, decoder)
    return model, compare(tensors, stack, model, reference)


def import_file(
    path: str | Path,
    *,
    torch_load: bool = False,
    prefix: str | None = None,
    embedding: str | None = None,
    decoder: str | None = None,
    nonlinearity: str | None = None,
) -> tuple[PreTrainedModel, ImportReport]:
    """[`from_torch`] for a file that holds a state dict, or a folder with such a file (see [`read_tensors`])."""
    tensors = read_tensors(path, torch_load)
    return from_torch(tensors, prefix=prefix, embedding=embedding, decoder=decoder, nonlinearity=nonlinearity)


def read_stack(tensors: Tensors, prefix: str = "", nonlinearity: str | None = None) -> Stack:
    """Take the layers' weights, which have torch's names (`weight_ih_l0`, …, `bias_hh_l1_reverse`) behind `prefix`.

    Raises:
        ValueError: the first tensor that is missing or does not fit the others.
    """
    names = [name.removeprefix(prefix) for name in tensors.names if name.startswith(prefix)]
    for name in names:
        if name.startswith("weight_hr_l"):
            raise ValueError(f"torch.nn.LSTM: tensor '{prefix}{name}' belongs to proj_size, which is not supported")
    rows, hidden_size = tensors.shape(f"{prefix}weight_hh_l0", 2)
    gates = count_gates(rows, hidden_size)
    if gates is None:
        rule = "(D, D) for an RNN, (3·D, D) for a GRU or (4·D, D) for an LSTM"
        raise ValueError(f"torch.nn: tensor '{prefix}weight_hh_l0' has shape {(rows, hidden_size)}, expected {rule}")
    if nonlinearity is not None and gates != 1:
        raise ValueError(f"nonlinearity={nonlinearity} belongs to the RNN, and these tensors are a {GATES[gates]}'s")
    input_size = tensors.shape(f"{prefix}weight_ih_l0", 2)[1]
    directions = ("", "_reverse") if any(name.endswith("_reverse") for name in names) else ("",)
    has_bias = any(name.startswith("bias_") for name in names)
    layers = [re.fullmatch(r"(?:weight|bias)_[ih]h_l(\d+)(?:_reverse)?", name) for name in names]
    num_layers = 1 + max(int(layer[1]) for layer in layers if layer)
    weights = {}
    for layer in range(num_layers):
        width = hidden_size * len(directions) if layer else input_size
        for direction in directions:
            end = f"_l{layer}{direction}"
            for name, shape in (("weight_ih", (rows, width)), ("weight_hh", (rows, hidden_size))):
                weights[f"{layer}.{name}{direction}"] = tensors.take(f"{prefix}{name}{end}", *shape)
            for name in ("bias_ih", "bias_hh"):  # bias=False is the same as zeros
                bias = tensors.take(f"{prefix}{name}{end}", rows) if has_bias else torch.zeros(rows, device="cpu")
                weights[f"{layer}.{name}{direction}"] = bias
    options = {"nonlinearity": nonlinearity or "tanh"} if gates == 1 else {}
    assumed = "nonlinearity=tanh" if gates == 1 and nonlinearity is None else ""
    return Stack(GATES[gates], input_size, hidden_size, num_layers, len(directions) > 1, options, assumed, weights)


def _find_nonlinearity(module: nn.Module) -> str | None:
    """What the module's RNN computes with; its state dict does not say."""
    kinds = {part.nonlinearity for part in module.modules() if isinstance(part, nn.RNN)}
    return kinds.pop() if len(kinds) == 1 else None


def _find_layers(tensors: Mapping[str, torch.Tensor]) -> str:
    """The prefix of the only recurrent layers in a state dict."""
    found = [name.removesuffix("weight_hh_l0") for name in tensors if name.endswith("weight_hh_l0")]
    if not found:
        raise ValueError("torch.nn: tensor 'weight_hh_l0' is missing: there is no RNN, LSTM or GRU in this state dict")
    if len(found) > 1:
        raise ValueError(f"torch.nn: recurrent layers at {', '.join(map(repr, found))}: choose one with prefix")
    return found[0]


def _find_part(tensors: Tensors, name: str | None, usual: tuple[str, ...]) -> str | None:
    """The name of the embedding or the linear layer: as told, or the first usual one that is there."""
    return name or next((part for part in usual if f"{part}.weight" in tensors), None)


def _assemble(
    stack: Stack,
    layers: Mapping[str, torch.Tensor],
    tensors: Tensors,
    embedding: str | None,
    decoder: str | None,
) -> tuple[PreTrainedModel, Reference]:
    """Take what is left beside the layers, choose the head by it, and build our model and torch's."""
    embedding = _find_part(tensors, embedding, EMBEDDINGS)
    if embedding is None:
        tensors.finish()
        return stack.build(), Reference(stack, layers)
    vocab_size, _ = tensors.shape(f"{embedding}.weight", 2)
    embeddings = tensors.take(f"{embedding}.weight", vocab_size, stack.input_size)
    options: dict[str, Any] = {"vocab_size": vocab_size}
    decoder = _find_part(tensors, decoder, DECODERS)
    if decoder is None:
        tensors.finish()
        model = stack.build(others={"embed_tokens.weight": embeddings}, **options)
        return model, Reference(stack, layers, embeddings)
    classes, _ = tensors.shape(f"{decoder}.weight", 2)
    linear = tensors.take(f"{decoder}.weight", classes, stack.output_size)
    bias = tensors.take(f"{decoder}.bias", classes) if f"{decoder}.bias" in tensors else None
    tensors.finish()
    if classes == vocab_size and not stack.bidirectional:
        head, name = "causal-lm", "lm_head"
        tied = linear.shape == embeddings.shape and torch.equal(linear, embeddings)
        options |= {"tie_word_embeddings": tied, "lm_head_bias": bias is not None}
        biases = {} if bias is None else {"lm_head.bias": bias}
    else:
        head, name = "token-classification", "score"
        options["num_labels"] = classes
        biases = {"score.bias": torch.zeros(classes, device="cpu") if bias is None else bias}
    weights = {"model.embed_tokens.weight": embeddings, f"{name}.weight": linear} | biases
    model = stack.build(head, "model.", weights, **options)
    return model, Reference(stack, layers, embeddings, linear, bias)


class Reference(nn.Module):
    """torch's own network with the same weights: embedding (or none) → RNN, LSTM or GRU → linear layer (or none)."""

    def __init__(
        self,
        stack: Stack,
        layers: Mapping[str, torch.Tensor],
        embedding: torch.Tensor | None = None,
        linear: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
    ):
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn here and overwritten below
            self.layers = MODULES[stack.model_type](
                stack.input_size,
                stack.hidden_size,
                stack.num_layers,
                bias="bias_ih_l0" in layers,
                batch_first=True,
                bidirectional=stack.bidirectional,
                device="cpu",
                dtype=torch.float32,
                **stack.options,
            )
        self.layers.load_state_dict(dict(layers))
        self.embedding, self.linear, self.bias = embedding, linear, bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (B, T, I) or tokens (B, T) to hidden states or logits."""
        x = x if self.embedding is None else F.embedding(x, self.embedding)
        x = self.layers(x)[0]
        return x if self.linear is None else F.linear(x, self.linear, self.bias)
