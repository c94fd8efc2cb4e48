"""What the Hub accepts in a card's metadata, shipped with the package so that it is checked without a network.

`card_lists.json` holds the identifiers of the Hub's pages "Licenses" (hub-docs, repositories-licenses.md) and "Tasks"
(huggingface.js, packages/tasks/src/pipelines.ts).
"""

from __future__ import annotations

import json
from pathlib import Path

from ..recipes import did_you_mean

_LISTS = json.loads(Path(__file__).with_name("card_lists.json").read_text(encoding="utf-8"))
LICENSES: frozenset[str] = frozenset(_LISTS["licenses"])
PIPELINE_TAGS: frozenset[str] = frozenset(_LISTS["pipeline_tags"])


def check_license(identifier: str) -> None:
    """Raise ValueError unless the Hub knows this licence."""
    if identifier not in LICENSES:
        near = did_you_mean(str(identifier), sorted(LICENSES))
        raise ValueError(
            f"license={identifier!r} is not an identifier of the Hub's list of licences{near or ': say apache-2.0, …'}"
        )
