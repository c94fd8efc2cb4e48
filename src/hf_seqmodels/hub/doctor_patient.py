"""A checkpoint under examination: what is read from it, once each, and what a check reports."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..models.shared_configuration import KNOWN_KERNELS
from .files import list_files, read_json

INDEX = "model.safetensors.index.json"


class CannotExamine(ValueError):
    """What was named is no checkpoint that can be looked at: one line with the value, the rule and the way out."""


class DoesNotApply(Exception):
    """A check that means nothing for this checkpoint; the message says why."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: of the check.
        ok: None where the check does not apply, or what it found is not the checkpoint's fault; `measured` says why.
        measured: one line with the measured number.
        number: what was measured, where it is one number.
        limit: the largest `number` that passes.
        seconds: wall time.
    """

    name: str
    ok: bool | None
    measured: str
    number: float | None = None
    limit: float | None = None
    seconds: float = 0.0


def found(ok: bool | None, measured: str, number: float | None = None) -> Finding:
    """A finding; the doctor adds the name of the check."""
    return Finding("", ok, measured, number)


def within(number: float, limit: float, what: str) -> Finding:
    """Passes up to `limit`; NaN does not."""
    return Finding("", number <= limit, f"{number:.1e} (at most {limit:.0e}): {what}", number, limit)


def largest(numbers: Iterable[float]) -> float:
    """The largest number; NaN if one of them is, which `max` would miss."""
    return float(torch.tensor(list(numbers), dtype=torch.float64).max())


def some(problems: list[str], fine: str) -> Finding:
    """Fails with the first of the problems and their count, else says what is fine."""
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return found(not problems, f"{problems[0]}{more}" if problems else fine, float(len(problems)))


class Patient:
    """A folder with a checkpoint. Whatever is expensive is read when it is first asked for, and kept.

    Args:
        folder: holds config.json.
        trust: whether code in the folder may run.
        elsewhere: names of files that the repository holds beside those in the folder.

    Raises:
        CannotExamine: there is no config.json, it is no JSON object, it wants a kernel from a repository, or nobody
            knows its model type.
        UnsafeFolder: a link leads out of the folder.
    """

    def __init__(self, folder: Path, trust: bool = False, elsewhere: list[str] | None = None):
        self.folder, self.trust = folder, trust
        if not (folder / "config.json").is_file():
            raise CannotExamine(
                f"'{folder}' is no checkpoint: it has no config.json; name a folder that save_pretrained wrote, or a "
                "repository as user/name"
            )
        self.names = list_files(folder)
        self.elsewhere = sorted(set(elsewhere or []) - set(self.names))
        values = read_json(folder / "config.json")
        if not isinstance(values, dict):
            raise CannotExamine(f"'{folder / 'config.json'}' holds no JSON object; save the checkpoint again")
        self.values: dict[str, Any] = values
        refuse_unknown_kernels(values)
        self._refuse_unknown_type()

    def _refuse_unknown_type(self) -> None:
        kind, code = self.values.get("model_type"), self.values.get("auto_map")
        known = isinstance(kind, str) and kind in CONFIG_MAPPING
        if not known and not (code and self.trust):
            way = "its own code may know it: pass --trust_remote_code" if code else "nothing installed knows it"
            raise CannotExamine(f"config.json has model_type {json.dumps(kind)}: {way}")
        names = self.values.get("architectures") or []
        theirs = {str(where).split(".")[-1] for where in code.values()} if isinstance(code, dict) else set()
        if not isinstance(kind, str) or not known or self.trust or not names or names[0] not in theirs:
            return
        if self._local_class(CONFIG_MAPPING[kind]) is None:
            raise CannotExamine(f"{names[0]} is code in the folder: pass --trust_remote_code to let it run")

    # ---- configuration and class --------------------------------------------------------------------------------
    @cached_property
    def config(self) -> PreTrainedConfig:
        """The configuration as the model gets it."""
        return AutoConfig.from_pretrained(self.folder, trust_remote_code=self.trust)

    @property
    def text_config(self) -> Any:
        """The part of the configuration that speaks of tokens; mostly all of it."""
        return self.config.get_text_config()

    def _local_class(self, config_class: type[PreTrainedConfig]) -> tuple[str, Any] | None:
        """(Auto class, model class) of the first of `architectures`, if transformers or this package has it."""
        wanted = (self.values.get("architectures") or [None])[0]
        for auto, mapping in auto_mappings():
            classes = mapping.get(config_class, None)
            for cls in classes if isinstance(classes, tuple | list) else [classes]:
                if cls is not None and (cls.__name__ == wanted or (wanted is None and auto == "AutoModel")):
                    return auto, cls
        if isinstance(getattr(transformers, str(wanted), None), type):
            return "AutoModel", getattr(transformers, str(wanted))
        return None

    @cached_property
    def auto_and_class(self) -> tuple[str, Any]:
        """The Auto class that loads this checkpoint, and the class it finds.

        Raises:
            ValueError: `architectures` names a class that neither is installed nor lies in the folder.
        """
        local = self._local_class(type(self.config))
        if local is not None:
            return local
        wanted = (self.values.get("architectures") or ["nothing"])[0]
        code = self.values.get("auto_map") or {}
        for auto, where in code.items():
            if self.trust and isinstance(where, str) and where.split(".")[-1] == wanted:
                return auto, get_class_from_dynamic_module(where, str(self.folder))
        raise ValueError(f"architectures names {wanted}, which is no class for model_type {self.config.model_type}")

    @property
    def model_class(self) -> Any:
        """The class that the weights were saved from."""
        return self.auto_and_class[1]

    # ---- weights ------------------------------------------------------------------------------------------------
    @cached_property
    def weight_files(self) -> list[str]:
        """The files that hold the model's weights."""
        if INDEX in self.names:
            index = read_json(self.folder / INDEX)
            assert isinstance(index, dict)
            return sorted(set(index["weight_map"].values()))
        return [name for name in self.names if name == "model.safetensors"]

    def tensors(self) -> Iterator[tuple[str, Any]]:
        """(key, an open slice) of every tensor in the files, without reading it."""
        for name in self.weight_files:
            with safe_open(self.folder / name, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (it is no dict)
                    yield key, file.get_slice(key)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Key → shape in the files."""
        return {key: tuple(part.get_shape()) for key, part in self.tensors()}

    @cached_property
    def skeleton(self) -> PreTrainedModel:
        """The model that the configuration describes, without memory."""
        with torch.device("meta"):
            return self.model_class(self.config)

    # ---- models -------------------------------------------------------------------------------------------------
    def load(self, folder: Path | None = None, dtype: Any = "auto") -> tuple[Any, dict[str, Any]]:
        """A model in eval mode, and what transformers says about its keys."""
        model, info = self.model_class.from_pretrained(
            folder or self.folder, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
        return model.eval(), info

    @cached_property
    def saved_and_info(self) -> tuple[Any, dict[str, Any]]:
        """The model in the dtype it was saved in, with transformers' loading info."""
        return self.load()

    @property
    def saved(self) -> Any:
        """The model in the dtype it was saved in."""
        return self.saved_and_info[0]

    @cached_property
    def model(self) -> Any:
        """The model in fp32, in which numbers are compared."""
        plain = all(value.dtype == torch.float32 for value in self.saved.parameters())
        return self.saved if plain else self.load(dtype=torch.float32)[0]

    @cached_property
    def arguments(self) -> list[str]:
        """What `forward` names."""
        return list(inspect.signature(self.model_class.forward).parameters)

    @cached_property
    def takes_any_argument(self) -> bool:
        """Whether `forward` ends in `**kwargs`: Trainer takes that for a promise to use `num_items_in_batch`."""
        kinds = inspect.signature(self.model_class.forward).parameters.values()
        return any(each.kind is each.VAR_KEYWORD for each in kinds)


def place(source: Path, copy: Path) -> None:
    """Let a file lie at `copy` too: a second name where the file system can, else a copy. Never a link to it."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), copy)
    except OSError:
        shutil.copyfile(source, copy)


def auto_mappings() -> Iterator[tuple[str, Any]]:
    """(name, configuration class → model class) of every Auto class for models."""
    for name in dir(modeling_auto):
        mapping = getattr(getattr(modeling_auto, name), "_model_mapping", None)
        if name.startswith("AutoModel") and mapping is not None:
            yield name, mapping


def refuse_unknown_kernels(values: Any, where: str = "config.json") -> None:
    """Raise CannotExamine for an unknown implementation, at any depth: transformers would download and run it."""
    if isinstance(values, list):
        for value in values:
            refuse_unknown_kernels(value, where)
    if not isinstance(values, dict):
        return
    for key, value in values.items():
        option = key.removeprefix("_").removesuffix("_internal")
        given = list(value.values()) if isinstance(value, dict) else [value]
        unknown = [each for each in given if each is not None and each not in KNOWN_KERNELS.get(option, (each,))]
        if unknown:
            raise CannotExamine(
                f"{where} has {key} {json.dumps(unknown[0])}: known are {', '.join(KNOWN_KERNELS[option])}; other "
                "names are repositories whose code would run"
            )
        refuse_unknown_kernels(value, where)
