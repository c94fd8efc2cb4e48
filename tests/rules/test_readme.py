"""The README's examples of Python that need nothing but the package run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import torch

README = Path(__file__).parent.parent.parent / "README.md"


def test_examples_of_heads_run():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    (heads,) = [block for block in blocks if "forecaster" in block]
    found: dict = {}
    exec(heads, found)
    assert found["translation"].shape[0] == 1
    assert found["paths"].shape == (4, 50, 12, 1)
    assert found["frames"].shape == (1, 1, 10, 1, 32, 32)
    assert torch.isfinite(found["loss"])
