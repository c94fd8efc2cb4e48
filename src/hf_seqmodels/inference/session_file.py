"""A session in a file: safetensors of the state, and in their header what they belong to."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

KEY, FORMAT = "hf_seqmodels_session", 1
# What may differ between a model and the same model loaded again, or does not reach its outputs.
NO_MATTER = {"architectures", "auto_map", "custom_pipelines", "dtype", "id2label", "label2id", "problem_type"}
NO_MATTER |= {"transformers_version", "use_cache", "return_dict", "output_attentions", "output_hidden_states"}
PLAIN = bool | int | float | str | None


class SessionFileError(ValueError):
    """A file that cannot be read as a session, or must not be written; names the file, the rule and the way out."""


# -- the state as named tensors ---------------------------------------------------------------------------------------
def flatten(cache: Any, carried: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Every tensor of a cache's layers and what is carried beside it, by name, and the layers' other attributes.

    Raises:
        SessionFileError: a layer holds something else.
    """
    tensors = {f"carried.{name}": tensor for name, tensor in carried.items()}
    layers: list[dict[str, Any]] = []
    for index, layer in enumerate(cache.layers):
        plain: dict[str, Any] = {}
        for name, value in vars(layer).items():
            if isinstance(value, torch.Tensor):
                tensors[f"layers.{index}.{name}"] = value
            elif isinstance(value, dict) and all(isinstance(each, torch.Tensor) for each in value.values()):
                tensors |= {f"layers.{index}.{name}.{key}": each for key, each in value.items()}
            elif isinstance(value, torch.dtype):
                plain[name] = {"dtype": str(value).removeprefix("torch.")}
            elif isinstance(value, torch.device):
                plain[name] = {"device": True}  # that of the model it is restored for
            elif isinstance(value, PLAIN):
                plain[name] = value
            else:
                raise SessionFileError(
                    f"{type(layer).__name__}.{name} is of type {type(value).__name__}: this state cannot be saved"
                )
        layers.append(plain)
    return tensors, layers


def unflatten(
    cache: Any, tensors: dict[str, torch.Tensor], layers: list[dict[str, Any]], device: torch.device
) -> dict[str, torch.Tensor]:
    """The inverse of [`flatten`]: fills the layers of a new cache and returns what is carried."""
    if len(layers) != len(cache.layers):
        raise SessionFileError(f"the session has {len(layers)} layers and the model {len(cache.layers)}")
    for layer, plain in zip(cache.layers, layers, strict=True):
        for name, value in plain.items():
            if name not in vars(layer) and name not in ("dtype", "device"):
                raise SessionFileError(f"a {type(layer).__name__} of this version has no '{name}'")
            if isinstance(value, dict):
                value = getattr(torch, value["dtype"]) if "dtype" in value else device
            setattr(layer, name, value)
    carried = {}
    for name, tensor in tensors.items():
        first, *rest = name.split(".")
        tensor = tensor.to(device)
        if first == "carried":
            carried[rest[0]] = tensor
            continue
        layer = cache.layers[int(rest[0])]
        if rest[1] not in vars(layer):
            raise SessionFileError(f"a {type(layer).__name__} of this version has no '{rest[1]}'")
        if len(rest) == 2:
            setattr(layer, rest[1], tensor)
        else:
            getattr(layer, rest[1])[".".join(rest[2:])] = tensor
    return carried


# -- which model it is ------------------------------------------------------------------------------------------------
def bytes_of(tensor: torch.Tensor) -> bytes:
    """The bits of a tensor of any dtype."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def hash_tensors(tensors: dict[str, torch.Tensor]) -> str:
    """sha256 of names, dtypes, shapes and bits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def describe_model(model: PreTrainedModel) -> dict[str, Any]:
    """Class, configuration and a hash of the weights."""
    config = {
        name: value
        for name, value in model.config.to_dict().items()
        if name not in NO_MATTER and not name.startswith("_")
    }
    return {
        "model_type": model.config.model_type,
        "class": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "config": json.loads(json.dumps(config, default=str)),
        "weights_sha256": hash_tensors(model.state_dict()),
    }


def check_model(path: Path, stored: dict[str, Any], model: PreTrainedModel) -> None:
    """Raise SessionFileError unless the model is the one the session was made with."""
    own = describe_model(model)
    for name in ("model_type", "class", "dtype"):
        if stored[name] != own[name]:
            raise SessionFileError(
                f"{path} is a session of {name} {stored[name]!r}, and this model's is {own[name]!r}"
            )
    for name in sorted(stored["config"].keys() | own["config"].keys()):
        there, here = stored["config"].get(name), own["config"].get(name)
        if there != here:
            raise SessionFileError(f"{path} is a session of a model with {name}={there!r}, and this one has {here!r}")
    if stored["weights_sha256"] != own["weights_sha256"]:
        raise SessionFileError(
            f"{path} is a session of other weights (sha256 {stored['weights_sha256'][:12]}…, this model's "
            f"{own['weights_sha256'][:12]}…): load the checkpoint it was made with"
        )


# -- the file ---------------------------------------------------------------------------------------------------------
def write_session(
    path: Path, model: PreTrainedModel, cache: Any, carried: dict[str, torch.Tensor], facts: dict[str, Any]
) -> Path:
    """Write a file beside `path` and rename it; see `StreamingSession.save`."""
    if path.suffix != ".safetensors":
        raise SessionFileError(f"{path}: sessions are safetensors files; end the name in .safetensors")
    if not path.parent.is_dir():
        raise SessionFileError(f"{path}: there is no folder {path.parent}; make it first")
    if path.exists() or path.is_symlink():
        _open(path)  # raises unless it is a session
    tensors, layers = flatten(cache, carried)
    # Copies: a state may be a view of another tensor, of which a file would hold all.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    facts = {"format": FORMAT, "model": describe_model(model), "layers": layers, **facts}
    text = json.dumps(facts, sort_keys=True)
    metadata = {KEY: text, "sha256": _seal(text, tensors)}
    staged = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(tensors, staged, metadata=metadata)
        with staged.open("rb") as file:
            os.fsync(file.fileno())
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
    return path


def read_session(
    path: Path, model: PreTrainedModel
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]], dict[str, Any]]:
    """Tensors, layers' attributes and facts of a session of this model; see `StreamingSession.restore`."""
    tensors, metadata = _open(path)
    text = metadata[KEY]
    if metadata.get("sha256") != _seal(text, tensors):
        raise SessionFileError(f"{path} was changed after it was saved (sha256 differs): take an earlier copy")
    facts = json.loads(text)
    if facts.get("format") != FORMAT:
        raise SessionFileError(f"{path} has format {facts.get('format')!r}, this version reads {FORMAT}")
    check_model(path, facts["model"], model)
    return tensors, facts["layers"], facts


def _seal(text: str, tensors: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(f"{text}\n{hash_tensors(tensors)}".encode()).hexdigest()


def _open(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and header of a safetensors file that holds a session."""
    if not path.is_file():
        raise SessionFileError(f"{path} is no file: give the one that StreamingSession.save wrote")
    try:
        with safe_open(path, framework="pt") as file:
            metadata, names = file.metadata() or {}, list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names} if KEY in metadata else {}
    except (SafetensorError, OSError) as error:
        raise SessionFileError(f"{path} is no whole safetensors file ({error}): take an earlier copy") from error
    if KEY not in metadata:
        raise SessionFileError(f"{path} holds no session but other tensors: choose another file")
    return tensors, metadata
