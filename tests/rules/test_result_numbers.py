"""What people read about benchmarks comes from `results/`: both READMEs, the headers of recipes; and the recorded runs
are those of the recipes as they are."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from hf_seqmodels.config import parse
from hf_seqmodels.evaluation.result_tables import (
    MARKER,
    SCALING_MARKER,
    format_results,
    format_scaling,
    format_short,
    read_results,
    recipes_of,
    update_header,
)
from hf_seqmodels.evaluation.tables import replace_between
from hf_seqmodels.results.plan import difference

ROOT = Path(__file__).parents[2]
RESULTS = read_results(ROOT / "results")
RECIPES = recipes_of(ROOT / "configs")
BENCHMARKED = [recipe for recipe in RESULTS if not recipe.startswith("lm/")]
each_result = pytest.mark.parametrize("recipe", BENCHMARKED)


def test_the_tables_are_those_of_the_results():
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    assert text == format_results(RESULTS, RECIPES), "run `make result-tables`"


def test_the_readme_shows_the_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    if not BENCHMARKED and f"<!-- {MARKER} -->" not in readme:
        pytest.skip("no benchmark has run yet")
    assert replace_between(readme, MARKER, format_short(RESULTS)) == readme, "run `make result-tables`"


def test_the_readme_says_what_two_processes_gain():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    result = json.loads((ROOT / "results" / "scaling.json").read_text(encoding="utf-8"))
    assert replace_between(readme, SCALING_MARKER, format_scaling(result)) == readme, "run `make result-tables`"
    assert "**not reached**" not in format_scaling(result | {"reached": True})
    assert "**not reached**" in format_scaling(result | {"reached": False})


def test_a_changed_number_is_noticed():
    changed = copy.deepcopy(RESULTS)
    for result in changed.values():
        for run in result["runs"]:
            run["metrics"]["test"]["bits_per_character"] = 0.123
    assert format_results(changed, RECIPES) != format_results(RESULTS, RECIPES)


@each_result
def test_a_result_is_that_of_its_recipe_as_it_is(recipe, tmp_path):
    path = ROOT / "configs" / f"{recipe}.yaml"
    text = path.read_text(encoding="utf-8")
    assert update_header(text, RESULTS[recipe]) == text, "run `make result-tables`"
    limit = RESULTS[recipe].get("config", {}).get("training", {}).get("max_minutes", 100)
    now = parse(["--config", str(path), "--output_dir", str(tmp_path / "run"), "--max_minutes", str(limit)]).values
    if RESULTS[recipe]["runs"]:
        assert difference(RESULTS[recipe]["config"], now) is None, "the recipe has changed: run it again"
        assert (ROOT / "results" / recipe).parent.joinpath("curves.png").is_file()
    assert (ROOT / "results" / f"{recipe}.json").stat().st_size < 100_000
