"""Keras' files read without Keras: the description of the layers (JSON) and their tensors (HDF5), never code."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .recurrent import count_gates

TENSORS = ("kernel", "recurrent_kernel", "bias")  # the order in which a cell keeps them
# Class → its name in a .keras file.
FOLDERS = {"SimpleRNN": "simple_rnn", "LSTM": "lstm", "GRU": "gru", "Bidirectional": "bidirectional"}
KINDS = {1: "SimpleRNN", 3: "GRU", 4: "LSTM"}  # by the number of gates

Arrays = dict[str, Any]  # "lstm/kernel", "bidirectional/forward/kernel", … → numpy array


def layer_entries(description: Any) -> list[tuple[str, dict[str, Any]]]:
    """Class name and options of every layer in the description of a layer or of a Sequential.

    Raises:
        ValueError: it is none, or names a class that is not Keras' own.
    """
    if not isinstance(description, Mapping) or not isinstance(description.get("config"), Mapping):
        raise ValueError("Keras: this is not the description of a layer or a Sequential")
    name, config = str(description.get("class_name")), dict(description["config"])
    module, registered = str(description.get("module") or "keras"), description.get("registered_name")
    if module.split(".")[0] != "keras" or registered not in (None, name):
        raise ValueError(f"Keras: class '{name}' of layer '{config.get('name')}' is not Keras' own ({module})")
    if name == "Sequential":
        return [entry for layer in config.get("layers", ()) for entry in layer_entries(layer)]
    return [(name, config)]


def read_keras_file(path: Path, nonlinearity: str | None = None) -> tuple[Any, Arrays, str]:
    """The description of a model, its tensors, and what of the description had to be assumed.

    Args:
        path: `.keras`, `.weights.h5` (whose description is inferred), or `.h5` of a whole model.
        nonlinearity: of the SimpleRNN in a `.weights.h5`.

    Raises:
        ValueError: the file does not exist, is of another kind, or damaged; a nonlinearity is not asked for.
        ImportError: h5py is not installed.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist: name a .keras, .h5 or .weights.h5 file")
    if path.suffix not in (".keras", ".h5"):
        raise ValueError(f"{path} is of no known kind: Keras' files end in .keras, .h5 or .weights.h5")
    weights_only = path.name.endswith(".weights.h5")
    if nonlinearity is not None and not weights_only:
        raise ValueError(f"nonlinearity={nonlinearity} is for .weights.h5 files: {path} tells its activations")
    h5py = _import_h5py()
    try:
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                description = json.loads(archive.read("config.json"))
                weights = io.BytesIO(archive.read("model.weights.h5"))
            with h5py.File(weights) as file:
                return description, _read_new(file, _folders(description)), ""
        with h5py.File(path) as file:
            if weights_only:
                arrays = _read_new(file, {name: name for name in _recurrent_folders(file)})
                return _infer(arrays, nonlinearity), arrays, _assumptions(arrays, nonlinearity)
            if "model_config" not in file.attrs:
                raise ValueError(f"{path} holds no model, weights alone are read from .weights.h5 (Keras 3)")
            description = json.loads(file.attrs["model_config"])
            return description, _read_legacy(file["model_weights"], layer_entries(description)), ""
    except (OSError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} cannot be read, it is damaged or of another kind: {' '.join(str(error).split())}"
        ) from None


def _import_h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise ImportError("Keras' files need h5py: pip install keras h5py") from None
    return h5py


def _array(file: Any, group: Any, name: str) -> Any:
    """A tensor; HDF5 can point into other files, which a file from elsewhere shall not choose."""
    dataset = group[name]
    if not hasattr(dataset, "shape"):
        raise KeyError(f"'{group.name}/{name}' is no tensor")
    if dataset.file.filename != file.filename or dataset.external or dataset.is_virtual:
        raise ValueError(f"Keras: tensor '{group.name}/{name}' points into another file, which is not followed")
    return dataset[()]


def _folders(description: Any) -> dict[str, str]:
    """Folder in a .keras file → name of the layer: the class in snake case, counted."""
    count: dict[str, int] = {}
    folders = {}
    for kind, config in layer_entries(description):
        folder = FOLDERS.get(kind)
        if folder is not None:
            number = count[folder] = count.get(folder, -1) + 1
            folders[f"{folder}_{number}" if number else folder] = config["name"]
    return folders


