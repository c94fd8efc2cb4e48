"""onnxruntime beside torch: are the scores the same, and how fast is a step."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from .onnx_export import Plan, longest, make_inputs

TIMED_TOKENS = 64
REPEATS = 3


def open_session(file: Path) -> Any:
    """An onnxruntime session on one thread of the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def difference(found: np.ndarray, expected: torch.Tensor, mask: torch.Tensor | None = None) -> float:
    """Largest |found − expected| / max(1, |expected|max), of the tokens that `mask` (B, T) says; NaN counts as inf."""
    wanted = expected.float().numpy()
    if found.shape != wanted.shape:
        return float("inf")
    if mask is not None:
        found, wanted = found[mask.numpy() > 0], wanted[mask.numpy() > 0]
    error = float(np.abs(found - wanted).max() / max(1.0, float(np.abs(wanted).max())))
    return error if error == error else float("inf")


def is_by_token(name: str, value: Any) -> bool:
    """Whether an output is (B, T, …); a row's scores (B, labels) are not, also where there are T labels."""
    return value.ndim == 3 or name in ("start_logits", "end_logits")


@torch.no_grad()
def check_sequence(plan: Plan, file: Path, sizes: Sequence[tuple[int, int]]) -> dict[str, float]:
    """ "BxT" → largest difference from torch, over padded batches of these sizes."""
    session, errors = open_session(file), {}
    for batch, length in sizes:
        length = min(length, longest(plan.model.config) or length)
        given, mask = make_inputs(plan.model.config, batch, length)
        expected = plan.model(**{plan.input_name: given, "attention_mask": mask})
        found = session.run(plan.output_names, {plan.input_name: given.numpy(), "attention_mask": mask.numpy()})
        errors[f"{batch}x{length}"] = max(
            difference(value, expected[name], mask if is_by_token(name, expected[name]) else None)
            for name, value in zip(plan.output_names, found, strict=True)
        )
    return errors


def first_states(session: Any, batch: int) -> dict[str, np.ndarray]:
    """What a step is fed before the first token, as the model's metadata say."""
    states = json.loads(session.get_modelmeta().custom_metadata_map["states"])
    found = {}
    for key, state in states.items():
        sizes = {"batch": batch, "past": state.get("past_at_start")}
        found[f"past.{key}"] = np.full([sizes.get(n, n) for n in state["shape"]], state["fill"], state["dtype"])
    return found


def run_steps(session: Any, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Tokens (B, T) one after the other → logits (B, T, V)."""
    past, logits = first_states(session, len(ids)), []
    for t in range(ids.shape[1]):
        given = {"input_ids": ids[:, t : t + 1], "attention_mask": mask[:, t : t + 1]}
        now, *present = session.run(None, past | given)
        logits.append(now)
        past = dict(zip(past, present, strict=True))
    return np.concatenate(logits, axis=1)


@torch.no_grad()
def check_step(model: Any, file: Path) -> dict[str, float]:
    """ "BxT" → largest difference of step after step from torch's whole sequence.

    With attention_pattern="lsh" from torch's steps, which see more than the whole sequence where a bucket overflows.
    """
    session, errors = open_session(file), {}
    for batch, length in ((1, 9), (4, 12)):
        length = min(length, longest(model.config) or length)
        ids, mask = make_inputs(model.config, batch, length)
        by_steps = getattr(model.config, "attention_pattern", "full") == "lsh"
        expected = torch_steps(model, ids, mask) if by_steps else model(ids, attention_mask=mask).logits
        errors[f"{batch}x{length}"] = difference(run_steps(session, ids.numpy(), mask.numpy()), expected, mask)
    return errors


def torch_steps(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Logits (B, T, V) of tokens that are read one after the other."""
    past, logits = None, []
    for end in range(1, ids.shape[1] + 1):
        output = model(ids[:, end - 1 : end], attention_mask=mask[:, :end], past_key_values=past, use_cache=True)
        past = output.past_key_values
        logits.append(output.logits)
    return torch.cat(logits, dim=1)


def measure_speed(model: Any, file: Path) -> dict[str, Any]:
    """Greedy tokens per second of one row on one thread: onnxruntime's step, and torch's `generate`; best of three."""
    tokens = min(TIMED_TOKENS, (longest(model.config) or TIMED_TOKENS + 1) - 1)
    ids = torch.zeros(1, 1, dtype=torch.long)
    fixed = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
    config = GenerationConfig(**fixed, eos_token_id=model.config.eos_token_id)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = best_time(lambda: model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config))
    finally:
        torch.set_num_threads(threads)
    rates = {"onnxruntime": steps_per_second(open_session(file), tokens), "torch_generate": round(tokens / seconds, 1)}
    return {**rates, "batch": 1, "threads": 1, "tokens": tokens}


def steps_per_second(session: Any, tokens: int) -> float:
    """Greedy tokens per second of one row, the best of three runs from the first state on."""

    def generate() -> None:
        past, ids = first_states(session, 1), np.zeros((1, 1), np.int64)
        mask = np.ones_like(ids)
        for _ in range(tokens):
            logits, *present = session.run(None, past | {"input_ids": ids, "attention_mask": mask})
            past, ids = dict(zip(past, present, strict=True)), logits.argmax(-1)

    return round(tokens / best_time(generate), 1)


def best_time(function: Any) -> float:
    """Seconds of the fastest of some calls, after one that does not count."""
    function()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)
