"""Runs of the adding problem and of copy memory: each architecture, what the record says, two processes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_distributed import SCRIPT, launch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from hf_seqmodels.arguments import ConfigError
from hf_seqmodels.config import parse
from hf_seqmodels.data import FeaturesCollator, TokenCollator, make_synthetic
from hf_seqmodels.run import run

TASKS = {"adding": "sequence-classification", "copy_memory": "token-classification"}
ARCHITECTURES = ("seq_rnn", "seq_lstm", "seq_gru", "seq_attention_rnn", "seq_transformer_encoder")
UNSAVED = ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]


def command(dataset: str, model_type: str, folder: Path, *more: str) -> list[str]:
    made = ["--dataset", dataset, "--length", "6", "--num_examples", "70"]
    return ["--task", TASKS[dataset], "--model_type", model_type, "--output_dir", str(folder), *made, *UNSAVED, *more]


@pytest.fixture(scope="module", params=TASKS)
def records(request, tmp_path_factory) -> dict[str, dict]:
    """A short run of each architecture on the same data."""
    folder = tmp_path_factory.mktemp(request.param)
    options = ["--hidden_size", "8", "--max_steps", "3"]
    return {
        name: run(parse(command(request.param, name, folder / name, *options)), quiet=True) for name in ARCHITECTURES
    }


def test_every_architecture_in_the_same_order(records):
    for record in records.values():
        assert record["batch_order"] == records["seq_gru"]["batch_order"] and record["batch_order"]["steps"] == 3
        assert record["data"]["sha256"] == records["seq_gru"]["data"]["sha256"]


def test_what_a_record_says(records):
    for record in records.values():
        adding = record["task"] == TASKS["adding"]
        assert set(record["data"]["longest"].values()) == {6 if adding else 26}
        assert set(record["metrics"]["test"]) == ({"loss", "mse"} if adding else {"loss", "accuracy", "exact_match"})
        assert set(record["chance"]) == {"mse" if adding else "loss"}


def test_the_sum_is_learned_and_scored(tmp_path):
    argv = ["--hidden_size", "24", "--num_examples", "2000", "--num_train_epochs", "6", "--learning_rate", "1e-2"]
    record = run(parse(command("adding", "seq_gru", tmp_path / "gru", *argv)), quiet=True)
    test = make_synthetic("adding", 2000, 6)[0]["test"]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "gru").eval()
    assert (model.config.problem_type, model.config.num_labels, model.config.num_features) == ("regression", 1, 2)
    batch = FeaturesCollator(2)(list(test))
    with torch.no_grad():
        output = model(**batch)
    error = (output.logits[:, 0] - batch["labels"]).square().mean().item()
    assert record["metrics"]["test"]["mse"] == pytest.approx(error, rel=1e-4) == record["metrics"]["test"]["loss"]
    assert record["metrics"]["test"]["mse"] < 0.01 < 0.1 < record["chance"]["mse"]


def test_the_copy_is_scored(tmp_path):
    record = run(parse(command("copy_memory", "seq_lstm", tmp_path / "lstm", "--hidden_size", "8")), quiet=True)
    splits, tokenizer = make_synthetic("copy_memory", 70, 6)
    batch = TokenCollator(tokenizer.pad_token_id, len(tokenizer))(list(splits["test"]))
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "lstm").eval()
    with torch.no_grad():
        output = model(**batch)
    found = record["metrics"]["test"]
    assert found["loss"] == pytest.approx(output.loss.item(), rel=1e-4), "the mean over all 26 steps"
    right = (output.logits.argmax(-1) == batch["labels"])[:, -10:].numpy()
    assert found["accuracy"] == pytest.approx(right.mean()) and found["exact_match"] == np.mean(right.all(1))


def test_models_that_read_no_features_are_refused(tmp_path):
    argv = command("adding", "gpt2", tmp_path / "gpt2", "--n_embd", "8", "--n_head", "2", "--n_layer", "1")
    with pytest.raises(ConfigError, match=r"^model_type=gpt2 reads tokens and this data set has features; choose one"):
        run(parse(argv), quiet=True)


def test_more_steps_than_positions_are_refused(tmp_path):
    for dataset, length in (("adding", "9"), ("copy_memory", "5")):
        short = ["--hidden_size", "8", "--max_position_embeddings", "8", "--length", length]
        argv = command(dataset, "seq_transformer_encoder", tmp_path / dataset, *short)
        needed = 9 if dataset == "adding" else 25
        with pytest.raises(ConfigError, match=f"^rows have up to {needed} tokens and the model 8 positions"):
            run(parse(argv), quiet=True)


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "rows"), [("copy_memory", "70"), ("adding", "320")])
def test_two_processes(dataset, rows, tmp_path):
    """The last batch need not be full where tokens are counted; for one label a row, `SeqTrainer` says, it must be."""
    records = []
    for processes, batch in ((1, "32"), (2, "16")):
        sizes = ["--num_examples", rows, "--per_device_train_batch_size", batch, "--per_device_eval_batch_size", batch]
        learned = ["--hidden_size", "8", "--max_steps", "5", "--logging_steps", "1"]
        argv = command(dataset, "seq_gru", tmp_path / str(processes), *sizes, *learned)
        done = launch(processes, SCRIPT.parents[2] / "train.py", *argv)
        assert done.returncode == 0, done.stderr[-3000:]
        records.append(json.loads((tmp_path / str(processes) / "result.json").read_text()))
    alone, record = records
    assert (record["world_size"], record["wrapper"]) == (2, "DistributedDataParallel")
    assert record["metrics"]["test"] == pytest.approx(alone["metrics"]["test"], rel=1e-5)
    losses = [[loss for _, loss in found["curve"]["train"]] for found in records]
    assert len(losses[0]) == 5 and losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert record["batch_order"] == alone["batch_order"]