def _read_new(file: Any, folders: Mapping[str, str]) -> Arrays:
    """Keras 3: layers/lstm_1/cell/vars/0, or layers/bidirectional/forward_layer/cell/vars/0."""
    arrays: Arrays = {}
    for folder, name in folders.items():
        for part, direction in (
            ("cell", ""),
            ("forward_layer/cell", "forward/"),
            ("backward_layer/cell", "backward/"),
        ):
            group = file.get(f"layers/{folder}/{part}/vars", {})
            for index, key in enumerate(sorted(group, key=int)):
                tensor = TENSORS[index] if index < len(TENSORS) else key
                arrays[f"{name}/{direction}{tensor}"] = _array(file, group, key)
    return arrays


def _read_legacy(weights: Any, entries: list[tuple[str, dict[str, Any]]]) -> Arrays:
    """A whole-model .h5: each layer lists its tensors' names, a Bidirectional first the forward ones."""
    arrays: Arrays = {}
    for kind, config in entries:
        if kind not in FOLDERS:
            continue
        group = weights[config["name"]]
        names = [name.decode() if isinstance(name, bytes) else str(name) for name in group.attrs["weight_names"]]
        for index, name in enumerate(names):
            direction = ("forward/" if 2 * index < len(names) else "backward/") if kind == "Bidirectional" else ""
            tensor = name.rsplit("/", 1)[-1].removesuffix(":0")
            arrays[f"{config['name']}/{direction}{tensor}"] = _array(weights.file, group, name)
    return arrays


def _recurrent_folders(file: Any) -> list[str]:
    """The layers of a .weights.h5 in their order, which only their numbers tell."""
    groups = file.get("layers", {})
    names = [name for name in groups if _has_tensors(groups[name])]
    kinds = {re.sub(r"_\d+$", "", name) for name in names}
    if len(kinds) != 1 or not kinds <= set(FOLDERS.values()):
        raise ValueError(
            f"Keras: this file holds weights of {', '.join(sorted(names)) or 'no layers'}, without their order: save "
            "a Sequential of recurrent layers of one kind, or the whole model as .keras"
        )
    return sorted(names, key=lambda name: (len(name), name))


def _has_tensors(group: Any) -> bool:
    found: list[str] = []
    group.visititems(lambda name, item: found.append(name) if "vars/" in name and hasattr(item, "shape") else None)
    return bool(found)


def _infer(arrays: Arrays, nonlinearity: str | None) -> dict[str, Any]:
    """The description that fits the tensors of a .weights.h5, with the usual activations."""
    layers = []
    for name in dict.fromkeys(name.split("/")[0] for name in arrays):
        both = f"{name}/forward/kernel" in arrays
        cell = _infer_cell(arrays, f"{name}/forward" if both else name, nonlinearity)
        if both:
            cell = {"class_name": "Bidirectional", "config": {"name": name, "merge_mode": "concat", "layer": cell}}
        layers.append(cell)
    return {"class_name": "Sequential", "config": {"layers": layers}}


def _infer_cell(arrays: Arrays, name: str, nonlinearity: str | None) -> dict[str, Any]:
    shape = arrays[f"{name}/recurrent_kernel"].shape
    gates = count_gates(shape[1], shape[0])
    if gates is None:
        raise ValueError(f"Keras: tensor '{name}/recurrent_kernel' has shape {shape}, expected (D, 1, 3 or 4 times D)")
    if gates > 1 and nonlinearity is not None:
        raise ValueError(f"nonlinearity={nonlinearity} is an option of the SimpleRNN, not of the {KINDS[gates]}")
    bias = arrays.get(f"{name}/bias")
    config = {"name": name, "units": shape[0], "activation": nonlinearity or "tanh", "use_bias": bias is not None}
    if gates > 1:
        config["recurrent_activation"] = "sigmoid"
    if gates == 3:
        config["reset_after"] = bias is None or bias.ndim == 2  # without a bias nothing tells, and this is the default
    return {"class_name": KINDS[gates], "config": config}


def _assumptions(arrays: Arrays, nonlinearity: str | None) -> str:
    """What `_infer` could not read off the tensors."""
    assumed = [] if nonlinearity is not None else ["the usual activations"]
    if not any(name.endswith("bias") for name in arrays) and any(
        name.endswith("/recurrent_kernel") and count_gates(array.shape[1], array.shape[0]) == 3
        for name, array in arrays.items()
    ):
        assumed.append("reset_after=True")
    return ", ".join(assumed)
