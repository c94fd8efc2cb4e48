"""What the configurations of all architectures share: sizes, regularisation, range checks, and the shipped code."""

import difflib
import os
import shutil
import sys
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

from ._versions import PreTrainedConfig, strict

# Largest sizes that are accepted, so that a broken file fails here and not in the allocator.
MOST_LAYERS, MOST_WIDTH, MOST_TOKENS = 1_000, 1_000_000, 100_000_000

# Other names are repositories, whose code transformers would download and run.
KNOWN_KERNELS = {
    "attn_implementation": ("eager", "sdpa", "flex_attention", *(f"flash_attention_{n}" for n in (2, 3, 4))),
    "experts_implementation": ("eager", "batched_mm", "grouped_mm"),
}


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
        ValueError: a value is out of range, or a key looks like a misspelt option.
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
        self._refuse_misspelt(kwargs)
        self.check_ranges()  # first: transformers asks for `layer_types`, a list as long as the layers are many
        super().__post_init__(**kwargs)

    def _refuse_misspelt(self, unknown: dict) -> None:
        """`@strict` lets unknown keys through as attributes; one that resembles an option is a typing error."""
        known = list(type(self).__dataclass_fields__)
        for key in unknown:
            if not key.startswith("_") and not hasattr(type(self), key):
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

    def validate_architecture(self):
        """Called by `@strict`: the same rules again, so that a changed configuration is not saved broken."""
        self.check_ranges()

    @property
    def output_size(self) -> int:
        """Width of the backbone's output, which every head reads."""
        return self.hidden_size

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs):
        """As in transformers; when `auto_map` names modelling files, they are written beside config.json."""
        if getattr(self, "auto_map", None):
            _copy_code(type(self), set(self.auto_map.values()), Path(save_directory))
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)


def refuse_unknown_kernels(settings: dict) -> None:
    """Raise ValueError if settings of a configuration name kernels that are not transformers' own."""
    for key, value in settings.items():
        known = KNOWN_KERNELS.get(key.removeprefix("_").removesuffix("_internal"), ())
        for name in value.values() if isinstance(value, dict) else [value]:
            if known and name is not None and name not in known:
                raise ValueError(
                    f"{key}={name!r} is not allowed in a configuration: it must be one of "
                    f"{', '.join(map(repr, known))} (set other kernels on the model, after loading it)"
                )


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
