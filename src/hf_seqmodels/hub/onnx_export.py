"""A saved model as ONNX: whole sequences, and one step with explicit state; both compared with torch before they stay.

`model.onnx` reads (B, T) with an `attention_mask`, any B and T; padding may stand anywhere and changes nothing.
`model_step.onnx`, of causal language models, reads one token for each row, (B, 1), and the states before it. Feed each
`present.…` back as `past.…`; `onnx_report.json`, and the model's own metadata, say what the states are at the start.

RNN, LSTM and GRU become ONNX's operators of these names (peepholes and both kinds of reset are theirs too); a step is
the cell's equations; attention is written out. Weights are inside the files.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig

from ..models import ARCHITECTURES
from ..models.shared_recurrence import RecurrentLayer

MODEL, STEP, REPORT = "model.onnx", "model_step.onnx", "onnx_report.json"
TOLERANCE = 1e-4  # largest difference from torch, relative to the largest score where that is above 1
MOST_BYTES = 2_000_000_000  # of a single file, which is a protobuf
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
TRACED = (3, 7)  # B and T of the example; none of those below
CHECKED = ((1, 1), (1, 9), (4, 1), (5, 12), (2, 17))
EXPORTED = (
    "seq_rnn",
    "seq_lstm",
    "seq_gru",
    "seq_attention_rnn",
    "seq_transformer_decoder",
    "seq_transformer_encoder",
)


class OnnxExportError(ValueError):
    """A model that cannot be exported, or whose ONNX file computes something else; nothing was written."""


class Plan(NamedTuple):
    """What of a model is exported: `model` reads `input_name` and gives `output_names`; `with_step` if it predicts
    the next token.
    """

    model: Any
    input_name: str
    output_names: list[str]
    with_step: bool


def require_onnx() -> None:
    """Raise OnnxExportError unless the optional packages are there."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise OnnxExportError(f"ONNX needs {', '.join(missing)}: pip install 'hf_seqmodels[onnx]'")


def export_onnx(folder: Path, target: Path) -> dict[str, Any]:
    """Write `model.onnx`, `model_step.onnx` (causal language models) and `onnx_report.json`.

    Args:
        folder: a saved model: config.json and model.safetensors. No code in it is run.
        target: where the files go; may be `folder`.

    Returns:
        The report: `files` (bytes, inputs, outputs, states at the start), `errors` for each shape, `largest_error`,
        `steps_per_second` of one row on one thread beside torch's `generate`.

    Raises:
        OnnxExportError: a package is missing, the model cannot be exported, or onnxruntime's result differs from
            torch's by more than 1e-4. Nothing has been written then.
    """
    from .onnx_check import check_sequence, check_step, measure_speed

    require_onnx()
    folder, target = Path(folder), Path(target)
    plan = make_plan(load_model(folder))
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".onnx-", dir=target) as scratch:
        stage = Path(scratch)
        files = {MODEL: export_sequence(plan, stage / MODEL)}
        errors = {"sequence": check_sequence(plan, stage / MODEL, CHECKED)}
        report: dict[str, Any] = {"model_type": plan.model.config.model_type, "files": files, "errors": errors}
        if plan.with_step:
            files[STEP] = export_step(plan.model, stage / STEP)
            errors["step"] = check_step(plan.model, stage / STEP)
        report["largest_error"] = max(error for found in errors.values() for error in found.values())
        report["tolerance"] = TOLERANCE
        if not report["largest_error"] <= TOLERANCE:
            raise OnnxExportError(
                f"onnxruntime differs from torch by {report['largest_error']:.1e}, more than {TOLERANCE:.0e}: "
                f"{json.dumps(errors)}"
            )
        if plan.with_step:
            report["steps_per_second"] = measure_speed(plan.model, stage / STEP)
        report["versions"] = {name: version(name) for name in ("torch", *PACKAGES)}
        (stage / REPORT).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        for file in sorted(stage.iterdir()):
            os.replace(file, target / file.name)
    return report


