"""What every model of ours shares: checked loading, saving together with the code, initialisation, the backbone."""

import sys
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ._cache import RecurrentCacheLayer
from ._inputs import embed_inputs
from ._recurrence import find_valid_steps


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


class RecurrentModel(SequencePreTrainedModel):
    """Backbone of the recurrent architectures: embedding (or features) → layers, with dropout between them.

    Subclasses set `layer_class` and the attributes that transformers reads (`config`, `_no_split_modules`,
    `_can_record_outputs`).
    """

    layer_class: ClassVar[type[nn.Module]]

    def __init__(self, config: Any):
        super().__init__(config)
        self.embed_tokens = None
        if config.num_features is None:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size, config.pad_token_id)
        self.layers = nn.ModuleList([self.layer_class(config, index) for index in range(config.num_hidden_layers)])
        self.dropout = nn.Dropout(config.dropout)
        self.gradient_checkpointing = False
        self.post_init()

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
    ) -> BaseModelOutputWithPast:
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
        if self.config.bidirectional and (past_key_values is not None or use_cache):
            raise ValueError(
                "bidirectional=True has no state to continue from: leave out past_key_values and use_cache"
            )
        past_key_values = self.choose_cache(past_key_values, use_cache)
        past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
        hidden_states, valid = embed_inputs(
            self.embed_tokens, self.config, input_ids, inputs_embeds, attention_mask, past_length, input_features
        )
        steps = find_valid_steps(valid)
        for layer in self.layers:
            hidden_states = layer(
                self.dropout(hidden_states) if layer is not self.layers[0] else hidden_states,
                steps=steps,
                past_key_values=past_key_values,
            )
            hidden_states = hidden_states[0] if isinstance(hidden_states, tuple) else hidden_states
        return BaseModelOutputWithPast(
            last_hidden_state=hidden_states, past_key_values=past_key_values if use_cache else None
        )


__all__ = ["RecurrentCacheLayer", "RecurrentModel", "SequencePreTrainedModel"]
