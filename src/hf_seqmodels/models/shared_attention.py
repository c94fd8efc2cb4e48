"""Attention: scores over a network's own past (additive, dot, general), pooling, and multi-head attention.

Shapes: B batch, T queries, S keys, D hidden, H heads, K head width (`head_dim`, by default D/H).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class AttentionScore(nn.Module):
    """Score of a query q against keys k, by name:

    - `"dot"`: q·k (Luong 2015, section 3.1)
    - `"general"`: q·W k (Luong 2015, section 3.1)
    - `"additive"`: v·tanh(W q + U k + b) (Bahdanau 2014, appendix A.1.2; Daniluk 2017, section 2.1)

    `keys` are prepared once per hidden state and can be cached.

    Args:
        width: of the queries, D.
        key_width: of what is attended to, C; None: D. The dot product needs the same width.
    """

    def __init__(self, kind: str, width: int, key_width: int | None = None):
        super().__init__()
        self.kind = kind
        if kind == "general":
            self.query = nn.Linear(width, key_width or width, bias=False)
        elif kind == "additive":
            self.query = nn.Linear(width, width, bias=False)
            self.key = nn.Linear(key_width or width, width)
            self.vector = nn.Linear(width, 1, bias=False)

    def keys(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, S, C) → (B, S, D), additive, or as they are: the part of the score that is the same for all queries."""
        return self.key(hidden) if self.kind == "additive" else hidden

    def forward(self, query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """(B, T, D), keys (B, S, ·) → scores (B, T, S)."""
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
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(Q Kᵀ / √K) V (Vaswani 2017, eq. 1) written out: the slow twin of sdpa and flex, and the one that
    returns attention weights.

    Args:
        query (B, H, T, K), key and value (B, H, S, K); attention_mask (B, 1, T, S) and position_bias (B, H, T, S),
            both added to the scores.

    Returns:
        output (B, T, H, K), attention weights (B, H, T, S).
    """
    scores = query @ key.transpose(2, 3) * scaling
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[-2]]
    weights = softmax(scores).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class MultiHeadAttention(nn.Module):
    """Multi-head self-attention (Vaswani 2017, section 3.2.2) on transformers' attention functions.

    MultiHead(Q, K, V) = Concat(head_1, …, head_H) W^O,  head_i = Attention(Q W_i^Q, K W_i^K, V W_i^V)

    Args:
        is_causal: a token sees those before it only; False: it sees all.
    """

    def __init__(self, config: Any, layer_idx: int, is_causal: bool = True):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = is_causal
        self.head_dim = config.head_width
        self.num_key_value_groups = 1
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        width = config.num_attention_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=config.use_bias)
        self.k_proj = nn.Linear(config.hidden_size, width, bias=config.use_bias)
        self.v_proj = nn.Linear(config.hidden_size, width, bias=config.use_bias)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=config.use_bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Any = None,
        rotations: tuple[torch.Tensor, torch.Tensor] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, D) → (B, T, D) and, from the eager function, the weights (B, H, T, S)."""
        query = self.split_heads(self.q_proj(hidden_states))
        key = self.split_heads(self.k_proj(hidden_states))
        value = self.split_heads(self.v_proj(hidden_states))
        if rotations is not None:
            query, key = rotate(query, *rotations), rotate(key, *rotations)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        return self.attend(query, key, value, attention_mask, **kwargs)

    def split_heads(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, H·K) → (B, H, T, K)."""
        return x.view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Any,
        position_bias: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Heads (B, H, T, K) and (B, H, S, K) → (B, T, D), and the weights if the function returns them."""
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        if position_bias is not None:  # not every function knows it
            kwargs["position_bias"] = position_bias.expand(len(query), -1, -1, -1)
        dropout = self.attention_dropout if self.training else 0.0
        output, weights = attention(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(output.flatten(2)), weights


class CrossAttention(MultiHeadAttention):
    """The decoder's attention over the encoder's output (Vaswani 2017, section 3.2.3): queries from the decoder, keys
    and values from the encoder. Keys and values are computed once for a source and cached.
    """

    def __init__(self, config: Any, layer_idx: int):
        super().__init__(config, layer_idx, is_causal=False)

    def forward(  # type: ignore[override]
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: Any = None,
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, D) and the source (B, S, D) → (B, T, D) and, from the eager function, the weights (B, H, T, S)."""
        query = self.split_heads(self.q_proj(hidden_states))
        if past_key_values is not None and past_key_values.is_updated.get(self.layer_idx):
            cached: Any = past_key_values.cross_attention_cache.layers[self.layer_idx]
            return self.attend(query, cached.keys, cached.values, attention_mask, **kwargs)
        key = self.split_heads(self.k_proj(encoder_hidden_states))
        value = self.split_heads(self.v_proj(encoder_hidden_states))
        if past_key_values is not None:
            key, value = past_key_values.cross_attention_cache.update(key, value, self.layer_idx)
            past_key_values.is_updated[self.layer_idx] = True
        return self.attend(query, key, value, attention_mask, **kwargs)


# -- positions ------------------------------------------------------------------------------------------------------
def position_angles(position_ids: torch.Tensor, width: int, base: float, dtype: torch.dtype) -> torch.Tensor:
    """(B, T) → (B, T, width/2): position · base^(−2i/width), in `dtype` but at least in fp32.

    Computed anew in every call, so there is no buffer to load.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    exponents = torch.arange(0, width, 2, device=position_ids.device, dtype=dtype) / width
    return position_ids[..., None].to(dtype) * base**-exponents


def sinusoidal_positions(position_ids: torch.Tensor, width: int, dtype: torch.dtype) -> torch.Tensor:
    """(B, T) → (B, T, width): sin in the even and cos in the odd columns (Vaswani 2017, section 3.5)."""
    angles = position_angles(position_ids, width, 10_000.0, dtype)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[..., :width].to(dtype)


def rotary_positions(
    position_ids: torch.Tensor, head_dim: int, base: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin (B, 1, T, K) of the angles by which each pair of columns is turned (Su 2021, eq. 34)."""
    angles = position_angles(position_ids, head_dim, base, dtype)
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the pairs (column i, column i + K/2) of x (B, H, T, K), the pairing of GPT-NeoX and Llama."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return (x * cos + turned * sin).to(x.dtype)


class RelativePositionBias(nn.Module):
    """A learned number for each head and distance, added to the scores (T5: Raffel 2020, section 2.1).

    Distances fall into buckets: half of them hold one distance each, the others ranges that grow logarithmically up to
    `relative_attention_max_distance`; all beyond share the last. An encoder has as many buckets for either side.

    Parameter: weight (buckets, H).
    """

    def __init__(self, config: Any, is_causal: bool):
        super().__init__()
        self.is_causal = is_causal
        self.max_distance = config.relative_attention_max_distance
        self.weight = nn.Parameter(torch.empty(config.relative_attention_num_buckets, config.num_attention_heads))

    def init_weights(self, config: Any) -> None:
        init.normal_(self.weight, std=config.initializer_range)

    def forward(self, query_positions: torch.Tensor, key_positions: torch.Tensor) -> torch.Tensor:
        """Positions (B, T) and (B, S), B may be 1 → (B, H, T, S)."""
        buckets = self.buckets(key_positions[:, None, :] - query_positions[:, :, None])
        return F.embedding(buckets, self.weight).permute(0, 3, 1, 2)

    def buckets(self, distances: torch.Tensor) -> torch.Tensor:
        """Key position minus query position → bucket."""
        count = len(self.weight) if self.is_causal else len(self.weight) // 2
        ahead = torch.zeros_like(distances) if self.is_causal else (distances > 0) * count
        distances = (-distances).clamp(min=0) if self.is_causal else distances.abs()
        exact = count // 2
        growth = (distances.clamp(min=1).float() / exact).log() / math.log(self.max_distance / exact)
        ranges = (exact + (growth * (count - exact)).long()).clamp(max=count - 1)
        return ahead + torch.where(distances < exact, distances, ranges)
