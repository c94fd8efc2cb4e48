"""The learning suite: bars that can fail, judging, and what is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hf_seqmodels.arguments import ConfigError
from hf_seqmodels.config import parse
from hf_seqmodels.evaluation.benchmarks import BENCHMARKS
from hf_seqmodels.learning import suite
from hf_seqmodels.learning.checks import (
    CHECKS,
    Check,
    above,
    at_least,
    at_most,
    below,
    more_often,
    succeeds,
    within,
)
from hf_seqmodels.learning.report import format_results, update_recipes, write_report
from hf_seqmodels.recipes import list_configs

LOW, HIGH = [0.2, 0.4], [0.8, 1.0]


@pytest.mark.parametrize(
    ("bar", "holds", "fails"),
    [
        (at_least(0.9, "a", "b"), {"a": HIGH, "b": [0.9]}, {"a": HIGH, "b": [0.89]}),
        (at_most(1.5, "a"), {"a": [1.0, 2.0]}, {"a": [1.0, 2.1]}),
        (above("a", "b"), {"a": HIGH, "b": LOW}, {"a": HIGH, "b": HIGH}),
        (above("a", "b", 0.2), {"a": [0.71], "b": [0.5]}, {"a": [0.69], "b": [0.5]}),
        (above("a", "chance", 0.5), {"a": [0.7], "chance": [0.1]}, {"a": [0.5], "chance": [0.1]}),
        (below("a", "b"), {"a": LOW, "b": HIGH}, {"a": LOW, "b": LOW}),
        (within("a", "b", 0.02), {"a": [0.97], "b": [0.98]}, {"a": [0.95], "b": [0.98]}),
        (succeeds("a", 2, 0.99), {"a": [1.0, 0.99, 0.5]}, {"a": [1.0, 0.98, 0.5]}),
        (more_often("a", "b", 0.99), {"a": [1.0, 0.9], "b": [0.9, 0.9]}, {"a": [1.0, 0.9], "b": [0.1, 1.0]}),
    ],
    ids=lambda value: value.text if hasattr(value, "text") else "",
)
def test_a_bar_holds_and_fails(bar, holds, fails):
    assert bar.holds(holds) and not bar.holds(fails)


@pytest.mark.parametrize("name", CHECKS)
def test_no_check_passes_by_chance(name):
    """With every system at the level of guessing, or at the error of guessing, at least one bar of the check fails."""
    check = CHECKS[name]
    for guess in (0.0, 0.5, 3.0):
        measured = {system: [guess] * len(check.seeds) for system in check.systems} | {"chance": [guess]}
        if name == "nested_brackets":  # "not below": the one promise that equal systems keep
            measured["stacked"] = [guess - 0.01]
        if name == "next_token" and guess < 3:  # bits: lower is better, 3 is chance
            continue
        if name == "reverse" and guess == 3:  # no share
            continue
        if name in ("lookahead_tags", "parity") and guess == 3:
            continue
        assert not all(bar.holds(measured) for bar in check.bars), guess


@pytest.mark.parametrize("name", CHECKS)
def test_every_check_names_recipes_that_parse(name, tmp_path):
    check = CHECKS[name]
    assert len(set(check.systems)) == len(check.systems) and check.bars and check.seeds
    for command in check.systems.values():
        run = parse([*command.split(), "--output_dir", str(tmp_path / "run")])
        assert run.data.dataset != "pydoc_topics"


def test_equal_parameters_where_the_promise_says_so(tmp_path):
    from hf_seqmodels.loading import load_data
    from hf_seqmodels.run import build_model

    for name in ("nested_brackets", "moving_squares"):
        sizes = []
        for command in CHECKS[name].systems.values():
            run = parse([*command.split(), "--output_dir", str(tmp_path / "run"), "--num_examples", "10"])
            sizes.append(build_model(run, load_data(run)).num_parameters())
        assert max(sizes) <= 1.03 * min(sizes), sizes


def test_every_made_recipe_stands_in_a_check_or_is_a_contrast():
    used = {command.split()[1] for check in CHECKS.values() for command in check.systems.values()}
    made = {name for name in list_configs() if name.split("/")[0] not in BENCHMARKS}
    assert used <= made
    assert made - used == set()


@pytest.fixture
def tiny(monkeypatch):
    """One check that takes a second, and a bar that nothing of a second reaches."""
    command = "--config parity/rnn --num_examples 20 --length 4 --max_steps 2"
    check = Check("four bits", "accuracy", {"rnn": command}, [at_least(0.0, "rnn"), at_least(1.01, "rnn")])
    monkeypatch.setitem(CHECKS, "parity", check)
    return check


def test_a_check_runs_writes_and_reports_its_miss(tiny, tmp_path, capsys, monkeypatch):
    output, runs = tmp_path / "results", tmp_path / "runs"
    arguments = ["--only", "parity", "--output", str(output), "--runs", str(runs), "--workers", "1"]
    assert suite.main(arguments) == 1
    told = capsys.readouterr()
    assert "parity [2/2] rnn, seed" in told.out and "parity: MISSED: rnn ≥ 1.01" in told.out
    assert told.err.strip() == "missed: parity"
    result = json.loads((output / "parity.json").read_text())
    assert result["passed"] is False and [bar["holds"] for bar in result["bars"]] == [True, False]
    entry = result["systems"]["rnn"]
    assert entry["seeds"] == [0, 1] and len(entry["scores"]) == 2 and entry["seconds"][0] > 0
    assert result["chance"] == 0.5 and result["versions"]["torch"] and result["hardware"]["cores"]
    record = json.loads((runs / "parity" / "rnn-0" / "result.json").read_text())
    assert entry["scores"][0] == record["metrics"]["test"]["accuracy"]
    assert (output / "parity.png").stat().st_size > 5_000 and (output / "overview.png").exists()
    assert "**rnn ≥ 1.01**" in (output / "table.md").read_text()

    stamp = (runs / "parity" / "rnn-0" / "result.json").stat().st_mtime_ns
    assert suite.main([*arguments, "--resume"]) == 1
    assert (runs / "parity" / "rnn-0" / "result.json").stat().st_mtime_ns == stamp, "not repeated"
    assert json.loads((output / "parity.json").read_text())["systems"] == result["systems"]

    checkout = tmp_path / "checkout"
    shutil.copytree(Path(__file__).parent.parent.parent / "configs" / "parity", checkout / "configs" / "parity")
    (checkout / "README.md").write_text("a\n<!-- learning table -->\n<!-- /learning table -->\nb\n")
    write_report(output, checkout)
    result = json.loads((output / "parity.json").read_text())
    assert format_results([result]) in (checkout / "README.md").read_text()
    header = (checkout / "configs" / "parity" / "rnn.yaml").read_text()
    assert f"# Expected: test accuracy {entry['scores'][0]:.3f} (results/learning/parity.json)" in header
    update_recipes(output, checkout / "configs")
    assert (checkout / "configs" / "parity" / "rnn.yaml").read_text() == header


def test_a_recipe_that_cannot_run_is_one_line(tiny, tmp_path, capsys, monkeypatch):
    broken = Check("x", "accuracy", {"rnn": "--config parity/rnn --learning_rate nan"}, [at_least(0.0, "rnn")])
    monkeypatch.setitem(CHECKS, "parity", broken)
    with pytest.raises(ConfigError):
        parse(broken.systems["rnn"].split())
    assert suite.main(["--only", "parity", "--output", str(tmp_path), "--runs", str(tmp_path)]) == 2
    assert "learning_rate=nan is not a finite number" in capsys.readouterr().err
