"""The doctor's checks that load the model, but compute little with it: keys, memory, ties, saving, other processes."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .doctor_batches import fair_inputs
from .doctor_patient import DoesNotApply, Finding, Patient, found, place, some, within
from .golden import GOLDEN, read_golden, scores, tolerance_of
from .verify import VerificationError, verify_as_stranger

NO_MEMORY = "no memory"  # a tensor that was made while the model was only described, and never filled


# ---- keys -------------------------------------------------------------------------------------------------------
def shapes(patient: Patient) -> Finding:
    """Every tensor in the files has the shape that the configuration asks for."""
    wanted = {key: tuple(value.shape) for key, value in patient.skeleton.state_dict().items()}
    common = wanted.keys() & patient.shapes.keys()
    problems = [
        f"{key} is {_by(patient.shapes[key])} in the file and {_by(wanted[key])} by config.json"
        for key in sorted(common)
        if patient.shapes[key] != wanted[key]
    ]
    return some(problems, f"{len(common)} tensors as config.json says")


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a scalar"


def missing_keys(patient: Patient) -> Finding:
    """Every tensor of the model is in the files, or tied to one that is.

    Keys are compared literally. Where the files use other names than the model (an older version's, or those of the
    backbone alone) transformers translates, and what it reports is taken.
    """
    missing, _, renamed = _compare(patient)
    if renamed:
        missing = sorted(patient.saved_and_info[1]["missing_keys"])
    problems = [f"{key} is not in the files" for key in missing]
    return some(problems, f"0 of {len(patient.skeleton.state_dict())}" + (" (keys renamed)" if renamed else ""))


def unexpected_keys(patient: Patient) -> Finding:
    """Every tensor in the files belongs to the model."""
    _, unexpected, renamed = _compare(patient)
    if renamed:
        unexpected = sorted(patient.saved_and_info[1]["unexpected_keys"])
    problems = [f"{key} is in the files, but not in the model" for key in unexpected]
    return some(problems, f"0 of {len(patient.shapes)}" + (" (keys renamed)" if renamed else ""))


def _compare(patient: Patient) -> tuple[list[str], list[str], bool]:
    """(missing, unexpected, whether transformers translates names when it loads)."""
    tensors = patient.skeleton.state_dict(keep_vars=True)
    present = {id(tensors[key]) for key in patient.shapes if key in tensors}  # tied: the same object
    missing = sorted(key for key, value in tensors.items() if id(value) not in present)
    unexpected = sorted(patient.shapes.keys() - tensors.keys())
    # What transformers lets pass silently although the model has no such key, it has translated (or is told to skip).
    renamed = bool(unexpected) and set(unexpected) != set(_loading_info(patient).get("unexpected_keys", unexpected))
    return missing, unexpected, renamed


def _loading_info(patient: Patient) -> dict[str, Any]:
    try:
        return patient.saved_and_info[1]
    except Exception:  # a class may refuse what is incomplete; then the names are compared literally
        return {}


def load(patient: Patient) -> Finding:
    """`from_pretrained` loads the model, without a word about what it made up."""
    count = sum(value.numel() for value in patient.saved.parameters())
    kinds = sorted({str(value.dtype).removeprefix("torch.") for value in patient.saved.parameters()})
    return found(True, f"{type(patient.saved).__name__}, {count:,} parameters, {', '.join(kinds)}", float(count))


def tied_weights(patient: Patient) -> Finding:
    """Tensors share memory where, and only where, the configuration ties them."""
    model = patient.saved
    tensors = model.state_dict(keep_vars=True)
    pairs = {f"{one} and {two}": (tensors[one], tensors[two]) for one, two in _declared_ties(model).items()}
    ties = bool(getattr(patient.text_config, "tie_word_embeddings", False))
    try:
        inside, outside = model.get_input_embeddings(), model.get_output_embeddings()
    except NotImplementedError:  # it reads no tokens
        inside = outside = None
    problems = [
        f"{names} are declared tied and are apart" for names, (one, two) in pairs.items() if not _same(one, two)
    ]
    if outside is not None and hasattr(inside, "weight"):
        tied = _same(inside.weight, outside.weight)
        if tied != ties and not problems:
            state = "share" if tied else "do not share"
            problems = [f"tie_word_embeddings is {ties}, but input and output embeddings {state} memory"]
    elif not pairs:
        raise DoesNotApply("there are no output embeddings to tie")
    return some(problems, f"tie_word_embeddings {ties}, {len(pairs)} declared pairs share memory")


def _declared_ties(model: Any) -> dict[str, str]:
    """Target → source as the class and the configuration want it, before a checkpoint can talk it out of that."""
    expand = getattr(model, "get_expanded_tied_weights_keys", None)
    return dict(expand(all_submodels=True)) if expand is not None else {}


def _same(one: torch.Tensor, two: torch.Tensor) -> bool:
    return one.data_ptr() == two.data_ptr() and one.shape == two.shape


# ---- memory -----------------------------------------------------------------------------------------------------
def tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter, buffer and plain tensor attribute of every module, by name; also in lists and dicts."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                tensors |= {f"{path}.{name}{where}": tensor for where, tensor in _tensors_in(value)}
    return tensors


def _tensors_in(value: Any, depth: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield "", value
    elif isinstance(value, dict | list | tuple) and depth < 5:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            for where, tensor in _tensors_in(item, depth + 1):
                yield f"[{key}]{where}", tensor


def digests(model: torch.nn.Module) -> dict[str, str]:
    """Name → hash of dtype, shape and bits, or `NO_MEMORY`."""
    hashes = {}
    for name, tensor in tensors_of(model).items():
        if tensor.is_meta:
            hashes[name] = NO_MEMORY
            continue
        bits = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        hashes[name] = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode() + bits.tobytes()).hexdigest()
    return hashes


def _differing(one: dict[str, str], two: dict[str, str]) -> list[str]:
    return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """New memory starts as NaN (the largest number, for whole numbers), so that what nobody fills shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    deterministic: Any = torch.utils.deterministic
    filled = deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        deterministic.fill_uninitialized_memory = filled


