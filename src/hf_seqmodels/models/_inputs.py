"""From the caller's arguments to (B, T, E) embeddings with the padding blanked, and the checks that belong there."""

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
    vocab_size: int,
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Embeddings (B, T, E) that are zero under padding, and the mask of valid tokens (B, T) or None.

    Blanking with `where` keeps a NaN under the padding from reaching anything (a product with the mask would not).
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("pass exactly one of input_ids and inputs_embeds")
    shape = (input_ids if input_ids is not None else inputs_embeds).shape[:2]  # type: ignore[union-attr]
    if 0 in shape:
        raise ValueError(f"an input of shape {tuple(shape)} holds no tokens: pass at least one row and one token")
    if input_ids is not None:
        _check_token_ids(input_ids, vocab_size)
        inputs_embeds = embed_tokens(input_ids)
    assert inputs_embeds is not None
    valid = valid_tokens(attention_mask, inputs_embeds.shape[1])
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
