"""Export: a whole folder or nothing, redacted, the same for a stranger; every refusal comes before any work."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from exporting_runs import tiny_run
from hf_seqmodels.exporting import main, windows_for_test
from hf_seqmodels.hub import cards
from hf_seqmodels.hub import export as export_module
from hf_seqmodels.hub.export import ExportError, export
from hf_seqmodels.hub.files import check_checksums, check_folder, find_secrets, list_files, may_leave
from hf_seqmodels.hub.saved import other_records, read_record, redact
from hf_seqmodels.hub.verify import VerificationError
from model_table import CASES, build
from sounds import make_extractor

CANARY = "hf_" + "CanaryOfTheExportTests0123456789"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two runs of two steps on the same text: GRU, and an RNN beside it."""
    runs = tmp_path_factory.mktemp("runs")
    tiny_run("lm/rnn", runs / "rnn")
    return tiny_run("lm/gru", runs / "gru")


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "gru"
    return folder, export(run, folder, name="tiny gru")


def test_the_folder_is_whole(exported):
    folder, report = exported
    names = list_files(folder)
    wanted = {"model.safetensors", "config.json", "modeling_gru.py", "tokenizer.json", "generation_config.json"}
    wanted |= {"README.md", "loss_curve.png", "gradient_flow.png", "golden.safetensors", "SHA256SUMS"}
    wanted |= {"result.json", "config.yaml", "training_args.json"}
    assert wanted <= set(names) and report["files"] == names
    assert all(may_leave(name) for name in names)
    check_folder(folder)
    assert check_checksums(folder) == [] and find_secrets(folder) == []
    assert folder.stat().st_mode & 0o777 == 0o755
    assert not [path for path in folder.parent.iterdir() if path != folder], "no staging folder stays behind"


def test_strangers_found_the_same(exported):
    _, report = exported
    assert report["stranger"]["max_difference"] <= 1e-5 and report["stranger"]["saved_again_difference"] <= 1e-5
    assert report["stranger"]["generated"].startswith("The import statement ")


