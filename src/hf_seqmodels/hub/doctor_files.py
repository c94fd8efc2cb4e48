"""The doctor's checks that read files and do not load the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoTokenizer, GenerationConfig

from ..config import one_line
from ..models.shared_configuration import MOST_LAYERS, MOST_TOKENS, MOST_WIDTH
from .doctor_patient import DoesNotApply, Finding, Patient, found, some
from .files import (
    CHECKSUMS,
    UnsafeFolder,
    begins_like_a_pickle,
    check_checksums,
    check_index,
    check_safetensors,
    find_secrets,
    is_pickle,
    read_checksums,
    read_json,
)

CARD = "README.md"
# Numbers that must be there and positive where a configuration has them, and the largest that is believed.
SIZES = {
    "vocab_size": MOST_TOKENS,
    "hidden_size": MOST_WIDTH,
    "num_hidden_layers": MOST_LAYERS,
    "num_attention_heads": MOST_WIDTH,
    "intermediate_size": MOST_WIDTH,
    "max_position_embeddings": MOST_TOKENS,
}
TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "forced_bos_token_id")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)
NO_LIMIT = 10**9  # a tokenizer without a largest length says 10^30


# ---- the folder -------------------------------------------------------------------------------------------------
def pickles(patient: Patient) -> Finding:
    """No file that may run code when it is loaded, neither here nor in the repository."""
    problems = [
        f"{name} may be a pickle, or hold other weights"
        for name in (*patient.names, *patient.elsewhere)
        if is_pickle(name)
    ]
    problems += [
        f"{name} begins like a pickle or a zip archive"
        for name in patient.names
        if not is_pickle(name) and begins_like_a_pickle(patient.folder / name)
    ]
    return some(problems, f"0 in {len(patient.names) + len(patient.elsewhere)} files")


def secrets(patient: Patient) -> Finding:
    """No file that holds a token or a private key. What it is stays unsaid."""
    problems = [f"{name} holds something like a {kind}" for name, kind in find_secrets(patient.folder)]
    return some(problems, f"0 in {len(patient.names)} files")


def safetensors(patient: Patient) -> Finding:
    """There are weights, all as safetensors, and every such file is whole."""
    files = [name for name in patient.names if name.endswith(".safetensors")]
    problems = []
    for name in files:
        try:
            check_safetensors(patient.folder / name)
        except UnsafeFolder as error:
            problems.append(str(error))
    if not any(Path(name).name.startswith("model") for name in files):
        problems.append("there is no model.safetensors; save_pretrained writes it")
    size = sum((patient.folder / name).stat().st_size for name in files)
    return some(problems, f"{len(files)} whole, {size:,} bytes")


def shard_index(patient: Patient) -> Finding:
    """The index of the shards names files beside it, and each tensor where it is."""
    indices = [name for name in patient.names if name.endswith(".safetensors.index.json")]
    if not indices:
        raise DoesNotApply("the weights are one file")
    problems, count = [], 0
    for name in indices:
        content: Any = read_json(patient.folder / name)
        try:
            check_index(patient.folder, name, content)
        except UnsafeFolder as error:
            return found(False, str(error))
        lie_in = _keys_of_shards((patient.folder / name).parent, sorted(set(content["weight_map"].values())))
        for key, shard in content["weight_map"].items():
            if lie_in.get(key) != shard:
                problems.append(f"'{name}' looks for {key} in {shard}; it is in {lie_in.get(key, 'none of them')}")
        problems += [
            f"'{name}' does not speak of {key}" for key in sorted(lie_in.keys() - content["weight_map"].keys())
        ]
        count += len(content["weight_map"])
    return some(problems, f"{count} tensors in their shards")


def _keys_of_shards(folder: Path, shards: list[str]) -> dict[str, str]:
    """Key → the shard that holds it."""
    keys: dict[str, str] = {}
    for shard in shards:
        with safe_open(folder / shard, framework="pt") as file:
            keys |= dict.fromkeys(file.keys(), shard)
    return keys


def checksums(patient: Patient) -> Finding:
    """Every file is the one that `SHA256SUMS` speaks of."""
    if CHECKSUMS not in patient.names:
        raise DoesNotApply(f"there is no {CHECKSUMS}; `hf-seqmodels export` writes one")
    return some(check_checksums(patient.folder), f"{len(read_checksums(patient.folder))} files match")


def card(patient: Patient) -> Finding:
    """There is a model card that the Hub will read."""
    from .card_check import check_card

    if CARD not in patient.names:
        return found(False, f"there is no {CARD}; `hf-seqmodels export` writes one")
    text = (patient.folder / CARD).read_text(encoding="utf-8", errors="replace")
    return some(check_card(text), f"{len(text):,} characters, metadata valid")


# ---- configuration ----------------------------------------------------------------------------------------------
def config(patient: Patient) -> Finding:
    """Sizes are positive and believable, special tokens lie in the vocabulary, `architectures` names a class."""
    problems = [f"config.json: {text}" for text in _unbelievable(patient.values)]
    if not problems:
        try:
            problems = _wrong_sizes(patient.text_config) + wrong_ids(patient.text_config, _vocabulary(patient))
            cls = patient.model_class
        except Exception as error:  # whatever a configuration class, known or not, may raise
            problems.append(f"config.json: {one_line(error)}")
    if problems:
        return some(problems, "")
    sizes = ", ".join(f"{name} {getattr(patient.text_config, name)}" for name in _sizes_of(patient.text_config))
    return found(True, f"{cls.__name__}: {sizes}")


def _unbelievable(values: Any) -> list[str]:
    """Problems that must be seen before a configuration class, which may loop over its layers, sees the file."""
    problems = []
    for name, value in values.items() if isinstance(values, dict) else ():
        if isinstance(value, dict):
            problems += _unbelievable(value)
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        if name in SIZES and not 0 < value <= SIZES[name]:
            problems.append(f"{name} is {value}; it goes from 1 to {SIZES[name]:,}")
        elif name.endswith(("_layers", "_layer")) and value > MOST_LAYERS:  # whatever a model calls its own
            problems.append(f"{name} is {value}; at most {MOST_LAYERS:,} layers are believed")
    return problems


def _sizes_of(config: Any) -> list[str]:
    return [name for name in SIZES if isinstance(getattr(config, name, None), int)]


def _wrong_sizes(config: Any) -> list[str]:
    """The same over the finished configuration, where other names (n_layer, d_model) have been mapped."""
    sizes = {name: getattr(config, name) for name in _sizes_of(config)}
    return [f"config.json: {text}" for text in _unbelievable(sizes)]


def _vocabulary(patient: Patient) -> int | None:
    return getattr(patient.text_config, "vocab_size", None)


def wrong_ids(config: Any, vocab_size: int | None, where: str = "config.json") -> list[str]:
    """Special token ids outside the vocabulary."""
    problems = []
    for name in TOKEN_IDS:
        given = getattr(config, name, None)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and vocab_size is not None and not 0 <= value < vocab_size:
                problems.append(f"{where}: {name} is {value}, outside the vocabulary of {vocab_size}")
    return problems


def tokenizer(patient: Patient) -> Finding:
    """The tokenizer's tokens and its longest text fit the model."""
    if not any(name in patient.names for name in TOKENIZER_FILES):
        raise DoesNotApply("there is no tokenizer in the folder")
    tokens: Any = AutoTokenizer.from_pretrained(patient.folder, trust_remote_code=patient.trust)
    size = _vocabulary(patient)
    if size is None:
        raise DoesNotApply("the model has no vocabulary")
    problems = []
    if len(tokens) > size:
        problems.append(f"the tokenizer has {len(tokens)} tokens, the model's vocab_size is {size}")
    problems += wrong_ids(tokens, size, "the tokenizer")
    longest, table = tokens.model_max_length, _position_table(patient.shapes)
    if table is not None and table < longest < NO_LIMIT:
        problems.append(f"the tokenizer's model_max_length is {longest}, the model's table has {table} positions")
    return some(problems, f"{len(tokens)} tokens in a vocabulary of {size}")


def _position_table(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Rows of the table of learned absolute positions, by the names that tables have in transformers."""
    names = ("position_embeddings.weight", "embed_positions.weight", "wpe.weight")
    return next((shape[0] for key, shape in shapes.items() if key.endswith(names)), None)


def generation_config(patient: Patient) -> Finding:
    """`generation_config.json` holds options that `generate` takes."""
    if "generation_config.json" not in patient.names:
        raise DoesNotApply("there is no generation_config.json")
    options = GenerationConfig.from_pretrained(patient.folder)
    options.validate()
    given = options.to_diff_dict()
    return some(wrong_ids(options, _vocabulary(patient), "generation_config.json"), f"{len(given)} options")


# ---- weights, as they lie in the files --------------------------------------------------------------------------
def finite_weights(patient: Patient) -> Finding:
    """Every number in the files is finite."""
    count, problems = 0, []
    for key, part in patient.tensors():
        tensor = part[...] if part.get_shape() else part[:]
        count += tensor.numel()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            bad = int((~torch.isfinite(tensor.float())).sum())
            problems.append(f"{key} has {bad} values that are NaN or infinite")
    return some(problems, f"0 NaN or infinite in {count:,} numbers of {len(patient.shapes)} tensors")
