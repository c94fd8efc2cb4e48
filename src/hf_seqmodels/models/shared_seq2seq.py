"""What encoder–decoders share: two embedding tables or one, and the way from the source to the decoder's output."""

from typing import Any, ClassVar

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqModelOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults

from .shared_base import SequencePreTrainedModel
from .shared_inputs import embed_inputs


def check_decoder_inputs(
    decoder_input_ids: torch.Tensor | None, decoder_inputs_embeds: torch.Tensor | None, others: str = ""
) -> None:
    """Raise ValueError unless exactly one of the two is given; `others` names what else would do."""
    if decoder_input_ids is None and decoder_inputs_embeds is None:
        raise ValueError(
            f"an encoder–decoder needs a target beside its source: pass {others}decoder_input_ids or "
            "decoder_inputs_embeds"
        )
    if decoder_input_ids is not None and decoder_inputs_embeds is not None:
        raise ValueError("pass only one of decoder_input_ids and decoder_inputs_embeds")


class EmbeddingTables(SequencePreTrainedModel):
    """Access to the embeddings of an encoder–decoder, for its backbone and its heads.

    `encoder.embed_tokens` embeds the source, `decoder.embed_tokens` the target; with `share_embeddings` the latter is
    None and both read the encoder's. An encoder of features has none.
    """

    @property
    def _backbone(self) -> Any:
        return self.base_model

    @property
    def _first_half(self) -> Any:
        """The half whose table comes first: the encoder, or the decoder where the encoder reads features."""
        halves = self._backbone.encoder, self._backbone.decoder
        return halves[0] if halves[0].embed_tokens is not None else halves[1]

    def get_input_embeddings(self) -> nn.Module:
        return self._first_half.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self._first_half.embed_tokens = value

    def get_decoder_embeddings(self) -> nn.Module:
        """The table that the target is embedded with."""
        table = self._backbone.decoder.embed_tokens
        return self.get_input_embeddings() if table is None else table

    def _resize_token_embeddings(
        self, new_num_tokens: int | None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Module:
        """As in transformers, and the decoder's table with it."""
        resized: Any = super()._resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        decoder = self._backbone.decoder
        if decoder.embed_tokens is not None:
            decoder.embed_tokens = self._get_resized_embeddings(
                decoder.embed_tokens, resized.num_embeddings, mean_resizing=mean_resizing
            )
        return resized


def join_outputs(encoded: BaseModelOutput | None, decoded: Any, cache: Any) -> Seq2SeqModelOutput:
    """The outputs of both halves as one; `encoded` is None where a cache knew the source."""
    source: Any = BaseModelOutput() if encoded is None else encoded
    return Seq2SeqModelOutput(
        last_hidden_state=decoded.last_hidden_state,
        past_key_values=cache,
        decoder_hidden_states=decoded.hidden_states,
        decoder_attentions=decoded.attentions,
        cross_attentions=decoded.cross_attentions,
        encoder_last_hidden_state=source.last_hidden_state,
        encoder_hidden_states=source.hidden_states,
        encoder_attentions=source.attentions,
    )


class EncoderDecoderModel(EmbeddingTables):
    """Backbone of the encoder–decoders. A subclass names its two halves:

    - `encoder_class(config)`: `encoder(input_ids, attention_mask, inputs_embeds)` → BaseModelOutput; it owns
      `embed_tokens`, None if it reads features.
    - `decoder_class(config)`: what `run_decoder` calls, which gives it the embedded target unless a subclass says
      otherwise → an output with `last_hidden_state`; it owns `embed_tokens`, or None if it is shared.
    """

    encoder_class: ClassVar[type[nn.Module]]
    decoder_class: ClassVar[type[nn.Module]]
    encoder: Any
    decoder: Any

    def __init__(self, config: Any):
        super().__init__(config)
        self.encoder = self.encoder_class(config)
        self.decoder = self.decoder_class(config)
        self.gradient_checkpointing = False
        self.post_init()

    def choose_cache(self, past_key_values: Cache | None, use_cache: bool | None) -> Any:
        """The cache to read and write, a pair of one for the decoder and one for what it reads of the source.

        Raises:
            ValueError: not such a pair, or a cache together with gradient checkpointing.
        """
        if past_key_values is None and use_cache:
            return EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))
        cache = super().choose_cache(past_key_values, use_cache)
        if cache is not None and not hasattr(cache, "cross_attention_cache"):
            raise ValueError(
                f"this {type(cache).__name__} has no place for the source: build the cache with "
                "EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config))"
            )
        return cache

    @can_return_tuple
    @merge_with_config_defaults
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Seq2SeqModelOutput:
        """Read the source (B, S) and run the decoder over the target (B, T).

        Args:
            input_ids (B, S), or inputs_embeds (B, S, E): the source.
            attention_mask (B, S): 1 for the source's tokens, 0 for padding, in any pattern. None: no padding.
            decoder_input_ids (B, T), or decoder_inputs_embeds (B, T, E): the target, a step behind what is predicted.
            decoder_attention_mask (B, T) or (B, past + T): the same for the target.
            encoder_outputs: what `get_encoder()` returned for the source, instead of input_ids and inputs_embeds.
            past_key_values: what a call with `use_cache=True` returned; it knows the source. It is updated.
            use_cache: return the decoder's state after the last token.
            output_hidden_states, output_attentions: as in transformers.

        Returns:
            `last_hidden_state` (B, T, output_size), `past_key_values` if `use_cache`, `encoder_last_hidden_state`, …

        Raises:
            ValueError: no target, no source, a token id outside the vocabulary, or a cache of another kind.
        """
        check_decoder_inputs(decoder_input_ids, decoder_inputs_embeds)
        cache = self.choose_cache(past_key_values, use_cache)
        past_length = 0 if cache is None else cache.get_seq_length()
        kwargs["return_dict"] = True  # between the two halves
        if encoder_outputs is None and past_length == 0:
            encoder_outputs = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
            )
        elif isinstance(encoder_outputs, tuple):
            encoder_outputs = BaseModelOutput(*encoder_outputs[:3])
        outputs = self.run_decoder(
            decoder_input_ids,
            decoder_inputs_embeds,
            decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            source_mask=attention_mask,
            past_key_values=cache,
            **kwargs,
        )
        return join_outputs(encoder_outputs, outputs, cache if use_cache else None)

    def run_decoder(
        self,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.FloatTensor | None,
        attention_mask: torch.Tensor | None,
        past_key_values: Any,
        **kwargs: Any,
    ) -> Any:
        """Embed the target and call `decoder(embeddings (B, T, E), valid (B, T) or None, encoder_outputs=…,
        source_mask=…, past_key_values=…, …)`.
        """
        table, past_length = self.get_decoder_embeddings(), 0
        if past_key_values is not None:
            past_length = past_key_values.get_seq_length()
        embeddings, valid = embed_inputs(table, self.config, input_ids, inputs_embeds, attention_mask, past_length)
        return self.decoder(embeddings, valid, past_key_values=past_key_values, **kwargs)


__all__ = ["EmbeddingTables", "EncoderDecoderModel", "check_decoder_inputs"]
