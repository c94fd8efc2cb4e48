"""The frozen state_dict keys and shapes of every architecture, variant and head (tests/golden/<architecture>.json).

    PYTHONPATH=src:tests python tests/export/golden.py      writes them anew

A changed key breaks every checkpoint that anybody has saved: write the files anew only for added options.
"""

from __future__ import annotations

import json
from pathlib import Path

from hf_seqmodels.models import ARCHITECTURES
from model_table import CASES, build

FOLDER = Path(__file__).parent.parent / "golden"


def shapes(architecture: str) -> dict[str, dict[str, dict[str, str]]]:
    """Variant → head → key → shape, as "48 x 12"."""
    return {
        case.variant: {
            head: {key: " x ".join(map(str, tensor.shape)) for key, tensor in build(case, head).state_dict().items()}
            for head in case.heads
        }
        for case in CASES
        if case.architecture == architecture
    }


def write() -> None:
    FOLDER.mkdir(exist_ok=True)
    for architecture in ARCHITECTURES:
        (FOLDER / f"{architecture}.json").write_text(json.dumps(shapes(architecture), indent=1) + "\n")


if __name__ == "__main__":
    write()
