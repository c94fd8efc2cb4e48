"""Attention: scores over a network's own past (additive, dot, general), pooling, and multi-head attention.

Shapes: B batch, T queries, S keys, D hidden, H heads, K = D/H head width.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class AttentionScore(nn.Module):
    """Score of a query q against keys k, by name:

    - `"dot"`: q·k (Luong 2015, section 3.1)
    - `"general"`: q·W k (Luong 2015, section 3.1)
    - `"additive"`: v·tanh(W q + U k + b) (Bahdanau 2014, appendix A.1.2; Daniluk 2017, section 2.1)

    `keys` are prepared once per hidden state and can be cached.
    """

    def __init__(self, kind: str, width: int):
        super().__init__()
        self.kind = kind
        if kind == "general":
            self.query = nn.Linear(width, width, bias=False)
        elif kind == "additive":
            self.query = nn.Linear(width, width, bias=False)
            self.key = nn.Linear(width, width)
            self.vector = nn.Linear(width, 1, bias=False)

    def keys(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, S, D) → (B, S, D): the part of the score that does not depend on the query."""
        return self.key(hidden) if self.kind == "additive" else hidden

    def forward(self, query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """(B, T, D), (B, S, D) → scores (B, T, S)."""
        if self.kind == "additive":
            return self.vector(torch.tanh(self.query(query)[:, :, None] + keys[:, None])).squeeze(-1)
        return (self.query(query) if self.kind == "general" else query) @ keys.transpose(1, 2)


def softmax(scores: torch.Tensor) -> torch.Tensor:
    """Over the last axis, in fp32 for half precision (whose exponentials sum badly), else in the precision given."""
    return torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)


def attend(scores: torch.Tensor, values: torch.Tensor, allowed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (…, T, S) → attention weights → context (…, T, D); a query with nothing to attend to gets zeros."""
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    weights = torch.where(allowed, softmax(scores), 0.0)
    return weights @ values, weights


class AttentionPooling(nn.Module):
    """Zhou 2016, eq. 9–12: α = softmax(w·tanh(h_t)) over a row's tokens, pooled = tanh(Σ α_t h_t).

    The two directions' states stay side by side in h_t; the paper adds them (eq. 8).

    Parameter: weight (D,).
    """

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def init_weights(self, config: Any) -> None:
        init.normal_(self.weight, std=config.initializer_range)

    def forward(self, hidden: torch.Tensor, valid: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T, D), (B, T) → pooled (B, D), weights (B, T); a row of padding only is pooled to zeros."""
        if valid is None:
            valid = hidden.new_ones(hidden.shape[:2], dtype=torch.bool)
        scores = (torch.tanh(hidden) @ self.weight)[:, None]
        context, weights = attend(scores, hidden, valid[:, None])
        return torch.tanh(context[:, 0]), weights[:, 0]


# -- multi-head -----------------------------------------------------------------------------------------------------
def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(Q Kᵀ / √K) V (Vaswani 2017, eq. 1) written out: the slow twin of sdpa and flex, and the one that
    returns attention weights.

    Args:
        query (B, H, T, K), key and value (B, H, S, K); attention_mask (B, 1, T, S), added to the scores.

    Returns:
        output (B, T, H, K), attention weights (B, H, T, S).
    """
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[-2]]
    weights = softmax(scores).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class MultiHeadAttention(nn.Module):
    """Causal multi-head self-attention (Vaswani 2017, section 3.2.2) on transformers' attention functions."""

    is_causal = True

    def __init__(self, config: Any, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.num_key_value_groups = 1
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Any = None,
        rotations: tuple[torch.Tensor, torch.Tensor] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, D) → (B, T, D) and, from the eager function, the weights (B, H, T, S)."""
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(shape).transpose(1, 2)  # (B, H, T, K)
        key = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        if rotations is not None:
            query, key = rotate(query, *rotations), rotate(key, *rotations)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.attention_dropout if self.training else 0.0
        output, weights = attention(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(output.reshape(*shape[:-2], -1)), weights


# -- positions ------------------------------------------------------------------------------------------------------
def position_angles(position_ids: torch.Tensor, width: int, base: float) -> torch.Tensor:
    """(B, T) → (B, T, width/2): position · base^(−2i/width), in fp32. Computed anew, so there is no buffer to load."""
    exponents = torch.arange(0, width, 2, device=position_ids.device, dtype=torch.float32) / width
    return position_ids[..., None].float() * base**-exponents


def sinusoidal_positions(position_ids: torch.Tensor, width: int) -> torch.Tensor:
    """(B, T) → (B, T, width): sin in the even and cos in the odd columns (Vaswani 2017, section 3.5)."""
    angles = position_angles(position_ids, width, 10_000.0)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[..., :width]


def rotary_positions(position_ids: torch.Tensor, head_dim: int, base: float) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin (B, 1, T, K) of the angles by which each pair of columns is turned (Su 2021, eq. 34)."""
    angles = position_angles(position_ids, head_dim, base)
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the pairs (column i, column i + K/2) of x (B, H, T, K), the pairing of GPT-NeoX and Llama."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return (x * cos + turned * sin).to(x.dtype)
