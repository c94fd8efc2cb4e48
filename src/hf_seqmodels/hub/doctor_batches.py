"""The doctor's checks of batches: padding on either side, rows beside others, and the loss of accumulated batches.

What is fair to ask of a model that the doctor does not know:

- Padding is filled with the padding token (0 where there is none), and the rows hold no special token: RoBERTa counts
  its positions from the tokens that are not padding, GPT-2's classifier looks for the last one.
- With padding on the left, a model that does not count positions from the mask or the tokens by itself, but takes
  `position_ids`, is given those that `generate` computes: counted from the first token. GPT-2 and BERT learn a vector
  for each position and would otherwise read other ones.
- A model that has positions but takes no `position_ids` (BART's encoder) is not asked for equal scores there, which it
  cannot give. It is asked that what stands under the padding makes no difference, and the report says so.
- Outputs are compared at tokens only; what a model computes under padding is its own affair.
- Heads of transformers itself that are known not to keep a promise (BERT's and T5's drop `num_items_in_batch`, BERT's
  classifier reads its answer at the first position) are no fault of the checkpoint: the number is told, and no check
  fails. The same in code that lies in the folder, or in this package, fails.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from ..config import one_line
from .doctor_patient import DoesNotApply, Finding, Patient, found, largest, within
from .golden import OUTPUTS, auto_class_of, make_inputs, scores

Rows = dict[str, torch.Tensor]
CLOSE = 1e-4  # fp32, relative to the largest score where that is above 1
EXACT = 1e-5  # of losses and gradients
BESIDE_TEXT = {"pixel_values", "bbox", "image", "visual_feats", "input_features", "input_values"}
LENGTHS = (7, 4, 2)
PADDING = 3


def is_stock(model: torch.nn.Module) -> bool:
    """Whether the model's class is transformers' own."""
    return type(model).__module__.startswith("transformers.models.")


# ---- inputs -----------------------------------------------------------------------------------------------------
def fair_inputs(patient: Patient, model: PreTrainedModel, rows: int = 2, length: int = 8, seed: int = 0) -> Rows:
    """Rows of equal length, without padding and special tokens, in the model's dtype.

    Raises:
        DoesNotApply: the model reads something that the doctor cannot make up.
        Exception: whatever a model raises that should compute from these.
    """
    try:
        inputs = make_inputs(model, rows=rows, length=length, seed=seed)
    except (ValueError, AttributeError, TypeError) as error:
        raise DoesNotApply(f"the doctor makes up tokens, features and frames, and no more: {error}") from None
    inputs.pop("attention_mask", None)
    generator = torch.Generator().manual_seed(seed)
    for name in ("input_ids", "decoder_input_ids"):
        if name in inputs:
            inputs[name] = _plain_tokens(patient, tuple(inputs[name].shape), generator)
    dtype = next(model.parameters()).dtype
    inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    if is_stock(model):
        _refuse_what_reads_more(patient, model, inputs)
    return inputs


def _refuse_what_reads_more(patient: Patient, model: PreTrainedModel, inputs: Rows) -> None:
    """Some read two things at once: text and pictures, several choices. A head that needs text alone has no excuse."""
    try:
        scores(model, inputs)
    except Exception as error:
        name = type(model).__name__
        if name.endswith("ForSequenceClassification") and getattr(patient.text_config, "pad_token_id", None) is None:
            raise DoesNotApply(f"config.json has no pad_token_id: {one_line(error)}") from None
        if auto_class_of(model) != "AutoModel" and not BESIDE_TEXT & set(patient.arguments):
            raise
        raise DoesNotApply(f"{name} needs more than {', '.join(inputs)}: {one_line(error)}") from None


def _plain_tokens(patient: Patient, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Random token ids that are no special tokens."""
    config = patient.text_config
    special: set[Any] = {0}
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "sep_token_id"):
        value = getattr(config, name, None)
        special |= set(value) if isinstance(value, list) else {value}
    plain = torch.tensor([index for index in range(min(config.vocab_size, 5000)) if index not in special] or [0])
    return plain[torch.randint(len(plain), shape, generator=generator)]


