"""Recorded results: seeds merged, curves thinned, batches compared, numbers and references shown as they are."""

from __future__ import annotations

import json

import pytest

from hf_seqmodels.evaluation.benchmarks import BENCHMARKS, MEASURES, Benchmark, Reference, published
from hf_seqmodels.evaluation.recorded import (
    as_record,
    dumps,
    merge,
    minutes_of,
    read_result,
    same_batches,
    scores_of,
    thin,
)
from hf_seqmodels.evaluation.result_tables import format_results, format_short, in_words, number, place, update_header


def record(seed=0, loss=2.0, **more):
    order = {"digest": "ab" * 32, "steps": 5, "at": {"1": "a" * 16, "2": "b" * 16, "4": "c" * 16}}
    return {
        "model_type": "seq_lstm",
        "task": "causal-lm",
        "parameters": 1234,
        "metrics": {"validation": {"loss": loss - 0.5}, "test": {"loss": loss, "tokens": 10}},
        "steps": 5,
        "best_step": 4,
        "curve": {"train": [[1, 3.0], [5, 2.0]], "validation": [[5, loss]]},
        "seconds": 120.0,
        "batch_order": order,
        "data": {"sha256": "0123456789abcdef" * 4, "skipped": {"train": 3, "test": 0}},
        "seeds": {"seed": seed, "data_seed": 0},
        "config": {
            "data": {"dataset": "text", "path": "ptb_word", "data_dir": "/secret"},
            "training": {"output_dir": "/secret"},
        },
        "versions": {"torch": "2", "transformers": "5"},
        "hardware": {"cores": 2, "torch_threads": 2, "gpu": None},
        "git": {"commit": "f" * 40, "dirty": False},
    } | more


def test_what_seeds_share_is_said_once_and_the_rest_is_kept():
    dirty = {"commit": "e" * 40, "dirty": True}
    result = merge("ptb_word/lstm", [record(0), record(1, loss=3.0, git=dirty)], {2: "it diverged"})
    assert result["spread"]["test"]["loss"] == {"mean": 2.5, "min": 2.0, "max": 3.0}
    assert result["spread"]["test"]["perplexity"]["max"] == pytest.approx(20.0855, abs=1e-4), (
        "e^3, though not recorded"
    )
    assert scores_of(result) == [pytest.approx(7.389, abs=1e-3), pytest.approx(20.0855, abs=1e-4)]
    assert result["git"]["dirty"] is False and result["runs"][1]["git"] == dirty and "git" not in result["runs"][0]
    assert "hardware" not in result["runs"][1] and result["failed"] == {"2": "it diverged"}
    assert "/secret" not in dumps(result)
    means = as_record(result)
    assert means["metrics"]["test"]["loss"] == 2.5 and means["steps"] == 5 and means["seeds"]["seed"] == [0, 1]
    text = format_results({"ptb_word/lstm": result}, [])
    assert (
        f"commit `{'f' * 10}`, `{'e' * 10}` with changes not committed" in text
        and "seed 2 failed: it diverged" in text
    )
    assert "examples left out: 3 of train" in text and "| 2 of 3, **1 failed** |" in text


def test_seeds_that_learned_from_other_data_are_seen():
    same = merge("ptb_word/lstm", [record(0), record(1)])
    assert "data: ptb_word, sha256 `0123456789abcdef`, examples left out: 3 of train" in format_results(
        {"ptb_word/lstm": same}, []
    )
    mixed = merge("ptb_word/lstm", [record(0), record(1, data={"sha256": "f" * 64})])
    told = f"sha256 `0123456789abcdef`, `{'f' * 16}` (**the seeds learned from different data**), examples left out"
    assert told in format_results({"ptb_word/lstm": mixed}, [])


def test_curves_keep_their_length_and_their_last_point():
    curve = [[step, step / 3] for step in range(1, 1001)]
    thinned = thin(curve, 200)
    assert len(thinned) == 200 and thinned[0] == [5, 1.6667] and thinned[-1] == [1000, 333.33]
    assert thin(curve[:3], 200) == [[1, 0.33333], [2, 0.66667], [3, 1.0]]


def test_the_file_has_a_line_for_each_point_and_nothing_that_is_no_number(tmp_path):
    result = merge("ptb_word/lstm", [record()])
    text = dumps(result)
    assert "[1, 3.0]" in text and json.loads(text) == json.loads(json.dumps(result))
    with pytest.raises(ValueError, match="JSON"):
        dumps(merge("ptb_word/lstm", [record(loss=float("nan"))]))
    (tmp_path / "a.json").write_text(text)
    assert read_result(tmp_path / "a.json", "ptb_word/lstm") == json.loads(text)
    with pytest.raises(ValueError, match="is no result of ptb_word/gru; `make results TASK=ptb_word/gru`"):
        read_result(tmp_path / "a.json", "ptb_word/gru")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        read_result(tmp_path / "b.json", "ptb_word/lstm")


def order(*digests, steps=None):
    at = {str(2**power): digest for power, digest in enumerate(digests)}
    return {"batch_order": {"digest": digests[-1] if digests else "", "steps": steps or len(digests), "at": at}}


