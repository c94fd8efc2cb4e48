"""Keras' SimpleRNN, LSTM and GRU, Bidirectional around them, and stacks of them, into ours.

Keras 3 on any backend. What differs from torch's layout:

- `kernel` (I, G·D) and `recurrent_kernel` (D, G·D) are our `weight_ih` and `weight_hh` transposed;
- LSTM: gates i, f, c, o are our i, f, g, o; GRU: gates z, r, h are our z, r, n, in another order;
- the GRU's z keeps the old state, as ours does: h_t = z ⊙ h_{t−1} + (1 − z) ⊙ hh;
- one bias, our `bias_ih`; the GRU with `reset_after=True` has two, (2, 3·D), our `bias_ih` and `bias_hh`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from .keras_files import TENSORS, layer_entries, read_keras_file
from .recurrent import Stack, compare
from .report import ImportReport
from .tensors import Tensors

CELLS = {"SimpleRNN": ("seq_rnn", 1), "LSTM": ("seq_lstm", 4), "GRU": ("seq_gru", 3)}
WITHOUT_WEIGHTS = ("InputLayer", "Dropout")  # do nothing in eval mode
OUR_ORDER = {1: (0,), 3: (1, 0, 2), 4: (0, 1, 2, 3)}  # the gates of Keras in our order


@dataclass(frozen=True)
class Cell:
    """One direction of one Keras layer.

    Attributes:
        name: of its tensors, in front of "/kernel".
        kind: "SimpleRNN", "LSTM" or "GRU".
        units: D.
        use_bias: whether it has a bias.
        options: of our configuration: `nonlinearity` of a SimpleRNN, `reset_after` of a GRU.
    """

    name: str
    kind: str
    units: int
    use_bias: bool
    options: dict[str, Any]

    @property
    def gates(self) -> int:
        """G: the kernels have G·D columns."""
        return CELLS[self.kind][1]

    def is_like(self, other: Cell) -> bool:
        """Whether both can be layers of one model of ours."""
        return (self.kind, self.units, self.options) == (other.kind, other.units, other.options)


Layer = tuple[Cell, ...]  # one cell, or a forward and a backward one
Weights = dict[str, dict[str, torch.Tensor]]  # cell's name → "kernel", "recurrent_kernel", "bias" in Keras' layout


def from_keras(source: Any, *, nonlinearity: str | None = None) -> tuple[PreTrainedModel, ImportReport]:
    """Keras layers as a model of features: `model(input_features=x)` with x (B, T, I).

    Args:
        source: a `SimpleRNN`, `LSTM` or `GRU` layer, a `Bidirectional` (merge_mode "concat") around one, a
            `Sequential` of such layers (`Dropout` may stand between them), or a file of such a model: `.keras`, a
            whole-model `.h5`, or `.weights.h5`. A file's code is never run: options and tensors are read without
            Keras.
        nonlinearity: "tanh" (default) or "relu", of the SimpleRNN in a `.weights.h5`, which tells no activations.

    Returns:
        The model in eval mode and fp32, without dropout, and its report. It gives the outputs of all steps
        (`return_sequences=True`).

    Raises:
        ValueError: a layer of another kind, an option that ours lacks (`go_backwards`, other activations), layers of
            different sizes, a tensor that is missing or does not fit (the first is named), or different outputs.
        ImportError: Keras, which the comparison needs, or h5py for files, is not installed.
    """
    if isinstance(source, str | Path):
        description, arrays, assumed = read_keras_file(Path(source), nonlinearity)
    elif nonlinearity is None:
        (description, arrays), assumed = _describe(source), ""
    else:
        raise ValueError(f"nonlinearity={nonlinearity} is for .weights.h5 files: a layer tells its activation")
    layers = read_layers(description)
    tensors = Tensors(
        {name: torch.as_tensor(array) for name, array in arrays.items()}, f"keras.layers.{layers[0][0].kind}"
    )
    weights = _take_all(tensors, layers)
    stack = to_stack(layers, weights, assumed)
    model = stack.build()
    return model, compare(tensors, stack, model, Reference(layers, weights))


def import_keras() -> Any:
    """Keras, on torch unless it is loaded already or `KERAS_BACKEND` says otherwise."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    try:
        import keras
    except ImportError as error:
        raise ImportError(f"importing from Keras needs Keras 3 ({error}): pip install keras h5py") from None
    return keras


