"""What is traced for ONNX: the whole sequence, one step with explicit state, and the recurrence as ONNX's operators.

Shapes: B batch, T time, P past, I input width, D hidden, H heads, K head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from ..models import shared_recurrent_model
from ..models.shared_inputs import argument_names
from ..models.shared_recurrence import RecurrentLayer, States, ValidSteps

# ONNX's order of gates, as places in ours: LSTM i, f, g, o → i, o, f, g; GRU r, z, n → z, r, n.
_OPERATORS = {1: ("RNN", [0]), 3: ("GRU", [1, 0, 2]), 4: ("LSTM", [0, 3, 1, 2])}


class RecurrentOperator(nn.Module):
    """A layer over whole sequences as ONNX's RNN, GRU or LSTM, which know peepholes and both kinds of reset.

    Stands for `RecurrentLayer.run` while a program is made of the model. Each row's valid steps are moved to its
    start, in order, and their number is the operator's `sequence_lens`: padding changes nothing, wherever it is.
    """

    def __init__(self, layer: Any):
        super().__init__()
        self.operator, order = _OPERATORS[layer.num_gates]
        self.hidden_size, self.num_directions = layer.hidden_size, len(layer.directions)
        self.attributes: dict[str, Any] = {"hidden_size": self.hidden_size}
        if self.num_directions > 1:
            self.attributes["direction"] = "bidirectional"
        if self.operator == "GRU":
            self.attributes["linear_before_reset"] = int(layer.reset_after)
        if self.operator == "RNN":
            self.attributes["activations"] = ["Relu" if layer.relu else "Tanh"] * self.num_directions
        found = [layer.weights(direction) for direction in layer.directions]

        def stack(*names: str) -> torch.Tensor:
            """One row of parameters for each direction, the gates in ONNX's order."""
            rows = [
                torch.cat([getattr(w, name).detach().chunk(layer.num_gates)[gate] for name in names for gate in order])
                for w in found
            ]
            return torch.stack(rows).contiguous()

        self.peepholes: torch.Tensor | None
        self.register_buffer("weight", stack("weight_ih"))
        self.register_buffer("recurrence", stack("weight_hh"))
        self.register_buffer("bias", stack("bias_ih", "bias_hh"))
        peepholes = None
        if getattr(layer, "peephole", False):
            peepholes = torch.stack([torch.cat([w.peephole_i, w.peephole_o, w.peephole_f]).detach() for w in found])
        self.register_buffer("peepholes", peepholes)

    def forward(
        self, x: torch.Tensor, states: States, steps: ValidSteps | None = None, drawn: Any = None
    ) -> tuple[torch.Tensor, States]:
        """(B, T, I), states (directions, B, D) → (B, T, directions·D), zero under padding, and the last states."""
        batch, length, _ = x.shape
        mask = x.new_ones(batch, length, dtype=torch.bool) if steps is None else steps.mask
        lengths = mask.sum(1)
        padding = lengths[:, None] + (~mask).long().cumsum(1)
        places = torch.where(mask, mask.long().cumsum(1), padding)[..., None] - 1
        packed = torch.zeros_like(x).scatter(1, places.expand_as(x), x)
        inputs: list[Any] = [packed.transpose(0, 1), self.weight, self.recurrence, self.bias, lengths.int(), *states]
        if self.peepholes is not None:
            inputs.append(self.peepholes)
        directions, width = self.num_directions, self.hidden_size
        shapes = [(length, directions, batch, width)] + [(directions, batch, width)] * len(states)
        output, *final = torch.onnx.ops.symbolic_multi_out(
            self.operator, inputs, self.attributes, dtypes=[x.dtype] * len(shapes), shapes=shapes
        )
        output = output.permute(2, 0, 1, 3).reshape(batch, length, directions * width)
        output = output.gather(1, places.expand_as(output))
        return torch.where(mask[..., None], output, 0.0), tuple(final)


