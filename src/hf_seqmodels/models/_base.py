"""What every model of ours shares: checked loading, saving together with the code, initialisation, the backbone."""

import sys
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ._cache import RecurrentCacheLayer
from ._encoder import build_encoder, copy_encoder, load_encoder
from ._inputs import blank_padding, embed_inputs, refuse_misspelt
from ._recurrence import find_valid_steps
from ._regularisation import LockedDropout, RegularisedOutput, activation_penalty, drop_words


class SequencePreTrainedModel(PreTrainedModel):
    """Base class of all models.

    - `save_pretrained` (and so `push_to_hub` and Trainer) writes the modelling files and the `auto_map` of all heads,
      so that `AutoModel….from_pretrained(folder, trust_remote_code=True)` works without this package.
    - `from_pretrained` raises when a tensor of the backbone is missing; only a new head may be.
    """

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    auto_model: ClassVar[str] = "AutoModel"  # the Auto class this model is found through

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        wanted: Any = self.config_class
        if config.model_type != wanted.model_type:
            raise ValueError(
                f"{type(self).__name__} takes a configuration of model_type '{wanted.model_type}', "
                f"not '{config.model_type}': build it from {wanted.__name__}, or call {self.auto_model}.from_config"
            )
        super().__init__(config, *args, **kwargs)
        if getattr(config, "num_features", None) is not None:
            self.main_input_name = "input_features"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As in torch; a misspelt argument raises ValueError instead of being left out."""
        refuse_misspelt(type(self), kwargs)
        return super().__call__(*args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Modules that own tensors of their own know how to fill them; the rest follows transformers."""
        if hasattr(module, "init_weights") and not isinstance(module, PreTrainedModel):
            module.init_weights(self.config)  # type: ignore[operator]
        else:
            super()._init_weights(module)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """As in transformers, but a missing tensor raises unless it belongs to a head that the checkpoint never had.

        Raises:
            ValueError: tensors of the backbone, or of a head that the checkpoint was saved with, are missing.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
        )
        model, info = loaded
        saved_as = model.config.architectures or []
        backbone = "" if type(model).__name__ in saved_as or cls.auto_model == "AutoModel" else cls.base_model_prefix
        missing = sorted(key for key in info["missing_keys"] if key.startswith(backbone))
        if missing and pretrained_model_name_or_path is not None:  # None: tensors from the caller
            raise ValueError(
                f"{pretrained_model_name_or_path} lacks {len(missing)} tensors of {cls.__name__}, the first is "
                f"'{missing[0]}': the checkpoint is incomplete or of another configuration"
            )
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, save_code: bool = True, **kwargs: Any) -> None:
        """As in transformers, with the modelling files beside the weights.

        Args:
            save_code (`bool`, defaults to True): write the modelling files and the `auto_map` of all heads, for
                people who do not have this package; False writes weights and configuration only.
        """
        options = vars(self.config)
        before = options.pop("auto_map", None)
        if save_code and self.auto_map():
            self.config.auto_map = self.auto_map()
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            options.pop("auto_map", None)
            if before is not None:
                self.config.auto_map = before

    @classmethod
    def auto_map(cls) -> dict[str, str]:
        """Auto class → "file.Class" for the configuration and every model in this model's file.

        Empty for a subclass defined in another folder, whose file is not ours to ship: `register_for_auto_class()`
        does that, as for any model of transformers.
        """
        # FSDP2 gives a sharded model a class of its own, in front of ours.
        own = next(base.__module__ for base in cls.__mro__ if not base.__module__.startswith("torch."))
        (package, _, name), module = own.rpartition("."), sys.modules[own]
        if package != __name__.rpartition(".")[0]:
            return {}
        config: Any = cls.config_class
        classes = [getattr(module, exported) for exported in module.__all__]
        return {"AutoConfig": f"{config.__module__.split('.')[-1]}.{config.__name__}"} | {
            model.auto_model: f"{name}.{model.__name__}" for model in classes
        }

    def choose_cache(self, past_key_values: Cache | None, use_cache: bool | None) -> Cache | None:
        """The cache to read and write: the caller's, or a new one when asked for, or None.

        Raises:
            ValueError: a cache together with gradient checkpointing, under which transformers' layers leave it out.
        """
        if past_key_values is not None and self.training and self.gradient_checkpointing:
            raise ValueError(
                "gradient checkpointing runs every layer twice and cannot carry past_key_values: call model.eval() to "
                "generate, or gradient_checkpointing_disable() to train with a carried state"
            )
        if past_key_values is None and use_cache:
            return DynamicCache(config=self.config)
        return past_key_values


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
        target = super() if encoder is None else encoder
        target.set_input_embeddings(value)

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
            init.normal_(module.weight)
            # A slice does not know that its tensor was loaded, so the look is ours.
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                init.zeros_(module.weight[module.padding_idx])

    def choose_cache(self, past_key_values: Cache | None, use_cache: bool | None) -> Cache | None:
        cache = super().choose_cache(past_key_values, use_cache)
        if cache is not None and sum(hasattr(layer, "read_states") for layer in cache.layers) < len(self.layers):
            kind = type(cache).__name__
            raise ValueError(f"this {kind} cannot hold recurrent state: build it with {kind}(config=model.config)")
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
        steps = find_valid_steps(valid)
        hidden_states = self.input_dropout(hidden_states)
        for layer in self.layers:
            skip = None
            if layer is not self.layers[0]:
                skip = hidden_states if self.config.residual else None
                hidden_states = self.dropout(hidden_states)
            # Tensors with gradients go by position, as gradient checkpointing wants.
            hidden_states = layer(hidden_states, skip, steps=steps, past_key_values=past_key_values)
            hidden_states = hidden_states[0] if isinstance(hidden_states, tuple) else hidden_states
        dropped = self.output_dropout(hidden_states)
        penalty, (alpha, beta) = None, (self.config.activation_reg, self.config.temporal_activation_reg)
        if self.training and (alpha or beta):
            penalty = activation_penalty(hidden_states, dropped, valid, alpha, beta)
        return RegularisedOutput(
            last_hidden_state=dropped,
            past_key_values=past_key_values if use_cache else None,
            activation_penalty=penalty,
        )


__all__ = ["RecurrentCacheLayer", "RecurrentModel", "RecurrentPreTrainedModel", "SequencePreTrainedModel"]
