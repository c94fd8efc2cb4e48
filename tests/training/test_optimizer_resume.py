"""What every optimizer and schedule remembers is in the checkpoint, to the bit; time limits; two processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from carried_training import IDS
from small_training import NT_ASGD, VOCABULARY, everything, small_trainer
from test_distributed import launch
from transformers import TrainerCallback, set_seed

from hf_seqmodels import LSTMConfig, LSTMForCausalLM
from hf_seqmodels.arguments import SeqTrainingArguments
from hf_seqmodels.data import StreamCollator, StreamDataset
from hf_seqmodels.training import SeqTrainer
from hf_seqmodels.training.resume import check_checkpoint

OPTIMIZERS = {
    "adamw": {"optim": "adamw_torch", "learning_rate": 0.05},
    "sgd": {"optim": "sgd", "momentum": 0.8, "learning_rate": 4.0, "max_grad_norm": 0.0},
    "rmsprop": {"optim": "rmsprop", "momentum": 0.5, "learning_rate": 0.02},
    "nt_asgd": NT_ASGD,
}
SCHEDULES = {
    "cosine": {"warmup_steps": 2},
    "linear": {},
    "constant": {"warmup_steps": 5},
    "epoch_decay": {"decay_after": 0.5},
    "plateau": {"decay_factor": 0.8, "warmup_steps": 2},
}
QUICK = [("adamw", "cosine"), ("sgd", "epoch_decay"), ("rmsprop", "plateau"), ("nt_asgd", "constant")]


def assert_same(one, two) -> None:
    """Equal to the bit, in nested containers."""
    assert type(one) is type(two)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for first, second in zip(one, two, strict=True):
            assert_same(first, second)
    else:
        assert one == two


def resume_is_exact(folder: Path, steps: tuple[int, ...], **options) -> dict:
    """Trains with dropout and weight noise, then again from the checkpoints of some steps."""
    whole = small_trainer(folder, **options)
    whole.train()
    expected = everything(whole)
    for step in steps:
        check_checkpoint(folder / f"checkpoint-{step}")
        resumed = small_trainer(folder / str(step), **options)
        resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
        assert_same(everything(resumed), expected)
        assert resumed.pace().get("averaged_iterates") == whole.pace().get("averaged_iterates")
    return expected | whole.pace()


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [
        pytest.param(o, s, marks=() if (o, s) in QUICK else pytest.mark.slow, id=f"{o}-{s}")
        for o in OPTIMIZERS
        for s in SCHEDULES
    ],
)
def test_resume_is_exact_with_every_optimizer_and_schedule(tmp_path, optimizer, schedule):
    options = OPTIMIZERS[optimizer] | {"lr_scheduler_type": schedule} | SCHEDULES[schedule]
    found = resume_is_exact(tmp_path, (3,), **options)
    assert len({line[2] for line in found["history"] if line[2] is not None}) > 1 or schedule == "constant"


@pytest.mark.parametrize("step", [4, 5, 6], ids=["where averaging begins", "at an epoch's end", "amid averages"])
def test_resume_is_exact_with_averages(tmp_path, step):
    found = resume_is_exact(tmp_path, (step,), **NT_ASGD, lr_scheduler_type="constant")
    assert found["averaged_iterates"] == 5  # it began after step 4 of 8


def test_saving_without_an_evaluation_saves_averages(tmp_path):
    """Evaluated in every second step, saved in every one: the checkpoint of step 11 holds the mean, and goes on."""
    options = {**NT_ASGD, "learning_rate": 8.0, "lr_scheduler_type": "constant", "eval_steps": 2, "max_steps": 12}
    found = resume_is_exact(tmp_path, (11,), **options)
    assert found["averaged_iterates"] == 3  # it began after step 10
    saved = LSTMForCausalLM.from_pretrained(tmp_path / "checkpoint-11").state_dict()
    state = torch.load(tmp_path / "checkpoint-11" / "optimizer.pt", weights_only=True)["state"]
    earlier = LSTMForCausalLM.from_pretrained(tmp_path / "checkpoint-10").state_dict()  # one iterate: its own mean
    for number, name in enumerate(dict(small_trainer(tmp_path, **options).model.named_parameters())):
        torch.testing.assert_close(saved[name], (earlier[name] + state[number]["other"]) / 2)


def test_weight_noise_is_drawn_again_after_a_resume(tmp_path):
    """The noise comes from torch's generator, whose state is in the checkpoint: without that the weights differ."""
    options = {"optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "weight_noise": 0.3}
    expected = resume_is_exact(tmp_path, (3,), **options)
    again = small_trainer(tmp_path / "again", **options)
    again.train()
    assert_same(everything(again), {name: expected[name] for name in everything(again)})
    (tmp_path / "checkpoint-3" / "rng_state.pth").unlink()
    other = small_trainer(tmp_path / "other", **options)
    other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert any(not torch.equal(weight, expected["weights"][name]) for name, weight in other.model.named_parameters())


# ---- the limit on time ------------------------------------------------------------------------------------------


class OutOfTime(TrainerCallback):
    """Leaves no time in a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        args.max_minutes = 1e-9 if state.global_step + 1 == self.step else args.max_minutes


FOLLOWING = {**NT_ASGD, "lr_scheduler_type": "plateau", "decay_factor": 0.9}


@pytest.mark.parametrize(
    ("stop", "strategy"),
    [
        pytest.param(3, "epoch", id="within an epoch"),
        pytest.param(5, "epoch", id="at its end", marks=pytest.mark.slow),
        pytest.param(3, "steps", id="between evaluations"),
        pytest.param(6, "steps", id="with one", marks=pytest.mark.slow),
        pytest.param(12, "epoch", id="at the end", marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(tmp_path, stop, strategy):
    """5 steps make an epoch; with steps, every second is evaluated and saved."""
    often = {"eval_steps": 2, "save_steps": 2} if strategy == "steps" else {}
    options = {**FOLLOWING, "max_steps": 12, "eval_strategy": strategy, "save_strategy": strategy, **often}
    whole = small_trainer(tmp_path / "whole", **options)
    whole.train()
    stopped = small_trainer(tmp_path / "stopped", max_minutes=60, load_best_model_at_end=True, **options)
    stopped.add_callback(OutOfTime(stop))
    stopped.train()
    pace = stopped.pace()
    assert ("stopped_after_minutes" in pace) == (stop < 12)
    assert stopped.state.global_step == stop and (tmp_path / f"stopped/checkpoint-{stop}").is_dir()
    evaluations = [line["step"] for line in stopped.state.log_history if "eval_loss" in line]
    assert evaluations[-1] == stop and stopped.state.best_global_step in evaluations
    assert stopped.evaluate()["eval_loss"] == pytest.approx(stopped.state.best_metric, rel=1e-6)

    resumed = small_trainer(tmp_path / "stopped", max_minutes=60, **options)
    resumed.train(resume_from_checkpoint=True)
    assert "stopped_after_minutes" not in resumed.pace() or stop == 12
    found, expected = everything(resumed), everything(whole)
    for name in ("weights", "optimizer", "schedule", "random"):
        assert_same(found[name], expected[name])
    assert resumed.pace()["averaged_iterates"] == whole.pace()["averaged_iterates"]


@pytest.mark.parametrize("stop", [7, 12], ids=["before it waits", "as it waits"])
def test_early_stopping_waits_as_long_in_a_resumed_run(tmp_path, stop):
    """No evaluation is as much better as asked for: with a patience of two the third ends training, at step 15."""
    options = {"max_steps": 30, "eval_strategy": "epoch", "save_strategy": "epoch", "max_minutes": 60}
    options |= {"early_stopping_patience": 2, "early_stopping_threshold": 100.0, "load_best_model_at_end": True}
    whole = small_trainer(tmp_path / "whole", **options)
    whole.train()
    stopped = small_trainer(tmp_path / "stopped", **options)
    stopped.add_callback(OutOfTime(stop))
    stopped.train()
    assert [line["step"] for line in stopped.state.log_history if "eval_loss" in line][-1] == stop
    resumed = small_trainer(tmp_path / "stopped", **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step == 15


def awd_trainer(folder: Path, **options) -> SeqTrainer:
    """The recipe of AWD-LSTM in small: carried state, random lengths, weight drop, averages."""
    args = SeqTrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        carry_state=True,
        remove_unused_columns=False,
        **{"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "num_train_epochs": 5, "warmup_steps": 0}
        | {"logging_steps": 1, "max_minutes": 60, "save_total_limit": None, "load_best_model_at_end": False}
        | {**NT_ASGD, "lr_scheduler_type": "constant", "learning_rate": 20.0, "max_grad_norm": 0.25}
        | options,
    )
    set_seed(0)
    drops = {"input_dropout": 0.3, "output_dropout": 0.3, "embedding_dropout": 0.1, "weight_drop": 0.4}
    drops |= {"variational_dropout": True, "activation_reg": 2.0, "temporal_activation_reg": 1.0}
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 12, "embedding_size": 8, "tie_word_embeddings": True}
    return SeqTrainer(
        model=LSTMForCausalLM(LSTMConfig(**sizes, **drops)),
        args=args,
        train_dataset=StreamDataset(IDS, 2, 20, random_lengths=True),
        eval_dataset=StreamDataset(IDS[:101], 2, 20),
        data_collator=StreamCollator(0, VOCABULARY),
        rescale_to=20,
        quiet=True,
    )


def test_awd_lstm_stopped_within_an_epoch_goes_on_exactly(tmp_path):
    whole = awd_trainer(tmp_path / "whole")
    whole.train()
    epoch = len(whole.train_dataset) // 2
    assert whole.state.global_step == 5 * epoch and 1 < whole.pace()["averaged_iterates"] <= 3 * epoch + 1
    stopped = awd_trainer(tmp_path / "stopped")
    stopped.add_callback(OutOfTime(4 * epoch + 3))
    stopped.train()
    assert stopped.state.global_step == 4 * epoch + 3 and stopped.pace()["averaged_iterates"] > 1
    resumed = awd_trainer(tmp_path / "stopped")
    resumed.train(resume_from_checkpoint=True)
    found, expected = everything(resumed), everything(whole)
    for name in ("weights", "optimizer", "schedule", "random"):
        assert_same(found[name], expected[name])
    assert resumed.batch_order.digest == whole.batch_order.digest


def test_minutes_are_counted_over_resumes(tmp_path):
    options = {"eval_strategy": "no", "save_steps": 2}
    first = small_trainer(tmp_path, **options, max_steps=2)
    first.add_callback(Rest())
    first.train()
    spent = first.pace()["training_minutes"]
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    saved = state["stateful_callbacks"]["TimeLimit"]["attributes"]["before"]
    assert 0.3 / 60 <= saved <= spent + 1e-3
    late = small_trainer(tmp_path, **options, max_minutes=saved / 2)
    late.train(resume_from_checkpoint=True)
    assert late.state.global_step == 2 and late.pace()["stopped_after_minutes"] == pytest.approx(saved, abs=1e-3)
    on = small_trainer(tmp_path, **options, max_minutes=60, early_stopping_patience=3)  # which step 2 had not
    on.args.eval_strategy, on.args.metric_for_best_model = "steps", "loss"
    on.train(resume_from_checkpoint=True)
    assert on.state.global_step == 8 and on.pace()["training_minutes"] >= saved
    fresh = small_trainer(tmp_path, **options, max_minutes=60)
    fresh.train()
    assert fresh.pace()["training_minutes"] < 60 and "stopped_after_minutes" not in fresh.pace()


class Rest(TrainerCallback):
    """0.15 seconds in each step."""

    def on_step_end(self, args, state, control, **kwargs):
        time.sleep(0.15)


# ---- processes --------------------------------------------------------------------------------------------------


def test_two_processes_average_the_same(tmp_path):
    """Batches of unequal length on two ranks: one learning rate, one beginning of the averages, the same weights."""
    script = Path(__file__).with_name("small_training.py")
    done = launch(2, script, str(tmp_path / "both.pt"))
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = torch.load(tmp_path / "both.pt", weights_only=True)
    assert (one["rank"], two["rank"]) == (0, 1) and one["averaged"] == two["averaged"] > 1
    assert one["optimizer"]["param_groups"][0]["losses"]
    for name in ("weights", "optimizer", "schedule"):
        assert_same(one[name], two[name])


@pytest.mark.slow
def test_a_killed_run_goes_on_exactly(tmp_path):
    """SIGKILL while averages are taken, through the command line."""
    text = "the quick brown fox jumps over the lazy dog. "
    argv = [sys.executable, str(Path(__file__).parents[2] / "train.py"), "--model_type", "seq_lstm", "--hidden_size"]
    argv += ["8", "--block_size", "16", "--max_steps", "60", "--per_device_train_batch_size", "4", "--dropout", "0.2"]
    argv += ["--num_hidden_layers", "2", "--weight_noise", "0.05", "--optim", "nt_asgd", "--learning_rate", "10"]
    argv += [
        "--logging_steps",
        "1",
        "--non_monotone_interval",
        "1",
        "--lr_scheduler_type",
        "plateau",
        "--decay_factor",
        "0.9",
    ]
    for strategy in ("eval", "save"):
        argv += [f"--{strategy}_strategy", "steps", f"--{strategy}_steps", "3"]
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.txt").write_text(text * 40 + split)
        argv += [f"--{split}_file", str(tmp_path / f"{split}.txt")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def start(folder: str, *more: str) -> subprocess.Popen:
        command = [*argv, "--output_dir", str(tmp_path / folder), *more]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    running = start("killed")
    deadline = time.monotonic() + 240
    while not (tmp_path / "killed/checkpoint-24/trainer_state.json").exists() and time.monotonic() < deadline:
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "killed/result.json").exists()
    for folder, more in (("killed", ["--resume"]), ("whole", [])):
        process = start(folder, *more)
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors.decode()[-2000:]
    records = [json.loads((tmp_path / folder / "result.json").read_text()) for folder in ("killed", "whole")]
    for name in ("metrics", "curve", "batch_order", "averaged_iterates", "best_step"):
        assert records[0][name] == records[1][name]
    assert records[0]["resumed_at_step"] >= 24 and records[0]["averaged_iterates"] > 36
    weights = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("killed", "whole")]
    assert weights[0] == weights[1]
