"""Shards of unequal sizes on two processes: every window once in a pass, as many steps on each, and a resume."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from streamed_training import LETTERS, make
from test_distributed import launch


def write(folder: Path, sizes: list[int]) -> None:
    folder.mkdir()
    for shard, rows in enumerate(sizes):
        texts = [LETTERS[shard] + LETTERS[row % 16 :] for row in range(rows)]
        pyarrow.parquet.write_table(
            pyarrow.table({"text": texts}), folder / f"train-{shard:05d}-of-{len(sizes):05d}.parquet"
        )


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[17, 4, 9], [17, 4]], ids=str)
def test_two_processes_see_what_one_sees(tmp_path, sizes):
    """Three shards do not divide by two: pieces are read in turn. Two do, and one process is done long before."""
    write(tmp_path / "data", sizes)
    done = launch(2, Path(__file__).with_name("streamed_training.py"), str(tmp_path / "data"), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "out" / "found.json").read_text())
    first, second = found["steps"]
    one, other = found["seen"]
    assert [step for step, _ in one] == [step for step, _ in other] and one[-1][0] == first + second - 1
    for number, steps in enumerate((range(first), range(first, first + second))):
        seen = [tuple(row) for process in (one, other) for step, rows in process if step in steps for row in rows]
        alone = Counter(
            tuple(map(int, sample["input_ids"])) for sample in make(str(tmp_path / "data")).own_windows(number)
        )
        assert Counter(seen) == alone
    assert found["targets"] == 2 * sum((len(row) - 1) * times for row, times in alone.items())
    assert found["resumed_bit_exactly"] and found["digests"][0] == found["digests"][1]
    assert (found["world_size"], found["wrapper"]) == (2, "DistributedDataParallel")
