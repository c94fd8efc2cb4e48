"""C2, C8, C12: what a run writes holds no token, and going on from a checkpoint runs nothing that lies in it."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from canaries import pickled, save_canary

from hf_seqmodels.run import main

FROM_ENVIRONMENT, FROM_ARGUMENT = "hf_" + "EnvironmentCanary" * 2, "hf_" + "ArgumentCanary" * 2


def options(out: str) -> list[str]:
    argv = ["--model_type", "seq_gru", "--hidden_size", "8", "--block_size", "16", "--output_dir", out]
    argv += ["--max_steps", "2", "--logging_steps", "1", "--per_device_train_batch_size", "4"]
    for strategy in ("eval", "save"):
        argv += [f"--{strategy}_strategy", "steps", f"--{strategy}_steps", "1"]
    for split in ("train", "validation", "test"):
        argv += [f"--{split}_file", f"{split}.txt"]
    return argv


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A run of two steps with a token in the environment and one among the arguments; what it printed."""
    folder = tmp_path_factory.mktemp("runs")
    for split in ("train", "validation", "test"):
        (folder / f"{split}.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20 + split)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_TOKEN", FROM_ENVIRONMENT)
        printed = _captured(lambda: main([*options("out"), "--hub_token", FROM_ARGUMENT]), folder / "printed")
    return folder, printed


def _captured(run, file: Path) -> str:
    """What is printed to both streams, by libraries and their threads too."""
    held = [os.dup(1), os.dup(2)]
    with file.open("w") as target:
        os.dup2(target.fileno(), 1)
        os.dup2(target.fileno(), 2)
        try:
            assert run() == 0
        finally:
            for number, copy in zip((1, 2), held, strict=True):
                os.dup2(copy, number)
                os.close(copy)
    return file.read_text()


@pytest.fixture
def run_folder(finished, tmp_path, monkeypatch) -> Path:
    """A copy of the run, in which one may resume."""
    shutil.copytree(finished[0], tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    return tmp_path / "run"


# ---- C8 ---------------------------------------------------------------------------------------------------------


def test_no_token_is_written_or_printed(finished):
    folder, printed = finished
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"result.json", "config.yaml", "log.jsonl", "optimizer.pt", "trainer_state.json"} <= {p.name for p in files}
    for token in (FROM_ENVIRONMENT, FROM_ARGUMENT):
        assert token not in printed
        for path in files:
            content = path.read_bytes()
            assert token.encode() not in content and token[3:].encode() not in content, path
    assert not list(folder.rglob("training_args.bin")), "a pickle that holds hub_token"


@pytest.mark.parametrize("wrong", ["--hub_tokn", "--hub_token_"])
def test_a_misspelt_option_does_not_print_the_token(wrong, run_folder, capsys):
    for argv in ([wrong, FROM_ARGUMENT], [f"{wrong}={FROM_ARGUMENT}"]):
        assert main([*options("other"), *argv]) == 2
        said = capsys.readouterr()
        assert "hub_token" in said.err and "Canary" not in said.err + said.out
    Path("recipe.yaml").write_text(f"training:\n  {wrong[2:]}: {FROM_ARGUMENT}\n")
    assert main(["--config", "recipe.yaml", *options("other")]) == 2
    said = capsys.readouterr()
    assert "hub_token" in said.err and "Canary" not in said.err + said.out


# ---- C2 ---------------------------------------------------------------------------------------------------------


def resume(capsys) -> tuple[int, str]:
    capsys.readouterr()
    status = main([*options("out"), "--resume", "--max_steps", "3"])
    return status, capsys.readouterr().err


