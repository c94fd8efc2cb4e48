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


def test_the_example_of_the_zoo_runs(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    load, session = (block for block in blocks if "zoo/lstm-pydoc" in block or "StreamingSession" in block)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zoo").symlink_to(README.parent / "zoo")
    found: dict = {}
    exec(load, found)
    exec(session, found)
    assert capsys.readouterr().out.startswith("The import statement ")
    assert found["session"].position == len("The import ") + 20 and (tmp_path / "stream.safetensors").is_file()


def test_every_file_that_is_linked_is_there():
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text(encoding="utf-8"))
    assert len(links) >= 8
    assert [link for link in links if not (README.parent / link).exists()] == []
