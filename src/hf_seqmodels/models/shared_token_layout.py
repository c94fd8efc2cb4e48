"""Where the tokens of padded rows are: their numbers, which padding does not shift, and rows whose tokens stand side
by side, for attention that counts distances or sorts tokens.
"""

from typing import NamedTuple

import torch
from torch import nn


class TokenLayout(NamedTuple):
    """Where the tokens of a padded batch are. Computed once in a forward pass and read by every layer.

    Attributes:
        order (B, T): the position of each row's first, second, … token, then the padding; None: nothing is padding.
        valid (B, T) bool: which of the columns in that order hold a token.
        is_global (B, T) bool: which of them see, and are seen by, every token; None: the first
            `num_global_tokens` of a row.
    """

    order: torch.Tensor | None
    valid: torch.Tensor
    is_global: torch.Tensor | None = None


def lay_out_tokens(
    valid: torch.Tensor | None, embeddings: torch.Tensor, is_global: torch.Tensor | None = None
) -> TokenLayout:
    """The layout of `embeddings` (B, T, D) with the mask `valid` (B, T), and global tokens (B, T) if they are named.

    A stable sort moves each row's tokens to its start, wherever the padding is, so that a row in a batch is computed
    exactly as it is alone.
    """
    batch, length, _ = embeddings.shape
    if valid is None:
        return TokenLayout(None, embeddings.new_ones(batch, length, dtype=torch.bool), is_global)
    order = (~valid).to(torch.uint8).argsort(dim=1, stable=True)
    return TokenLayout(order, valid.gather(1, order), None if is_global is None else is_global.gather(1, order))


def gather_tokens(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """(B, H, T, K) at index (B, S) → (B, H, S, K)."""
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def compact(x: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
    """(B, H, T, K) with each row's tokens at its start."""
    return x if layout.order is None else gather_tokens(x, layout.order)


def restore(x: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
    """The inverse of [`compact`]."""
    return x if layout.order is None else gather_tokens(x, layout.order.argsort(dim=1))


def number_tokens(
    attention_mask: torch.Tensor | None, past_length: int | torch.Tensor, embeddings: torch.Tensor
) -> torch.Tensor:
    """(B, T) position of each new token among its row's tokens (0 under padding); the mask as in [`number_keys`]."""
    length, device = embeddings.shape[1], embeddings.device
    if attention_mask is not None and attention_mask.ndim == 2:
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
    slots = torch.arange(length, device=device) + past_length
    return (
        slots[None]
        if attention_mask is None
        else number_keys(attention_mask, attention_mask.shape[-1], device)[:, slots]
    )


def number_keys(attention_mask: torch.Tensor | None, length: int, device: torch.device) -> torch.Tensor:
    """(B, S) position of each of the `length` slots of a cache among its row's tokens.

    Args:
        attention_mask: (B, ≤ length), or transformers' (B, 1, T, length), whose last query sees all tokens; None: no
            padding.
    """
    if attention_mask is None:
        return torch.arange(length, device=device)[None]
    tokens = flatten_mask(attention_mask).long()
    return (nn.functional.pad(tokens, (0, length - tokens.shape[1])).cumsum(-1) - 1).clamp(min=0)


def check_numbering(
    position_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    past_length: int | torch.Tensor,
    embeddings: torch.Tensor,
) -> None:
    """Refuse positions (B, T) other than [`number_tokens`] gives where a cache holds earlier tokens, since it does not
    know where they stood; looked at on the CPU only, elsewhere the look would wait for the device.
    """
    if position_ids.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    if int(past_length) == 0:
        return
    differs = position_ids != number_tokens(attention_mask, past_length, embeddings)
    if attention_mask is not None:
        slots = torch.arange(embeddings.shape[1]) + past_length
        differs = differs & flatten_mask(attention_mask).bool()[:, slots]  # what stands under padding is not read
    if differs.any():
        raise ValueError(
            "position_ids other than the tokens' numbers in their rows do not go with positions='relative' and a "
            "cache, which does not know where its tokens stood: leave out position_ids, or past_key_values"
        )


def flatten_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """(B, S) as it is; of transformers' (B, 1, T, S), True or 0 where a token is seen, what the last query sees."""
    if attention_mask.ndim == 2:
        return attention_mask
    seen = attention_mask[:, 0, -1]
    return seen if seen.dtype == torch.bool else seen == 0
