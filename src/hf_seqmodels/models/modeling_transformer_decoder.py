"""Transformer decoder: Vaswani 2017 without the encoder, the layout of GPT (Radford 2018)."""

from typing import Any

import torch
from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_transformer_decoder import TransformerDecoderConfig
from .shared_heads import CausalLMHead
from .shared_heads_classification import (
    AudioClassificationHead,
    QuestionAnsweringHead,
    SequenceClassificationHead,
    TokenClassificationHead,
)
from .shared_heads_series import TimeSeriesHead
from .shared_heads_speech import CTCHead
from .shared_transformer import TransformerPreTrainedBase, TransformerStack


class TransformerDecoderPreTrainedModel(TransformerPreTrainedBase):
    """Loading, saving and initialisation of the Transformer decoder."""

    config: TransformerDecoderConfig


class TransformerDecoderModel(TransformerDecoderPreTrainedModel, TransformerStack):
    """The Transformer decoder without a head: tokens (B, T) to hidden states (B, T, D)."""

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
            attention_mask (B, past + T): 1 for tokens, 0 for padding, in any pattern; or transformers' 4-D mask,
                which attention patterns other than full attention refuse.
            position_ids (B, T): default: each token's number among its row's tokens, so padding shifts nothing.
                With relative positions and earlier tokens in the cache no others are taken. Without a mask and a cache
                transformers takes each jump in them for the start of another text, which sees none before it.
            past_key_values: keys and values of the tokens before. They are updated.
            use_cache: return them.
            output_hidden_states, output_attentions: as in transformers.

        Returns:
            `last_hidden_state` (B, T, D); `past_key_values` if `use_cache`.

        Raises:
            ValueError: as for the recurrent backbones, or a position beyond the learned table.
        """
        past_key_values = self.choose_cache(past_key_values, use_cache)
        hidden_states = self.run_stack(
            input_ids, inputs_embeds, input_features, attention_mask, position_ids, past_key_values, **kwargs
        )
        return BaseModelOutputWithPast(
            last_hidden_state=hidden_states, past_key_values=past_key_values if use_cache else None
        )


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


class TransformerDecoderForTimeSeriesPrediction(TimeSeriesHead, TransformerDecoderPreTrainedModel):
    """Transformer decoder that predicts the next step of a series."""

    backbone_class = TransformerDecoderModel


__all__ = [
    "TransformerDecoderForAudioClassification",
    "TransformerDecoderForCTC",
    "TransformerDecoderForCausalLM",
    "TransformerDecoderForQuestionAnswering",
    "TransformerDecoderForSequenceClassification",
    "TransformerDecoderForTimeSeriesPrediction",
    "TransformerDecoderForTokenClassification",
    "TransformerDecoderModel",
]
