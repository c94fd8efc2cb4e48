"""Transformer: the encoder–decoder of Vaswani 2017, and the text-to-text layout of T5 (Raffel 2020)."""

from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.cache_utils import EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_transformer import TransformerConfig
from .shared_attention import CrossAttention
from .shared_heads_seq2seq import Seq2SeqLMHead
from .shared_seq2seq import EncoderDecoderModel
from .shared_transformer import TransformerPreTrainedBase, TransformerStack


class TransformerPreTrainedModel(TransformerPreTrainedBase):
    """Loading, saving and initialisation of the encoder–decoder Transformer."""

    config: TransformerConfig


class TransformerEncoderHalf(TransformerPreTrainedModel, TransformerStack):
    """The source (B, S) to hidden states (B, S, D): self-attention over all tokens, feed-forward."""

    is_causal = False

    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        input_features: torch.FloatTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """input_ids (B, S), inputs_embeds (B, S, D), or input_features (B, S, F), and the mask (B, S), in any
        pattern → `last_hidden_state` (B, S, D).
        """
        kwargs.pop("decoder_position_ids", None)  # for the other half
        hidden_states = self.run_stack(
            input_ids, inputs_embeds, input_features, attention_mask, position_ids, **kwargs
        )
        return BaseModelOutput(last_hidden_state=hidden_states)


class TransformerDecoderHalf(TransformerPreTrainedModel, TransformerStack):
    """The target (B, T) to hidden states (B, T, D): self-attention over what was written, attention over the source,
    feed-forward. With `share_embeddings` it has no embedding matrix of its own.
    """

    cross_attention = True
    _can_record_outputs = TransformerPreTrainedModel._can_record_outputs | {
        "cross_attentions": OutputRecorder(CrossAttention, index=1)
    }

    def build_embeddings(self, config: TransformerConfig) -> None:
        self.embed_tokens, self.embed_features = None, None
        if not config.share_embeddings:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)

    def count_layers(self, config: TransformerConfig) -> int:
        return config.num_decoder_layers or config.num_hidden_layers

    @property
    def input_config(self) -> Any:
        return self.config.get_text_config(decoder=True)

    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        source_mask: torch.Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        embed_tokens: nn.Module | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """The target's new tokens → `last_hidden_state` (B, T, D).

        Args:
            input_ids (B, T), or inputs_embeds (B, T, D); embed_tokens: the embedding to look them up in.
            attention_mask (B, past + T): of the target, in any pattern; or transformers' 4-D mask.
            encoder_hidden_states (B, S, D): None once the cache has read them; source_mask (B, S).
            past_key_values: keys and values of the tokens before, and of the source. They are updated.
        """
        given = input_ids if inputs_embeds is None else inputs_embeds
        assert given is not None
        hidden_states = self.run_stack(
            input_ids,
            inputs_embeds,
            None,
            attention_mask,
            position_ids,
            past_key_values,
            embed_tokens=embed_tokens,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=self.build_source_mask(given, encoder_hidden_states, source_mask, past_key_values),
            **kwargs,
        )
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden_states)

    def build_source_mask(
        self,
        given: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        source_mask: torch.Tensor | None,
        past_key_values: EncoderDecoderCache | None,
    ) -> Any:
        """Which tokens of the source the target sees, as the attention function wants to know it."""
        batch, length = given.shape[:2]
        known = encoder_hidden_states
        if past_key_values is not None and past_key_values.is_updated.get(0):
            cached: Any = past_key_values.cross_attention_cache.layers[0]
            known = cached.keys[:, 0]
        if known is None:
            raise ValueError("the source is unknown: pass input_ids, encoder_outputs, or a cache that has read it")
        # transformers reads nothing but sizes, type and device off these two
        target = torch.empty(batch, length, 0, dtype=known.dtype, device=given.device)
        source = torch.empty(batch, known.shape[1], 0, dtype=known.dtype, device=given.device)
        return create_bidirectional_mask(
            config=self.config, inputs_embeds=target, attention_mask=source_mask, encoder_hidden_states=source
        )


class TransformerModel(TransformerPreTrainedModel, EncoderDecoderModel):
    """The encoder–decoder Transformer without a head: source (B, S) and target (B, T) to hidden states (B, T, D)."""

    encoder_class = TransformerEncoderHalf
    decoder_class = TransformerDecoderHalf

    def run_decoder(
        self,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.FloatTensor | None,
        attention_mask: torch.Tensor | None,
        past_key_values: Any,
        encoder_outputs: BaseModelOutput | None = None,
        decoder_position_ids: torch.LongTensor | None = None,
        **kwargs: Any,
    ) -> Any:
        kwargs.pop("input_features", None)
        return self.decoder(
            input_ids,
            attention_mask,
            inputs_embeds,
            decoder_position_ids,
            encoder_hidden_states=None if encoder_outputs is None else encoder_outputs.last_hidden_state,
            past_key_values=past_key_values,
            embed_tokens=self.get_decoder_embeddings(),
            **kwargs,
        )


class TransformerForSeq2SeqLM(Seq2SeqLMHead, TransformerPreTrainedModel, GenerationMixin):
    """Transformer that translates, or turns text into text (T5)."""

    backbone_class = TransformerModel


__all__ = ["TransformerForSeq2SeqLM", "TransformerModel"]