def one_line_error(said: str) -> str:
    """The last line; before it stands what transformers logged."""
    (line,) = [line for line in said.splitlines() if line.startswith("train.py: error: ")]
    assert "Traceback" not in said
    return line


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt"])
@pytest.mark.parametrize("kind", ["torch.save", "plain pickle"])
def test_a_state_that_runs_code_is_refused(name, kind, run_folder, capsys, tmp_path):
    proof, canary = tmp_path / "proof", tmp_path / "canary"
    pickle.loads(pickled(proof))
    assert proof.exists()
    path = run_folder / "out" / "checkpoint-2" / name
    if kind == "torch.save":
        save_canary(path, canary)
    else:
        path.write_bytes(pickled(canary))
    before = {file: file.read_bytes() for file in (run_folder / "out").glob("*.json")}
    status, said = resume(capsys)
    assert status == 2 and not canary.exists()
    assert name in one_line_error(said) and "resume from another checkpoint" in said
    assert before == {file: file.read_bytes() for file in (run_folder / "out").glob("*.json")}


@pytest.mark.parametrize("name", ["custom_checkpoint_0.pkl", "pytorch_model.bin"])
def test_other_pickles_are_refused(name, run_folder, capsys, tmp_path):
    """accelerate's load_state would run the first; the stock Trainer reads the second where safetensors lack."""
    canary, checkpoint = tmp_path / "canary", run_folder / "out" / "checkpoint-2"
    for lacking in (False, True):
        if lacking:
            (checkpoint / "model.safetensors").unlink()
        (checkpoint / name).write_bytes(pickled(canary))
        status, said = resume(capsys)
        assert status == 2 and name in one_line_error(said) and "not opened" in said
    assert not canary.exists()


def test_what_resuming_does_not_read_is_not_read(run_folder, capsys, tmp_path):
    """The stock Trainer's arguments, and what lies deeper."""
    canary, checkpoint = tmp_path / "canary", run_folder / "out" / "checkpoint-2"
    (checkpoint / "training_args.bin").write_bytes(pickled(canary))
    (checkpoint / "more").mkdir()
    (checkpoint / "more" / "optimizer.pt").write_bytes(pickled(canary))
    status, said = resume(capsys)
    assert (status, canary.exists()) == (0, False), said
    assert json.loads(Path("out/result.json").read_text())["steps"] == 3


def test_damaged_states_and_indexes_are_named(run_folder, capsys):
    checkpoint = run_folder / "out" / "checkpoint-2"
    whole = (checkpoint / "optimizer.pt").read_bytes()
    for length in (0, 10, len(whole) // 2):
        (checkpoint / "optimizer.pt").write_bytes(whole[:length])
        status, said = resume(capsys)
        assert status == 2 and "optimizer.pt" in one_line_error(said)
    (checkpoint / "optimizer.pt").write_bytes(whole)
    (checkpoint / "model.safetensors").rename(run_folder / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../../outside.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    status, said = resume(capsys)
    assert status == 2 and "shards are .safetensors files beside the index" in one_line_error(said)


def test_an_honest_checkpoint_of_every_kind_of_number_is_read(run_folder, capsys):
    """Also one in the format of torch before 1.6, which is a plain pickle of tensors."""
    path = run_folder / "out" / "checkpoint-2" / "scheduler.pt"
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    status, said = resume(capsys)
    assert status == 0, said


# ---- C12 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch canary']",
        "training: !!python/object/new:os.system ['touch canary']",
        "training:\n  learning_rate: !!python/name:os.system",
        "model:\n  _target_: os.system\n  hidden_size: 8",
        "training:\n  optimizer_class: os.system",
    ],
)
def test_a_recipe_makes_no_objects(text, run_folder, capsys):
    Path("recipe.yaml").write_text(text + "\n")
    capsys.readouterr()
    assert main(["--config", "recipe.yaml", *options("other")]) == 2
    assert len(one_line_error(capsys.readouterr().err)) < 500
    assert not Path("canary").exists() and not Path("other").exists()


def test_a_recipe_of_aliases_does_not_grow(run_folder, capsys):
    """Ten levels of ten references each: a billion laughs."""
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    Path("recipe.yaml").write_text("\n".join(levels) + "\n")
    capsys.readouterr()
    assert main(["--config", "recipe.yaml", *options("other")]) == 2
    assert len(one_line_error(capsys.readouterr().err)) < 500
