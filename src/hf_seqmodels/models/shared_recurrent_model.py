"""The backbone of the recurrent architectures, and the encoder that may stand under it."""

from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .shared_base import SequencePreTrainedModel
from .shared_cache import check_holds_states
from .shared_encoder import build_encoder, check_encoder_inputs, copy_encoder, load_encoder
from .shared_inputs import blank_padding, embed_inputs
from .shared_recurrence import find_valid_steps, init_embedding
from .shared_regularisation import LockedDropout, RegularisedOutput, activation_penalty, drop_words


class RecurrentPreTrainedModel(SequencePreTrainedModel):
    """What backbone and heads of the recurrent architectures share: access to the encoder under them, if any."""

    @classmethod
    def from_encoder(cls, encoder: Any, freeze: bool = False, **options: Any) -> Any:
        """A model on a pretrained encoder; `save_pretrained` saves both as one, and `from_pretrained` loads both.

        Args:
            encoder: a model of transformers, whose weights are copied, or the name or path of a checkpoint of one.
            freeze: do not train the encoder (`freeze_encoder`).
            options: of this model's configuration.

        Example:
            >>> model = LSTMForSequenceClassification.from_encoder("FacebookAI/roberta-base", hidden_size=256)
        """
        source = load_encoder(encoder)
        config: Any = cls.config_class
        model: Any = cls(config(encoder=source.config, freeze_encoder=freeze, **options))
        copy_encoder(source, model.base_model.encoder)
        return model

    def _encoder(self) -> Any:
        backbone: Any = self.base_model
        return backbone.encoder

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings, which are the encoder's if there is one."""
        encoder = self._encoder()
        return super().get_input_embeddings() if encoder is None else encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        encoder = self._encoder()
        if encoder is None:
            super().set_input_embeddings(value)
        else:
            encoder.set_input_embeddings(value)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in transformers; the encoder's configuration follows."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        if self.config.encoder is not None:
            self.config.encoder.vocab_size = self._encoder().config.vocab_size = self.config.vocab_size
        return embeddings


