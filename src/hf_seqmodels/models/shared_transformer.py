"""The parts that all Transformers share: norm, feed-forward, layer, and the stack of embedding, layers and norm."""

import math
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.output_capturing import OutputRecorder

from .shared_attention import (
    CrossAttention,
    MultiHeadAttention,
    RelativePositionBias,
    rotary_positions,
    sinusoidal_positions,
)
from .shared_base import SequencePreTrainedModel
from .shared_inputs import embed_inputs, valid_tokens
from .shared_lsh_attention import LSHAttention
from .shared_sliding_window import SlidingWindowAttention
from .shared_token_layout import check_numbering, lay_out_tokens, number_keys, number_tokens


def build_norm(config: Any) -> nn.Module:
    """LayerNorm (Ba 2016) or RMSNorm (Zhang & Sennrich 2019) over the last axis."""
    norm = nn.RMSNorm if config.norm == "rmsnorm" else nn.LayerNorm
    return norm(config.hidden_size, eps=config.norm_eps)


def build_self_attention(config: Any, layer_idx: int, is_causal: bool) -> nn.Module:
    """The self-attention of one layer; called as `MultiHeadAttention.forward` is."""
    pattern = getattr(config, "attention_pattern", "full")
    if pattern == "sliding_window":
        return SlidingWindowAttention(config, layer_idx, is_causal)
    if pattern == "lsh":
        return LSHAttention(config, layer_idx, is_causal)
    return MultiHeadAttention(config, layer_idx, is_causal)


def check_shape(name: str, given: torch.Tensor, embeddings: torch.Tensor) -> None:
    """Raise ValueError unless an argument has a value for each token of `embeddings` (B, T, D)."""
    wanted = tuple(embeddings.shape[:2])
    if tuple(given.shape) != wanted:
        raise ValueError(
            f"{name} of shape {tuple(given.shape)} does not fit this input: pass {wanted}, (batch, positions)"
        )


def activate(name: str, x: torch.Tensor) -> torch.Tensor:
    """The function of `hidden_act`; of gated ones, the gate's."""
    if name == "relu":
        return nn.functional.relu(x)
    if name == "swiglu":
        return nn.functional.silu(x)
    return nn.functional.gelu(x, approximate="none" if name == "gelu" else "tanh")  # "gelu_new", "geglu"


