"""What lies in the folder of a run or of a saved model: its record, its model, its tokenizer, its neighbours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import one_line
from .files import check_safetensors, read_json

NOT_TOLD = ("hub_token", "push_to_hub_token", "token", "api_key", "password")  # options whose values stay here
PATHS = ("output_dir", "logging_dir", "resume_from_checkpoint", "train_file", "validation_file", "test_file", "config")
_LEADS_AWAY = re.compile(r"/[^/\s]|~/|\.{1,2}/|[A-Za-z]:[/\\]")  # a value that begins like a path, whatever its name
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")

# What the card shows of other runs.
COMPARED = ("model_type", "task", "parameters", "steps", "metrics", "batch_order", "world_size", "data")


class NotSaved(ValueError):
    """A folder that holds no finished model: one line with the value, the rule and the way out."""


def read_record(run: Path) -> dict[str, Any] | None:
    """The run's `result.json`; None for a saved model that no run of ours made.

    Raises:
        NotSaved: there is no such folder, it holds no checkpoint, or an unfinished run.
    """
    if not run.is_dir():
        raise NotSaved(f"'{run}' is no folder; give the folder of a run, as runs/lm/lstm")
    if not (run / "config.json").is_file():
        unfinished = (run / "config.yaml").is_file() or any(run.glob("checkpoint-*"))
        hint = "the run is not finished; train with --resume" if unfinished else "save_pretrained writes one"
        raise NotSaved(f"'{run}' is no checkpoint: it has no config.json; {hint}")
    if not (run / "result.json").is_file():
        return None
    record = read_json(run / "result.json")
    kinds = {"task": str, "metrics": dict, "config": dict}
    if not isinstance(record, dict) or not all(isinstance(record.get(key), kind) for key, kind in kinds.items()):
        raise NotSaved(f"'{run / 'result.json'}' is no record of a run; train again, or delete it")
    return record


def other_records(run: Path, record: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The records of the runs beside this one that learned the same task from the same data.

    An exported folder carries them in its own record (`compared_with`), since its neighbours are others.
    """
    if record is None:
        return []
    if "compared_with" in record:
        return list(record["compared_with"])
    found, config = [], record["config"]
    for file in sorted(run.resolve().parent.glob("[!.]*/result.json")):
        if file.parent == run.resolve():
            continue
        try:
            other = read_record(file.parent)
        except ValueError:  # an unfinished neighbour is no reason to stop
            continue
        if other is not None and _learned(other) == _learned(record) != (None, None) and other["config"] != config:
            found.append({key: redact(other[key]) for key in COMPARED if key in other} | {"name": file.parent.name})
    return found


def _learned(record: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Task and data; None for both where the record does not say."""
    data = record.get("data")
    known = isinstance(data, Mapping) and data.get("sha256")
    return (record["task"], data["sha256"]) if known and data else (None, None)


def load_strict(folder: Path) -> Any:
    """The saved model in its own class; nothing may be missing, left over, or of another shape.

    Raises:
        NotSaved: no weights as safetensors, an unknown class, or tensors that do not fit the configuration.
    """
    import transformers

    from ..models import ARCHITECTURES

    shards = sorted(folder.glob("model*.safetensors"))
    if not shards:
        raise NotSaved(f"'{folder}' has no model.safetensors; save the model with save_pretrained")
    for shard in shards:
        check_safetensors(shard)
    config = read_json(folder / "config.json")
    names = config.get("architectures") or [] if isinstance(config, dict) else []
    ours = {cls.__name__: cls for entry in ARCHITECTURES.values() for cls in entry.models.values()}
    cls = ours.get(names[0], getattr(transformers, names[0], None)) if names else None
    if cls is None:
        raise NotSaved(
            f"architectures={names} in '{folder / 'config.json'}' names no class of this package or of transformers; "
            "save the model with its own save_pretrained"
        )
    try:
        loaded: Any = cls.from_pretrained(folder, output_loading_info=True, use_safetensors=True)
    except RuntimeError as error:  # transformers' own for tensors of another shape
        raise NotSaved(f"'{folder}' does not fit its config.json: {one_line(error)}") from None
    model, info = loaded
    for kind in ("missing_keys", "unexpected_keys"):
        if info.get(kind):
            raise NotSaved(f"'{folder}' has {kind.replace('_', ' ')}, the first is {sorted(info[kind])[0]}")
    return model.eval()


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder; None where there is none."""
    from transformers import AutoTokenizer

    there = any((folder / name).is_file() for name in TOKENIZERS)
    return AutoTokenizer.from_pretrained(folder) if there else None


def first_words(record: Mapping[str, Any] | None, tokenizer: Any) -> str:
    """A prompt for a language model that a run made; empty for others."""
    if tokenizer is None or record is None or record.get("task") != "causal-lm":
        return ""
    data = record["config"].get("data") or {}
    if data.get("dataset") == "pydoc_topics" and not data.get("train_file"):
        return "The import statement "
    return tokenizer.decode([tokenizer.vocab_size // 2])


def redact(values: Any) -> Any:
    """Options without tokens and without paths of this machine; what lies in a path is named by its last part."""
    if isinstance(values, Mapping):
        return {
            key: _last_part(value) if key in PATHS and isinstance(value, str) else redact(value)
            for key, value in values.items()
            if not (key in NOT_TOLD and isinstance(value, str))
        }
    if isinstance(values, list):
        return [redact(value) for value in values]
    return _last_part(values) if isinstance(values, str) and _LEADS_AWAY.match(values) else values


def _last_part(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]
