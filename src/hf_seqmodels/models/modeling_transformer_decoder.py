"""Transformer decoder: Vaswani 2017 without the encoder, the layout of GPT (Radford 2018)."""

import math
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ._attention import MultiHeadAttention, rotary_positions, sinusoidal_positions
from ._base import SequencePreTrainedModel
from ._heads import CausalLMHead
from ._heads_classification import (
    AudioClassificationHead,
    QuestionAnsweringHead,
    SequenceClassificationHead,
    TokenClassificationHead,
)
from ._heads_speech import CTCHead
from ._inputs import embed_inputs
from .configuration_transformer_decoder import TransformerDecoderConfig


def build_norm(config: TransformerDecoderConfig) -> nn.Module:
    """LayerNorm (Ba 2016) or RMSNorm (Zhang & Sennrich 2019) over the last axis."""
    norm = nn.RMSNorm if config.norm == "rmsnorm" else nn.LayerNorm
    return norm(config.hidden_size, eps=config.norm_eps)


class FeedForward(nn.Module):
    """GELU: W_2 gelu(W_1 x) (Vaswani 2017, eq. 2); SwiGLU: W_2 (silu(W_g x) ⊙ W_1 x) (Shazeer 2020, eq. 6)."""

    def __init__(self, config: Any):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.gate_proj = None
        if config.hidden_act == "swiglu":
            self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = self.up_proj(x)
        if self.gate_proj is None:
            return self.down_proj(nn.functional.gelu(up))
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * up)


