"""Is a model card one that the Hub takes and a reader can trust? Checked without a network."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from .card_lists import LICENSES, PIPELINE_TAGS

MOST_BYTES = 1_000_000
_FRONT = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", flags=re.DOTALL)
# How numpy and torch show a number; in Python code such calls are what they say.
_OBJECT = re.compile(
    r"\|\s*(?:np\.\w+|tensor)\([^|]*"
    r"|\b(?:np|numpy)\.(?:bool|u?int|float|str)\w*\([^)\n]*\)?"
    r"|(?<![\w.])tensor\(\s*[-+\d\[n][^)\n]*\)?"
)
_PYTHON = re.compile(r"^(`{3,})python\n.*?^\1$", flags=re.DOTALL | re.MULTILINE)
_NO_NUMBER = re.compile(r"\|\s*[-+]?(?:nan|inf|infinity)\s*(?=\|)|[:=]\s*[-+]?\.?nan\b", flags=re.IGNORECASE)


def check_card(text: str) -> list[str]:
    """What is wrong with a card, a line each; empty for a valid one.

    Metadata that safe YAML reads; a licence and a pipeline tag of the Hub's lists; a model-index that is whole and
    whose numbers are finite; no leftover "More information needed", no NaN and no Python object anywhere.
    """
    if len(text.encode("utf-8", errors="replace")) > MOST_BYTES:
        return [f"the card has more than {MOST_BYTES:,} bytes"]
    front = _FRONT.match(text)
    if front is None:
        return ["the card has no metadata: it must begin with YAML between two lines of ---"]
    problems = _leftovers(text, body=text[front.end() :])
    try:
        data = yaml.safe_load(front[1])
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: dates that are none
        return [*problems, f"the metadata is not plain YAML: {' '.join(str(error).split())[:200]}"]
    if not isinstance(data, Mapping):
        return [*problems, "the metadata must be `key: value` lines"]
    problems += _license(data) + _pipeline_tag(data)
    problems += [f"{place} in the metadata is {value}, which is no number" for place, value in _not_finite(data)]
    return problems + _model_index(data)


def _leftovers(text: str, body: str) -> list[str]:
    problems = []
    if re.search(r"more\s+information\s+needed", text, flags=re.IGNORECASE):
        problems.append("the card says 'More information needed'; say what is known and leave the rest out")
    if found := _NO_NUMBER.search(body):
        problems.append(f"the card shows a number that is none: {' '.join(found[0].split())}")
    if found := _OBJECT.search(_PYTHON.sub("", text.replace("\r\n", "\n"))):
        problems.append(f"the card shows a Python object, not a number: {found[0].strip('| ')[:80]}")
    if not body.strip():
        problems.append("the card has no text after its metadata")
    return problems


def _license(data: Mapping[str, Any]) -> list[str]:
    found = data.get("license")
    if not found:
        return ["the metadata name no license; add `license: apache-2.0`, or yours"]
    unknown = [name for name in (found if isinstance(found, list) else [found]) if str(name) not in LICENSES]
    problems = [f"license {str(name)[:80]!r} is not on the Hub's list" for name in unknown]
    if found == "other" and not data.get("license_name"):
        problems.append("license 'other' needs `license_name`, and its text in LICENSE or at `license_link`")
    return problems


def _pipeline_tag(data: Mapping[str, Any]) -> list[str]:
    tag = data.get("pipeline_tag")
    known = tag is None or (isinstance(tag, str) and tag in PIPELINE_TAGS)
    return [] if known else [f"pipeline_tag {str(tag)[:80]!r} is not on the Hub's list"]


def _not_finite(value: Any, place: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, float]]:
    """Numbers that are NaN or infinite; what YAML's aliases name many times is visited once."""
    seen = set() if seen is None else seen
    if isinstance(value, float) and not math.isfinite(value):
        yield place, value
    if isinstance(value, Mapping | list) and id(value) not in seen:
        seen.add(id(value))
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _not_finite(item, f"{place}.{str(key)[:40]}".lstrip("."), seen)


def _model_index(data: Mapping[str, Any]) -> list[str]:
    """The Hub reads: a list of {name, results: [{task: {type}, dataset: {type, name}, metrics: [{type, value}]}]}."""
    index = data.get("model-index")
    if index is None:
        return []
    for number, model in enumerate(index if isinstance(index, list) else [index]):
        place = f"model-index[{number}]"
        if not isinstance(index, list) or not _has(model, "name") or not isinstance(model.get("results"), list):
            return [f"{place} is not whole: the Hub reads a list of models with `name` and a list of `results`"]
        for result in model["results"]:
            metrics = result.get("metrics") if isinstance(result, Mapping) else None
            whole = (
                isinstance(metrics, list)
                and _has(result.get("task"), "type")
                and _has(result.get("dataset"), "type", "name")
                and all(_has(metric, "type", "value") for metric in metrics)
            )
            if not whole:
                return [f"{place} is not whole: each result needs task.type, dataset.type, .name and metrics"]
            for value in [metric["value"] for metric in metrics or ()]:
                told = isinstance(value, str) and _OBJECT.search(value)  # by `_leftovers`
                if not told and (isinstance(value, bool) or not isinstance(value, int | float)):
                    return [f"{place} has the value {str(value)[:80]!r}, which is no number"]
    return []


def _has(value: Any, *keys: str) -> bool:
    return isinstance(value, Mapping) and all(value.get(key) not in (None, "") for key in keys)
