"""The pictures of a card: loss curve, attention map, gradient flow, where a model has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..evaluation.internals import attention_weights, carries_state, gradient_flow

# File without its ending → what it shows.
PLOTS = {
    "loss_curve": "Loss in training and on the validation split, against optimizer steps.",
    "attention_map": "Where the attention goes: each row is a token that looks, each column one that is looked at "
    "(averaged over the heads).",
    "gradient_flow": "How far back the loss reaches: length of its gradient by each carried state, against the "
    "distance in steps.",
}
MOST_SHOWN = 32  # tokens of a map whose labels can still be read
MOST_READ = 64  # tokens of the gradient flow


def write_plots(
    folder: Path, record: Mapping[str, Any] | None, model: PreTrainedModel | None, tokenizer: Any = None
) -> list[str]:
    """Write the pictures that apply into `folder`; nothing random, the same bytes each time.

    Args:
        folder: where the card lies.
        record: with the run's loss curve, and an example of its data.
        model: for attention and gradients; None leaves them out.
        tokenizer: reads the example; without one, or without an example, the tokens are a fixed pattern.

    Returns:
        The names of the files that were written.
    """
    from ..evaluation.plots import plot_gradient_flow, plot_loss_curve

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    curve = (record or {}).get("curve") or {}
    if any(curve.get(split) for split in ("train", "validation")):
        points, unit = _in_bits(curve, record or {})
        plot_loss_curve(points, folder / "loss_curve.png", unit)
        written.append("loss_curve.png")
    if model is None or not _reads_tokens(model):
        return written
    ids = example_ids(record, model, tokenizer)
    if _draw_attention(folder / "attention_map.png", model, tokenizer, ids[:, :MOST_SHOWN]):
        written.append("attention_map.png")
    if carries_state(model) and ids.shape[1] >= 3:
        flow = gradient_flow(model, ids[:, :MOST_READ])
        if flow:
            plot_gradient_flow(flow, folder / "gradient_flow.png")
            written.append("gradient_flow.png")
    return written


def example_ids(record: Mapping[str, Any] | None, model: PreTrainedModel, tokenizer: Any) -> torch.Tensor:
    """(1, T): the tokens of the record's example, or a fixed pattern of the model's tokens."""
    example = ((record or {}).get("data") or {}).get("example")
    vocabulary = model.config.get_text_config().vocab_size
    if example and tokenizer is not None:
        ids = tokenizer(example, return_tensors="pt", add_special_tokens=False).input_ids
        if ids.shape[1] >= 3 and int(ids.max()) < vocabulary:
            return ids[:, :MOST_READ].to(model.device)
    longest = getattr(model.config, "max_position_embeddings", None) or MOST_READ
    pattern = torch.arange(min(MOST_READ, longest)) * 7 + 3
    return (pattern % vocabulary)[None].to(model.device)


def _in_bits(curve: Mapping[str, Any], record: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The curve in the unit of the results' table."""
    if not any("bits_per_token" in split for split in record.get("metrics", {}).values()):
        return dict(curve), "loss"
    bits = {split: [(step, loss / math.log(2)) for step, loss in points] for split, points in curve.items()}
    return bits, "bits per token"


def _reads_tokens(model: PreTrainedModel) -> bool:
    return model.main_input_name == "input_ids" and getattr(model.config, "num_features", None) is None


def _draw_attention(path: Path, model: PreTrainedModel, tokenizer: Any, ids: torch.Tensor) -> bool:
    """Whether there are attention weights of these tokens, drawn."""
    from ..evaluation.plots import plot_attention

    inputs: dict[str, torch.Tensor] = {}
    rows = ids
    if model.config.is_encoder_decoder:
        rows = _answer(model, ids)
        inputs["decoder_input_ids"] = rows
    elif not (getattr(model, "_can_record_outputs", None) or {}).get("attentions") and not _pools(model):
        return False
    weights = attention_weights(model, ids, **inputs)
    if not weights or weights[0][1].shape[-1] != ids.shape[1]:
        return False
    columns, seen = _labels(ids, tokenizer), _labels(rows, tokenizer)
    if weights[0][1].shape[0] == 1:
        seen = ["the class"]
    plot_attention([(name, matrix.cpu()) for name, matrix in weights], columns, seen, path)
    return True


def _pools(model: PreTrainedModel) -> bool:
    return getattr(model.config, "pooling", None) == "attention" and hasattr(model, "score")


@torch.no_grad()
def _answer(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """(1, T): what an encoder–decoder writes, greedily, as its decoder reads it."""
    if hasattr(model, "lm_head") and hasattr(model, "generate"):
        return model.generate(input_ids=ids, max_new_tokens=MOST_SHOWN, do_sample=False, num_beams=1)
    return ids


def _labels(ids: torch.Tensor, tokenizer: Any) -> list[str]:
    numbers = ids[0].tolist()
    return [str(number) for number in numbers] if tokenizer is None else [tokenizer.decode([n]) for n in numbers]