@contextmanager
def exportable(model: Any, one_step: bool) -> Iterator[list[RecurrentOperator]]:
    """Let a program be made of the recurrent layers: for a sequence of ONNX's operators (which are returned, since
    they own the weights), for one step of the cell's own equations. Attention is written out: its masked scores are
    finite, so that padding has no NaN.
    """
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")
    layers = [module for module in model.modules() if isinstance(module, RecurrentLayer)]
    operators = [] if one_step else [RecurrentOperator(layer) for layer in layers]
    runs: list[Any] = [layer.run_scan for layer in layers] if one_step else list(operators)
    for layer, run in zip(layers, runs, strict=True):
        vars(layer)["run"] = run  # a program cannot be made of `run`, which calls torch's kernels
    forgetful = [] if one_step else [module for module in model.modules() if hasattr(module, "_forget")]
    for layer in forgetful:  # nobody reads the memory, and what it keeps depends on the length
        vars(layer)["_forget"] = lambda memory: memory
    find_valid_steps = shared_recurrent_model.find_valid_steps
    # The real one looks at the mask's values and orders the rows for torch's kernels.
    shared_recurrent_model.find_valid_steps = lambda mask: None if mask is None else ValidSteps(mask, None)
    try:
        yield operators
    finally:
        model.set_attn_implementation(attention)
        shared_recurrent_model.find_valid_steps = find_valid_steps
        for layer in layers:
            del vars(layer)["run"]
        for layer in forgetful:
            del vars(layer)["_forget"]


class SequenceGraph(nn.Module):
    """Tokens (B, T) or features (B, T, F) and their mask (B, T) → the tensors that the model is asked for."""

    def __init__(self, model: Any, input_name: str, output_names: list[str], operators: list[RecurrentOperator]):
        super().__init__()
        self.model, self.input_name, self.output_names = model, input_name, output_names
        self.operators = nn.ModuleList(operators)
        # The head for sound leaves the cache out by itself, and an encoder has none.
        model_class: Any = type(model)
        self.options = {"use_cache": False} if "use_cache" in argument_names(model_class) else {}

    def forward(self, given: torch.Tensor, attention_mask: torch.Tensor) -> list[torch.Tensor]:
        inputs = {self.input_name: given, "attention_mask": attention_mask}
        output = self.model(**inputs, **self.options)
        return [output[name] for name in self.output_names]


# -- one step -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class State:
    """One tensor that goes into a step as `past.…` and comes out of it as `present.…`.

    Attributes:
        layer: whose it is; None: all layers'.
        name: in that layer.
        shape: sizes, "batch" and "past", which grows by one in each step.
        dtype: float32 or int64.
        fill: what every element is before the first token.
        start: length of "past" before the first token.
    """

    layer: int | None
    name: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype = torch.float32
    fill: int = 0
    start: int = 0

    @property
    def key(self) -> str:
        return self.name if self.layer is None else f"{self.layer}.{self.name}"

    def initial(self, batch: int, past: int | None = None) -> torch.Tensor:
        """The tensor before the first token."""
        sizes = {"batch": batch, "past": self.start if past is None else past}
        return torch.full([sizes.get(size, size) for size in self.shape], self.fill, dtype=self.dtype)  # type: ignore

    def describe(self) -> dict[str, Any]:
        """For the report."""
        found = {"shape": list(self.shape), "dtype": str(self.dtype).removeprefix("torch."), "fill": self.fill}
        return found | ({"past_at_start": self.start} if "past" in self.shape else {})


def describe_states(model: Any) -> list[State]:
    """All states of a causal language model, in the order in which a step takes and gives them."""
    config, layers = model.config, model.base_model.layers
    if config.model_type == "seq_transformer_decoder":
        shared = [State(None, "mask", ("batch", "past"), torch.int64)] if config.attention_pattern == "full" else []
        return shared + [state for index in range(len(layers)) for state in _attention_states(config, index)]
    return [state for index, layer in enumerate(layers) for state in _recurrent_states(layer, index)]


