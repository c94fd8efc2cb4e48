"""The whole way, as tests/walkthrough.py documents it, with a training of two steps."""

from pathlib import Path

import pytest

from exporting_runs import QUICK
from loopback_hub.hub_process import LoopbackHub
from walkthrough import walk


@pytest.mark.slow
def test_the_whole_way_from_training_to_a_strangers_load(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    with LoopbackHub(tmp_path / "hub") as hub:
        way = walk(folder, hub, "lm/lstm", [*QUICK, "--hidden_size", "8"])
    assert [step["title"] for step in way.steps][:3] == ["Train", "Export", "Doctor"] and len(way.steps) == 9
    assert "## 9." in way.table() and str(Path.home()) not in way.table()