def uninitialised(patient: Patient) -> Finding:
    """Two loads, into memory of different content and with different seeds, and what the configuration alone decides.

    Every parameter, buffer and plain tensor attribute must be equal bit for bit; buffers and attributes that are in
    no file must also equal those of a model built from the configuration.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first_model = patient.load()[0]
        first, dtype = digests(first_model), first_model.dtype
        kept = {id(value) for value in first_model.state_dict(keep_vars=True).values()}
        unsaved = {name for name, value in tensors_of(first_model).items() if id(value) not in kept}
        del first_model
        torch.manual_seed(2)
        with poisoned_memory():
            second = digests(patient.load()[0])
        built = digests(patient.model_class._from_config(patient.config, dtype=dtype)) if unsaved else {}
    problems = [f"{name} has no memory after loading" for name, digest in first.items() if digest == NO_MEMORY]
    problems += [f"{name} differs from load to load: nothing initialises it" for name in _differing(first, second)]
    if not problems:
        problems = [
            f"{name} is loaded otherwise than built from config.json: loading does not compute it"
            for name in sorted(unsaved)
            if first[name] != built.get(name)
        ]
    return some(problems, f"0 of {len(first)} tensors differ between loads, {len(unsaved)} of them in no file")


# ---- saving -----------------------------------------------------------------------------------------------------
def save_load(patient: Patient) -> Finding:
    """Saved and loaded again, every tensor has the same bits."""
    before = digests(patient.saved)
    with tempfile.TemporaryDirectory() as scratch:
        patient.saved.save_pretrained(scratch)
        after = digests(patient.load(Path(scratch))[0])
    problems = [f"{name} does not come back bit for bit" for name in _differing(before, after)]
    return some(problems, f"0 of {len(before)} tensors differ")


def fresh_process(patient: Patient) -> Finding:
    """Another process loads it and computes the same; without this package if the code in the folder is trusted."""
    auto, _ = patient.auto_and_class
    inputs = fair_inputs(patient, patient.saved)
    expected = scores(patient.saved, inputs)
    limit = tolerance_of(patient.saved.dtype, float(expected.abs().max()))
    alone = bool(patient.values.get("auto_map")) and patient.trust
    with tempfile.TemporaryDirectory() as scratch:
        for name in patient.names:
            if name != GOLDEN:
                place(patient.folder / name, Path(scratch, name))
        tensors = {f"input.{name}": value.contiguous() for name, value in inputs.items()} | {"scores": expected}
        save_file(tensors, Path(scratch, GOLDEN), metadata={"auto": auto})
        try:
            answer = verify_as_stranger(Path(scratch), tolerance=limit, with_package=not alone)
        except VerificationError as error:
            return found(False, _last_line(str(error).replace(scratch, str(patient.folder))))
    where = "without hf_seqmodels" if alone else "with what is installed here"
    return within(
        answer["max_difference"], limit, f"scores of a fresh process {where}, {json.dumps(list(expected.shape))}"
    )


def _last_line(text: str) -> str:
    """What a traceback says at its end."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"


def golden(patient: Patient) -> Finding:
    """The scores are those that were stored when the model was published."""
    if GOLDEN not in patient.names:
        raise DoesNotApply(f"there is no {GOLDEN}; `hf-seqmodels export` writes one")
    inputs, expected = read_golden(patient.folder)
    made = scores(patient.saved, inputs)
    if made.shape != expected.shape:
        return found(False, f"stored scores are {_by(tuple(expected.shape))}, the model's {_by(tuple(made.shape))}")
    scale = max(1.0, float(expected.abs().max()))
    return within(
        float((made - expected).abs().max()) / scale,
        tolerance_of(patient.saved.dtype),
        f"{expected.numel():,} stored scores",
    )