def _recurrent_states(layer: Any, index: int) -> list[State]:
    """The cell's state and, of an attention-RNN, the past that it attends to.

    That starts with an empty place, numbered −1, so that there is something to attend over at the first step.
    """
    cell = getattr(layer, "rnn", layer)
    width = cell.hidden_size
    found = [State(index, name, ("batch", width)) for name in cell.state_names]
    if cell is layer:
        return found
    past: Any = {"shape": ("batch", layer.window or "past")}
    start = 0 if layer.window else 1
    names = ["values", "keys"] if layer.score.kind == "additive" else ["values"]
    found += [State(index, name, (*past["shape"], width), start=start) for name in names]
    return [*found, State(index, "positions", past["shape"], torch.int64, fill=-1, start=start)]


def _attention_states(config: Any, index: int) -> list[State]:
    """Keys and values; of a sliding window those in it and the global ones, with places from the start on."""
    heads, width = config.num_attention_heads, config.head_width
    if config.attention_pattern == "full":
        return [State(index, name, ("batch", heads, "past", width)) for name in ("keys", "values")]
    if config.attention_pattern == "lsh":
        past = [State(index, name, ("batch", heads, "past", width)) for name in ("keys", "values")]
        return [*past, State(index, "buckets", ("batch", heads, config.num_hashes, "past"), torch.int64)]
    near = ("batch", heads, config.attention_window - 1, width)
    found = [State(index, name, near) for name in ("keys", "values")]
    found.append(State(index, "count", ("batch",), torch.int64))
    if config.num_global_tokens:
        far = ("batch", heads, config.num_global_tokens, width)
        found += [State(index, name, far) for name in ("global_keys", "global_values")]
    return found


class StepGraph(nn.Module):
    """One token (B, 1), its mask (B, 1) and the states before it → logits (B, 1, V) and the states after it.

    A row whose token is masked stands still: so can rows of different lengths be read side by side.
    """

    def __init__(self, model: Any, states: list[State]):
        super().__init__()
        self.model, self.states = model, states

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *past: torch.Tensor
    ) -> list[torch.Tensor]:
        cache: Any = DynamicCache(config=self.model.config)
        before: dict[int | None, dict[str, torch.Tensor]] = {}
        for state, tensor in zip(self.states, past, strict=True):
            before.setdefault(state.layer, {})[state.name] = tensor
        shared: dict[str, torch.Tensor] = before.pop(None, {})
        options: dict[str, Any] = {}
        for index, tensors in before.items():
            _fill(cache.layers[index], tensors)
        if "mask" in shared:  # of all tokens so far: a Transformer's layers look back at them
            shared = {"mask": torch.cat([shared["mask"], attention_mask], dim=1)}
            attention_mask = shared["mask"]
        elif "count" in before[0]:
            options["position_ids"] = before[0]["count"][:, None]
        elif "buckets" in before[0]:  # padding is in a bucket of its own, the last
            tokens = before[0]["buckets"][:, 0, 0] < self.model.config.num_buckets
            options["position_ids"] = tokens.sum(1, keepdim=True)
        output = self.model(input_ids, attention_mask, past_key_values=cache, use_cache=True, **options)
        after = {index: _read(output.past_key_values.layers[index], before[index]) for index in before}
        every = {None: shared} | after
        return [output.logits, *(every[state.layer][state.name] for state in self.states)]


def _fill(layer: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Put states into a new cache's layer."""
    if hasattr(layer, "write_states"):
        layer.write_states(tensors, 0)
    else:
        layer.lazy_initialization(tensors["keys"], tensors["values"])
        layer.keys, layer.values = tensors["keys"], tensors["values"]


def _read(layer: Any, names: Any) -> dict[str, torch.Tensor]:
    """The same states after the step."""
    found = layer.states if hasattr(layer, "write_states") else vars(layer)
    return {name: found[name] for name in names}
