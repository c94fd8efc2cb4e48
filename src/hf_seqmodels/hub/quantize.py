"""Exported ONNX models with weights of 8 bits, and what that costs.

onnxruntime's dynamic quantization keeps the weights as int8 and finds the range of each product's other factor while
it runs. It has a kernel for the products of matrices, the embedding and the LSTM; ONNX's GRU and RNN operators stay in
float32 in `model_int8.onnx`, but not in a step, whose cell is written as products. `quantization_report.json` says how
much is left. As a range is found over the whole batch, a row's scores depend a little on the rows beside it.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig

from .golden import GOLDEN, read_golden
from .onnx_check import TIMED_TOKENS, is_by_token, open_session, run_steps, steps_per_second
from .onnx_export import MODEL, STEP, longest, make_inputs, quiet, require_onnx

REPORT = "quantization_report.json"
ROWS_AT_ONCE = 32


class QuantizationError(ValueError):
    """There is nothing to quantize, or the rows do not fit; nothing was written."""


def quantize(folder: Path, target: Path, rows: Iterable[Any] | None = None) -> dict[str, Any]:
    """Write `model_int8.onnx`, `model_step_int8.onnx` (if there is a step) and `quantization_report.json`.

    Args:
        folder: what [`export_onnx`] wrote, with the model's config.json.
        target: where the files go; may be `folder`.
        rows: of causal language models: token ids, or mappings with `input_ids` and maybe `labels` (−100: no target),
            such as a run's test windows. None: the golden input, or a random one.

    Returns:
        The report; for each model `bytes` before and after, `quantized` and `float_bytes` (bytes of the weights left
        in float32, by operator), and `quality`: `largest_difference` of all outputs, `same_first_choice` of `scores`
        many (tokens or rows; of question answering where an answer starts and where it ends) and, with rows,
        `bits_per_token` before and after. Of a step also `steps_per_second`, one row on one thread.

    Raises:
        QuantizationError, OnnxExportError: no model.onnx, rows that do not fit, scores that are no numbers, or a
            missing package.
    """
    require_onnx()
    folder, target = Path(folder), Path(target)
    if not (folder / MODEL).is_file():
        raise QuantizationError(f"{folder} has no {MODEL}: export the model with --onnx first")
    batches = list(make_batches(folder, rows))
    target.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix=".int8-", dir=target) as scratch:
        stage = Path(scratch)
        for name in (MODEL, STEP):
            if (folder / name).is_file():
                small = stage / name.replace(".onnx", "_int8.onnx")
                report[small.name] = quantize_file(folder / name, small, stage / "folded")
                report[small.name]["quality"] = compare(folder / name, small, batches, rows is not None)
                if name == STEP:
                    report[small.name]["steps_per_second"] = {
                        kind: steps_per_second(open_session(file), min(TIMED_TOKENS, longest_of(folder)))
                        for kind, file in (("float32", folder / name), ("int8", small))
                    }
        (stage / REPORT).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        for file in sorted(stage.iterdir()):
            os.replace(file, target / file.name)
    return report


def longest_of(folder: Path) -> int:
    """How many positions the model can read, a large number if any."""
    return longest(AutoConfig.from_pretrained(folder, trust_remote_code=False)) or 10**9


def quantize_file(file: Path, small: Path, folded: Path) -> dict[str, Any]:
    """One model; `folded` is a file that is used and taken away."""
    import onnx
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    options.log_severity_level = 3
    # Weights that are cut or turned while the model runs would not be seen.
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    model = onnx.load(folded)
    model.graph.ClearField("value_info")  # the quantizer turns weights, and would find their shapes to be wrong
    with quiet(""):
        quantize_dynamic(model, small, weight_type=QuantType.QInt8, per_channel=True)
    folded.unlink()
    model, before = onnx.load(small), onnx.load(file, load_external_data=False)
    onnx.helper.set_model_props(model, {entry.key: entry.value for entry in before.metadata_props})
    onnx.save(model, small)
    return {"bytes": {"float32": file.stat().st_size, "int8": small.stat().st_size}, **count_weights(model)}


def count_weights(model: Any) -> dict[str, Any]:
    """`quantized`: operators on int8 weights, how many of each; `float_bytes`: operator → bytes of float32 weights."""
    import onnx

    names = {"MatMulInteger": "MatMul", "DynamicQuantizeLSTM": "LSTM", "DequantizeLinear": "Gather"}
    quantized: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type in names:
            quantized[names[node.op_type]] = quantized.get(names[node.op_type], 0) + 1
    sizes = {
        tensor.name: onnx.numpy_helper.to_array(tensor).nbytes
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }
    left: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            if name in sizes:  # shared ones belong to the first that reads them
                left[node.op_type] = left.get(node.op_type, 0) + sizes.pop(name)
    return {"quantized": quantized, "float_bytes": left}


# -- quality ---------------------------------------------------------------------------------------------------------
Batch = dict[str, np.ndarray]


def make_batches(folder: Path, rows: Iterable[Any] | None) -> Iterator[Batch]:
    """The model's inputs by name, padded on the right, and `labels` where rows were given."""
    config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if rows is None:
        if (folder / GOLDEN).is_file():
            inputs, _ = read_golden(folder)
            wanted = "input_ids" if getattr(config, "num_features", None) is None else "input_features"
            if wanted in inputs and "attention_mask" in inputs:
                yield {name: inputs[name].numpy() for name in (wanted, "attention_mask")}
                return
        given, mask = make_inputs(config, 4, min(12, longest(config) or 12))
        yield {"input_ids" if given.ndim == 2 else "input_features": given.numpy(), "attention_mask": mask.numpy()}
        return
    if not (folder / STEP).is_file():
        raise QuantizationError(
            f"rows of tokens are for causal language models, and {folder} has no {STEP}: leave them out"
        )
    found = [row if isinstance(row, Mapping) else {"input_ids": row} for row in rows]
    found = [row for row in found if len(row["input_ids"]) > 1]
    if not found:
        raise QuantizationError("the rows hold nothing to predict: give at least one of two tokens or more")
    for start in range(0, len(found), ROWS_AT_ONCE):
        yield pad(found[start : start + ROWS_AT_ONCE], config)


