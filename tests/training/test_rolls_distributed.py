"""Piano rolls on two processes: the same batches, losses and scores as on one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_distributed import SCRIPT, launch

from music_cases import music_argv, write_music


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(tmp_path):
    """Ten pieces in batches of 4: the last batch is evened out with pieces that have nothing to predict."""
    folder, records = write_music(tmp_path / "music"), {}
    for processes, batch in ((1, "4"), (2, "2")):
        argv = music_argv(folder, tmp_path / f"run{processes}", "--eval_strategy", "epoch", "--logging_steps", "1")
        argv += ["--per_device_train_batch_size", batch, "--per_device_eval_batch_size", batch]
        done = launch(processes, Path(SCRIPT.parents[2], "train.py"), *argv)
        assert done.returncode == 0, done.stderr[-3000:]
        records[processes] = json.loads((tmp_path / f"run{processes}" / "result.json").read_text())
    alone, both = records[1], records[2]
    assert (alone["world_size"], both["world_size"]) == (1, 2)
    assert both["batch_order"] == alone["batch_order"] and both["targets"] == alone["targets"]
    for split in ("validation", "test"):
        assert both["metrics"][split] == pytest.approx(alone["metrics"][split], rel=1e-5)
    for curve in ("train", "validation"):
        assert np.array(both["curve"][curve]) == pytest.approx(np.array(alone["curve"][curve]), rel=1e-5)
