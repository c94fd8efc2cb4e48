"""One cell over time: torch's kernels where the mathematics is the same, and the slow twin that they must equal.

Shapes: B batch, T time, I input width, D hidden, G gates. States inside this file are (directions, B, D).
"""

import math
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

States = tuple[torch.Tensor, ...]
Drawn = dict[str, torch.Tensor]  # a parameter's full name → what a forward pass in training uses in its place


class PackedLayout(NamedTuple):
    """A padded batch as torch's packed sequence: its N valid steps time by time, the longest row first."""

    positions: torch.Tensor  # (N,) where in B·T each valid step is
    batch_sizes: torch.Tensor  # (longest,) rows still running at each step, on the CPU
    rows: torch.Tensor  # (R,) rows with at least one valid step, longest first


class ValidSteps(NamedTuple):
    """Where the tokens of a padded batch are. Computed once in a forward pass and read by every layer."""

    mask: torch.Tensor  # (B, T) bool
    layout: PackedLayout | None  # None for a single step, which needs no order


def find_valid_steps(mask: torch.Tensor | None) -> ValidSteps | None:
    """Lay out the valid steps of `mask` (B, T) as a packed sequence; None when every step is valid.

    A stable sort moves each row's valid steps to its start, wherever the padding is, so that a row in a batch is
    computed exactly as it is alone.
    """
    if mask is None:
        return None
    length = mask.shape[1]
    if length == 1:  # masked by `where`, without a look at the values, which would wait for the device
        return ValidSteps(mask, None)
    if bool(mask.all()):
        return None
    lengths = mask.sum(1)
    rows = lengths.argsort(descending=True, stable=True)
    columns = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
    running = torch.arange(length, device=mask.device)[:, None] < lengths[rows]  # (T, B)
    positions = (rows[:, None] * length + columns[rows]).t()[running]
    batch_sizes = running.sum(1)
    layout = PackedLayout(positions, batch_sizes[batch_sizes > 0].cpu(), rows[: int(batch_sizes[0])])
    return ValidSteps(mask, layout)


