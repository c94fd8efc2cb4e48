"""What the configurations of all architectures share: sizes, regularisation, range checks, and the shipped code."""

import difflib
import os
import shutil
import sys
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

from .shared_versions import PreTrainedConfig, strict

# Largest sizes that are accepted, so that a broken file fails here and not in the allocator.
MOST_LAYERS, MOST_WIDTH, MOST_TOKENS = 1_000, 1_000_000, 100_000_000
MOST_LABELS, MOST_DEPTH = 100_000, 64  # of a JSON file: levels of brackets

# Other names are repositories, whose code transformers would download and run.
KNOWN_KERNELS = {
    "attn_implementation": ("eager", "sdpa", "flex_attention", *(f"flash_attention_{n}" for n in (2, 3, 4))),
    "experts_implementation": ("eager", "batched_mm", "grouped_mm"),
}

# Options that not every architecture has, by who has them. A configuration would keep one of another architecture as
# an attribute that nobody reads. (`decoder_start_token_id` is missing: transformers puts it into any configuration.)
OPTIONS_OF = {
    "recurrent layers": (
        "embedding_size", "bidirectional", "weight_init", "bias_init", "chrono_max_time", "weight_drop",
        "weight_noise", "layer_norm",
    ),
    "recurrent networks with one stack of layers": (
        "input_dropout", "output_dropout", "variational_dropout", "embedding_dropout", "activation_reg",
        "temporal_activation_reg", "residual", "encoder", "freeze_encoder",
    ),
    "RNN cells": ("nonlinearity",),
    "LSTM cells": ("peephole", "forget_bias"),
    "GRU cells": ("reset_after", "update_bias"),
    "attention-RNNs": ("cell", "score"),
    "seq_attention_rnn": ("window",),
    "seq_attention_rnn_seq2seq": ("input_feeding",),
    "seq_conv_lstm": ("num_channels", "kernel_size", "image_size", "loss"),
    "encoder–decoders": ("num_decoder_layers", "share_embeddings"),
    "language models": ("lm_head_bias",),
    "models of features": ("num_features",),
    "architectures with one stack of layers": (
        "classifier_dropout", "crf", "ctc_loss_reduction", "ctc_zero_infinity", "inputs_to_logits_ratio",
        "num_time_features", "distribution_output", "num_mixtures", "scaling", "context_loss", "num_parallel_samples",
    ),
    "models that predict series": ("prediction_length",),
    "Transformers": (
        "num_attention_heads", "head_dim", "intermediate_size", "hidden_act", "use_bias", "norm", "norm_position",
        "norm_eps", "final_norm", "positions", "max_position_embeddings", "rope_theta",
        "relative_attention_num_buckets", "relative_attention_max_distance", "attention_dropout",
    ),
    "Transformers with one stack of layers": (
        "attention_pattern", "attention_window", "num_global_tokens", "num_hashes", "num_buckets", "lsh_chunk_length",
        "hash_seed", "feed_forward_chunk",
    ),
    "seq_transformer_encoder": ("type_vocab_size", "embedding_norm", "pooling", "lm_head_transform"),
}  # fmt: skip


