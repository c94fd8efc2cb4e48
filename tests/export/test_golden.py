"""A13: state_dict keys and shapes are frozen (golden.py writes them)."""

from __future__ import annotations

import json

import pytest

from golden import FOLDER, shapes
from hf_seqmodels.models import ARCHITECTURES


def test_every_architecture_has_a_golden_file():
    assert {path.stem for path in FOLDER.glob("*.json")} == set(ARCHITECTURES)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_keys_and_shapes_are_frozen(architecture):
    frozen = json.loads((FOLDER / f"{architecture}.json").read_text())
    found = shapes(architecture)
    assert found.keys() == frozen.keys(), "variants"
    for variant, heads in frozen.items():
        assert found[variant] == heads, variant
