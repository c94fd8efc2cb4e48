"""Golden numbers: an input that any model can read, and what the model makes of it, kept beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

GOLDEN = "golden.safetensors"
CLOSE, CLOSE_IN_TWO_BYTES = 1e-5, 2e-2  # scores of one model on two machines; bf16 keeps 8 bits of a number
MOST_BYTES = 1_000_000  # of the stored scores: with large vocabularies the input gets shorter
OUTPUTS = ("logits", "start_logits", "params", "prediction_outputs", "last_hidden_state")


def make_inputs(model: PreTrainedModel, rows: int = 2, length: int = 12, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tokens, features, series or frames, as the model's main input wants them; the last row is padded.

    Args:
        rows: B.
        length: T, less where the model has fewer positions.
        seed: of the random numbers.

    Raises:
        ValueError: the model reads something else (images, sound waves, …).
    """
    generator = torch.Generator().manual_seed(seed)
    name, config = model.main_input_name, model.config.get_text_config()
    if name == "past_values":
        values = torch.randn(rows, length, config.num_features, generator=generator)
        allowed = getattr(config, "distribution_output", None)
        if allowed == "bernoulli":
            values = (values > 1).float()
        elif allowed == "negative_binomial":
            values = values.abs().floor()
        return {"past_values": values, "past_observed_mask": torch.ones_like(values)}
    if name == "pixel_values" and model.config.model_type == "seq_conv_lstm":
        shape = (rows, min(length, 4), *_frame_shape(model.config))
        return {"pixel_values": torch.rand(shape, generator=generator)}
    length = min(length, getattr(config, "max_position_embeddings", None) or length)
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[-1, length - length // 4 :] = 0
    if name == "input_features":
        features = torch.randn(rows, length, config.num_features, generator=generator)
        return {"input_features": features, "attention_mask": mask}
    if name != "input_ids":
        raise ValueError(f"{type(model).__name__} reads {name}; golden inputs are tokens, features, series or frames")
    ids = torch.randint(0, config.vocab_size, (rows, length), generator=generator)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        target = torch.randint(0, config.vocab_size, (rows, max(2, length // 2)), generator=generator)
        inputs["decoder_input_ids"] = target
    return inputs


def _frame_shape(config: Any) -> tuple[int, int, int]:
    """Channels, height and width of a frame."""
    size = getattr(config, "image_size", None) or 8
    height, width = (size, size) if isinstance(size, int) else size
    return int(getattr(config, "num_channels", 1)), int(height), int(width)


@torch.no_grad()
def scores(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What the model makes of the inputs, in fp32: logits, else a distribution's parameters, else hidden states.

    Features, series and frames are given in the model's dtype.
    """
    training = model.training
    given = {name: value.to(model.device) for name, value in inputs.items()}
    given = {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in given.items()}
    outputs: Any = model.eval()(**given)
    model.train(training)
    name = next((name for name in OUTPUTS if outputs.get(name) is not None), None)
    if name is None:
        raise ValueError(f"{type(model).__name__} returns {list(outputs)}; one of {OUTPUTS} is compared")
    found = outputs[name]
    if name == "start_logits":
        found = torch.stack([found, outputs["end_logits"]], -1)
    elif isinstance(found, tuple | list):  # the parameters of a distribution
        found = torch.cat([part.flatten(2) for part in found], -1)
    return found.float().cpu().contiguous()


def tolerance_of(dtype: torch.dtype, largest: float = 0.0) -> float:
    """How far scores may be from stored ones: 1e-5, or in bf16 and fp16 2e-2 of `largest` where that is above 1."""
    return CLOSE_IN_TWO_BYTES * max(1.0, largest) if dtype.itemsize < 4 else CLOSE


def write_golden(model: PreTrainedModel, folder: Path, seed: int = 0) -> Path:
    """Keep an input and the model's scores for it in `golden.safetensors`."""
    length, inputs = 12, make_inputs(model, seed=seed)
    made = scores(model, inputs)
    while made.nbytes > MOST_BYTES and length > 2:
        length = max(2, length // 2)
        inputs = make_inputs(model, length=length, seed=seed)
        made = scores(model, inputs)
    tensors = {f"input.{name}": value.contiguous() for name, value in inputs.items()} | {"scores": made}
    metadata = {"model": type(model).__name__, "auto": auto_class_of(model)}
    save_file(tensors, folder / GOLDEN, metadata=metadata)
    return folder / GOLDEN


def read_golden(folder: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The stored inputs, and the scores expected for them."""
    tensors = load_file(folder / GOLDEN)
    expected = tensors.pop("scores")
    return {name.removeprefix("input."): value for name, value in tensors.items()}, expected


def auto_class_of(model: PreTrainedModel) -> str:
    """The Auto class that finds a model of this class again: ours say it, transformers' are looked up."""
    own = getattr(model, "auto_model", None)
    if own:
        return str(own)
    from transformers.models.auto import modeling_auto

    heads = {
        "AutoModelForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "AutoModelForSeq2SeqLM": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        "AutoModelForMaskedLM": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "AutoModelForSequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "AutoModelForTokenClassification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        "AutoModelForQuestionAnswering": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    }
    name = type(model).__name__
    for auto, names in heads.items():
        known = names.get(model.config.model_type)
        if name == known or (isinstance(known, tuple | list) and name in known):
            return auto
    return "AutoModel"
