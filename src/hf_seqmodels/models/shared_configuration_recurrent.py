"""Options of the architectures that are built from a cell."""

import math
from typing import Any

from .shared_configuration import MOST_LAYERS, MOST_TOKENS, MOST_WIDTH
from .shared_configuration_cell import RecurrentLayerOptions
from .shared_configuration_stack import StackConfig
from .shared_encoder import SUB_CONFIGS, make_encoder_config
from .shared_versions import PreTrainedConfig, strict

DROPOUTS = ("input_dropout", "output_dropout", "embedding_dropout")


@strict
class RecurrentConfig(RecurrentLayerOptions, StackConfig):
    """Options of the architectures built from a cell; those of its layers stand in `shared_configuration_cell.py`.

    Args:
        embedding_size (`int`, *optional*, defaults to `hidden_size`): width of the token embeddings; with
            `num_features` that number, since features go into the first cell as they are.
        bidirectional (`bool`, defaults to False): each layer also reads the sequence backwards; outputs are
            concatenated to 2·D. Not for causal language models, and `use_cache` becomes False: there is no state to
            continue from.
        input_dropout (`float`, defaults to 0.0): on what the first layer reads (AWD-LSTM's `dropouti`).
        output_dropout (`float`, defaults to 0.0): on the last layer's output (AWD-LSTM's `dropout`).
        variational_dropout (`bool`, defaults to False): these three drop a row's units at all its time steps or at
            none (Gal & Ghahramani 2016; Merity 2017, section 4.2); False: at each step anew.
        embedding_dropout (`float`, defaults to 0.0): whole words of the vocabulary, wherever they stand in the batch
            (Merity 2017, section 4.3); on `input_ids` only.
        activation_reg (`float`, defaults to 0.0): α of activation regularisation (Merity 2017, section 4.6): the
            loss, in training, grows by α times the mean square of the last layer's output after `output_dropout`,
            averaged over the tokens that predict a target. Of causal language models and of the prediction of time
            series; no effect with other heads.
        temporal_activation_reg (`float`, defaults to 0.0): β of temporal activation regularisation (the same): β
            times the mean square of the change of that output, before dropout, from such a token to the next; with
            the same heads.
        residual (`bool`, defaults to False): each layer but the first adds what it reads, before `dropout`, to its
            output (Wu 2016, section 3.1).
        encoder (`dict` or `PreTrainedConfig`, *optional*): configuration of a transformers encoder (with its
            `model_type`) whose last hidden states the first layer reads in place of embeddings (RoBERTa-LSTM, Tan
            2022). `embedding_size` and `vocab_size` are the encoder's. It sees the whole sequence: not for causal
            language models, and there is no state to continue from (`use_cache` becomes False). Only encoders of text
            are taken; those of sound and of images, Funnel, and encoder–decoders without a class for their encoder
            alone are refused by name. See `from_encoder` of the models.
        freeze_encoder (`bool`, defaults to False): the encoder is not trained, and is always in evaluation mode.
    """

    sub_configs = SUB_CONFIGS

    input_dropout: float | int = 0.0
    output_dropout: float | int = 0.0
    variational_dropout: bool = False
    embedding_dropout: float | int = 0.0
    activation_reg: float | int = 0.0
    temporal_activation_reg: float | int = 0.0
    residual: bool = False
    encoder: dict | PreTrainedConfig | None = None
    freeze_encoder: bool = False

    def __post_init__(self, **kwargs):
        if self.encoder is not None:
            self._follow_encoder()
            for option in ("attn_implementation", "experts_implementation"):  # or transformers would reset them
                kwargs.setdefault(option, {"encoder": getattr(self.encoder, f"_{option}")})
        if self.embedding_size is None:
            self.embedding_size = self.num_features or self.hidden_size
        if self.bidirectional or self.encoder is not None:
            self.use_cache = False  # there is no state to continue from when the whole sequence is read
        super().__post_init__(**kwargs)

    def _follow_encoder(self) -> None:
        """Take the sizes that the encoder decides; `check_ranges` refuses others that were given."""
        self.encoder = make_encoder_config(self.encoder)  # type: ignore[arg-type]
        if self.embedding_size is None:
            self.embedding_size = getattr(self.encoder, "hidden_size", None)
        if self.vocab_size == type(self).__dataclass_fields__["vocab_size"].default:
            self.vocab_size = getattr(self.encoder, "vocab_size", self.vocab_size)

    def check_ranges(self) -> None:
        super().check_ranges()
        if self.encoder is None:
            self.require("freeze_encoder", "False without an encoder", not self.freeze_encoder)
        else:
            self._check_encoder(self.encoder)
        if self.num_features is not None:
            rule = f"num_features={self.num_features} (or left out), since features go into the first cell as they are"
            self.require("embedding_size", rule, self.embedding_size == self.num_features)
        self.require_probability(*DROPOUTS)
        for name in ("activation_reg", "temporal_activation_reg"):
            self.require(name, "at least 0 and finite", 0 <= getattr(self, name) < math.inf)
        if self.num_features is not None:
            self.require("embedding_dropout", "0 with num_features: there are no words", self.embedding_dropout == 0)

    def _check_encoder(self, encoder: Any) -> None:
        """The encoder's sizes, those that must agree with them, and what cannot stand beside an encoder."""
        self.require("num_features", "None with an encoder, which reads tokens", self.num_features is None)
        sizes = (("vocab_size", MOST_TOKENS), ("hidden_size", MOST_WIDTH), ("num_hidden_layers", MOST_LAYERS))
        for name, most in sizes:
            value = getattr(encoder, name, None)
            if not isinstance(value, int) or not 1 <= value <= most:
                raise ValueError(
                    f"{type(self).__name__}: encoder.{name}={value!r} is not allowed: it must be between 1 and {most}"
                )
        for name, value in (("embedding_size", encoder.hidden_size), ("vocab_size", encoder.vocab_size)):
            self.require(name, f"{value}, as in the encoder (or left out)", getattr(self, name) == value)
        rule = "with an encoder, whose embeddings are its own"
        self.require("tie_word_embeddings", f"False {rule}", not self.tie_word_embeddings)
        self.require("embedding_dropout", f"0 {rule}", self.embedding_dropout == 0)

    @property
    def output_size(self) -> int:
        return self.hidden_size * (2 if self.bidirectional else 1)

    @property
    def layer_types(self) -> list[str]:
        """Which cache layer transformers builds for each layer (see `shared_cache.py`)."""
        return ["seq_recurrent"] * self.num_hidden_layers

    def validate_layer_type(self):
        """The upstream check knows only transformers' own layer types; ours is the property above."""
