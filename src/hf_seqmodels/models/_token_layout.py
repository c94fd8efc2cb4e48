"""Padded rows as rows whose tokens stand side by side, for attention that counts distances or sorts tokens."""

from typing import NamedTuple

import torch


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