def padded(
    patient: Patient, row: Rows, count: int, side: str, fill: int | None = None, positions: bool = False
) -> Rows:
    """`row` with `count` steps of padding on one side of its main input, and the mask that says so.

    `fill` stands there instead of the padding token; `positions` adds `position_ids` counted from the first token.
    """
    name = patient.model.main_input_name
    value, rest = row[name], {key: each for key, each in row.items() if key != patient.model.main_input_name}
    pad = getattr(patient.text_config, "pad_token_id", None)
    filler = value.new_full((len(value), count, *value.shape[2:]), (pad or 0) if fill is None else fill)
    mask = torch.ones(value.shape[:2], dtype=torch.long)
    blank = mask.new_zeros(len(value), count)
    left = side == "left"
    together = {name: torch.cat([filler, value] if left else [value, filler], 1)}
    together["attention_mask"] = torch.cat([blank, mask] if left else [mask, blank], 1)
    if positions:
        together["position_ids"] = (together["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return together | rest


def _refuse_what_has_no_mask(patient: Patient) -> None:
    if "attention_mask" not in patient.arguments:
        raise DoesNotApply("the model takes no attention_mask")
    if patient.model.main_input_name == "past_values":
        raise DoesNotApply("series say what was observed by past_observed_mask")
    _refuse_without_padding_token(patient)


def _refuse_without_padding_token(patient: Patient) -> None:
    """GPT-2's classifier looks for the last token before the padding, and refuses batches without a padding token."""
    classifies = type(patient.model).__name__.endswith("ForSequenceClassification")
    if classifies and getattr(patient.text_config, "pad_token_id", None) is None:
        try:
            scores(patient.model, fair_inputs(patient, patient.model))
        except ValueError as error:
            raise DoesNotApply(f"config.json has no pad_token_id: {one_line(error)}") from None


# ---- padding ----------------------------------------------------------------------------------------------------
def padding_right(patient: Patient) -> Finding:
    """Padding after the tokens changes nothing."""
    _refuse_what_has_no_mask(patient)
    row = fair_inputs(patient, patient.model, rows=1, length=_length(patient))
    alone = scores(patient.model, row)
    behind = scores(patient.model, padded(patient, row, PADDING, "right"))
    return within(
        _difference(alone, behind, 0), CLOSE, f"a row with {PADDING} steps of padding after it against alone"
    )


def padding_left(patient: Patient) -> Finding:
    """Padding before the tokens changes nothing, or where positions must shift with it, only they do."""
    _refuse_what_has_no_mask(patient)
    row = fair_inputs(patient, patient.model, rows=1, length=_length(patient))
    alone = scores(patient.model, row)
    before = scores(patient.model, padded(patient, row, PADDING, "left"))
    what = f"a row with {PADDING} steps of padding before it against alone"
    difference = _difference(alone, before, PADDING)
    if difference > CLOSE and "position_ids" in patient.arguments:
        before = scores(patient.model, padded(patient, row, PADDING, "left", positions=True))
        difference, what = _difference(alone, before, PADDING), f"{what}, given position_ids"
    elif difference > CLOSE and has_positions(patient):
        other = scores(patient.model, padded(patient, row, PADDING, "left", fill=1))
        what = "what stands under padding before a row; its positions shift, since it takes no position_ids"
        difference = _difference(other[:, PADDING:] if _by_token(alone, other) else other, before, PADDING)
    if difference > CLOSE and alone.ndim == 2 and is_stock(patient.model):
        return _padding_left_of_hidden_states(patient, row, difference)
    return within(difference, CLOSE, what)


def _padding_left_of_hidden_states(patient: Patient, row: Rows, difference: float) -> Finding:
    """For a classifier of rows that reads its answer at the first position, which with padding there is no token."""
    model = patient.model.base_model
    wide = padded(patient, row, PADDING, "left", positions="position_ids" in patient.arguments)
    with torch.no_grad():
        alone, before = (model(**inputs).last_hidden_state.float() for inputs in (row, wide))
    hidden = _difference(alone, before, PADDING)
    if not hidden <= CLOSE:
        return within(hidden, CLOSE, f"hidden states of a row with {PADDING} steps of padding before it against alone")
    told = f"{type(patient.model).__name__} of transformers reads its answer at the first position: pad on the right"
    return found(None, f"{told} (scores differ by {difference:.1e}, hidden states at tokens by {hidden:.1e})", hidden)


def has_positions(patient: Patient) -> bool:
    """Whether a module or tensor of the model has positions in its name."""
    names = [name for name, _ in patient.model.named_modules()] + [name for name, _ in patient.model.named_buffers()]
    return any("position" in name or "wpe" in name for name in names)


def padding_batch(patient: Patient) -> Finding:
    """A row beside others, padded to the longest, gives what it gives alone."""
    _refuse_without_padding_token(patient)
    masks = "attention_mask" in patient.arguments and patient.model.main_input_name != "past_values"
    longest = _length(patient)
    lengths = [max(1, longest * length // LENGTHS[0]) for length in LENGTHS] if masks else [longest] * len(LENGTHS)
    rows = [fair_inputs(patient, patient.model, 1, length, seed) for seed, length in enumerate(lengths)]
    lengths = [row[patient.model.main_input_name].shape[1] for row in rows]
    for row in rows:
        if "decoder_input_ids" in row:
            row["decoder_input_ids"] = row["decoder_input_ids"][:, :2]  # the target stays whole
    wide = (
        [padded(patient, row, max(lengths) - n, "right") for row, n in zip(rows, lengths, strict=True)]
        if masks
        else rows
    )
    together = scores(patient.model, {name: torch.cat([row[name] for row in wide]) for name in wide[0]})
    worst = largest(
        _difference(scores(patient.model, row), together[index : index + 1], 0) for index, row in enumerate(rows)
    )
    return within(worst, CLOSE, f"rows of {', '.join(map(str, lengths))} steps in a batch against each alone")


def _length(patient: Patient) -> int:
    """Steps of the longest row, so that the padding still fits the table of positions."""
    positions = getattr(patient.text_config, "max_position_embeddings", None) or LENGTHS[0] + PADDING
    return max(2, min(LENGTHS[0], positions - PADDING))


def _by_token(alone: torch.Tensor, wide: torch.Tensor) -> bool:
    """Whether the scores have an axis of tokens, which grew by the padding."""
    return wide.shape != alone.shape


def _difference(alone: torch.Tensor, wide: torch.Tensor, start: int) -> float:
    """Largest difference at the tokens, which in `wide` begin at `start`, relative to a score above 1."""
    if wide.shape != alone.shape:
        wide = wide[:, start : start + alone.shape[1]]
    scale = max(1.0, float(alone.abs().max()))
    return float((alone - wide).abs().max()) / scale


# ---- loss -------------------------------------------------------------------------------------------------------
def accumulation(patient: Patient) -> Finding:
    """Loss and gradients of 4 rows do not depend on whether they come at once or in 2 or 4 parts.

    As transformers' Trainer does it: a head that takes `**kwargs` (and does not set `accepts_loss_kwargs = False`) is
    given the number of labels of the whole batch, and the parts' losses are added; the loss of others is divided by
    the number of parts. Labels are ragged: the rows have different numbers of them.
    """
    model = patient.model
    batch = _labelled(patient)
    counted = getattr(model, "accepts_loss_kwargs", patient.takes_any_argument)
    whole, gradients = _loss(model, [batch], None)
    worst, texts = 0.0, []
    for parts in (1, 2, 4) if counted else (2, 4):
        size = 4 // parts
        pieces = [{name: value[i : i + size] for name, value in batch.items()} for i in range(0, 4, size)]
        count = batch["labels"].ne(-100).sum() if counted and "labels" in batch else None
        loss, parted = _loss(model, pieces, count)
        scale = max(float(value.abs().max()) for value in gradients.values())
        apart = largest(float((parted[name] - gradients[name]).abs().max()) for name in gradients) / max(scale, 1e-12)
        worst = largest([worst, abs(loss - whole) / max(1.0, abs(whole)), apart])
        texts.append(f"{loss / whole:.4f} in {parts}" if whole else f"{loss:.4f}")
    finding = within(worst, EXACT, f"loss and gradients in parts against at once; loss x {', '.join(texts)} parts")
    if not finding.ok and is_stock(model):
        told = (
            "of transformers takes no account of num_items_in_batch: train it without accumulation, or give Trainer a"
        )
        return found(None, f"{finding.measured}; {type(model).__name__} {told} compute_loss_func", worst)
    return finding


def _labelled(patient: Patient) -> Rows:
    """4 rows and what the head learns from them.

    Raises:
        DoesNotApply: the head takes no labels, or such as the doctor cannot make up.
    """
    model, name = patient.model, type(patient.model).__name__
    if name.endswith("ForQuestionAnswering") and "start_positions" in patient.arguments:
        inputs = fair_inputs(patient, model, rows=4)
        return inputs | {"start_positions": torch.tensor([0, 1, 2, 3]), "end_positions": torch.tensor([3, 3, 2, 4])}
    if "labels" not in patient.arguments:
        raise DoesNotApply("the model takes no labels")
    if name.endswith(("ForPreTraining", "ForMultipleChoice")):
        raise DoesNotApply(f"the doctor makes up no labels for {name}")
    _refuse_without_padding_token(patient)
    inputs = fair_inputs(patient, model, rows=4)
    with torch.no_grad():
        outputs = model(**inputs)
    logits = next((outputs[key] for key in OUTPUTS[:1] if outputs.get(key) is not None), None)
    generator = torch.Generator().manual_seed(5)
    if logits is None or logits.ndim not in (2, 3) or len(logits) != 4:
        raise DoesNotApply(f"the doctor makes up no labels for {name}")
    if logits.ndim == 2:
        return inputs | {"labels": _row_labels(model.config, logits, generator)}
    labels = torch.randint(1, max(2, logits.shape[2] - 1), logits.shape[:2], generator=generator)
    if name.endswith("ForCTC"):
        return inputs | {"labels": labels[:, :2]}
    for row, count in enumerate((labels.shape[1], 3, 2, 2)):
        labels[row, count:] = -100
    labels[:, 0] = -100  # no loss asks for the first token of a text, and not everybody leaves it out of the count
    inputs.pop("decoder_input_ids", None)
    return inputs | {"labels": labels}


def _row_labels(config: object, logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Classes (4,), or numbers for several labels and regression."""
    rows, classes = logits.shape
    kind = getattr(config, "problem_type", None)
    if kind == "regression" or (kind is None and classes == 1):
        return torch.randn((rows,) if classes == 1 else (rows, classes), generator=generator)
    if kind == "multi_label_classification":
        return torch.randint(0, 2, (rows, classes), generator=generator).float()
    return torch.randint(0, classes, (rows,), generator=generator)


def _loss(
    model: torch.nn.Module, pieces: list[Rows], count: torch.Tensor | None
) -> tuple[float, dict[str, torch.Tensor]]:
    """The step's loss and gradients as Trainer computes them, the model in eval mode so that nothing is drawn."""
    model.zero_grad(set_to_none=True)
    total = 0.0
    for piece in pieces:
        given = {} if count is None else {"num_items_in_batch": count}
        loss = model(**piece, **given).loss
        loss = loss if count is not None else loss / len(pieces)
        loss.backward()
        total += float(loss.detach())
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad(set_to_none=True)
    return total, gradients