class RecurrentLayer(GradientCheckpointingLayer):
    """A cell over time in one or two directions; each architecture's file adds the cell.

    A subclass gives `state_names`, `num_gates`, `step` (the paper's equations), `initial_bias`, and, if torch has a
    kernel with the same mathematics, `kernel`, `cell_kernel` and `cudnn_mode`.

    Parameters, per direction (the backward ones end in `_reverse`), under torch's names and gate order:
        weight_ih (G·D, I), weight_hh (G·D, D), bias_ih (G·D,), bias_hh (G·D,)
        with `layer_norm` also the gains `layernorm_…` (Ba 2016), whose biases are the two above

    In training, `weight_drop` and `weight_noise` act on a copy of the parameters, drawn once in a forward pass.
    """

    state_names: ClassVar[tuple[str, ...]] = ("h",)
    num_gates: ClassVar[int] = 1

    def __init__(self, config: Any, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.hidden_size = config.hidden_size
        self.input_size = config.embedding_size if layer_idx == 0 else config.output_size
        self.layer_norm, self.weight_drop = config.layer_norm, config.weight_drop
        self.weight_noise = config.weight_noise
        self.directions = ("", "_reverse") if config.bidirectional else ("",)
        shapes = self.parameter_shapes(config)
        self.parameter_names = tuple(shapes)
        for direction in self.directions:
            for name, shape in shapes.items():
                self.register_parameter(name + direction, nn.Parameter(torch.empty(shape)))

    def parameter_shapes(self, config: Any) -> dict[str, tuple[int, ...]]:
        """Name and shape of one direction's parameters; options add entries and never rename one."""
        rows = self.num_gates * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (rows, self.input_size),
            "weight_hh": (rows, self.hidden_size),
            "bias_ih": (rows,),
            "bias_hh": (rows,),
        }
        return shapes | (self.layer_norm_shapes() if self.layer_norm else {})

    def layer_norm_shapes(self) -> dict[str, tuple[int, ...]]:
        """What `layer_norm` adds: the gains of LN(W x) and LN(U h)."""
        rows = self.num_gates * self.hidden_size
        return {"layernorm_ih": (rows,), "layernorm_hh": (rows,)}

    def weights(self, direction: str = "", drawn: Drawn | None = None) -> SimpleNamespace:
        """One direction's parameters by their plain names, or what was drawn for them; None for absent gains."""
        gains: dict[str, Any] = {"layernorm_ih": None, "layernorm_hh": None}
        found = {name: (drawn or {}).get(name + direction) for name in self.parameter_names}
        own = {name: getattr(self, name + direction) if w is None else w for name, w in found.items()}
        return SimpleNamespace(**(gains | own))

    def draw_weights(self) -> Drawn:
        """What one forward pass in training computes with instead of its parameters; empty when nothing acts on them.

        Weight drop is DropConnect on `weight_hh` (Merity 2017, section 2): a mask for the whole pass, scaled by
        1 / (1 − p). Weight noise (Graves 2011) is added to every parameter of the cell.
        """
        drawn: Drawn = {}
        if self.training and (self.weight_drop or self.weight_noise):
            for name in (name + direction for direction in self.directions for name in self.parameter_names):
                weight = getattr(self, name)
                if self.weight_drop and name.startswith("weight_hh"):
                    weight = drawn[name] = F.dropout(weight, self.weight_drop)
                if self.weight_noise:
                    drawn[name] = weight + self.weight_noise * torch.randn_like(weight)
        return drawn

    # -- what a cell's own file gives ---------------------------------------------------------------------------
    def step(self, x: torch.Tensor, states: States, w: SimpleNamespace) -> States:
        """The cell: x (B, G·D) is the input's part of the gates, W_ih·x_t + b_ih; returns the new states, h first."""
        raise TypeError(f"{type(self).__name__} does not define the equations of its cell")

    def input_part(self, x: torch.Tensor, w: SimpleNamespace) -> torch.Tensor:
        """The input's part of the gates for all steps in one product: x (B, T, I) → W_ih·x_t + b_ih (B, T, G·D)."""
        return affine(x, w.weight_ih, w.bias_ih, w.layernorm_ih)

    def initial_bias(self, config: Any) -> torch.Tensor:
        """(G, D) values that `bias_ih` starts from (`bias_hh` starts from zero)."""
        return torch.zeros(self.num_gates, self.hidden_size)

    def kernel(self) -> tuple[Any, Any, int] | None:
        """torch's kernel over a sequence, its kernel for one step and cuDNN's number for it; None if there is none."""
        return None

    # -- state in, state out --------------------------------------------------------------------------------------
    def forward(
        self,
        hidden_states: torch.Tensor,
        skip: torch.Tensor | None = None,
        steps: ValidSteps | None = None,
        past_key_values: Cache | None = None,
    ) -> torch.Tensor:
        """(B, T, I) → (B, T, directions·D), zero under padding; reads and replaces the state in `past_key_values`.

        `skip` (B, T, directions·D) is added to the output: a residual connection.
        """
        cache: Any = None if past_key_values is None else past_key_values.layers[self.layer_idx]
        states = self.initial_states(hidden_states, cache)
        output, states = self.run(hidden_states, states, steps)
        if cache is not None:
            cache.write_states(self.named(states), hidden_states.shape[1])
        return output if skip is None else output + skip

    def initial_states(self, x: torch.Tensor, cache: Any = None) -> States:
        """The cached states, or zeros, as (directions, B, D)."""
        cached = {} if cache is None else cache.read_states(x.dtype, x.device)
        if cached:
            rows = cached[self.state_names[0]].shape[0]
            if rows != x.shape[0]:  # torch's LSTM would go on with the first rows of the state
                raise ValueError(
                    f"past_key_values holds the state of {rows} rows and the input has {x.shape[0]}: pass the cache "
                    "that belongs to this batch (batch_select_indices and reorder_cache change its rows)"
                )
            return tuple(cached[name][None] for name in self.state_names)
        zeros = x.new_zeros(len(self.directions), x.shape[0], self.hidden_size)
        return tuple(zeros for _ in self.state_names)

    def named(self, states: States) -> dict[str, torch.Tensor]:
        """States as the cache keeps them: name → (B, D)."""
        return {name: state[0] for name, state in zip(self.state_names, states, strict=True)}

    @torch.compiler.disable  # the kernels and the packing are opaque to the compiler; all around them is compiled
    def run(
        self, x: torch.Tensor, states: States, steps: ValidSteps | None = None, drawn: Drawn | None = None
    ) -> tuple[torch.Tensor, States]:
        """The layer over (B, T, I) from `states`: outputs (B, T, directions·D) and the states after each row's end.

        `drawn`: weights of [`draw_weights`], for who calls this several times in one forward pass; None draws them.
        """
        kernel, drawn = self.kernel(), self.draw_weights() if drawn is None else drawn
        if kernel is None:
            return self.run_scan(x, states, steps, drawn)
        if x.shape[1] == 1 and (steps is not None or not torch.is_grad_enabled()):
            if len(self.directions) > 1:
                return self.run_scan(x, states, steps, drawn)
            return self._run_one_step(kernel[1], x, states, steps, drawn)
        layout = None if steps is None else steps.layout
        if layout is not None and layout.rows.numel() == 0:  # nothing but padding, which the kernels refuse
            return self.run_scan(x, states, steps, drawn)
        return self._run_kernel(kernel, x, states, layout, drawn)

    def run_scan(
        self, x: torch.Tensor, states: States, steps: ValidSteps | None = None, drawn: Drawn | None = None
    ) -> tuple[torch.Tensor, States]:
        """The slow twin: the cell's equations step by step, a state standing still under padding."""
        outputs, finals = [], []
        drawn = self.draw_weights() if drawn is None else drawn
        for index, direction in enumerate(self.directions):
            w = self.weights(direction, drawn)
            gates = self.input_part(x, w).unbind(1)
            mask = None if steps is None else steps.mask[..., None].unbind(1)
            state, output = tuple(s[index] for s in states), list(gates)
            for t in range(len(gates))[:: -1 if direction else 1]:
                new = self.step(gates[t], state, w)
                if mask is not None:
                    new = tuple(torch.where(mask[t], n, old) for n, old in zip(new, state, strict=True))
                state, output[t] = new, new[0]
            outputs.append(torch.stack(output, dim=1))
            finals.append(state)
        hidden = _blank(torch.cat(outputs, dim=-1), steps)
        return hidden, tuple(torch.stack(parts) for parts in zip(*finals, strict=True))

    # -- torch's kernels -------------------------------------------------------------------------------------------
    def _run_one_step(
        self, cell_kernel: Any, x: torch.Tensor, states: States, steps: ValidSteps | None, drawn: Drawn
    ) -> tuple[torch.Tensor, States]:
        """T = 1 through torch's one-step kernel, a third of the sequence kernel's cost."""
        old = tuple(state[0] for state in states)
        new = cell_kernel(x[:, 0], old if len(old) > 1 else old[0], *self._flat_weights(drawn))
        new = new if isinstance(new, tuple) else (new,)
        if steps is not None:
            new = tuple(torch.where(steps.mask, n, o) for n, o in zip(new, old, strict=True))
        return _blank(new[0][:, None], steps), tuple(state[None] for state in new)

    def _run_kernel(
        self,
        kernel: tuple[Any, Any, int],
        x: torch.Tensor,
        states: States,
        layout: PackedLayout | None,
        drawn: Drawn,
    ) -> tuple[torch.Tensor, States]:
        """T steps in one call; padded batches as a packed sequence, scattered back afterwards."""
        function = kernel[0]
        if x.is_cuda and not drawn and not _is_distributed() and not torch.is_autocast_enabled("cuda"):
            self.flatten_parameters()  # loading straight to a GPU, or a copy, left the parameters one by one
        # cuDNN keeps what the backward pass needs only when told that this is training.
        options = (self._flat_weights(drawn), True, 1, 0.0, torch.is_grad_enabled(), len(self.directions) > 1)
        if layout is None:
            output, *final = function(x, _hx(states), *options, True)
            return output, tuple(final)
        batch, length, _ = x.shape
        data = x.reshape(batch * length, -1).index_select(0, layout.positions)
        started = tuple(state.index_select(1, layout.rows) for state in states)
        packed, *final = function(data, layout.batch_sizes, _hx(started), *options)
        output = packed.new_zeros(batch * length, packed.shape[-1]).index_copy(0, layout.positions, packed)
        states = tuple(old.index_copy(1, layout.rows, new) for old, new in zip(states, final, strict=True))
        return output.view(batch, length, -1), states

    def _flat_weights(self, drawn: Drawn | None = None) -> list[torch.Tensor]:
        both = [self.weights(direction, drawn) for direction in self.directions]
        return [weight for w in both for weight in (w.weight_ih, w.weight_hh, w.bias_ih, w.bias_hh)]

    def flatten_parameters(self) -> None:
        """Let this layer's parameters share one block of memory, as cuDNN wants; on CUDA, and only when needed."""
        kernel, weights = self.kernel(), self._flat_weights()
        if kernel is None or len({weight.untyped_storage().data_ptr() for weight in weights}) == 1:
            return
        if any(type(weight) is not nn.Parameter for weight in weights):  # computed by an adapter, or sharded
            return
        if not torch.backends.cudnn.is_acceptable(weights[0]) or len({weight.dtype for weight in weights}) > 1:
            return
        # Memory from inference mode could not be trained afterwards.
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device_of(weights[0]):
            torch._cudnn_rnn_flatten_weight(
                weights, 4, self.input_size, kernel[2], self.hidden_size, 0, 1, True, len(self.directions) > 1
            )

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        """As in torch (`.to`, `.cuda`, `.half`, …), and flat again afterwards."""
        module = super()._apply(fn, recurse)
        if all(parameter.is_cuda for parameter in self.parameters()):
            self.flatten_parameters()
        return module

    # -- initialisation -----------------------------------------------------------------------------------------------
    def init_weights(self, config: Any) -> None:
        """Fill every parameter that was not loaded; matrices per gate, since Xavier counts rows (Glorot 2010)."""
        bound = 1 / math.sqrt(self.hidden_size)
        for direction in self.directions:
            w = self.weights(direction)
            if config.weight_init == "orthogonal":
                _fill_per_gate(w.weight_ih, self.num_gates, nn.init.xavier_uniform_)
                _fill_per_gate(w.weight_hh, self.num_gates, nn.init.orthogonal_)
            else:
                init.uniform_(w.weight_ih, -bound, bound)
                init.uniform_(w.weight_hh, -bound, bound)
            init.copy_(w.bias_ih, self.initial_bias(config).flatten().to(w.bias_ih))
            init.zeros_(w.bias_hh)
            for name in self.parameter_names:
                if name.startswith("layernorm"):
                    init.constant_(getattr(w, name), 0.0 if name.endswith("bias") else 1.0)