class TransformerDecoderLayer(GradientCheckpointingLayer):
    """Two sub-layers, attention and feed-forward, each with a residual connection and a norm:

    pre:  x + sublayer(norm(x))    (Xiong 2020)
    post: norm(x + sublayer(x))    (Vaswani 2017, section 3.1)
    """

    def __init__(self, config: TransformerDecoderConfig, layer_idx: int):
        super().__init__()
        self.pre_norm = config.norm_position == "pre"
        self.self_attn = MultiHeadAttention(config, layer_idx)
        self.attention_norm = build_norm(config)
        self.mlp = FeedForward(config)
        self.mlp_norm = build_norm(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, hidden_states: torch.Tensor, past_key_values: Cache | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """(B, T, D) → (B, T, D)."""
        x = hidden_states
        attended, _ = self.self_attn(
            self.attention_norm(x) if self.pre_norm else x, past_key_values=past_key_values, **kwargs
        )
        x = x + self.dropout(attended)
        x = x if self.pre_norm else self.attention_norm(x)
        transformed = self.mlp(self.mlp_norm(x) if self.pre_norm else x)
        x = x + self.dropout(transformed)
        return x if self.pre_norm else self.mlp_norm(x)


class TransformerDecoderPreTrainedModel(SequencePreTrainedModel):
    """Loading, saving and initialisation of the Transformer decoder."""

    config: TransformerDecoderConfig
    _no_split_modules = ["TransformerDecoderLayer"]
    _can_record_outputs = {"hidden_states": TransformerDecoderLayer, "attentions": MultiHeadAttention}
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True


class TransformerDecoderModel(TransformerDecoderPreTrainedModel):
    """The Transformer decoder without a head: tokens (B, T) to hidden states (B, T, D)."""

    def __init__(self, config: TransformerDecoderConfig):
        super().__init__(config)
        self.embed_tokens, self.embed_features = None, None
        if config.num_features is None:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        else:
            self.embed_features = nn.Linear(config.num_features, config.hidden_size)
        self.embed_positions = None
        if config.positions == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        layers = [TransformerDecoderLayer(config, index) for index in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = build_norm(config) if config.norm_position == "pre" else nn.Identity()
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        input_features: torch.FloatTensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the layers over a batch.

        Args:
            input_ids (B, T), or inputs_embeds (B, T, D); with `num_features`: input_features (B, T, F).
            attention_mask (B, past + T): 1 for tokens, 0 for padding, in any pattern; or transformers' 4-D mask.
            position_ids (B, T): default: each token's number among its row's tokens, so padding shifts nothing.
            past_key_values: keys and values of the tokens before. They are updated.
            use_cache: return them.
            output_hidden_states, output_attentions: as in transformers.

        Returns:
            `last_hidden_state` (B, T, D); `past_key_values` if `use_cache`.

        Raises:
            ValueError: as for the recurrent backbones, or a position beyond the learned table.
        """
        flat_mask = attention_mask if attention_mask is not None and attention_mask.ndim == 2 else None
        past_key_values = self.choose_cache(past_key_values, use_cache)
        past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
        known_length = past_length if isinstance(past_length, int) else None  # a static cache counts on the device
        hidden_states, _ = embed_inputs(
            self.embed_tokens,
            self.config,
            input_ids,
            inputs_embeds,
            flat_mask,
            known_length,
            input_features,
            self.embed_features,
        )
        if flat_mask is not None and isinstance(past_length, int):
            self._check_mask(flat_mask, past_length + hidden_states.shape[1])
        if position_ids is None:
            position_ids = number_tokens(flat_mask, past_length, hidden_states)
        causal_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        furthest = (known_length or 0) + hidden_states.shape[1]
        hidden_states, rotations = self.add_positions(hidden_states, position_ids, furthest)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=causal_mask,
                rotations=rotations,
                past_key_values=past_key_values,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values if use_cache else None
        )

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
            table = sinusoidal_positions(position_ids, config.hidden_size).to(embeddings.dtype)
            embeddings = embeddings * math.sqrt(config.hidden_size) + table
        else:
            head_dim = config.hidden_size // config.num_attention_heads
            cos, sin = rotary_positions(position_ids, head_dim, config.rope_theta)
            rotations = (cos.to(embeddings.dtype), sin.to(embeddings.dtype))
        return self.dropout(embeddings), rotations

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


def number_tokens(
    attention_mask: torch.Tensor | None, past_length: int | torch.Tensor, embeddings: torch.Tensor
) -> torch.Tensor:
    """(B, T) position of each new token among its row's tokens (0 under padding)."""
    length = embeddings.shape[1]
    if attention_mask is not None:
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
    return (torch.arange(length, device=embeddings.device) + past_length)[None]


class TransformerDecoderForCausalLM(CausalLMHead, TransformerDecoderPreTrainedModel, GenerationMixin):
    """Transformer language model."""

    backbone_class = TransformerDecoderModel


class TransformerDecoderForSequenceClassification(SequenceClassificationHead, TransformerDecoderPreTrainedModel):
    """Transformer decoder that labels a sequence from its last token (Radford 2018)."""

    backbone_class = TransformerDecoderModel


class TransformerDecoderForTokenClassification(TokenClassificationHead, TransformerDecoderPreTrainedModel):
    """Transformer decoder that labels every token."""

    backbone_class = TransformerDecoderModel


class TransformerDecoderForQuestionAnswering(QuestionAnsweringHead, TransformerDecoderPreTrainedModel):
    """Transformer decoder that finds the span of a text that answers a question."""

    backbone_class = TransformerDecoderModel


class TransformerDecoderForCTC(CTCHead, TransformerDecoderPreTrainedModel):
    """Transformer decoder that turns frames of sound into text."""

    backbone_class = TransformerDecoderModel


class TransformerDecoderForAudioClassification(AudioClassificationHead, TransformerDecoderPreTrainedModel):
    """Transformer decoder that labels a sound."""

    backbone_class = TransformerDecoderModel


__all__ = [
    "TransformerDecoderForAudioClassification",
    "TransformerDecoderForCTC",
    "TransformerDecoderForCausalLM",
    "TransformerDecoderForQuestionAnswering",
    "TransformerDecoderForSequenceClassification",
    "TransformerDecoderForTokenClassification",
    "TransformerDecoderModel",
]
