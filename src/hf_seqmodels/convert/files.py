"""Tensors out of files: safetensors; pickles (.pt, .pth, .bin) only when asked for, and then tensors only."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..config import one_line

PICKLES = (".pt", ".pth", ".bin")
INDEX = "model.safetensors.index.json"
NESTED = ("state_dict", "model_state_dict", "model")  # where checkpoints of training loops keep the weights


def read_tensors(path: str | Path, torch_load: bool = False) -> dict[str, torch.Tensor]:
    """The named tensors in a file, or in the weights file of a folder.

    Args:
        path: a `.safetensors` file, a folder with one (or with several and their index), or a `.pt`, `.pth` or `.bin`
            file.
        torch_load: allow the last three, read with `torch.load(weights_only=True)`, which refuses whatever is not a
            tensor or a plain container. They are pickles: without that restriction opening one runs its code.

    Raises:
        ValueError: there is no such file, it is of another kind, damaged, or a pickle that was not asked for.
    """
    path = Path(path)
    if path.is_dir():
        path = _find_weights(path, torch_load)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: name a file with weights, or a folder that holds one")
    if path.name == INDEX:
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in PICKLES:
        return _read_pickle(path, torch_load)
    raise ValueError(f"{path} is of no known kind: weights come as .safetensors, or as {', '.join(PICKLES)}")


def _find_weights(folder: Path, torch_load: bool) -> Path:
    """The one file of weights in a folder; safetensors before pickles."""
    if (folder / INDEX).is_file():
        return folder / INDEX
    files = sorted(folder.glob("*.safetensors"))
    pickles = sorted(path for path in folder.iterdir() if path.suffix in PICKLES)
    if not files and torch_load:
        files = pickles
    if not files and pickles:
        return pickles[0]  # refused below, with the way out
    if len(files) != 1:
        found = "no weights" if not files else f"{len(files)} files of weights"
        raise ValueError(f"{folder} holds {found}: name one .safetensors file")
    return files[0]


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors, it is damaged: {one_line(error)}") from None


def _read_shards(index: Path) -> dict[str, torch.Tensor]:
    """All files that the index names; each must lie beside it, since a file may not choose what else is read."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{index} is not an index of safetensors files: {one_line(error)}") from None
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{index} names '{name}': only .safetensors files beside the index are read")
        if not (index.parent / name).is_file():
            raise ValueError(f"{index} names '{name}', which does not exist")
        tensors |= _read_safetensors(index.parent / name)
    return tensors


def _read_pickle(path: Path, allowed: bool) -> dict[str, torch.Tensor]:
    if not allowed:
        raise ValueError(
            f"{path} is a pickle, which can run code when it is opened: save it as .safetensors, or pass --torch_load "
            "to read it with torch.load(weights_only=True)"
        )
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} holds Python objects beside tensors, or is damaged; they are not loaded: save "
            "model.state_dict() in place of the model"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read by torch.load: {one_line(error)}") from None
    return _only_tensors(path, loaded)


def _only_tensors(path: Path, loaded: Any) -> dict[str, torch.Tensor]:
    """The state dict itself, or the one that a training loop's checkpoint holds."""
    if isinstance(loaded, Mapping):
        loaded = next((loaded[key] for key in NESTED if isinstance(loaded.get(key), Mapping)), loaded)
    if not isinstance(loaded, Mapping) or not loaded:
        raise ValueError(f"{path} holds no state dict: save model.state_dict()")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ValueError(f"{path}: '{name}' is not a tensor: save model.state_dict() alone")
    return dict(loaded)