class RecurrentModel(RecurrentPreTrainedModel):
    """Backbone of the recurrent architectures: embedding, features or an encoder → layers, with dropout around them.

    Subclasses set `layer_class` and the attributes that transformers reads (`config`, `_no_split_modules`,
    `_can_record_outputs`).
    """

    layer_class: ClassVar[type[nn.Module]]

    def __init__(self, config: Any):
        super().__init__(config)
        self.embed_tokens = None
        self.encoder: Any = None if config.encoder is None else build_encoder(config.encoder)
        if self.encoder is None and config.num_features is None:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size, config.pad_token_id)
        self.layers = nn.ModuleList([self.layer_class(config, index) for index in range(config.num_hidden_layers)])
        dropout = LockedDropout if config.variational_dropout else nn.Dropout
        self.dropout = dropout(config.dropout)
        self.input_dropout = dropout(config.input_dropout)
        self.output_dropout = dropout(config.output_dropout)
        self.gradient_checkpointing = False
        self.post_init()
        self.train()

    def train(self, mode: bool = True) -> "RecurrentModel":
        """As in torch; a frozen encoder stays in evaluation mode, and frozen (loading makes all trainable)."""
        super().train(mode)
        if self.config.freeze_encoder:
            self.encoder.eval().requires_grad_(False)
        return self

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Embeddings from N(0, 1), as in torch.nn.Embedding: no norm behind them lifts smaller ones for the cell.

        Tied ones keep `initializer_range`, since they are also the output layer, whose logits should start small.
        """
        super()._init_weights(module)
        if isinstance(module, nn.Embedding) and not self.config.tie_word_embeddings:
            init_embedding(module)

    def choose_cache(self, past_key_values: Cache | None, use_cache: bool | None) -> Cache | None:
        cache = super().choose_cache(past_key_values, use_cache)
        if cache is not None:
            check_holds_states(cache, len(self.layers))
        return cache

    def embed_words(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(B, T) → (B, T, E), with words dropped in training."""
        assert self.embed_tokens is not None
        embeddings, p = self.embed_tokens(input_ids), self.config.embedding_dropout
        if self.training and p:
            embeddings = drop_words(embeddings, input_ids, self.config.vocab_size, p)
        return embeddings

    def encode(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        input_features: torch.Tensor | None,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The encoder's last hidden states (B, T, E), zero under padding, and the mask of valid tokens."""
        width = self.encoder.get_input_embeddings().weight.shape[1]
        sizes = SimpleNamespace(vocab_size=self.config.vocab_size, hidden_size=width)
        given, valid = embed_inputs(
            nn.Identity(), sizes, input_ids, inputs_embeds, attention_mask, input_features=input_features
        )
        if input_ids is None:
            options["inputs_embeds"] = given
        else:
            options["input_ids"] = input_ids
            pad = getattr(self.encoder.config, "pad_token_id", None)
            if valid is not None and pad is not None:  # by which RoBERTa counts its positions, not by the mask
                options["input_ids"] = torch.where(valid, input_ids, pad)
        check_encoder_inputs(self.encoder, options)
        options["attention_mask"] = None if valid is None else valid.long()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_encoder):
            encoded = self.encoder(**options, return_dict=True).last_hidden_state
        return blank_padding(encoded, valid), valid

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        input_features: torch.FloatTensor | None = None,
        **kwargs: Any,
    ) -> RegularisedOutput:
        """Run the layers over a batch.

        Args:
            input_ids (B, T), or inputs_embeds (B, T, E); with `num_features`: input_features (B, T, F).
            attention_mask (B, T) or (B, past + T): 1 for tokens, 0 for padding, in any pattern. None: no padding.
            past_key_values: the state to continue from, as a call with `use_cache=True` returned it. It is updated.
            use_cache: return the state after the last token; padding does not change it.
            output_hidden_states, output_attentions: as in transformers.

        Returns:
            `last_hidden_state` (B, T, output_size), zero under padding; `past_key_values` if `use_cache`.

        Raises:
            ValueError: no tokens, more or less than one input, a token id outside the vocabulary, or a state given to
                a bidirectional model.
        """
        whole = "bidirectional=True" if self.config.bidirectional else "a model with an encoder"
        if (self.config.bidirectional or self.encoder is not None) and (past_key_values is not None or use_cache):
            raise ValueError(f"{whole} has no state to continue from: leave out past_key_values and use_cache")
        past_key_values = self.choose_cache(past_key_values, use_cache)
        past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
        if self.encoder is None:
            hidden_states, valid = embed_inputs(
                self.embed_words, self.config, input_ids, inputs_embeds, attention_mask, past_length, input_features
            )
        else:
            named = ("token_type_ids", "position_ids")
            options = {name: kwargs[name] for name in named if kwargs.get(name) is not None}
            hidden_states, valid = self.encode(input_ids, inputs_embeds, attention_mask, input_features, **options)
        hidden_states = self.run_layers(self.input_dropout(hidden_states), valid, past_key_values)
        dropped = self.output_dropout(hidden_states)
        penalty, (alpha, beta) = None, (self.config.activation_reg, self.config.temporal_activation_reg)
        if self.training and (alpha or beta):
            penalty = activation_penalty(hidden_states, dropped, valid, alpha, beta)
        return RegularisedOutput(
            last_hidden_state=dropped,
            past_key_values=past_key_values if use_cache else None,
            activation_penalty=penalty,
        )

    def run_layers(
        self, hidden_states: torch.Tensor, valid: torch.Tensor | None, past_key_values: Cache | None
    ) -> torch.Tensor:
        """What the first layer reads (B, T, E), valid (B, T) → the last layer's output (B, T, output_size)."""
        steps = find_valid_steps(valid)
        if self.training and self.gradient_checkpointing and not hidden_states.requires_grad:
            # Re-entrant checkpoints give gradients only to what follows an input that has one; features have none.
            hidden_states = hidden_states.detach().requires_grad_()
        for layer in self.layers:
            skip = None
            if layer is not self.layers[0]:
                skip = hidden_states if self.config.residual else None
                hidden_states = self.dropout(hidden_states)
            # Tensors with gradients go by position, as gradient checkpointing wants.
            hidden_states = layer(hidden_states, skip, steps=steps, past_key_values=past_key_values)
            hidden_states = hidden_states[0] if isinstance(hidden_states, tuple) else hidden_states
        return hidden_states
