"""Numbers that people read come from result files: README, recipe headers."""

import json
from pathlib import Path

import pytest

from hf_seqmodels.evaluation.tables import describe, format_table, replace_between, update_recipe

ROOT = Path(__file__).parents[2]
RECORDS = sorted((ROOT / "results" / "lm").glob("*.json"))


def test_readme_shows_the_recorded_demo():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    result = json.loads((ROOT / "results" / "demo.json").read_text(encoding="utf-8"))
    content = f"{format_table(result['rows'])}\n\n{describe(result)}"
    assert replace_between(readme, "demo table", content) == readme, "README is not what `make results` writes"


def test_every_recipe_has_a_recorded_run():
    assert {file.stem for file in RECORDS} == {file.stem for file in (ROOT / "configs" / "lm").glob("*.yaml")}


@pytest.mark.parametrize("file", RECORDS, ids=lambda file: file.stem)
def test_recipe_header_and_options_are_those_of_the_recorded_run(file):
    text = (ROOT / "configs" / "lm" / f"{file.stem}.yaml").read_text(encoding="utf-8")
    record = json.loads(file.read_text(encoding="utf-8"))
    assert update_recipe(text, record, f"results/lm/{file.name}") == text
    assert f"--config configs/lm/{file.stem}.yaml" in text
    assert f"model_type: {record['model_type']}" in text


def test_markers_that_are_missing_are_named():
    with pytest.raises(ValueError, match="demo table"):
        replace_between("no markers", "demo table", "x")


def test_a_changed_number_is_noticed():
    text = "# Takes:    1.0 minutes on 2 cores\n# Expected: validation 1.000 bits per character (x)\n"
    record = {"hardware": {"cores": 2}, "seconds": 60, "metrics": {"validation": {"bits_per_token": 2.0}}}
    assert "validation 2.000" in update_recipe(text, record, "x")