def affine(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, gain: torch.Tensor | None = None
) -> torch.Tensor:
    """W x + b; with a gain LN(W x; gain, b), layer norm (Ba 2016) over all of W x."""
    if gain is None:
        return F.linear(x, weight, bias)
    return F.layer_norm(F.linear(x, weight), gain.shape, gain, bias)


def _is_distributed() -> bool:
    """FSDP gathers parameters into memory of its own on every call, and would not notice that they moved."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _hx(states: States) -> Any:
    """The states in the form of torch's kernels: a list for the LSTM, one tensor for the others."""
    return [state.contiguous() for state in states] if len(states) > 1 else states[0].contiguous()


def _blank(output: torch.Tensor, steps: ValidSteps | None) -> torch.Tensor:
    """Zero under padding."""
    return output if steps is None else torch.where(steps.mask[..., None], output, output.new_zeros(()))


def _fill_per_gate(weight: torch.Tensor, num_gates: int, fill: Any) -> None:
    """Apply `fill` to each gate's block, in fp32 (QR has no half precision), unless the weight was loaded."""
    if not getattr(weight, "_is_hf_initialized", False):
        value = torch.empty(weight.shape, device=weight.device, dtype=torch.float32)
        for gate in value.chunk(num_gates):
            fill(gate)
        init.copy_(weight, value.to(weight.dtype))


def init_embedding(table: nn.Embedding) -> None:
    """Fill an embedding from N(0, 1), as torch.nn.Embedding does, with zeros for the padding token."""
    init.normal_(table.weight)
    # A slice does not know that its tensor was loaded, so the look is ours.
    if table.padding_idx is not None and not getattr(table.weight, "_is_hf_initialized", False):
        init.zeros_(table.weight[table.padding_idx])


def chrono_bias(config: Any) -> torch.Tensor:
    """(D,) log U(1, T_max − 1): a gate biased so forgets after that many steps (Tallec & Ollivier 2018, eq. 16)."""
    return torch.empty(config.hidden_size).uniform_(1, config.chrono_max_time - 1).log()
