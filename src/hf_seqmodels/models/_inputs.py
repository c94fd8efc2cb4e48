"""From the caller's arguments to (B, T, E) embeddings with the padding blanked, and the checks that belong there."""

from typing import Any

import torch
from torch import nn


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
    embed_tokens: nn.Module,
    config: Any,
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    past_length: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Embeddings (B, T, E) that are zero under padding, and the mask of valid tokens (B, T) or None.

    With `past_length`, the number of cached tokens, the mask's width is checked: T or past + T.
    Blanking with `where` keeps a NaN under the padding from reaching anything (a product with the mask would not).
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("pass exactly one of input_ids and inputs_embeds")
    width = getattr(config, "embedding_size", config.hidden_size)
    given, wanted = (inputs_embeds, (width,)) if input_ids is None else (input_ids, ())
    shape = tuple(given.shape)  # type: ignore[union-attr]
    if len(shape) != 2 + len(wanted) or shape[2:] != wanted:  # torch's LSTM would read past a row of another width
        wanted_shape = ", ".join(["batch", "positions", *map(str, wanted)])
        raise ValueError(f"an input of shape {shape} does not fit this model: pass ({wanted_shape})")
    if 0 in shape[:2]:
        raise ValueError(f"an input of shape {shape[:2]} holds no tokens: pass at least one row and one token")
    if input_ids is not None:
        _check_token_ids(input_ids, config.vocab_size)
        inputs_embeds = embed_tokens(input_ids)
    assert inputs_embeds is not None
    length = inputs_embeds.shape[1]
    valid = valid_tokens(attention_mask, length)
    if attention_mask is not None and past_length is not None:
        columns = attention_mask.shape[1]
        if columns not in (length, past_length + length):
            raise ValueError(
                f"attention_mask has {columns} columns for {length} tokens after {past_length} cached ones: "
                f"give it {past_length + length}"
            )
    if valid is not None:
        inputs_embeds = torch.where(valid[..., None], inputs_embeds, inputs_embeds.new_zeros(()))
    return inputs_embeds, valid


def _check_token_ids(input_ids: torch.Tensor, vocab_size: int) -> None:
    """Name the token id that is out of range; on the CPU only, elsewhere the look would wait for the device."""
    if input_ids.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    low, high = (int(value) for value in torch.aminmax(input_ids))
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise ValueError(
            f"token id {wrong} is outside the vocabulary of {vocab_size} (ids 0 to {vocab_size - 1}): "
            "use this model's tokenizer, or resize_token_embeddings"
        )
