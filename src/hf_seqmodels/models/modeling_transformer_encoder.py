"""Transformer encoder: Vaswani 2017 without the decoder, the layout of BERT (Devlin 2019)."""

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast, SequenceClassifierOutputWithPast
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_transformer_encoder import TransformerEncoderConfig
from .shared_attention import AttentionPooling
from .shared_heads import MaskedLMHead
from .shared_heads_classification import (
    AudioClassificationHead,
    QuestionAnsweringHead,
    SequenceClassificationHead,
    TokenClassificationHead,
    mean_of_tokens,
)
from .shared_heads_speech import CTCHead
from .shared_outputs import AttentionPoolingOutput
from .shared_transformer import TransformerPreTrainedBase, TransformerStack, activate, build_norm, check_shape


class TransformerEncoderPreTrainedModel(TransformerPreTrainedBase):
    """Loading, saving and initialisation of the Transformer encoder."""

    config: TransformerEncoderConfig


class TransformerEncoderModel(TransformerEncoderPreTrainedModel, TransformerStack):
    """The Transformer encoder without a head: tokens (B, T) to hidden states (B, T, D)."""

    is_causal = False

    def build_embeddings(self, config: TransformerEncoderConfig) -> None:
        super().build_embeddings(config)
        self.embed_token_types = None
        if config.type_vocab_size:
            self.embed_token_types = nn.Embedding(config.type_vocab_size, config.hidden_size)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        input_features: torch.FloatTensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the layers over a batch.

        Args:
            input_ids (B, T), or inputs_embeds (B, T, D); with `num_features`: input_features (B, T, F).
            attention_mask (B, T): 1 for tokens, 0 for padding, in any pattern; or transformers' 4-D mask,
                which attention patterns other than full attention refuse.
            token_type_ids (B, T): which text a token is of, below `type_vocab_size`. None: 0. A model without token
                types does not read them.
            position_ids (B, T): default: each token's number among its row's tokens, so padding shifts nothing.
            past_key_values, use_cache: refused; the heads name them.
            output_hidden_states, output_attentions: as in transformers.

        Raises:
            ValueError: as for the recurrent backbones, a position beyond the learned table, a token type that does
                not exist, or a cache.
        """
        if past_key_values is not None or use_cache:
            raise ValueError(
                "an encoder sees both sides and has nothing to continue from: leave out past_key_values and use_cache"
            )
        hidden_states = self.run_stack(
            input_ids,
            inputs_embeds,
            input_features,
            attention_mask,
            position_ids,
            token_type_ids=token_type_ids,
            **kwargs,
        )
        return BaseModelOutputWithPast(last_hidden_state=hidden_states)

    def add_types(self, embeddings: torch.Tensor, token_type_ids: torch.Tensor | None) -> torch.Tensor:
        """The sum of the embeddings (B, T, D) and those of the types (B, T), without which all are of the first."""
        if self.embed_token_types is None:
            return embeddings
        if token_type_ids is None:
            return embeddings + self.embed_token_types.weight[0]
        check_shape("token_type_ids", token_type_ids, embeddings)
        types = self.embed_token_types.num_embeddings
        on_cpu = token_type_ids.device.type == "cpu"  # elsewhere the look would wait for the device
        if on_cpu and not torch.compiler.is_compiling() and not torch.jit.is_tracing():
            wrong = token_type_ids[(token_type_ids < 0) | (token_type_ids >= types)]
            if wrong.numel():
                raise ValueError(
                    f"token type {wrong[0].item()} is outside the {types} of this model (0 to {types - 1}): "
                    "take a larger type_vocab_size"
                )
        return embeddings + self.embed_token_types(token_type_ids)


class MaskedLMTransform(nn.Module):
    """norm(f(W x + b)): what BERT's masked language model has before its output layer."""

    def __init__(self, config: TransformerEncoderConfig):
        super().__init__()
        self.hidden_act = config.hidden_act
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = build_norm(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(activate(self.hidden_act, self.dense(x)))


class TransformerEncoderForMaskedLM(MaskedLMHead, TransformerEncoderPreTrainedModel):
    """Transformer encoder that fills in masked tokens (Devlin 2019, section 3.1)."""

    backbone_class = TransformerEncoderModel

    def __init__(self, config: TransformerEncoderConfig):
        super().__init__(config)
        self.transform = MaskedLMTransform(config) if config.lm_head_transform else nn.Identity()
        self.post_init()

    def predict(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().predict(self.transform(hidden_states))


class TransformerEncoderForSequenceClassification(SequenceClassificationHead, TransformerEncoderPreTrainedModel):
    """Transformer encoder that labels a sequence, or a pair of them told apart by `token_type_ids`."""

    backbone_class = TransformerEncoderModel

    def __init__(self, config: TransformerEncoderConfig):
        super().__init__(config)
        self.pooler: Any = None
        if config.pooling == "first":
            self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        elif config.pooling == "attention":
            self.pooler = AttentionPooling(config.hidden_size)
        self.post_init()

    def pool(
        self, hidden_states: torch.Tensor, valid: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, D) → (B, D) as `pooling` says, and the weights of attention."""
        if self.config.pooling == "attention":
            return self.pooler(hidden_states, valid)
        if self.config.pooling == "mean":
            return mean_of_tokens(hidden_states, valid), None
        first = hidden_states[:, 0]
        if valid is not None:
            first = hidden_states[torch.arange(valid.shape[0], device=valid.device), valid.int().argmax(-1)]
        return torch.tanh(self.pooler(first)), None

    def pack_output(self, weights: torch.Tensor | None, **fields: Any) -> SequenceClassifierOutputWithPast:
        if self.config.pooling != "attention":
            return super().pack_output(weights, **fields)
        return AttentionPoolingOutput(pooling_attentions=weights, **fields)


class TransformerEncoderForTokenClassification(TokenClassificationHead, TransformerEncoderPreTrainedModel):
    """Transformer encoder that labels every token."""

    backbone_class = TransformerEncoderModel


class TransformerEncoderForQuestionAnswering(QuestionAnsweringHead, TransformerEncoderPreTrainedModel):
    """Transformer encoder that finds the span of a text that answers a question (Devlin 2019, section 4.2)."""

    backbone_class = TransformerEncoderModel


class TransformerEncoderForCTC(CTCHead, TransformerEncoderPreTrainedModel):
    """Transformer encoder that turns frames of sound into text."""

    backbone_class = TransformerEncoderModel


class TransformerEncoderForAudioClassification(AudioClassificationHead, TransformerEncoderPreTrainedModel):
    """Transformer encoder that labels a sound."""

    backbone_class = TransformerEncoderModel


__all__ = [
    "TransformerEncoderForAudioClassification",
    "TransformerEncoderForCTC",
    "TransformerEncoderForMaskedLM",
    "TransformerEncoderForQuestionAnswering",
    "TransformerEncoderForSequenceClassification",
    "TransformerEncoderForTokenClassification",
    "TransformerEncoderModel",
]
