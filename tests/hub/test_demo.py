"""The demo: its promises are checked, and each check can fail."""

import csv
import json

import pytest

from hf_seqmodels import demo
from hf_seqmodels.evaluation.tables import COLUMNS, format_table


def row(name, bits, parameters=200_000):
    return (
        dict.fromkeys(COLUMNS)
        | {"model": name, "validation_bits": bits, "test_bits": bits}
        | {"parameters": parameters}
    )


def test_sizes_beyond_two_percent_are_refused():
    demo.check_size("lstm", 203_999)
    with pytest.raises(demo.DemoError, match="204,001"):
        demo.check_size("lstm", 204_001)


def test_other_batches_are_refused():
    records = {name: {"batch_order": {"digest": "a"}} for name in demo.MODELS}
    demo.check_same_batches(records)
    records["gru"] = {"batch_order": {"digest": "b"}}
    with pytest.raises(demo.DemoError, match="same batches"):
        demo.check_same_batches(records)


def test_a_model_behind_the_trigram_is_refused():
    table = [row(name, 2.0) for name in demo.MODELS] + [row("trigram", 2.5, None)]
    demo.check_trigram(table)
    table[1]["validation_bits"] = 2.5
    with pytest.raises(demo.DemoError, match="lstm did not beat"):
        demo.check_trigram(table)


def test_the_table_shows_dashes_for_what_a_row_does_not_have():
    text = format_table([row("lstm", 2.1234), row("trigram", 2.5, None)])
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert lines[0] == list(COLUMNS.values())
    assert lines[2][:4] == ["lstm", "200,000", "2.123", "2.123"] and lines[3][1] == "–"
    assert len({len(line) for line in text.splitlines()}) == 1


@pytest.mark.slow
def test_a_demo_of_two_steps_writes_everything_and_then_fails_its_promise(tmp_path, capsys):
    assert demo.main(["--output_dir", str(tmp_path / "demo"), "--max_steps", "2"]) == 1
    captured = capsys.readouterr()
    assert "did not beat the trigram" in captured.err
    result = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert [line["model"] for line in result["rows"]] == [*demo.MODELS, "trigram", "5-gram"]
    with (tmp_path / "demo" / "demo.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(demo.MODELS) + 2
    assert (tmp_path / "demo" / "loss_curves.png").read_bytes().startswith(b"\x89PNG")
    for name in demo.MODELS:
        assert result["strangers"][name]["max_difference"] <= 1e-5
        assert result["strangers"][name]["generated"].startswith(demo.PROMPT)
        assert (tmp_path / "demo" / name / "README.md").is_file()
    assert demo.main(["--output_dir", str(tmp_path / "demo"), "--max_steps", "2"]) == 2, "results in the way"
    assert "--overwrite" in capsys.readouterr().err
