"""torch.nn.Transformer into our encoder–decoder Transformer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from ..models import ARCHITECTURES
from .files import read_tensors
from .report import ImportReport, make_report, random_features
from .tensors import Tensors, build

BATCH, SOURCE, TARGET = 3, 11, 7  # of the random input
NAMES = {"attention_norm": "norm1", "cross_attention_norm": "norm2", "mlp_norm": "norm3"}


def from_torch_transformer(
    source: nn.Transformer | Mapping[str, torch.Tensor],
    *,
    num_heads: int | None = None,
    norm_first: bool = False,
    activation: str = "relu",
    norm_eps: float = 1e-5,
) -> tuple[PreTrainedModel, ImportReport]:
    """A torch.nn.Transformer as a `TransformerModel` without positions, which both leave to the caller:

        output = nn_transformer(src, tgt, tgt_mask=causal)                                # batch_first=True
        output = model(inputs_embeds=src, decoder_inputs_embeds=tgt).last_hidden_state    # always causal

    Args:
        source: the module, or its state dict, which does not tell the options that follow.
        num_heads, norm_first, activation, norm_eps: of nn.Transformer (`nhead`, …); a module tells them itself.

    Returns:
        The model in eval mode and fp32 (its embedding matrix, of one token, is empty), and its report.

    Raises:
        ValueError: an option that ours lacks, the first tensor that does not fit, or other outputs.
    """
    assumed = f"num_heads={num_heads}, norm_first={norm_first}, activation={activation}, norm_eps={norm_eps}"
    if isinstance(source, nn.Transformer):
        assumed = ""
        first = source.encoder.layers[0]
        num_heads, norm_first, norm_eps = source.nhead, first.norm_first, first.norm1.eps
        activation = _name_of(first.activation)
        source = source.state_dict()
    if num_heads is None:
        raise ValueError("a state dict of torch.nn.Transformer does not tell its heads: say num_heads")
    if activation not in ("relu", "gelu"):
        raise ValueError(f"torch.nn.Transformer: activation='{activation}' is not supported, only relu and gelu")
    model, tensors = _convert(source, num_heads, norm_first, activation, norm_eps)
    reference = _rebuild(source, model.config, norm_first)
    return model, _compare(tensors, model, reference, assumed)


def import_file(
    path: str | Path,
    *,
    torch_load: bool = False,
    num_heads: int | None = None,
    norm_first: bool = False,
    activation: str = "relu",
    norm_eps: float = 1e-5,
) -> tuple[PreTrainedModel, ImportReport]:
    """[`from_torch_transformer`] for a file with a state dict (`hf-seqmodels import --from torch.nn.Transformer`)."""
    options: dict[str, Any] = {"norm_first": norm_first, "activation": activation, "norm_eps": norm_eps}
    return from_torch_transformer(read_tensors(path, torch_load), num_heads=num_heads, **options)


def _convert(
    source: Mapping[str, torch.Tensor], num_heads: int, norm_first: bool, activation: str, norm_eps: float
) -> tuple[PreTrainedModel, Tensors]:
    """Our model with the weights of a state dict, which tells its sizes, and its tensors, all of them taken."""
    tensors = Tensors(source, "torch.nn.Transformer")
    width, has_bias = tensors.shape("encoder.norm.weight", 1)[0], "encoder.norm.bias" in tensors
    inner = tensors.shape("encoder.layers.0.linear1.weight", 2)[0]
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"num_heads={num_heads} does not divide the width {width} of this torch.nn.Transformer")
    layers = [_count_layers(tensors.names, half) for half in ("encoder", "decoder")]
    weights = {"encoder.embed_tokens.weight": torch.zeros(1, width)}
    for half, number in zip(("encoder", "decoder"), layers, strict=True):
        _read_half(tensors, weights, half, number, inner, width, has_bias)
    tensors.finish()
    architecture = ARCHITECTURES["seq_transformer"]
    options: dict[str, Any] = {
        "vocab_size": 1,
        "hidden_size": width,
        "num_hidden_layers": layers[0],
        "num_decoder_layers": layers[1],
        "num_attention_heads": num_heads,
        "intermediate_size": inner,
        "hidden_act": activation,
        "use_bias": has_bias,
        "norm_position": "pre" if norm_first else "post",
        "norm_eps": norm_eps,
        "final_norm": True,
        "positions": "none",
        "share_embeddings": True,
    }
    return build(architecture.models["backbone"], architecture.config(**options), weights), tensors


def _rebuild(source: Mapping[str, torch.Tensor], config: Any, norm_first: bool) -> nn.Transformer:
    """The nn.Transformer that a state dict is of, in eval mode, from the configuration of ours."""
    reference = nn.Transformer(
        config.hidden_size,
        config.num_attention_heads,
        config.num_hidden_layers,
        config.num_decoder_layers,
        config.intermediate_size,
        dropout=0.0,
        activation=config.hidden_act,
        layer_norm_eps=config.norm_eps,
        batch_first=True,
        norm_first=norm_first,
        bias=config.use_bias,
    )
    reference.load_state_dict(dict(source))
    return reference.eval()


def _name_of(activation: Any) -> str:
    """What nn.Transformer was given: a function, or a module such as nn.ReLU()."""
    if activation is F.relu or isinstance(activation, nn.ReLU):
        return "relu"
    exact_gelu = isinstance(activation, nn.GELU) and activation.approximate == "none"
    return "gelu" if activation is F.gelu or exact_gelu else getattr(activation, "__name__", repr(activation))


def _count_layers(names: list[str], half: str) -> int:
    found = [int(name.split(".")[2]) for name in names if name.startswith(f"{half}.layers.")]
    return max(found, default=0) + 1


def _read_half(
    tensors: Tensors, weights: dict[str, torch.Tensor], half: str, layers: int, inner: int, width: int, has_bias: bool
) -> None:
    """The layers and the last norm; torch keeps query, key and value in one matrix. A norm without bias gets zeros."""
    attentions = {"self_attn": "self_attn"} | ({"cross_attn": "multihead_attn"} if half == "decoder" else {})
    norms = dict(NAMES) if half == "decoder" else {"attention_norm": "norm1", "mlp_norm": "norm2"}

    def take(ours: str, theirs: str, *shape: int) -> None:
        weights[f"{ours}.weight"] = tensors.take(f"{theirs}.weight", *shape)
        if has_bias:
            weights[f"{ours}.bias"] = tensors.take(f"{theirs}.bias", shape[0])
        elif len(shape) == 1:
            weights[f"{ours}.bias"] = torch.zeros(shape)

    for index in range(layers):
        layer = f"{half}.layers.{index}"
        for ours, theirs in attentions.items():
            for end, shape in (("weight", (3 * width, width)), ("bias", (3 * width,)))[: 1 + has_bias]:
                parts = tensors.take(f"{layer}.{theirs}.in_proj_{end}", *shape).chunk(3)
                for letter, part in zip("qkv", parts, strict=True):
                    weights[f"{layer}.{ours}.{letter}_proj.{end}"] = part.clone()
            take(f"{layer}.{ours}.o_proj", f"{layer}.{theirs}.out_proj", width, width)
        take(f"{layer}.mlp.up_proj", f"{layer}.linear1", inner, width)
        take(f"{layer}.mlp.down_proj", f"{layer}.linear2", width, inner)
        for ours, theirs in norms.items():
            take(f"{layer}.{ours}", f"{layer}.{theirs}", width)
    take(f"{half}.norm", f"{half}.norm", width)


@torch.no_grad()
def _compare(tensors: Tensors, model: PreTrainedModel, reference: nn.Transformer, assumed: str) -> ImportReport:
    """Run both on the same random features, source and target padded on the right."""
    width = model.config.hidden_size
    noise = random_features(BATCH, SOURCE + TARGET, width)
    source, target = noise[:, :SOURCE], noise[:, SOURCE:]
    source_mask = torch.arange(SOURCE) < torch.tensor([[SOURCE], [5], [8]])
    target_mask = torch.arange(TARGET) < torch.tensor([[4], [TARGET], [6]])
    theirs = reference(
        source,
        target,
        tgt_mask=torch.ones(TARGET, TARGET, dtype=torch.bool).triu(1),
        src_key_padding_mask=~source_mask,
        tgt_key_padding_mask=~target_mask,
        memory_key_padding_mask=~source_mask,
    )
    ours = model(
        inputs_embeds=source,
        attention_mask=source_mask.long(),
        decoder_inputs_embeds=target,
        decoder_attention_mask=target_mask.long(),
    ).last_hidden_state
    return make_report(tensors.source, tensors.taken, model, ours[target_mask], theirs[target_mask], assumed)
