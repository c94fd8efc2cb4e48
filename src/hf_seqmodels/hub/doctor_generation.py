"""The doctor's checks of generation: the cache, and beam search, against passes without a cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from .doctor_batches import CLOSE, Rows, fair_inputs, has_positions
from .doctor_patient import DoesNotApply, Finding, Patient, largest, within

PROMPT, NEW = 4, 5
SHORTER = 2  # steps by which a row is shorter than the one beside it
BEAMS, LENGTH_PENALTY = 3, 0.7
EXACTLY = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True}


def cache(patient: Patient) -> Finding:
    """Scores while generating, with and without the cache, are those of one pass over the finished text.

    Scores, not text: a state that is wrong by a little still writes the same words.
    """
    _refuse_what_does_not_generate(patient)
    model, prompt = patient.model, _prompt(patient)
    differences, texts = [], []
    with torch.no_grad(), _plain_generation(patient):
        for use_cache in (True, False):
            out: Any = model.generate(**prompt, **EXACTLY, use_cache=use_cache, output_logits=True)
            written = torch.stack(out.logits, 1)
            expected = _uncached(patient, prompt, out.sequences)[:, -NEW:]
            difference = float((written - expected).abs().max()) / max(1.0, float(expected.abs().max()))
            differences.append(difference)
            texts.append(f"{difference:.1e} {'with' if use_cache else 'without'} the cache")
    return within(largest(differences), CLOSE, f"{NEW} steps against one pass: {', '.join(texts)}")


def cache_left(patient: Patient) -> Finding:
    """Scores while generating after padding on the left are those of one pass over the row without its padding."""
    _refuse_what_does_not_generate(patient)
    if patient.config.is_encoder_decoder:
        raise DoesNotApply("an encoder–decoder writes from the start; what it reads is padded in padding_left")
    if "attention_mask" not in patient.arguments:
        raise DoesNotApply("the model takes no attention_mask")
    if "position_ids" not in patient.arguments and has_positions(patient):
        raise DoesNotApply("the model has positions and takes no position_ids: they shift with padding on the left")
    prompt, pad = _prompt(patient), getattr(patient.text_config, "pad_token_id", None) or 0
    prompt["attention_mask"][0, :SHORTER] = 0
    prompt["input_ids"][0, :SHORTER] = pad
    with torch.no_grad(), _plain_generation(patient):
        out: Any = patient.model.generate(**prompt, **EXACTLY, use_cache=True, output_logits=True)
        expected = _uncached(patient, prompt, out.sequences[:1, SHORTER:])[0, -NEW:]
    written = torch.stack(out.logits, 1)[0]
    difference = float((written - expected).abs().max()) / max(1.0, float(expected.abs().max()))
    return within(difference, CLOSE, f"{NEW} steps after {SHORTER} of padding, beside a longer row, against one pass")


def beam(patient: Patient) -> Finding:
    """The scores of the beams are Σ log p / length^penalty of what they wrote, by one pass without a cache."""
    _refuse_what_does_not_generate(patient)
    model, prompt = patient.model, _prompt(patient)
    rows = len(next(iter(prompt.values())))
    with torch.no_grad(), _plain_generation(patient):
        out: Any = model.generate(
            **prompt,
            **EXACTLY,
            num_beams=BEAMS,
            num_return_sequences=BEAMS,
            length_penalty=LENGTH_PENALTY,
            early_stopping=False,
            output_scores=True,
        )
        repeated = {name: value.repeat_interleave(BEAMS, 0) for name, value in prompt.items()}
        log_p = _uncached(patient, repeated, out.sequences)[:, -NEW:].log_softmax(-1)
    total = log_p.gather(-1, out.sequences[:, -NEW:, None]).sum((1, 2)) / NEW**LENGTH_PENALTY
    worst = float((total - out.sequences_scores).abs().max())
    return within(worst, CLOSE, f"{rows * BEAMS} beams of {NEW} tokens against Σ log p / {NEW}^{LENGTH_PENALTY}")


def _refuse_what_does_not_generate(patient: Patient) -> None:
    if not patient.model.can_generate():
        raise DoesNotApply("the model does not generate")
    if patient.model.main_input_name != "input_ids":
        raise DoesNotApply("the doctor generates from tokens only")
    if (getattr(patient.text_config, "max_position_embeddings", None) or PROMPT + NEW) < PROMPT + NEW:
        raise DoesNotApply(f"the model has fewer than {PROMPT + NEW} positions")


def _prompt(patient: Patient) -> Rows:
    """Two rows of plain tokens, all of them seen."""
    ids = fair_inputs(patient, patient.model, rows=2, length=PROMPT, seed=3)["input_ids"]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@contextmanager
def _plain_generation(patient: Patient) -> Iterator[None]:
    """Generate without the checkpoint's own options (penalties, forced tokens), which would change the scores."""
    model: Any = patient.model
    own, config = model.generation_config, patient.text_config
    ids = {}
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        ids[name] = getattr(own, name, None) if getattr(own, name, None) is not None else getattr(config, name, None)
    if ids["pad_token_id"] is None:
        ids["pad_token_id"] = 0
    if patient.config.is_encoder_decoder and ids["decoder_start_token_id"] is None:
        ids["decoder_start_token_id"] = ids["bos_token_id"] if ids["bos_token_id"] is not None else 0
    model.generation_config = GenerationConfig(**ids)
    try:
        yield
    finally:
        model.generation_config = own


def _uncached(patient: Patient, prompt: Rows, sequences: torch.Tensor) -> torch.Tensor:
    """Scores (B, T, V) for what follows each token but the last, by one pass over all of them."""
    read, model = sequences[:, :-1], patient.model
    if patient.config.is_encoder_decoder:
        return model(**prompt, decoder_input_ids=read, use_cache=False).logits.float()
    plain = {"use_cache": False} if "use_cache" in patient.arguments or patient.takes_any_argument else {}
    return model(input_ids=read, **plain).logits.float()
