"""What a record's data are called, where they come from, and under which licence: for cards."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from ..data import SYNTHETIC
from ..data.sources import KNOWN
from .card_text import escape, one_line

_PYDOC = "the help topics of Python's pydoc"
_UNKNOWN = "unknown: these are files of whoever trained the model, who must name it"


@dataclasses.dataclass(frozen=True)
class DataSet:
    """What a model learned from: identifier, name in words, language, licence, and where it comes from.

    `kind` is what it consists of: "text", "music", or "made" in code.
    """

    identifier: str
    name: str
    language: str | None
    license: str
    source: str
    kind: str = "text"


def dataset_of(record: Mapping[str, Any]) -> DataSet:
    """The data of a record. Files of a user are named by their last part, and their licence is not known."""
    data = record.get("config", {}).get("data", {})
    if data.get("train_file"):
        file = PurePath(one_line(data["train_file"])).name
        return DataSet(file, file, None, _UNKNOWN, "text files given by whoever trained the model")
    name = one_line(data.get("dataset", "unknown"))
    if name == "pydoc_topics":
        source = "the standard library of the Python that trained it (`pydoc_data.topics`), split by topic"
        return DataSet(name, _PYDOC, "en", "PSF-2.0, the licence of Python's documentation", source)
    if name in SYNTHETIC:
        what = inspect.getdoc(SYNTHETIC[name].example) or ""
        made = "Apache-2.0, as the package hf\\_seqmodels, which makes it from a seed without outside sources"
        told = " ".join(what.split("\n\n")[0].split())
        return DataSet(name, name.replace("_", " "), None, made, told, kind="made")
    if data.get("path"):
        return _on_disk(one_line(data["path"]), kind="music" if name == "piano_rolls" else "text")
    return DataSet(name, name, None, "unknown", "not recorded")


def _on_disk(path: str, kind: str) -> DataSet:
    """A folder's data set, or one of the Hub: known by its name, or a user's own."""
    found = PurePath(path.replace("\\", "/")).name
    if found in KNOWN:
        known = KNOWN[found]
        return DataSet(found, known.title, known.language, escape(known.licence), escape(known.origin), kind)
    hub_id = path.count("/") == 1 and not path.startswith(("/", ".", "~"))
    name = path if hub_id else found
    return DataSet(name, name, None, _UNKNOWN, "a data set given by whoever trained the model", kind)
