"""`python -m hf_seqmodels.results` from recipe to table, on a task of a second: seeds, finished, resumed, failed."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from hf_seqmodels.evaluation.benchmarks import BENCHMARKS, Benchmark, Reference
from hf_seqmodels.evaluation.recorded import read_results
from hf_seqmodels.results.plan import choose, difference
from hf_seqmodels.results.runner import main

RECIPE = """\
# An LSTM on the parity of four bits
# Run:      python train.py --config configs/tiny/{name}.yaml
# Takes:    unknown
# Expected: unknown
task: sequence-classification
model_type: seq_{name}
model:
  hidden_size: 4
data:
  dataset: parity
  length: 4
  num_examples: 20
training:
  learning_rate: {rate}
  max_steps: 6
  eval_strategy: steps
  eval_steps: 2
  save_strategy: steps
  save_steps: 2
  save_total_limit: 9
  logging_steps: 1
  per_device_train_batch_size: 8
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Two recipes of a benchmark of its own."""
    tiny = Benchmark(
        "four bits",
        "synthetic",
        "loss",
        split="validation",
        seeds=(0, 1),
        references={"rnn": Reference(0.01, "nobody 1999", goal=0.01), "lstm": Reference(2.0, "nobody 1999", goal=2.0)},
    )
    monkeypatch.setitem(BENCHMARKS, "tiny", tiny)
    (tmp_path / "configs" / "tiny").mkdir(parents=True)
    for name in ("lstm", "rnn"):
        (tmp_path / "configs" / "tiny" / f"{name}.yaml").write_text(RECIPE.format(name=name, rate="1e-2"))
    (tmp_path / "README.md").write_text("a\n<!-- results table -->\n<!-- /results table -->\nb\n")
    return tmp_path


def run(checkout, *more):
    return main(["--task", "tiny", "--checkout", str(checkout), "--threads", "1", *more])


def folder(checkout, name, seed):
    return checkout / "runs" / "results" / "tiny" / name / f"seed-{seed}"


def result(checkout, name):
    return json.loads((checkout / "results" / "tiny" / f"{name}.json").read_text())


def test_recipes_and_seeds_become_results_and_tables(checkout, capsys):
    assert run(checkout) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert [line.split(":")[0] for line in lines] == [
        "[1/2] tiny/lstm, seed 0",
        "[2/2] tiny/rnn, seed 0",
        "[1/2] tiny/lstm, seed 1",
        "[2/2] tiny/rnn, seed 1",
    ]
    found = result(checkout, "lstm")
    records = [json.loads((folder(checkout, "lstm", seed) / "result.json").read_text()) for seed in (0, 1)]
    losses = [record["metrics"]["validation"]["loss"] for record in records]
    assert found["spread"]["validation"]["loss"] == {"mean": sum(losses) / 2, "min": min(losses), "max": max(losses)}
    assert losses[0] != losses[1] and [run["seed"] for run in found["runs"]] == found["seeds"]["seed"] == [0, 1]
    assert (
        found["same_batches"]
        and found["runs"][0]["batch_order"]["digest"] == found["runs"][1]["batch_order"]["digest"]
    )
    assert found["data"]["sha256"] == records[0]["data"]["sha256"] and found["parameters"] == records[0]["parameters"]
    assert found["config"]["training"]["max_minutes"] == 100 and found["hardware"]["torch_threads"] == 1
    assert found["versions"] == records[0]["versions"] and "versions" not in found["runs"][1], "said once"
    assert len(found["curve"]["validation"]) == 3 == len(found["runs"][1]["curve"]["validation"])
    assert not list(checkout.rglob("checkpoint-*")), "of finished runs the weights are kept and no checkpoint"

    text = (checkout / "results" / "README.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| [lstm](tiny/lstm.json) |")]
    mean, low, high = (f"{value:.4f}" for value in (sum(losses) / 2, min(losses), max(losses)))
    assert f"| 2 | {mean} ({low}–{high}) | 6 |" in row and row.endswith("| 2 (nobody 1999) | reached |")
    assert "0.01 (nobody 1999) | **not reached** |" in text
    digest = found["batch_order"]["at"]["4"]
    assert f"the same batches in the same order, for 4 steps (digest `{digest}`): all" in text
    readme = (checkout / "README.md").read_text()
    assert readme.startswith("a\n") and readme.endswith("b\n") and f"lstm {mean}, **rnn " in readme
    header = (checkout / "configs" / "tiny" / "lstm.yaml").read_text()
    assert (
        f"# Expected: validation cross-entropy (nats) {mean} ({low}–{high}) over 2 seeds (results/tiny/lstm.json)"
        in header
    )
    assert (checkout / "results" / "tiny" / "curves.png").stat().st_size > 2_000


def stamps(checkout):
    return {path.parent: path.stat().st_mtime_ns for path in checkout.rglob("seed-*/result.json")}


def test_what_is_finished_is_not_repeated_unless_it_is_asked_for_or_the_recipe_changed(checkout, capsys):
    assert run(checkout, "--seeds", "3") == 0
    before, written = stamps(checkout), result(checkout, "lstm")
    assert len(before) == 2
    assert run(checkout, "--seeds", "3") == 0
    assert stamps(checkout) == before and result(checkout, "lstm") == written
    assert main(["--task", "tiny/rnn", "--checkout", str(checkout), "--seeds", "3", "--overwrite"]) == 0
    after = stamps(checkout)
    assert [path.parent.name for path in before if after[path] != before[path]] == ["rnn"]

    recipe = checkout / "configs" / "tiny" / "lstm.yaml"
    recipe.write_text(recipe.read_text().replace("learning_rate: 1e-2", "learning_rate: 2e-2"))
    capsys.readouterr()
    assert run(checkout, "--seeds", "3") == 0
    assert "tiny/lstm, seed 3: anew, since learning_rate was 0.01 and is 0.02" in capsys.readouterr().out
    assert result(checkout, "lstm")["config"]["training"]["learning_rate"] == 0.02
    assert [path.parent.name for path in after if stamps(checkout)[path] != after[path]] == ["lstm"]


def test_a_clean_clone_does_not_lose_seeds_that_were_recorded(checkout, capsys):
    assert run(checkout) == 0
    file = checkout / "results" / "tiny" / "lstm.json"
    before = file.read_bytes()
    shutil.rmtree(checkout / "runs")
    assert run(checkout, "--seeds", "0") == 0
    told = capsys.readouterr().out
    assert file.read_bytes() == before and "lstm.json has seeds that were not run here (1) and stays" in told
    assert run(checkout, "--seeds", "5", "6", "7") == 0  # more seeds, but not those
    assert file.read_bytes() == before and "not run here (1) and stays" in capsys.readouterr().out
    (checkout / "configs" / "tiny" / "lstm.yaml").write_text(RECIPE.format(name="lstm", rate="2e-2"))
    assert run(checkout, "--seeds", "0") == 0  # another recipe: its first seed is all that is known of it
    assert [found["seed"] for found in result(checkout, "lstm")["runs"]] == [0]


def test_a_finished_run_of_other_data_is_made_anew_and_not_averaged_with_these(checkout, capsys):
    assert run(checkout) == 0
    for seed in (0, 1):
        file = folder(checkout, "lstm", seed) / "result.json"
        record = json.loads(file.read_text())
        record["data"]["sha256"] = "0" * 64  # as if the data set had been another one
        file.write_text(json.dumps(record))
    before, right = stamps(checkout), result(checkout, "lstm")
    capsys.readouterr()
    assert run(checkout, "--seeds", "0") == 0
    assert "tiny/lstm, seed 0: anew, since the data changed" in capsys.readouterr().out
    changed = {(path.parent.name, path.name) for path in before if stamps(checkout)[path] != before[path]}
    assert changed == {("lstm", "seed-0")}
    assert result(checkout, "lstm") == right, "seed 1 has not learned from these data, and its old score stays"
    (checkout / "results" / "tiny" / "lstm.json").unlink()
    assert run(checkout, "--seeds", "0") == 0
    assert result(checkout, "lstm")["seeds"]["seed"] == [0]


def test_a_folder_that_another_process_trains_in_is_left_alone(checkout, capsys):
    assert run(checkout, "--seeds", "0") == 0
    before, place = stamps(checkout), folder(checkout, "lstm", 0)
    with FileLock(place.with_name(f".{place.name}.lock")):
        assert run(checkout, "--seeds", "0", "--overwrite") == 1
    assert "failed: tiny/lstm, seed 0: another process trains it in" in capsys.readouterr().err
    assert [path.parent.name for path in before if stamps(checkout)[path] != before[path]] == ["rnn"]


def test_an_interrupted_run_goes_on_to_the_same_numbers(checkout, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "rmtree", lambda path: None)  # the checkpoints stay
    assert main(["--task", "tiny/lstm", "--checkout", str(checkout), "--seeds", "0", "--threads", "1"]) == 0
    monkeypatch.undo()
    whole, place = result(checkout, "lstm"), folder(checkout, "lstm", 0)
    monkeypatch.setitem(
        BENCHMARKS, "tiny", Benchmark("four bits", "synthetic", "loss", split="validation", seeds=(0,))
    )
    for path in ("result.json", "model.safetensors", "checkpoint-4/trainer_state.json"):  # killed as it saved step 4
        (place / path).unlink()
    shutil.rmtree(place / "checkpoint-6")
    capsys.readouterr()
    assert main(["--task", "tiny/lstm", "--checkout", str(checkout), "--threads", "1"]) == 0
    assert "tiny/lstm, seed 0: from step 2" in capsys.readouterr().out
    resumed = result(checkout, "lstm")
    assert resumed["runs"][0]["metrics"] == whole["runs"][0]["metrics"]
    assert resumed["batch_order"] == whole["batch_order"] and resumed["curve"] == whole["curve"]
    assert resumed["runs"][0]["resumed_at_step"] == 2 and "resumed_at_step" not in whole["runs"][0]


def test_a_run_that_fails_is_recorded_and_the_others_go_on(checkout, capsys):
    recipe = checkout / "configs" / "tiny" / "lstm.yaml"
    recipe.write_text(RECIPE.format(name="lstm", rate="1e30"))
    assert run(checkout, "--seeds", "0") == 1
    told = capsys.readouterr()
    assert "failed: tiny/lstm, seed 0: TrainingDiverged: step " in told.err and "[2/2] tiny/rnn, seed 0: v" in told.out
    failed = result(checkout, "lstm")
    assert failed["runs"] == [] and "; lower learning_rate (it is 1e+30)" in failed["failed"]["0"]
    text = (checkout / "results" / "README.md").read_text()
    assert "| [lstm](tiny/lstm.json) | – | 0 of 2, **1 failed** | – |" in text
    assert "- lstm: seed 0 failed: TrainingDiverged" in text
    assert "# Expected: unknown" in recipe.read_text(), "nothing was measured"
    assert len(result(checkout, "rnn")["runs"]) == 1 and read_results(checkout / "results").keys() == {
        "tiny/lstm",
        "tiny/rnn",
    }


# The runner with the benchmark of these tests, for a process of its own.
RUNNER = (
    "import sys; from hf_seqmodels.evaluation.benchmarks import BENCHMARKS, Benchmark;"
    "from hf_seqmodels.results.runner import main;"
    "BENCHMARKS['tiny'] = Benchmark('four bits', 'synthetic', 'loss', split='validation', seeds=(0,));"
    "sys.exit(main(sys.argv[1:]))"
)


@pytest.mark.slow  # a process that is interrupted, by Ctrl-C as the terminal sends it
def test_ctrl_c_ends_with_a_line_and_the_same_command_goes_on(checkout, capsys):
    recipe = checkout / "configs" / "tiny" / "lstm.yaml"
    recipe.write_text(recipe.read_text().replace("max_steps: 6", "max_steps: 100000"))
    command = [sys.executable, "-c", RUNNER, "--task", "tiny/lstm", "--checkout", str(checkout), "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    saved = folder(checkout, "lstm", 0)
    try:
        wait_until(lambda: any(saved.glob("checkpoint-*/trainer_state.json")) or process.poll() is not None, 120)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, told
    assert told.splitlines()[0].endswith("the same command goes on where it stopped")
    assert len(told.splitlines()) == 1 and not (saved / "result.json").exists()

    steps = max(int(path.parent.name.partition("-")[2]) for path in saved.glob("checkpoint-*/trainer_state.json"))
    for place in (recipe, saved / "config.yaml"):  # the rest of it would take hours
        place.write_text(place.read_text().replace("max_steps: 100000", f"max_steps: {steps + 2}"))
    assert main(["--task", "tiny/lstm", "--checkout", str(checkout), "--seeds", "0", "--threads", "1"]) == 0
    assert f"tiny/lstm, seed 0: from step {steps:,}" in capsys.readouterr().out
    assert result(checkout, "lstm")["runs"][0]["resumed_at_step"] == steps


@pytest.mark.slow  # a process that is killed, with two workers
def test_workers_end_when_the_runner_is_killed(checkout):
    for name in ("lstm", "rnn"):
        recipe = checkout / "configs" / "tiny" / f"{name}.yaml"
        recipe.write_text(recipe.read_text().replace("max_steps: 6", "max_steps: 100000"))
    options = ["--task", "tiny/lstm", "tiny/rnn", "--checkout", str(checkout), "--workers", "2", "--threads", "1"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-c", RUNNER, *options], **quiet)
    workers: list[psutil.Process] = []
    try:
        logs = [folder(checkout, name, 0) / "log.jsonl" for name in ("lstm", "rnn")]
        assert wait_until(lambda: all(log.is_file() for log in logs) or process.poll() is not None, 120)
        workers = psutil.Process(process.pid).children()
        assert sum(worker.cpu_times().user > 1 for worker in workers) == 2, "both train"
        process.kill()
        assert wait_until(lambda: not any(map(works, workers)), 20), "they train on, unseen"
    finally:
        for one in (process, *workers):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def works(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def wait_until(true: Callable[[], bool], seconds: float) -> bool:
    """Whether it came true in time."""
    for _ in range(int(seconds * 10)):
        if true():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow  # workers that are killed
def test_a_worker_that_dies_fails_its_own_run_alone(checkout):
    """Whatever trains `long` is killed, also when it is tried again; `beside` trains at that moment, `rnn` waits."""
    recipes = [checkout / "configs" / "tiny" / f"{name}.yaml" for name in ("lstm", "beside", "rnn", "long")]
    for recipe, steps in zip(recipes, (6, 400, 6, 100_000), strict=True):
        recipe.write_text(RECIPE.format(name="rnn", rate="1e-2").replace("max_steps: 6", f"max_steps: {steps}"))
    parts = ["tiny/long", "tiny/beside", "tiny/lstm", "tiny/rnn"]
    options = ["--task", *parts, "--checkout", str(checkout), "--workers", "2", "--threads", "1"]
    with subprocess.Popen([sys.executable, "-c", RUNNER, *options], stderr=subprocess.PIPE, text=True) as process:
        try:
            for _ in range(2):
                assert wait_until(lambda: bool(training(process, checkout, "long")), 150)
                for worker in training(process, checkout, "long"):
                    worker.kill()
                    worker.wait()
            told = process.communicate(timeout=150)[1]
        finally:
            process.kill()
    assert process.returncode == 1 and told.count("failed: ") == 1, told
    assert "failed: tiny/long, seed 0: its process died" in told
    assert all((folder(checkout, name, 0) / "result.json").is_file() for name in ("beside", "lstm", "rnn"))


def training(process: subprocess.Popen, checkout: Path, name: str) -> list[psutil.Process]:
    """The workers that train a recipe: they hold its lock."""
    lock = str(folder(checkout, name, 0).with_name(".seed-0.lock"))
    found = []
    for worker in psutil.Process(process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [worker] * any(file.path == lock for file in worker.open_files())
    return found


@pytest.mark.slow  # each of the two imports the package anew
def test_two_at_a_time_give_what_one_after_the_other_gives(checkout):
    assert run(checkout, "--seeds", "0", "--workers", "2") == 0
    parallel = result(checkout, "rnn")["runs"][0]["metrics"]
    assert run(checkout, "--seeds", "0", "--overwrite") == 0
    assert result(checkout, "rnn")["runs"][0]["metrics"] == parallel


def test_one_seed_is_enough_for_a_long_run(checkout, monkeypatch):
    from hf_seqmodels.results import plan

    monkeypatch.setattr(plan, "ONE_SEED_MINUTES", 0.0)
    assert run(checkout) == 0
    found = result(checkout, "lstm")
    assert found["seeds"]["seed"] == [0] and found["seed_rule"].startswith("one seed, as a run takes 0 minutes")
    text = (checkout / "results" / "README.md").read_text()
    assert f"- lstm: {found['seed_rule']}" in text


def test_mistakes_are_told_before_anything_runs(checkout, capsys):
    (checkout / "configs" / "tiny" / "x.yaml").write_text(
        "task: causal-lm\nmodel_type: seq_lstm\ndata: {dataset: text, path: no_such_set}\n"
    )
    assert run(checkout) == 2
    assert "tiny/x: there is no data set 'no_such_set'" in capsys.readouterr().err
    assert main(["--task", "musik", "--checkout", str(checkout)]) == 2
    assert "there is no benchmark 'musik': did you mean 'music'?" in capsys.readouterr().err
    assert main(["--task", "adding", "--checkout", str(checkout)]) == 2
    assert "there is no recipe of 'adding' in" in capsys.readouterr().err
    (checkout / "configs" / "lm").mkdir()
    (checkout / "configs" / "lm" / "gru.yaml").write_text(RECIPE.format(name="gru", rate="1e-2"))
    for wanted in (["lm/gru"], ["lm", "--seeds", "1"]):
        assert main(["--task", *wanted, "--checkout", str(checkout)]) == 2
        assert "lm is the demo and runs as a whole, with its own seed" in capsys.readouterr().err
    assert not (checkout / "runs").exists() and not (checkout / "results").exists()


def test_parts_are_groups_folders_and_recipes(checkout):
    configs = checkout / "configs"
    assert choose(["tiny"], configs) == ["tiny/lstm", "tiny/rnn"]
    assert choose(["tiny/rnn", "tiny"], configs) == ["tiny/rnn", "tiny/lstm"]
    assert choose([], configs) == choose(["synthetic"], configs) == ["tiny/lstm", "tiny/rnn"]


def test_an_option_that_came_later_counts_as_its_default():
    now = {
        "task": "causal-lm",
        "model_type": "seq_lstm",
        "model": {},
        "data": {"block_size": 128, "data_dir": "x"},
        "training": {"seed": 1, "decay_factor": 0.5, "learning_rate": 0.1},
    }
    before = {**now, "data": {"data_dir": "y"}, "training": {"seed": 2, "learning_rate": 0.1}}
    assert difference(before, now) is None
    assert difference(before | {"data": {"gone": 1}}, now) is None
    assert difference({**before, "data": {"block_size": 64}}, now) == "block_size was 64 and is 128"
    assert (
        difference(before | {"training": {"learning_rate": 0.1, "max_steps": 9}}, now) == "max_steps was 9 and is -1"
    )
