"""`make cards`: the committed cards are those of the committed results, and a second run changes nothing."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest

from hf_seqmodels.evaluation.benchmarks import BENCHMARKS, MEASURES
from hf_seqmodels.evaluation.recorded import read_results
from hf_seqmodels.evaluation.result_tables import number
from hf_seqmodels.hub.card import check_card
from hf_seqmodels.hub.cards import main

ROOT = Path(__file__).parents[2]
CARDS = ROOT / "model_cards"
RECORDS = {path.stem: path for path in sorted((ROOT / "results" / "lm").glob("*.json"))}
RESULTS = {
    recipe.replace("/", "-"): result
    for recipe, result in read_results(ROOT / "results").items()
    if not recipe.startswith("lm/") and result["runs"]
}
CARDED = [*RECORDS, *RESULTS]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    target = tmp_path_factory.mktemp("cards")
    assert main([str(ROOT / "results"), str(target)]) == 0
    return target


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_record_has_a_valid_card_and_a_second_run_changes_nothing(written):
    first = contents(written)
    assert set(first) == {f"{name}.md" for name in CARDED} | {f"{name}/loss_curve.png" for name in CARDED}
    assert main([str(ROOT / "results"), str(written)]) == 0
    assert contents(written) == first
    assert max(len(data) for name, data in first.items() if name.endswith(".png")) <= 25_000


def test_the_committed_cards_are_those_of_the_results(written):
    committed = {path.stem: path.read_text(encoding="utf-8") for path in CARDS.glob("*.md")}
    assert committed.keys() == set(CARDED)
    measured_with = json.loads(RECORDS["lstm"].read_text(encoding="utf-8"))["versions"]
    if any(measured_with[name].split("+")[0] != version(name).split("+")[0] for name in ("torch", "transformers")):
        pytest.skip("defaults and names of modules are those of other versions of torch or transformers")
    for name, text in committed.items():
        assert text == (written / f"{name}.md").read_text(encoding="utf-8"), f"run `make cards`: {name}.md differs"


@pytest.mark.parametrize("name", RECORDS)
def test_a_committed_card_shows_what_was_measured(name):
    record = json.loads(RECORDS[name].read_text(encoding="utf-8"))
    text = (CARDS / f"{name}.md").read_text(encoding="utf-8")
    assert check_card(text) == []
    assert f"{record['parameters']:,}" in text and record["data"]["sha256"] in text
    for split, found in record["metrics"].items():
        assert f"{found['bits_per_token']:.3f}" in text, split
    pictures = CARDS / name / "loss_curve.png"
    assert f"({name}/loss_curve.png)" in text and pictures.is_file()
    assert text.count(" (this one) |") == 1 and f"hf-seqmodels train --config lm/{name} " in text


@pytest.mark.parametrize("name", RESULTS)
def test_the_card_of_a_benchmark_shows_its_mean_and_what_was_published(name):
    result, text = RESULTS[name], (CARDS / f"{name}.md").read_text(encoding="utf-8")
    task, architecture = result["recipe"].split("/")
    benchmark = BENCHMARKS[task]
    reference = benchmark.reference(architecture)
    values = result["spread"][benchmark.split][benchmark.measure]
    digits = MEASURES[benchmark.measure][1]
    assert check_card(text) == [] and number(values["mean"], digits) in text and f"{result['parameters']:,}" in text
    low, high = (number(values[edge], digits) for edge in ("min", "max"))
    assert (f"({low}–{high})" in text) == (len(result["runs"]) > 1)
    assert reference is None or f"Published: {reference.value:g}" in text
    assert f"make results TASK={result['recipe']}" in text and result["data"]["sha256"] in text


def test_results_that_are_none_are_refused(tmp_path, capsys):
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "x.json").write_text("{}")
    assert main([str(tmp_path), str(tmp_path / "cards")]) == 2
    (tmp_path / "lm" / "x.json").write_text("{")
    assert main([str(tmp_path), str(tmp_path / "cards")]) == 2
    assert main([str(tmp_path)]) == 2
    assert not (tmp_path / "cards").exists()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and "is no record of a run" in lines[0] and "x.json" in lines[1] and "TARGET" in lines[2]