@strict
class SequenceConfig(PreTrainedConfig):
    """Options every architecture has.

    Args:
        vocab_size (`int`, defaults to 10000): number of tokens V.
        hidden_size (`int`, defaults to 256): width D of a layer's output (per direction).
        num_hidden_layers (`int`, defaults to 1): how many layers are stacked.
        dropout (`float`, defaults to 0.0): dropout probability; where it acts is said by the architecture.
        initializer_range (`float`, defaults to 0.02): standard deviation of embeddings and linear layers.
        tie_word_embeddings (`bool`, defaults to False): the output head shares the embedding matrix.
        use_cache (`bool`, defaults to True): return the state (`past_key_values`).

    Raises:
        ValueError: a value is out of range, or a key looks like a misspelt option or is one of another architecture.
    """

    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 10_000
    hidden_size: int = 256
    num_hidden_layers: int = 1
    dropout: float | int = 0.0
    initializer_range: float | int = 0.02
    tie_word_embeddings: bool = False
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        refuse_unknown_kernels(kwargs)
        refuse_strange_settings(kwargs)
        self._refuse_misspelt(kwargs)
        self.check_ranges()  # first: transformers asks for `layer_types`, a list as long as the layers are many
        super().__post_init__(**kwargs)

    def _refuse_misspelt(self, unknown: dict) -> None:
        """`@strict` lets unknown keys through as attributes; one that resembles an option is a typing error, and one
        of another architecture would have no effect.
        """
        known = list(type(self).__dataclass_fields__)
        for key in unknown:
            if key.startswith("_") or hasattr(type(self), key) or key in (self.attribute_map or {}):
                continue
            for owner, options in OPTIONS_OF.items():
                if key in options:
                    raise ValueError(
                        f"{type(self).__name__} has no option '{key}', which belongs to {owner}: leave it out"
                    )
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.85)
            if near:
                raise ValueError(f"{type(self).__name__} has no option '{key}': did you mean '{near[0]}'?")

    def require(self, name: str, rule: str, holds: bool) -> None:
        """Raise a one-line ValueError that names the option, its value and the rule, unless `holds`."""
        if not holds:
            raise ValueError(
                f"{type(self).__name__}: {name}={getattr(self, name)!r} is not allowed: it must be {rule}"
            )

    def require_probability(self, *names: str) -> None:
        """Raise ValueError unless each named option is a probability that leaves something: 0 ≤ p < 1."""
        for name in names:
            self.require(name, "at least 0 and below 1", 0 <= getattr(self, name) < 1)

    def check_ranges(self) -> None:
        """Every value in its range (NaN is in none); architectures add their own rules."""
        for name, most in (
            ("vocab_size", MOST_TOKENS),
            ("hidden_size", MOST_WIDTH),
            ("num_hidden_layers", MOST_LAYERS),
        ):
            self.require(name, f"between 1 and {most}", 1 <= getattr(self, name) <= most)
        self.require_probability("dropout")
        rule = f"None or a token id, 0 to vocab_size − 1 = {self.vocab_size - 1}"
        self.require("pad_token_id", rule, self.pad_token_id is None or 0 <= self.pad_token_id < self.vocab_size)
        self.require("initializer_range", "above 0 and at most 1", 0 < self.initializer_range <= 1)
        self.require("architectures", "a list of class names", isinstance(self.architectures or [], list | tuple))

    def validate_architecture(self):
        """Called by `@strict`: the same rules again, so that a changed configuration is not saved broken."""
        self.check_ranges()

    @property
    def output_size(self) -> int:
        """Width of the backbone's output, which every head reads."""
        return self.hidden_size

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As in transformers; ValueError for JSON that is no object or nests without end."""
        try:
            return super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        except (RecursionError, TypeError, AttributeError) as error:
            raise ValueError(
                f"the config.json of {pretrained_model_name_or_path} holds no configuration ({_in_a_line(error)}): "
                "save the model again"
            ) from None

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers; whatever is wrong in a file raises ValueError, in one line that names this class."""
        if not isinstance(config_dict, dict):
            raise ValueError(f"{cls.__name__}: a configuration is a JSON object, not {config_dict!r:.80}")
        _refuse_deep(config_dict)
        try:
            return super().from_dict(config_dict, **kwargs)
        except (ValueError, OSError):
            raise
        except Exception as error:  # of `@strict`, or wherever in transformers a value of a strange type arrives
            raise ValueError(f"{cls.__name__}: the configuration is broken: {_in_a_line(error)}") from error

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs):
        """As in transformers; when `auto_map` names modelling files, they are written beside config.json."""
        if getattr(self, "auto_map", None):
            _copy_code(type(self), set(self.auto_map.values()), Path(save_directory))
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)


def refuse_unknown_kernels(settings: dict) -> None:
    """Raise ValueError if settings of a configuration name kernels that are not transformers' own."""
    for key, value in settings.items():
        known = KNOWN_KERNELS.get(str(key).removeprefix("_").removesuffix("_internal"), ())
        for name in value.values() if isinstance(value, dict) else [value]:
            if known and name is not None and name not in known:
                raise ValueError(
                    f"{key}={name!r} is not allowed in a configuration: it must be one of "
                    f"{', '.join(map(repr, known))} (set other kernels on the model, after loading it)"
                )


def refuse_strange_settings(settings: dict) -> None:
    """Raise ValueError for what transformers would follow out of a configuration without looking at it."""
    if settings.get("transformers_weights") is not None:  # it may be a pickle, or an index that names other files
        raise ValueError(
            f"transformers_weights={settings['transformers_weights']!r} is not allowed in a configuration: weights "
            "are read from model.safetensors, or from the shards of its index"
        )
    labels = settings.get("num_labels")
    if labels is not None and not (isinstance(labels, int) and 0 <= labels <= MOST_LABELS):
        raise ValueError(f"num_labels={labels!r} is not allowed: it must be a whole number from 0 to {MOST_LABELS}")


def _refuse_deep(config_dict: dict) -> None:
    """Raise ValueError for values nested so deeply that copying them would fail."""
    level: list = [config_dict]
    for _ in range(MOST_DEPTH):
        insides = [value.values() if isinstance(value, dict) else value for value in level]
        level = [inner for inside in insides for inner in inside if isinstance(inner, dict | list)]
    if level:
        raise ValueError(f"the configuration nests more than {MOST_DEPTH} levels deep: save the model again")


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _copy_code(config_class: type, references: set[str], folder: Path) -> None:
    """Copy the files that `references` ("modeling_x.Class") name, and all they import, unchanged into `folder`.

    Exported code is loaded from two folders: a configuration's own holds only what it imports itself, and the rest is
    copied by transformers from the model's. So what is not beside the configuration is left out here.
    """
    own_file = Path(sys.modules[config_class.__module__].__file__ or "")
    named = {own_file.with_name(reference.split(".")[0] + ".py") for reference in references}
    sources = {source for source in named if source.exists()}
    sources |= {Path(needed) for source in sources for needed in get_relative_import_files(source)}
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        if source.parent.resolve() != folder.resolve():
            shutil.copyfile(source, folder / source.name)