def test_batches_are_the_same_as_far_as_the_shortest_run_went():
    long, short = order("a", "b", "c", "d"), order("a", "b", "c")
    assert same_batches({"long": long, "short": short}) == [(["long", "short"], 4, "c")]
    parted = order("a", "x", "y")
    assert same_batches({"long": long, "short": short, "parted": parted}) == [
        (["long", "short"], 4, "c"),
        (["parted"], 4, "y"),
    ]
    assert same_batches({"long": long, "other": order("z")}) == [(["long"], 8, "d"), (["other"], 1, "z")]
    assert same_batches({"long": long, "unknown": order()}) == [(["long"], 8, "d")], "no digest proves nothing"
    old = {"batch_order": {"digest": "e" * 64, "steps": 7}}
    assert same_batches({"one": old, "two": old}) == [(["one", "two"], 7, "e" * 16)]


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [(114.52, 2, "114.52"), (0.0197, 4, "0.0197"), (5.3e-5, 5, "5.3e-05"), (0.0, 3, "0.000"), (8.5432, 3, "8.543")],
)
def test_numbers_are_shown_with_the_digits_that_they_have(value, digits, shown):
    assert number(value, digits) == shown


def test_a_mean_is_shown_with_its_range():
    assert in_words([], 2) == "–" and in_words([1.0], 2) == "1.00"
    assert in_words([1.0, 2.0, 6.0], 2) == "3.00 (1.00–6.00)"


def test_references_and_verdicts(monkeypatch):
    jsb = BENCHMARKS["jsb_chorales"]
    assert (jsb.reference("gru-300k").value, jsb.reference("gru").value) == (8.43, 8.54)
    assert jsb.reference("transformer_decoder") is None
    assert jsb.reaches(8.54, 8.54) and not jsb.reaches(8.541, 8.54)
    assert Benchmark("x", "y", "loss", lower_is_better=False).reaches(2, 1)
    assert published(1.0, "x").goal == 1.0 and Reference(1.0, "x").goal is None
    for benchmark in BENCHMARKS.values():
        assert benchmark.measure in MEASURES and benchmark.seeds and benchmark.split in ("validation", "test")
    results = {
        f"ptb_word/{name}": merge(f"ptb_word/{name}", [record(loss=4.7)]) for name in ("lstm", "lstm-awd", "gru")
    }
    rows = {
        line.split("]")[0][3:]: line for line in format_results(results, []).splitlines() if line.startswith("| [")
    }
    assert "| 109.95 | 5 | 2.0 | 114.5 (Zaremba 2014, 2 × 200" in rows["lstm"] and rows["lstm"].endswith("| reached |")
    assert "58.8 (awd-lstm-lm" in rows["lstm-awd"] and rows["lstm-awd"].endswith("| **not reached** |")
    assert rows["gru"].endswith("| 92.48 (Bai 2018, 13 million parameters) | **worse**, no goal |")
    short = format_short(results)
    assert "lstm 109.95, **lstm-awd 109.95**, **gru 109.95**" in short
    sums = record() | {"metrics": {"test": {"loss": 9e-4, "mse": 9e-4}}}
    above_the_goal = format_results({"adding/gru": merge("adding/gru", [sums])}, [])
    assert "| 5.3e-05 (Bai 2018; to reach: 0.001) | goal reached, worse than published |" in above_the_goal
    results["musedata/gru"] = merge("musedata/gru", [record()])
    assert "| 5.99 (Chung 2014) | not comparable |" in format_results(results, []) and "5.99" not in format_short(
        results
    )


def test_the_guess_to_beat_stands_under_the_table():
    results = {
        f"adding/{name}": merge(f"adding/{name}", [record(chance={"mse": 0.167, "x": 1})]) for name in ("a", "b")
    }
    assert format_results(results, []).count("- a guess has mean squared error 0.16700\n") == 1


def test_what_has_not_run_is_named_and_changes_no_header():
    text = format_results({}, ["adding/gru", "adding/rnn"])
    assert "## adding" in text and "Not yet run: adding/gru, adding/rnn." in text and "## copy_memory" not in text
    header = "# Takes:    x\n# Expected: y\n"
    assert update_header(header, {"recipe": "adding/gru", "runs": [], "failed": {"0": "z"}}) == header
    changed = update_header(header, merge("ptb_char/lstm", [record(loss=1.0)]))
    assert changed == (
        "# Takes:    2.0 minutes on 2 cores\n# Expected: test bits per character 1.443 (results/ptb_char/lstm.json)\n"
    )


def test_minutes_of_a_resumed_run_are_those_of_all_its_training():
    assert minutes_of({"seconds": 120.0}) == 2.0 == minutes_of({"seconds": 120.0, "training_minutes": 1.9})
    assert minutes_of({"seconds": 120.0, "training_minutes": 50.0, "resumed_at_step": 9}) == 50.0


def test_places_name_what_was_used():
    assert place({"cores": 2, "torch_threads": 2, "gpu": None}) == "2 cores"
    assert place({"cores": 2, "torch_threads": 1}) == "2 cores, 1 thread"
    assert place({"cores": 16, "torch_threads": 16, "gpu": "NVIDIA H100"}) == "NVIDIA H100"
