"""From the caller's tokens or features to (B, T, E) embeddings with the padding blanked, and the checks for that."""

import difflib
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn

# What transformers' decorators and Trainer take or give beside the arguments that a model names.
OPTIONS = ("num_items_in_batch", "output_attentions", "output_hidden_states", "return_dict")


def may_look_at(tensor: torch.Tensor) -> bool:
    """Whether a check may read the values: on the CPU (elsewhere it would wait for the device), and not while a
    program is made of the call."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def refuse_misspelt(model: Any, arguments: dict[str, Any]) -> None:
    """Raise ValueError for an argument that is nearly one of the model's: `**kwargs` would swallow it.

    Others pass, as in transformers, whose trainers and pipelines give models more than they read.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    known = argument_names(model)
    for name in arguments:
        near = [] if name in known else difflib.get_close_matches(name, known, n=1, cutoff=0.9)
        if near:
            raise ValueError(f"{model.__name__} takes no argument '{name}': did you mean '{near[0]}'?")


@cache
def argument_names(model: Any) -> tuple[str, ...]:
    """What `forward` names, and the options."""
    return *inspect.signature(model.forward).parameters, *OPTIONS


def valid_tokens(attention_mask: torch.Tensor | None, length: int) -> torch.Tensor | None:
    """Which of the last `length` positions hold a token.

    Args:
        attention_mask (B, ≥ length): 1 for tokens, 0 for padding anywhere; columns before the last `length` speak of
            tokens that a cache has already read. None: no padding.

    Returns:
        (B, length) bool, or None when there is no mask.
    """
    if attention_mask is None:
        return None
    if attention_mask.ndim != 2 or attention_mask.shape[1] < length:
        raise ValueError(
            f"attention_mask of shape {tuple(attention_mask.shape)} does not fit {length} positions: "
            "pass (batch, positions) with 1 for tokens and 0 for padding"
        )
    return attention_mask[:, -length:].bool()


def embed_inputs(
    embed_tokens: Callable[[torch.Tensor], torch.Tensor] | None,
    config: Any,
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    past_length: int | None = None,
    input_features: torch.Tensor | None = None,
    embed_features: nn.Module | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Embeddings (B, T, E) that are zero under padding, and the mask of valid tokens (B, T) or None.

    A model with `config.num_features` reads `input_features` (B, T, F), through `embed_features` if it has one; others
    read `input_ids` (B, T) or `inputs_embeds` (B, T, E).
    With `past_length`, the number of cached tokens, the mask's width is checked: T or past + T.
    Blanking with `where` keeps a NaN under the padding from reaching anything (a product with the mask would not).
    """
    given = _one_input(config, input_ids, inputs_embeds, input_features)
    length = given.shape[1]
    valid = valid_tokens(attention_mask, length)
    if attention_mask is not None and past_length is not None:
        columns = attention_mask.shape[1]
        if columns not in (length, past_length + length):
            raise ValueError(
                f"attention_mask has {columns} columns for {length} tokens after {past_length} cached ones: "
                f"give it {past_length + length}"
            )
    if input_ids is not None:
        _check_token_ids(input_ids, config.vocab_size)
        assert embed_tokens is not None
        given = embed_tokens(input_ids)
    given = blank_padding(given, valid)
    if input_features is not None and embed_features is not None:
        given = blank_padding(embed_features(given), valid)  # its bias would stand under the padding
    return given, valid


def blank_padding(embeddings: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """(B, T, …) with zeros where `valid` (B, T) is False; None: nothing is padding."""
    if valid is None:
        return embeddings
    return torch.where(valid.view(*valid.shape, *[1] * (embeddings.ndim - 2)), embeddings, embeddings.new_zeros(()))


def _one_input(
    config: Any,
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    input_features: torch.Tensor | None,
) -> torch.Tensor:
    """The one input that was given, after a look at its shape."""
    num_features = getattr(config, "num_features", None)
    if num_features is not None:
        if input_features is None or input_ids is not None or inputs_embeds is not None:
            raise ValueError(
                f"this model reads features (num_features={num_features}): pass input_features "
                f"(batch, positions, {num_features}), and neither input_ids nor inputs_embeds"
            )
        given, wanted = input_features, (num_features,)
    else:
        if input_features is not None:
            raise ValueError(
                "this model reads tokens: pass input_ids or inputs_embeds; num_features in the configuration makes a "
                "model of input_features"
            )
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        width = getattr(config, "embedding_size", config.hidden_size)
        given, wanted = (inputs_embeds, (width,)) if input_ids is None else (input_ids, ())  # type: ignore[assignment]
    shape = tuple(given.shape)
    if len(shape) != 2 + len(wanted) or shape[2:] != wanted:  # torch's LSTM would read past a row of another width
        wanted_shape = ", ".join(["batch", "positions", *map(str, wanted)])
        raise ValueError(f"an input of shape {shape} does not fit this model: pass ({wanted_shape})")
    if 0 in shape[:2]:
        raise ValueError(f"an input of shape {shape[:2]} holds no tokens: pass at least one row and one token")
    return given


def _check_token_ids(input_ids: torch.Tensor, vocab_size: int) -> None:
    """Name the token id that is out of range."""
    if not may_look_at(input_ids):
        return
    low, high = (int(value) for value in torch.aminmax(input_ids))
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise ValueError(
            f"token id {wrong} is outside the vocabulary of {vocab_size} (ids 0 to {vocab_size - 1}): "
            "use this model's tokenizer, or resize_token_embeddings"
        )