def test_the_weights_are_the_runs(run, exported):
    ours, theirs = load_file(run / "model.safetensors"), load_file(exported[0] / "model.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_card_stands_beside_the_other_run_and_not_beside_itself(exported):
    text = (exported[0] / "README.md").read_text()
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ") and "seq" in line]
    assert rows == ["**tiny gru** (this one)", "rnn"] or rows == ["rnn", "**tiny gru** (this one)"]


def test_no_path_of_this_machine_is_told(run, exported):
    for name in list_files(exported[0]):
        content = (exported[0] / name).read_bytes()
        assert str(run.parent).encode() not in content and b"/tmp/" not in content, name


def test_tokens_and_paths_are_taken_out_of_every_file(run, tmp_path):
    """An option that holds a token, and options that hold paths, whatever they are called."""
    copy = shutil.copytree(run, tmp_path / "run")
    record = json.loads((copy / "result.json").read_text())
    record["config"]["training"] |= {"hub_token": CANARY, "deepspeed": "/home/alice/ds.json", "run_name": "./mine/x"}
    record["config"]["data"] |= {"tokenizer": "/home/alice/bpe", "train_file": "C:\\Users\\alice\\letters.txt"}
    (copy / "result.json").write_text(json.dumps(record))
    (copy / "config.yaml").write_text(yaml.safe_dump(record["config"]))
    export(copy, tmp_path / "out")
    for name in list_files(tmp_path / "out"):
        content = (tmp_path / "out" / name).read_bytes()
        assert CANARY.encode() not in content and b"alice" not in content, name
    told = json.loads((tmp_path / "out" / "result.json").read_text())
    assert told["config"]["data"]["tokenizer"] == "bpe" and told["config"]["data"]["train_file"] == "letters.txt"
    assert "bits_per_token" in told["metrics"]["test"] and told["config"]["training"]["run_name"] == "x"
    arguments = json.loads((tmp_path / "out" / "training_args.json").read_text())
    assert arguments["deepspeed"] == "ds.json" and "hub_token" not in arguments and arguments["max_steps"] == 2


@pytest.mark.parametrize("text", ["and/or", "n/a", "a / b", "/", "1/2", "lm/lstm", "user/name"])
def test_what_is_no_path_stays(text):
    assert redact({"note": text}) == {"note": text}


def test_feature_settings_travel_with_the_model(tmp_path):
    build(next(case for case in CASES if case.architecture == "seq_lstm"), "ctc").save_pretrained(tmp_path / "run")
    make_extractor().save_pretrained(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    settings = "preprocessor_config.json"
    ours, theirs = (json.loads((tmp_path / name / settings).read_text()) for name in ("run", "out"))
    assert ours == theirs and ours["feature_size"] > 0


def test_a_secret_anywhere_stops_the_export(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    record = json.loads((copy / "result.json").read_text())
    record["config"]["model"]["note"] = CANARY
    (copy / "result.json").write_text(json.dumps(record))
    with pytest.raises(ExportError, match=r"holds what looks like a secret \(Hugging Face token\)"):
        export(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_an_earlier_export_is_replaced_only_when_asked(run, exported, tmp_path):
    folder = shutil.copytree(exported[0], tmp_path / "gru")
    (folder / "README.md").write_text("old")
    with pytest.raises(ExportError, match="is not empty"):
        export(run, folder)
    export(run, folder, overwrite=True)
    assert check_checksums(folder) == [] and (folder / "README.md").read_text() != "old"


@pytest.mark.parametrize("sums", [None, "", "x"])
def test_what_no_export_wrote_is_never_deleted(run, exported, tmp_path, sums):
    folder = shutil.copytree(exported[0], tmp_path / "gru")
    (folder / "precious.txt").write_text("x")
    if sums is not None:
        (folder / "SHA256SUMS").write_text(sums)
    with pytest.raises(ValueError, match=r"which no export wrote|no checksum of a file"):
        export(run, folder, overwrite=True)
    assert (folder / "precious.txt").read_text() == "x"


def test_a_folder_that_holds_the_run_is_not_replaced(run, tmp_path, monkeypatch):
    copy = shutil.copytree(run, tmp_path / "out" / "run")
    for folder in (copy, copy.parent):
        with pytest.raises(ExportError, match="is the run itself, or holds it"):
            export(copy, folder, overwrite=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ExportError, match="is the current folder"):
        export(copy, Path("."))


def test_a_neighbour_without_a_record_is_left_out(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    for name, text in (("old", '{"task": "causal-lm", "metrics": {}, "config": {}}'), ("broken", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "result.json").write_text(text)
    assert other_records(copy, read_record(copy)) == []


def test_the_licence_stays_what_it_was(run, tmp_path):
    export(run, tmp_path / "first", license="mit")
    export(tmp_path / "first", tmp_path / "second")
    assert "\nlicense: mit\n" in (tmp_path / "second" / "README.md").read_text()


def test_quantized_models_are_measured_on_the_runs_own_text(run, tmp_path, capsys):
    """And on golden inputs, with a note, where the text is another."""
    pytest.importorskip("onnxruntime")
    assert main([str(run), str(tmp_path / "out"), "--int8"]) == 0
    assert re.search(r"model_int8.onnx: \d+% of the bytes, bits per token \d\.\d+ → \d\.\d+", capsys.readouterr().out)
    assert check_checksums(tmp_path / "out") == [] and "model_step_int8.onnx" in list_files(tmp_path / "out")
    record = json.loads((run / "result.json").read_text())
    bits = json.loads((tmp_path / "out" / "quantization_report.json").read_text())["model_int8.onnx"]["quality"]
    told = record["metrics"]["test"]["bits_per_token"]
    assert bits["bits_per_token"]["float32"] == pytest.approx(told, abs=1e-3)
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "result.json").write_text(json.dumps(record | {"data": record["data"] | {"sha256": "0" * 64}}))
    assert windows_for_test(copy) is None and "another sha256" in capsys.readouterr().err


def test_a_folder_that_computes_something_else_is_not_finished(run, tmp_path, monkeypatch):
    honest = export_module.write_checksums

    def spoil(stage):
        tensors = load_file(stage / "golden.safetensors")
        tensors["scores"] = tensors["scores"] + 0.01
        save_file(tensors, stage / "golden.safetensors", metadata={"auto": "AutoModelForCausalLM"})
        return honest(stage)

    monkeypatch.setattr(export_module, "write_checksums", spoil)
    with pytest.raises(VerificationError, match="scores differ by 1"):
        export(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_models_of_transformers_are_exported_too(tmp_path):
    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2)).save_pretrained(tmp_path / "gpt2")
    report = export(tmp_path / "gpt2", tmp_path / "out")
    assert report["stranger"]["max_difference"] <= 1e-5
    assert "result.json" not in report["files"] and "README.md" in report["files"]
    assert (tmp_path / "out" / "README.md").read_text().count("More information needed") == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        "reverse/transformer",
        "parity/lstm",
        "lookahead_tags/lstm",
        "cloze/transformer_encoder",
        "moving_squares/conv_lstm",
    ],
)
def test_runs_of_other_tasks_are_exported(recipe, tmp_path):
    folder = tiny_run(recipe, tmp_path / "run")
    report = export(folder, tmp_path / "out")
    assert report["stranger"]["max_difference"] <= 1e-5 and check_checksums(tmp_path / "out") == []


@pytest.mark.slow
def test_a_model_of_every_architecture_is_exported(tmp_path):
    for case in (case for case in CASES if case.variant == "plain"):
        build(case, case.main_head).save_pretrained(tmp_path / str(case))
        report = export(tmp_path / str(case), tmp_path / f"{case}-out")
        assert report["stranger"]["max_difference"] <= 1e-5, case


def test_without_code_the_package_is_needed_and_enough(run, tmp_path):
    report = export(run, tmp_path / "out", code=False)
    assert not [name for name in report["files"] if name.endswith(".py")]
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").num_parameters() > 0
    assert "import hf_seqmodels" in (tmp_path / "out" / "README.md").read_text()


def spoil_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def drop_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("lm_head.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def add_tensor(folder):
    tensors = load_file(folder / "model.safetensors") | {"strange": torch.ones(1)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def truncate(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1])


UNFIT = {
    "no checkpoint": (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
    "truncated": (truncate, "truncated or damaged"),
    "a tensor less": (drop_tensor, r"lm_head.weight"),
    "a tensor more": (add_tensor, "unexpected keys, the first is strange"),
    "another shape": (lambda folder: spoil_config(folder, hidden_size=9), "does not fit its config.json"),
    "a broken config.yaml": (lambda folder: (folder / "config.yaml").write_text("a: ["), "is no YAML"),
    "an unknown class": (lambda folder: spoil_config(folder, architectures=["FooModel"]), "names no class"),
    "no class": (lambda folder: spoil_config(folder, architectures=None), "names no class"),
    "a record of something else": (lambda folder: (folder / "result.json").write_text("[]"), "is no record of a run"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_what_is_not_fit_is_named_and_nothing_is_written(run, tmp_path, what, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    spoil, message = UNFIT[what]
    spoil(copy)
    assert main([str(copy), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("hf-seqmodels export: error: ")
    assert re.search(message, error), error
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_is_not_replaced_by_its_own_export(run, capsys):
    assert main([str(run), str(run), "--overwrite"]) == 2
    assert "is the run itself" in capsys.readouterr().err and (run / "log.jsonl").is_file()


def test_the_card_written_again_is_the_same_and_hides_no_damage(exported, tmp_path, capsys):
    folder = shutil.copytree(exported[0], tmp_path / "copy")
    before = {name: (folder / name).read_bytes() for name in list_files(folder)}
    assert cards.main([str(folder)]) == 0
    assert {name: (folder / name).read_bytes() for name in list_files(folder)} == before
    (folder / "README.md").write_text("gone")
    assert cards.main([str(folder)]) == 0 and check_checksums(folder) == []
    weights = bytearray(before["model.safetensors"])
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(bytes(weights))
    assert cards.main([str(folder)]) == 2
    assert "model.safetensors differs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--license", "my-own"], "my-own"),
        ([], "is no folder"),
    ],
)
def test_wrong_options_are_named_before_any_work(tmp_path, options, message, capsys):
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err


def test_the_command_shows_what_it_wrote(run, tmp_path):
    command = ["-m", "hf_seqmodels.cli", "export", str(run), "out", "--name", "x"]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "model.safetensors" in done.stdout and "in a fresh process without this package" in done.stdout
    assert subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "out", capture_output=True).returncode == 0