# -- what is exported ------------------------------------------------------------------------------------------------
def load_model(folder: Path) -> Any:
    """The saved model by this package's own classes, in float32 and eval mode.

    Raises:
        OnnxExportError: another architecture, or one too large for a single file.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.model_type not in EXPORTED:
        raise OnnxExportError(
            f"model_type '{config.model_type}' cannot be exported to ONNX: {', '.join(EXPORTED)} can"
        )
    by_name = {cls.__name__: cls for cls in ARCHITECTURES[config.model_type].models.values()}
    saved_as = (config.architectures or [""])[0]
    if saved_as not in by_name:
        raise OnnxExportError(
            f"config.json names the architecture '{saved_as}': it must be one of {', '.join(by_name)}"
        )
    model: Any = by_name[saved_as]
    model = model.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, local_files_only=True).eval()
    if 4 * model.num_parameters() > MOST_BYTES:
        raise OnnxExportError(f"{model.num_parameters():,} parameters do not fit one ONNX file of 2 GB")
    return model


def make_plan(model: Any) -> Plan:
    """What of a model is exported.

    Raises:
        OnnxExportError: an option that ONNX has no operator for.
    """
    config = model.config
    if getattr(config, "encoder", None) is not None:
        raise OnnxExportError("encoder: a pretrained encoder under the layers is not exported; export a model without")
    if any(module.layer_norm for module in model.modules() if isinstance(module, RecurrentLayer)):
        raise OnnxExportError("layer_norm=True: ONNX's recurrent operators have none; train with layer_norm=False")
    if getattr(config, "crf", False) and hasattr(model, "crf"):
        raise OnnxExportError("crf=True: its best path is not a matter of tensors alone; train with crf=False")
    head = model.auto_model.removeprefix("AutoModel")
    if head == "ForTimeSeriesPrediction":  # what is before the network is not a matter of tensors alone
        model, head = model.base_model, ""
    outputs = {"": ["last_hidden_state"], "ForQuestionAnswering": ["start_logits", "end_logits"]}
    return Plan(model, model.main_input_name, outputs.get(head, ["logits"]), head == "ForCausalLM")


def longest(config: Any) -> int | None:
    """How many positions the model can read; None: any number."""
    return config.max_position_embeddings if getattr(config, "positions", None) == "learned" else None


def make_inputs(config: Any, batch: int, length: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens (B, T) or features (B, T, F), and a mask: padding left, right and inside, at least one token."""
    generator = torch.Generator().manual_seed(seed + 100 * batch + length)
    mask = torch.ones(batch, length, dtype=torch.long)
    if length > 4:
        mask[0::3, -2:] = 0
        mask[1::3, :3] = 0
        mask[2::3, 1:4:2] = 0
    if getattr(config, "num_features", None) is not None:
        return torch.randn(batch, length, config.num_features, generator=generator), mask
    return torch.randint(0, config.vocab_size, (batch, length), generator=generator), mask


# -- exporting -------------------------------------------------------------------------------------------------------
def export_sequence(plan: Plan, file: Path) -> dict[str, Any]:
    """Write `model.onnx`; returns its entry in the report."""
    from .onnx_graphs import SequenceGraph, exportable

    batch, length = TRACED
    example = make_inputs(plan.model.config, batch, min(length, longest(plan.model.config) or length))
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}
    with exportable(plan.model, one_step=False) as operators:
        graph = SequenceGraph(plan.model, plan.input_name, plan.output_names, operators)
        names = [plan.input_name, "attention_mask"]
        return write_program(graph, example, (dims, dims), names, plan.output_names, file)


def export_step(model: Any, file: Path) -> dict[str, Any]:
    """Write `model_step.onnx`; returns its entry in the report, with the states at the start."""
    from .onnx_graphs import StepGraph, describe_states, exportable

    states = describe_states(model)
    axes = {"batch": torch.export.Dim("batch"), "past": torch.export.Dim("past")}
    example = make_inputs(model.config, TRACED[0], 1) + tuple(state.initial(TRACED[0], past=4) for state in states)
    rows = {0: axes["batch"]}
    past = tuple({axis: axes[size] for axis, size in enumerate(s.shape) if isinstance(size, str)} for s in states)
    names = ["input_ids", "attention_mask", *(f"past.{state.key}" for state in states)]
    outputs = ["logits", *(f"present.{state.key}" for state in states)]
    about = {state.key: state.describe() for state in states}
    with exportable(model, one_step=True):
        found = write_program(StepGraph(model, states), example, (rows, rows, past), names, outputs, file, about)
    return found | {"states": about}


