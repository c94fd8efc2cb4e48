"""What every model of ours shares: checked loading, saving together with the code, initialisation, the cache."""

import json
import sys
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from .shared_cache import RecurrentCacheLayer
from .shared_inputs import refuse_misspelt

INDEX_ENDING = ".safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
MOST_NEW_BYTES = 64 << 20  # of a new head on a small model; on a larger one four times what was loaded
PICKLES_STAY_SHUT = (
    "only safetensors are read, since opening a pickle can run its code; to convert one that you trust, call "
    "from_pretrained(None, config=…, state_dict=torch.load(…, weights_only=True)) and save_pretrained"
)


class SequencePreTrainedModel(PreTrainedModel):
    """Base class of all models.

    - `save_pretrained` (and so `push_to_hub` and Trainer) writes the modelling files and the `auto_map` of all heads,
      so that `AutoModel….from_pretrained(folder, trust_remote_code=True)` works without this package.
    - `from_pretrained` raises when a tensor of the backbone is missing; only a new head may be. It reads safetensors
      alone, and no weights outside the folder that it is given.
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
        if getattr(config, "num_features", None) is not None and self.main_input_name == "input_ids":
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

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in transformers; NotImplementedError where there is no table of tokens."""
        try:
            table = self.get_input_embeddings()
        except NotImplementedError:  # transformers' own, where it finds none
            table = None
        if table is None:  # the error that transformers' callers expect of a model without one
            raise NotImplementedError(f"{type(self).__name__} reads features: there is no table of tokens to resize")
        return super().resize_token_embeddings(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """As in transformers, but a missing tensor raises unless it belongs to a head that the checkpoint never had.

        Raises:
            ValueError: tensors of the backbone, or of a head that the checkpoint was saved with, are missing; the
                weights are pickles, lie outside the folder, or are damaged.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        if kwargs.pop("use_safetensors", None) is False:
            raise ValueError(f"use_safetensors=False is not allowed: {PICKLES_STAY_SHUT}")
        if pretrained_model_name_or_path is not None:
            refuse_unsafe_weights(Path(pretrained_model_name_or_path, kwargs.get("subfolder") or ""))
            kwargs["use_safetensors"] = True
        try:
            loaded: Any = super().from_pretrained(
                pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
            )
        except OSError as error:
            if "use_safetensors" in str(error):  # transformers' advice to leave it out
                raise OSError(
                    f"{pretrained_model_name_or_path} has no model.safetensors: {PICKLES_STAY_SHUT}"
                ) from None
            raise
        except (ValueError, RuntimeError, ImportError):
            raise
        except Exception as error:  # safetensors' own for a damaged file, or wherever a broken value surfaced
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ValueError(f"{pretrained_model_name_or_path} cannot be loaded: {reason}") from error
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

    def _move_missing_keys_from_meta_to_device(self, missing_keys: Any, *args: Any, **kwargs: Any) -> None:
        """Here transformers allocates what a checkpoint lacks, even when it is about to raise for that reason.

        Raises:
            ValueError: that is far more than the checkpoint holds: the sizes in the configuration are not its own.
        """
        sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in self.named_parameters()}
        new = sum(sizes[name] for name in set(missing_keys) & sizes.keys())
        loaded = sum(sizes.values()) - new
        if new > MOST_NEW_BYTES + 4 * loaded:
            raise ValueError(
                f"the configuration asks for {new:,} bytes of weights beside {loaded:,} in the checkpoint: it is not "
                "the configuration that the checkpoint was saved with"
            )
        super()._move_missing_keys_from_meta_to_device(missing_keys, *args, **kwargs)

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


def refuse_unsafe_weights(path: Path) -> None:
    """Look at a folder (or a file of weights) before anything in it is opened; what is no path is left to the Hub.

    Raises:
        ValueError: the weights are pickles only, or an index or a link leads out of the folder.
    """
    if path.is_file() and path.suffix != ".safetensors":
        raise ValueError(f"{path} is no .safetensors file: {PICKLES_STAY_SHUT}")
    folder = path.parent if path.is_file() else path
    files = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else []
    weights = [file for file in files if file.name.endswith((".safetensors", INDEX_ENDING))]
    names = {file.name for file in weights}
    for file in files:
        adapter = file.name == "adapter_model.bin" and "adapter_model.safetensors" not in names
        if adapter or (file.suffix in PICKLES and not weights):
            raise ValueError(f"{file} is a pickle: {PICKLES_STAY_SHUT}")
    for index in (file for file in weights if file.name.endswith(INDEX_ENDING)):
        for name in _shards(index):
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                raise ValueError(f"{index} names {name!r}: shards are .safetensors files beside the index")
    home = folder.resolve()
    for parent in home.parents:  # in the Hub's cache, snapshots are links to blobs beside them
        if parent.name == "snapshots" and (parent.parent / "blobs").is_dir():
            home = parent.parent
    for file in weights:
        if not file.resolve().is_relative_to(home):
            raise ValueError(f"{file} is a link out of its folder: put the file itself there")


def _shards(index: Path) -> list:
    try:
        return list(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is no index of weights ({type(error).__name__}): save the model again") from None


__all__ = ["RecurrentCacheLayer", "SequencePreTrainedModel"]