def _describe(source: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The description and the tensors of a layer or a Sequential, as `read_keras_file` gives them."""
    cls = type(source)
    if not hasattr(source, "get_config") or cls.__module__.split(".")[0] != "keras":
        raise ValueError(f"from_keras takes a layer or Sequential of Keras 3, or a file, not a {cls.__name__}")
    arrays: dict[str, Any] = {}
    for layer in getattr(source, "layers", [source]):
        if not layer.built:
            raise ValueError(f"Keras: layer '{layer.name}' has no tensors yet: call it once, or build it")
        parts = {"": layer}
        if type(layer).__name__ == "Bidirectional":
            parts = {"forward/": layer.forward_layer, "backward/": layer.backward_layer}
        for direction, part in parts.items():
            for index, array in enumerate(part.get_weights()):
                arrays[f"{layer.name}/{direction}{TENSORS[index] if index < len(TENSORS) else index}"] = array
    return {"class_name": cls.__name__, "config": source.get_config()}, arrays


def read_layers(description: Any) -> list[Layer]:
    """Check the description of a stack of layers, and keep what counts.

    Raises:
        ValueError: the first layer or option that has no counterpart in our models.
    """
    layers: list[Layer] = []
    for kind, config in layer_entries(description):
        name = str(config.get("name"))
        if kind == "Bidirectional":
            layers.append(_read_bidirectional(name, config))
        elif kind in CELLS:
            layers.append((_read_cell(kind, config, name),))
        elif kind not in WITHOUT_WEIGHTS:
            raise ValueError(
                f"Keras: layer '{name}' is a {kind}: pass a SimpleRNN, LSTM or GRU, a Bidirectional around one, or a "
                "Sequential of such layers"
            )
    if not layers:
        raise ValueError("Keras: there is no SimpleRNN, LSTM or GRU in this model")
    first = layers[0]
    for layer in layers[1:]:
        if len(layer) != len(first) or not layer[0].is_like(first[0]):
            raise ValueError(
                f"Keras: layer '{layer[0].name}' is not like '{first[0].name}': one model of ours has layers of one "
                "kind, size and direction; import them one by one"
            )
    return layers


def _read_bidirectional(name: str, config: Mapping[str, Any]) -> Layer:
    merge = config.get("merge_mode")
    if merge != "concat":
        raise ValueError(f"Keras: layer '{name}' has merge_mode={merge!r}: only 'concat' is supported")
    ((kind, options),) = layer_entries(config.get("layer"))
    if kind not in CELLS:
        raise ValueError(f"Keras: layer '{name}' is a Bidirectional {kind}, not a SimpleRNN, LSTM or GRU")
    same = {"class_name": kind, "config": options}
    ((other, backwards),) = layer_entries(config.get("backward_layer") or same)
    if other != kind:
        raise ValueError(f"Keras: layer '{name}' reads forwards with a {kind} and backwards with a {other}")
    forward = _read_cell(kind, options, f"{name}/forward")
    backward = _read_cell(kind, {**backwards, "go_backwards": False}, f"{name}/backward")
    if not forward.is_like(backward) or forward.use_bias != backward.use_bias:
        raise ValueError(f"Keras: layer '{name}' reads backwards with other options than forwards")
    return forward, backward


def _read_cell(kind: str, config: Mapping[str, Any], name: str) -> Cell:
    allowed: dict[str, tuple[Any, ...]] = {"go_backwards": (False, None), "activation": ("tanh",)}
    if kind == "SimpleRNN":
        allowed["activation"] = ("tanh", "relu")
    else:
        allowed["recurrent_activation"] = ("sigmoid",)
    for option, values in allowed.items():
        value = config.get(option)
        if value not in values:
            known = " and ".join(repr(known) for known in values if known is not None)
            raise ValueError(f"Keras: layer '{name}' has {option}={value!r}: only {known} can be imported")
    units = config.get("units")
    if not isinstance(units, int) or units < 1:
        raise ValueError(f"Keras: layer '{name}' has units={units!r}: it must be a number of at least 1")
    options: dict[str, Any] = {"nonlinearity": config["activation"]} if kind == "SimpleRNN" else {}
    if kind == "GRU":
        options["reset_after"] = bool(config.get("reset_after", False))  # old files do not say: they reset before
    return Cell(name, kind, units, bool(config.get("use_bias", True)), options)


def _take_all(tensors: Tensors, layers: Sequence[Layer]) -> Weights:
    """Every cell's tensors, checked against the sizes in the description."""
    width = tensors.shape(f"{layers[0][0].name}/kernel", 2)[0]
    weights: Weights = {}
    for layer in layers:
        for cell in layer:
            columns = cell.gates * cell.units
            shapes: dict[str, tuple[int, ...]] = {"kernel": (width, columns)}
            shapes["recurrent_kernel"] = (cell.units, columns)
            if cell.use_bias:
                shapes["bias"] = (2, columns) if cell.options.get("reset_after") else (columns,)
            weights[cell.name] = {name: tensors.take(f"{cell.name}/{name}", *shape) for name, shape in shapes.items()}
        width = len(layer) * layer[0].units
    tensors.finish()
    return weights


def to_stack(layers: Sequence[Layer], weights: Weights, assumed: str = "") -> Stack:
    """Keras' weights under our names, in our layout and order of gates."""
    first = layers[0][0]
    ours = {}
    for index, layer in enumerate(layers):
        for cell, direction in zip(layer, ("", "_reverse"), strict=False):
            theirs = weights[cell.name]
            zeros = torch.zeros(cell.gates * cell.units, device="cpu")
            bias = theirs.get("bias", zeros)
            bias_ih, bias_hh = bias if bias.ndim == 2 else (bias, zeros)
            for name, tensor in (
                ("weight_ih", theirs["kernel"].T),
                ("weight_hh", theirs["recurrent_kernel"].T),
                ("bias_ih", bias_ih),
                ("bias_hh", bias_hh),
            ):
                gates = tensor.chunk(cell.gates)
                ours[f"{index}.{name}{direction}"] = torch.cat([gates[gate] for gate in OUR_ORDER[cell.gates]])
    model_type, input_size = CELLS[first.kind][0], len(weights[first.name]["kernel"])
    both = len(layers[0]) > 1
    return Stack(model_type, input_size, first.units, len(layers), both, first.options, assumed, ours)


class Reference:
    """Keras' own layers with the same weights, on the CPU, giving the outputs of all steps."""

    def __init__(self, layers: Sequence[Layer], weights: Weights):
        self.keras = import_keras()
        with self.keras.device("cpu"):
            self.layers = [self.build(layer, weights) for layer in layers]

    def build(self, layer: Layer, weights: Weights) -> Any:
        """One Keras layer."""
        cell, theirs = layer[0], {"nonlinearity": "activation"}  # our name of an option → Keras'
        options: dict[str, Any] = {theirs.get(name, name): value for name, value in cell.options.items()}
        options |= {"use_bias": cell.use_bias, "return_sequences": True, "dtype": "float32"}
        # Without a seed, and without fixed initial values, Keras would draw from Python's random state.
        options |= {"seed": 0, "kernel_initializer": "zeros", "recurrent_initializer": "zeros"}
        built = getattr(self.keras.layers, cell.kind)(cell.units, **options)
        parts = [built]
        if len(layer) > 1:
            built = self.keras.layers.Bidirectional(built, merge_mode="concat", dtype="float32")
            parts = [built.forward_layer, built.backward_layer]
        built.build((None, None, weights[cell.name]["kernel"].shape[0]))
        for part, source in zip(parts, layer, strict=True):
            part.set_weights([tensor.numpy() for tensor in weights[source.name].values()])
        return built

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Features (B, T, I) to hidden states (B, T, output_size)."""
        with self.keras.device("cpu"):
            y: Any = x.numpy()
            for layer in self.layers:
                y = layer(y, training=False)
            return torch.tensor(self.keras.ops.convert_to_numpy(y), device="cpu")