def write_program(
    graph: nn.Module,
    example: tuple[torch.Tensor, ...],
    dynamic_shapes: tuple[Any, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    file: Path,
    states: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Make an ONNX file of a module, without the paths of this machine in it; returns bytes, inputs and outputs.

    Raises:
        OnnxExportError: torch cannot make a program of it.
    """
    import onnx

    model: Any = graph.model
    config = model.config
    # Dynamo knows the number of rows when code asks for `len` of a tensor; the usual way takes the example's.
    strict = getattr(config, "attention_pattern", "full") != "full"
    strict |= getattr(config, "positions", None) == "relative"
    try:
        with quiet("torch.onnx", "onnxscript"), torch.no_grad():
            program = torch.export.export(graph.eval(), example, dynamic_shapes=dynamic_shapes, strict=strict)
            made: Any = torch.onnx.export(
                program,
                example,
                dynamo=True,
                verbose=False,
                input_names=input_names,
                output_names=output_names,
                custom_translation_table=TRANSLATIONS,
            )
    except Exception as error:  # the exporter's errors are many and long
        lines = str(error).strip().splitlines() or [""]
        reason = next((line for line in lines if "No ONNX function" in line), lines[0])
        raise OnnxExportError(
            f"{type(model).__name__} with these options cannot be exported to ONNX "
            f"({type(error).__name__}: {reason[:200]}); with the options' defaults it can"
        ) from error
    proto = made.model_proto
    forget_traces(proto.graph)
    name_axes(proto.graph, dynamic_shapes)
    about = {"model_type": config.model_type} | ({"states": json.dumps(states)} if states else {})
    onnx.helper.set_model_props(proto, about)
    onnx.checker.check_model(proto)
    onnx.save(proto, file)
    return {
        "bytes": file.stat().st_size,
        "opset": next(entry.version for entry in proto.opset_import if entry.domain == ""),
        "inputs": {value.name: shape_of(value) for value in proto.graph.input},
        "outputs": {value.name: shape_of(value) for value in proto.graph.output},
    }


def stable_sort(self: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """torch's stable sort as TopK, which by ONNX's definition lists equal values in their order."""
    from onnxscript import INT64, opset18

    op: Any = opset18
    axis = dim % len(self.shape)
    length = op.Shape(self, start=axis, end=axis + 1)
    values, places = op.TopK(op.Cast(self, to=INT64.dtype), length, axis=axis, largest=int(descending))
    return op.CastLike(values, self), places


def cummax(self: Any, dim: int) -> Any:
    """torch's largest value so far and its place, over the last axis, as the largest of a triangle."""
    from onnxscript import BOOL, opset18

    op: Any = opset18
    length = op.Shape(self, start=-1)
    square = op.Expand(op.Constant(value_float=1.0), op.Concat(length, length, axis=0))
    lowest = op.ReduceMin(self, keepdims=1)
    rows = op.Where(
        op.Cast(op.Trilu(square, upper=0), to=BOOL.dtype), op.Unsqueeze(self, [-2]), op.Unsqueeze(lowest, [-2])
    )
    return op.ReduceMax(rows, [-1], keepdims=0), op.ArgMax(rows, axis=-1, keepdims=0, select_last_index=1)


# What torch's exporter has no words for.
TRANSLATIONS: dict[Any, Any] = {torch.ops.aten.sort.stable: stable_sort, torch.ops.aten.cummax.default: cummax}


def forget_traces(graph: Any) -> None:
    """Take out where in which file of this machine each node comes from."""
    graph.ClearField("metadata_props")
    for entry in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        entry.ClearField("doc_string")
        entry.ClearField("metadata_props")


def name_axes(graph: Any, dynamic_shapes: tuple[Any, ...]) -> None:
    """Call the named axes by their names, where torch numbers them; a past that has grown is "past + 1"."""
    *first, last = dynamic_shapes
    axes = [*first, *last] if isinstance(last, tuple) else [*first, last]
    names = {
        value.type.tensor_type.shape.dim[axis].dim_param: dim.__name__
        for value, dims in zip(graph.input, axes, strict=True)
        for axis, dim in dims.items()
    }
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = re.sub(r"\w+", lambda found: names.get(found[0], found[0]), axis.dim_param)


def shape_of(value: Any) -> list[str | int]:
    """Of a graph's input or output; named axes by their names."""
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Without the remarks of some loggers, and warnings, on packages that are not needed and parts that are old."""
    loggers = [logging.getLogger(name or None) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