class FeedForward(nn.Module):
    """W_2 f(W_1 x) (Vaswani 2017, eq. 2); gated: W_2 (f(W_g x) ⊙ W_1 x) (Shazeer 2020, eq. 5–6).

    With `feed_forward_chunk` so many positions at a time, which changes no result (Kitaev 2020, section 3); gradients
    come from computing each piece again, so that the wide inner layer is never there for more than one.
    """

    def __init__(self, config: Any):
        super().__init__()
        self.hidden_act = config.hidden_act
        self.chunk = getattr(config, "feed_forward_chunk", 0)
        width, inner, bias = config.hidden_size, config.intermediate_size, config.use_bias
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.gate_proj = None
        if config.hidden_act in ("swiglu", "geglu"):
            self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, D) → (B, T, D)."""
        if not 0 < self.chunk < x.shape[1]:
            return self.compute(x)
        pieces = x.split(self.chunk, dim=1)
        if torch.is_grad_enabled():
            pieces = [checkpoint(self.compute, y, use_reentrant=False, preserve_rng_state=False) for y in pieces]
        else:
            pieces = [self.compute(y) for y in pieces]
        return torch.cat(pieces, dim=1)

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """All positions of x at once."""
        up = self.up_proj(x)
        if self.gate_proj is None:
            return self.down_proj(activate(self.hidden_act, up))
        return self.down_proj(activate(self.hidden_act, self.gate_proj(x)) * up)


class TransformerLayer(GradientCheckpointingLayer):
    """Sub-layers, each with a residual connection and a norm: self-attention; attention over the encoder's output, in
    a decoder that has an encoder; feed-forward.

    pre:  x + sublayer(norm(x))    (Xiong 2020)
    post: norm(x + sublayer(x))    (Vaswani 2017, section 3.1)
    """

    def __init__(self, config: Any, layer_idx: int, is_causal: bool, cross_attention: bool = False):
        super().__init__()
        self.pre_norm = config.norm_position == "pre"
        self.self_attn = build_self_attention(config, layer_idx, is_causal)
        self.attention_norm = build_norm(config)
        self.cross_attn = None
        if cross_attention:
            self.cross_attn = CrossAttention(config, layer_idx)
            self.cross_attention_norm = build_norm(config)
        self.mlp = FeedForward(config)
        self.mlp_norm = build_norm(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        attention_mask: Any = None,
        encoder_attention_mask: Any = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """(B, T, D) and, with cross-attention, the source (B, S, D) → (B, T, D)."""
        own_past = getattr(past_key_values, "self_attention_cache", past_key_values)
        x = self.before(hidden_states, self.attention_norm)
        x, _ = self.self_attn(
            x, attention_mask=attention_mask, past_key_values=own_past, position_bias=position_bias, **kwargs
        )
        hidden_states = self.after(hidden_states, x, self.attention_norm)
        if self.cross_attn is not None:
            x = self.before(hidden_states, self.cross_attention_norm)
            kwargs.pop("rotations", None)  # a position of the target says nothing about one of the source
            x, _ = self.cross_attn(
                x,
                encoder_hidden_states,
                attention_mask=encoder_attention_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
            hidden_states = self.after(hidden_states, x, self.cross_attention_norm)
        x = self.mlp(self.before(hidden_states, self.mlp_norm))
        return self.after(hidden_states, x, self.mlp_norm)

    def before(self, x: torch.Tensor, norm: nn.Module) -> torch.Tensor:
        """What a sub-layer reads."""
        return norm(x) if self.pre_norm else x

    def after(self, residual: torch.Tensor, x: torch.Tensor, norm: nn.Module) -> torch.Tensor:
        """What follows a sub-layer that gave x."""
        x = residual + self.dropout(x)
        return x if self.pre_norm else norm(x)


class TransformerPreTrainedBase(SequencePreTrainedModel):
    """What transformers wants to know of every Transformer."""

    _no_split_modules = ["TransformerLayer"]
    _can_record_outputs = {
        "hidden_states": TransformerLayer,
        "attentions": OutputRecorder(MultiHeadAttention, index=1, layer_name="self_attn"),
    }
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        # Before transformers looks at it: flash attention, unlike flex, leaves the numbers of relative positions out.
        self._supports_flash_attn = getattr(config, "positions", None) != "relative"
        super().__init__(config, *args, **kwargs)
        # No assisted decoding with the memory of an attention pattern, which cannot take back rejected tokens.
        self._is_stateful = getattr(config, "attention_pattern", "full") != "full"


class TransformerStack(TransformerPreTrainedBase):
    """Embedding, positions, layers, norm: tokens or features to hidden states (B, T, D).

    Subclasses say what their layers see (`is_causal`, `cross_attention`) and name the arguments of their `forward`.
    """

    is_causal: ClassVar[bool] = True
    cross_attention: ClassVar[bool] = False

    def __init__(self, config: Any):
        super().__init__(config)
        self.build_embeddings(config)
        self.embed_positions = None
        if config.positions == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.relative_bias = None
        if config.positions == "relative":
            self.relative_bias = RelativePositionBias(config, self.is_causal)
        with_norm = getattr(config, "embedding_norm", False)
        self.embedding_norm = build_norm(config) if with_norm else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        layers = range(self.count_layers(config))
        self.layers = nn.ModuleList(
            [TransformerLayer(config, index, self.is_causal, self.cross_attention) for index in layers]
        )
        self.norm = build_norm(config) if config.has_final_norm else nn.Identity()
        self.gradient_checkpointing = False
        self.post_init()

    def build_embeddings(self, config: Any) -> None:
        """Set `embed_tokens` or `embed_features`, the other one None."""
        self.embed_tokens, self.embed_features = None, None
        if config.num_features is None:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        else:
            self.embed_features = nn.Linear(config.num_features, config.hidden_size)

    @property
    def input_config(self) -> Any:
        """What the inputs are checked against."""
        return self.config

    def count_layers(self, config: Any) -> int:
        """How many layers this stack has."""
        return config.num_hidden_layers

    def run_stack(
        self,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.FloatTensor | None,
        input_features: torch.FloatTensor | None,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        past_key_values: Cache | None = None,
        global_attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        embed_tokens: nn.Module | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """From inputs to the last hidden states (B, T, D); `kwargs` go to every layer.

        `token_type_ids` (B, T) are read by encoders that have types of tokens; `embed_tokens` is read in place of the
        own table; `encoder_hidden_states` (B, S, D) is what cross-attention attends to.

        `global_attention_mask` (B, T), of encoders with a sliding window: 1 for the global tokens, which see, and are
        seen by, all others; None: the first `num_global_tokens`.
        """
        flat_mask = attention_mask if attention_mask is not None and attention_mask.ndim == 2 else None
        own_past = getattr(past_key_values, "self_attention_cache", past_key_values)
        past_length = 0 if own_past is None else own_past.get_seq_length()
        known_length = past_length if isinstance(past_length, int) else None  # a static cache counts on the device
        embeddings, _ = embed_inputs(
            embed_tokens or self.embed_tokens,
            self.input_config,
            input_ids,
            inputs_embeds,
            flat_mask,
            known_length,
            input_features,
            self.embed_features,
        )
        if flat_mask is not None and isinstance(past_length, int):
            self._check_mask(flat_mask, past_length + embeddings.shape[1])
        # With a static cache generate() gives a 4-D mask, in which the padding is hidden.
        known_mask = flat_mask if own_past is None else attention_mask
        if position_ids is None:
            position_ids = number_tokens(known_mask, past_length, embeddings)
        elif self.relative_bias is not None:
            check_numbering(position_ids, known_mask, past_length, embeddings)
        mask = self.build_mask(embeddings, attention_mask, own_past, position_ids, global_attention_mask)
        bias = self.build_bias(attention_mask, own_past, past_length, position_ids)  # before the cache grows
        embeddings = self.add_types(embeddings, token_type_ids)
        furthest = (known_length or 0) + embeddings.shape[1]
        hidden_states, rotations = self.add_positions(embeddings, position_ids, furthest)
        for layer in self.layers:
            hidden_states = layer(  # tensors with gradients by position, as gradient checkpointing wants
                hidden_states,
                encoder_hidden_states,
                bias,
                attention_mask=mask,
                rotations=rotations,
                past_key_values=past_key_values,
                **kwargs,
            )
        return self.norm(hidden_states)

    def add_types(self, embeddings: torch.Tensor, token_type_ids: torch.Tensor | None) -> torch.Tensor:
        """Embeddings (B, T, D) that know the kinds of their tokens; here there are none."""
        return embeddings

    def build_mask(
        self,
        embeddings: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past: Cache | None,
        position_ids: torch.Tensor,
        global_attention_mask: torch.Tensor | None = None,
    ) -> Any:
        """What the self-attention wants to know of who sees whom."""
        pattern = getattr(self.config, "attention_pattern", "full")
        if global_attention_mask is not None and (self.is_causal or pattern != "sliding_window"):
            raise ValueError(
                "global_attention_mask is for encoders with attention_pattern='sliding_window': leave it out; a "
                "decoder's global tokens are its first num_global_tokens"
            )
        if pattern != "full":
            valid = valid_tokens(attention_mask, embeddings.shape[1])
            chosen = None
            if global_attention_mask is not None:
                check_shape("global_attention_mask", global_attention_mask, embeddings)
                chosen = global_attention_mask.bool()
                chosen = chosen if valid is None else chosen & valid
            return lay_out_tokens(valid, embeddings, chosen)
        inputs: dict[str, Any] = {"config": self.config, "inputs_embeds": embeddings, "attention_mask": attention_mask}
        if self.is_causal:
            return create_causal_mask(**inputs, past_key_values=past, position_ids=position_ids)
        return create_bidirectional_mask(**inputs)

    def build_bias(
        self,
        attention_mask: torch.Tensor | None,
        past: Cache | None,
        past_length: int | torch.Tensor,
        position_ids: torch.Tensor,
    ) -> torch.Tensor | None:
        """(B, H, T, S) of relative positions, the same for all layers; None without them.

        A cache does not tell where its tokens stood: their numbers among their row's tokens are taken.
        """
        if self.relative_bias is None:
            return None
        if past is None:
            return self.relative_bias(position_ids, position_ids)
        length, offset = past.get_mask_sizes(position_ids.shape[1], 0)
        keys = number_keys(attention_mask, offset + length, position_ids.device)
        rows = max(len(keys), len(position_ids))  # either may be one row for all
        slots = torch.arange(position_ids.shape[1], device=position_ids.device) + past_length
        keys = keys.expand(rows, -1).index_copy(1, slots, position_ids.long().expand(rows, -1))
        return self.relative_bias(position_ids, keys[:, offset:])

    def add_positions(
        self, embeddings: torch.Tensor, position_ids: torch.Tensor, furthest: int
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
        """Embeddings that know their position, or the rotations by which attention will learn it.

        `furthest` is the length of the sequence, padding and cached tokens included, as far as it is known.
        """
        config, rotations = self.config, None
        if self.embed_positions is not None:
            self._check_positions(position_ids, furthest, self.embed_positions.num_embeddings)
            embeddings = embeddings + self.embed_positions(position_ids)
        elif config.positions == "sinusoidal":  # √D: Vaswani 2017, section 3.4
            table = sinusoidal_positions(position_ids, config.hidden_size, embeddings.dtype)
            embeddings = embeddings * math.sqrt(config.hidden_size) + table
        elif config.positions == "rotary":
            rotations = rotary_positions(position_ids, config.head_width, config.rope_theta, embeddings.dtype)
        return self.dropout(self.embedding_norm(embeddings)), rotations

    @staticmethod
    def _check_mask(attention_mask: torch.Tensor, positions: int) -> None:
        """Refuse a mask of the new tokens alone: the columns of the cached ones would be taken for padding."""
        if attention_mask.shape[1] < positions:
            raise ValueError(
                f"attention_mask of shape {tuple(attention_mask.shape)} does not cover the {positions} positions of "
                "the cached and the new tokens: pass the mask of all of them"
            )

    @staticmethod
    def _check_positions(position_ids: torch.Tensor, furthest: int, rows: int) -> None:
        """Refuse a sequence beyond the table; a device is waited for only when its length could be beyond it."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return
        if position_ids.device.type != "cpu" and furthest <= rows:
            return
        longest = int(position_ids.max()) + 1
        if longest > rows:
            raise ValueError(
                f"a sequence of {longest} tokens is beyond the {rows} learned positions of this model: shorten it, or "
                "train with a larger max_position_embeddings, or with positions='rotary'"
            )