def pad(rows: Sequence[Mapping[str, Sequence[int]]], config: Any) -> Batch:
    """Rows → (B, T), checked against the vocabulary and the positions."""
    length = max(len(row["input_ids"]) for row in rows)
    if length > (longest(config) or length):
        raise QuantizationError(f"a row of {length} tokens is beyond the {longest(config)} positions of this model")
    ids, mask = np.zeros((len(rows), length), np.int64), np.zeros((len(rows), length), np.int64)
    labels = np.full((len(rows), length), -100)
    for index, row in enumerate(rows):
        count = len(row["input_ids"])
        ids[index, :count], mask[index, :count] = row["input_ids"], 1
        labels[index, :count] = row.get("labels", row["input_ids"])
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        raise QuantizationError(f"token id {ids.max()} is outside the vocabulary of {config.vocab_size}")
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def run(session: Any, batch: Batch) -> dict[str, np.ndarray]:
    """Outputs of a batch by name, by the sequence model or step by step."""
    if any(value.name.startswith("past.") for value in session.get_inputs()):
        return {"logits": run_steps(session, batch["input_ids"], batch["attention_mask"])}
    found = session.run(None, {name: value for name, value in batch.items() if name != "labels"})
    return dict(zip([value.name for value in session.get_outputs()], found, strict=True))


def first_choices(name: str, scores: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The best class of each kept token or of each row; of a question's answer, the best kept token of each row."""
    if is_by_token(name, scores):
        return scores[kept].argmax(-1) if scores.ndim == 3 else np.where(kept, scores, -np.inf).argmax(-1)
    return scores.argmax(-1)


def largest_gap(one: np.ndarray, other: np.ndarray) -> float:
    """Largest |one − other|; NaN counts as inf."""
    if np.isnan(one).any() or np.isnan(other).any():
        return math.inf
    return float(np.abs(one - other, out=np.zeros_like(one), where=one != other).max())


def compare(before: Path, after: Path, batches: Sequence[Batch], with_rows: bool) -> dict[str, Any]:
    """Largest difference of the outputs, share of equal first choices and, with rows, bits per token.

    Raises:
        QuantizationError: scores are NaN or infinite.
    """
    first, second = open_session(before), open_session(after)
    largest, same, choices, targets = 0.0, 0, 0, 0
    bits = np.zeros(2)
    for batch in batches:
        found = [run(session, batch) for session in (first, second)]
        kept = batch["attention_mask"] > 0
        for name in found[0]:
            one, other = (outputs[name] for outputs in found)
            by_token = is_by_token(name, one)
            largest = max(largest, largest_gap(one[kept] if by_token else one, other[kept] if by_token else other))
            chosen = [first_choices(name, scores, kept) for scores in (one, other)]
            same += int((chosen[0] == chosen[1]).sum())
            choices += chosen[0].size
        if with_rows:
            is_target = batch["labels"][:, 1:] != -100
            targets += int(is_target.sum())
            bits += [bits_of(o["logits"][:, :-1][is_target], batch["labels"][:, 1:][is_target]) for o in found]
    if not math.isfinite(largest):
        raise QuantizationError(f"{after.name} gives scores that are no numbers; leave int8 out for this model")
    quality: dict[str, Any] = {"largest_difference": largest, "same_first_choice": same / choices, "scores": choices}
    if with_rows and targets:
        quality["bits_per_token"] = {
            kind: float(b / targets) for kind, b in zip(("float32", "int8"), bits, strict=True)
        }
        quality["targets"] = targets
    return quality


def bits_of(logits: np.ndarray, targets: np.ndarray) -> float:
    """−Σ log₂ p of targets (N,) under logits (N, V)."""
    logits = logits.astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    log_p = np.take_along_axis(logits, targets[:, None], -1)[:, 0] - np.log(np.exp(logits).sum(-1))
    return float(-log_p.sum() / math.log(2))
