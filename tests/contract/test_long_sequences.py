"""A21: 100,000 steps forward and backward: finite, in memory that grows as the steps do, and flat when cut."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("step_memory.py")
SLIDING = {"attention_pattern": "sliding_window", "attention_window": 8, "positions": "rotary"}
SMALL = {"num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 8}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc/self/clear_refs").exists(), reason="only Linux lets a process forget its peak memory"
    ),
]


def memory(architecture: str, work: str, **options: object) -> list[float]:
    """MB at the peak of 25,000, 50,000 and 100,000 steps; fails where a loss or gradient is not finite."""
    command = [sys.executable, str(SCRIPT), architecture, work, json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        pytest.param("seq_rnn", {}, id="rnn"),
        pytest.param("seq_lstm", {}, id="lstm"),
        pytest.param("seq_gru", {}, id="gru"),
        pytest.param("seq_transformer_decoder", SLIDING | SMALL, id="sliding window"),
    ],
)
def test_memory_grows_as_the_length(architecture, options):
    quarter, half, whole = memory(architecture, "whole", **options)
    assert quarter > 40, "enough to measure"
    assert half / quarter == pytest.approx(2, rel=0.05)
    assert whole / half == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("architecture", ["seq_rnn", "seq_lstm", "seq_gru"])
def test_memory_is_flat_where_the_gradient_is_cut(architecture):
    """Within a tenth of what the quarter takes; a megabyte of that is the allocator's."""
    quarter, _, whole = memory(architecture, "pieces")
    assert whole == pytest.approx(quarter, rel=0.1, abs=1)
