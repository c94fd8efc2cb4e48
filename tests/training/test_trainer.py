"""The trainer on one process: exact means, the same batches, resume, and what a run leaves behind."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from ragged_training import ragged_rows, tiny_model, train
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, TrainerCallback

from hf_seqmodels.arguments import ConfigError, SeqTrainingArguments
from hf_seqmodels.config import parse
from hf_seqmodels.data import CausalLMCollator
from hf_seqmodels.loading import load_data
from hf_seqmodels.run import main, run
from hf_seqmodels.training import SeqTrainer, TrainingDiverged
from hf_seqmodels.training.batches import BatchOrder, BatchSampler
from hf_seqmodels.training.optim import build_scheduler, parameter_groups
from hf_seqmodels.training.watch import check_processes

# ---- the loss (A16) ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["seq_gru", "gpt2"])
def test_accumulation_changes_nothing(tmp_path, model_type):
    whole, parts = (train(model_type, batch, k, 21, str(tmp_path)) for batch, k in ((8, 1), (2, 4)))
    assert len(whole["losses"]) == 6
    for name in ("losses", "grad_norms", "evaluation"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-6, abs=0)
    assert parts["batch_order"] == whole["batch_order"] and parts["targets"] == whole["targets"]


@pytest.mark.parametrize("model_type", ["seq_rnn", "gpt2"])
def test_evaluation_loss_is_the_mean_over_targets(tmp_path, model_type):
    model, rows = tiny_model(model_type).eval(), ragged_rows(13)
    total, count = 0.0, 0
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        scores = model(ids).logits[0, :-1].log_softmax(-1)
        targets = labels[1:]
        kept = targets != -100
        total -= scores[kept].gather(1, targets[kept, None]).sum().item()
        count += int(kept.sum())
    args = SeqTrainingArguments(output_dir=str(tmp_path), per_device_eval_batch_size=5, report_to="none")
    trainer = SeqTrainer(model=model, args=args, data_collator=CausalLMCollator(0), eval_dataset=rows, quiet=True)
    found = trainer.evaluate()
    assert found["eval_tokens"] == count
    assert found["eval_loss"] == pytest.approx(total / count, rel=1e-6)
    assert found["eval_bits_per_token"] == pytest.approx(total / count / math.log(2), rel=1e-6)


# ---- batches ----------------------------------------------------------------------------------------------------


def digest(steps: list[list[torch.Tensor]]) -> str:
    order = BatchOrder()
    for step in steps:
        for i, ids in enumerate(step):
            order.add({"input_ids": ids}, starts_step=i == 0)
    return order.flush(lambda sums: sums)


def test_digest_sees_samples_and_order_but_not_the_division():
    a, b = torch.arange(12).reshape(4, 3), torch.arange(12, 24).reshape(4, 3)
    base = digest([[a], [b]])
    assert digest([[a[:1], a[1:]], [b]]) == base
    assert digest([[a.flip(0)], [b]]) == base
    assert digest([[b], [a]]) != base
    assert digest([[a], [b], [b]]) != base
    assert digest([[a.flip(1)], [b]]) != base  # the same tokens in another order
    swapped = a.clone()
    swapped[0, 0], swapped[1, 0] = a[1, 0], a[0, 0]  # the same columns in other rows
    assert digest([[swapped], [b]]) != base


def test_digest_does_not_see_padding():
    ids, mask = torch.tensor([[5, 6, 0, 0], [7, 8, 9, 1]]), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    right, left, wide = BatchOrder(), BatchOrder(), BatchOrder()
    right.add({"input_ids": ids, "attention_mask": mask}, True)
    left.add({"input_ids": ids[:1].roll(2, 1), "attention_mask": mask[:1].roll(2, 1)}, True)
    left.add({"input_ids": ids[1:], "attention_mask": mask[1:]}, False)
    pad = torch.nn.functional.pad
    wide.add({"input_ids": pad(ids, (0, 3), value=3), "attention_mask": pad(mask, (0, 3))}, True)
    assert right.flush(lambda s: s) == left.flush(lambda s: s) == wide.flush(lambda s: s)


def test_digest_of_features_sees_values_and_not_padding():
    rolls = torch.bernoulli(torch.full((4, 5, 3), 0.5))

    def of(values, mask=None):
        order = BatchOrder()
        order.add({"past_values": values} | ({} if mask is None else {"attention_mask": mask}), True)
        return order.flush(lambda sums: sums)

    base, mask = of(rolls), torch.ones(4, 5)
    assert (
        of(rolls.flip(0))
        == base
        == of(torch.nn.functional.pad(rolls, (0, 0, 0, 2)), torch.nn.functional.pad(mask, (0, 2)))
    )
    changed = rolls.clone()
    changed[2, 3, 1] = 1 - changed[2, 3, 1]
    assert len({base, of(changed), of(rolls.flip(1)), of(rolls.flip(2))}) == 4


def test_shorter_runs_are_compared_at_powers_of_two(tmp_path):
    steps = [torch.tensor([[number, number + 1]]) for number in range(11)]
    long, short, other = BatchOrder(), BatchOrder(), BatchOrder()
    for order, seen in ((long, steps), (short, steps[:5]), (other, steps[1:])):
        for ids in seen:
            order.add({"input_ids": ids}, True)
        order.flush(lambda sums: sums)
    assert list(long.at) == ["1", "2", "4", "8"] and list(short.at) == ["1", "2", "4"]
    assert long.at["4"] == short.at["4"] != other.at["4"] and long.digest != short.digest
    long.save(tmp_path)
    read = BatchOrder()
    read.load(tmp_path)
    assert read.record() == long.record() == {"digest": long.digest, "steps": 11, "at": long.at}


def test_sampler_shuffles_by_seed_and_epoch():
    epoch = 0
    sampler = BatchSampler(50, fill=2, seed=3, epoch=lambda: epoch)
    first = list(sampler)
    assert sorted(first) == list(range(52)) and first[50:] == [50, 51] and list(sampler) == first
    epoch = 1
    assert list(sampler) != first
    assert list(BatchSampler(50, 2, seed=4)) != first and list(BatchSampler(3, 1)) == [0, 1, 2, 3]


# ---- optimizer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["seq_lstm", "gpt2"])
def test_only_matrices_decay(model_type):
    model = tiny_model(model_type)
    decaying, spared = (group["params"] for group in parameter_groups(model, 0.1))
    names = {id(p): name for name, p in model.named_parameters()}
    assert len(decaying) + len(spared) == len(names) and decaying
    for parameter in decaying:
        name = names[id(parameter)]
        assert parameter.ndim == 2 and not any(word in name for word in ("bias", "wte", "wpe", "embed"))
    assert any("bias" in names[id(p)] for p in spared) and any(p.ndim == 2 for p in spared)


@pytest.mark.parametrize(("name", "last"), [("cosine", 0.0), ("linear", 0.0), ("constant", 1.0)])
def test_schedules_warm_up(tmp_path, name, last):
    args = SeqTrainingArguments(output_dir=str(tmp_path), lr_scheduler_type=name, warmup_steps=0.2)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build_scheduler(optimizer, args, num_training_steps=10)
    rates = [scheduler.get_last_lr()[0]]
    for _ in range(10):
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    assert rates[:3] == [0.0, 0.5, 1.0] and rates[-1] == pytest.approx(last, abs=1e-12)


# ---- faults -----------------------------------------------------------------------------------------------------


def test_a_diverging_run_stops_and_keeps_its_checkpoint(tmp_path):
    """The learning rate is far too large: the second step's loss is already not finite."""
    options = {"learning_rate": 1e38, "warmup_steps": 0, "save_strategy": "steps", "save_steps": 1}
    with pytest.raises(TrainingDiverged, match=r"step \d: .* lower learning_rate"):
        train("seq_rnn", 8, 1, 64, str(tmp_path), eval_strategy="no", **options)
    for file in tmp_path.glob("checkpoint-*/model.safetensors"):
        weights = AutoModelForCausalLM.from_pretrained(file.parent).state_dict()
        assert all(torch.isfinite(tensor).all() for tensor in weights.values())


class Poison(TrainerCallback):
    """Writes a NaN into the weights when `event` comes in the third step."""

    def __init__(self, event: str):
        self.event = event

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if self.event == "step begins" and state.global_step == 2:
            model.lm_head.weight.data[0, 0] = float("nan")

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self.event == "step ends" and state.global_step == 3:
            model.lm_head.weight.data[0, 0] = float("nan")


@pytest.mark.parametrize(
    ("event", "message"),
    [("step begins", "step 3: the loss is nan"), ("step ends", "step 3: weight transformer.wte.weight is not finite")],
)
def test_nan_is_named_and_not_saved(tmp_path, event, message):
    trainer = make_trainer(tmp_path, eval_strategy="no", load_best_model_at_end=False)
    trainer.add_callback(Poison(event))
    with pytest.raises(TrainingDiverged, match=f"{message}; .* nothing was saved after step 2"):
        trainer.train()
    assert (tmp_path / "checkpoint-2").exists() and not (tmp_path / "checkpoint-3").exists()


def make_trainer(folder: Path, dropout: float = 0.0, **options) -> SeqTrainer:
    args = SeqTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        **{"max_steps": 6, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
        | {"logging_steps": 1, "save_total_limit": None}
        | options,
    )
    torch.manual_seed(0)
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(vocab_size=19, embd_pdrop=dropout, resid_pdrop=dropout, attn_pdrop=dropout, **sizes)
    return SeqTrainer(
        model=AutoModelForCausalLM.from_config(config),
        args=args,
        train_dataset=ragged_rows(17),
        eval_dataset=ragged_rows(5),
        data_collator=CausalLMCollator(0),
        quiet=True,
    )


@pytest.mark.parametrize("step", [3, 5])
def test_resume_is_exact(tmp_path, step):
    """5 steps make an epoch: resume inside it and at its edge, with dropout drawing random numbers."""
    whole = make_trainer(tmp_path, dropout=0.2, load_best_model_at_end=False)
    whole.train()
    resumed = make_trainer(tmp_path, dropout=0.2, load_best_model_at_end=False)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    for (name, one), two in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, two), name
    assert resumed.batch_order.digest == whole.batch_order.digest and resumed.batch_order.steps == 6


def test_best_checkpoint_is_kept_and_early_stopping_stops(tmp_path):
    """A learning rate of 5 makes the loss worse at once."""
    trainer = make_trainer(tmp_path, learning_rate=5.0, warmup_steps=0, max_steps=40, early_stopping_patience=2)
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) < 40 and trainer.state.best_global_step == losses.index(min(losses)) + 1
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-6)


def test_processes_must_be_those_asked_for(tmp_path, monkeypatch):
    args = SeqTrainingArguments(output_dir=str(tmp_path))
    check_processes(1, args)
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_processes(2, args)
    with pytest.raises(ConfigError, match="2 processes were asked for and training would run on 1"):
        check_processes(1, args)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # what `accelerate launch --cpu --num_processes 2` sets
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(ConfigError, match="accelerate launch was asked for several processes and started one"):
        check_processes(1, args)


# ---- a whole run ------------------------------------------------------------------------------------------------


@pytest.fixture
def argv(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    options = ["--model_type", "seq_lstm", "--hidden_size", "12", "--block_size", "16", "--output_dir", "out"]
    options += ["--max_steps", "4", "--logging_steps", "1", "--per_device_train_batch_size", "4"]
    for strategy in ("eval", "save"):
        options += [f"--{strategy}_strategy", "steps", f"--{strategy}_steps", "2"]
    for split in ("train", "validation", "test"):
        Path(f"{split}.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20 + split)
        options += [f"--{split}_file", f"{split}.txt"]
    return options


def test_a_run_leaves_model_log_record_and_recipe(argv, capsys):
    assert main(argv) == 0
    assert "training on 1 process, wrapper none, device cpu" in capsys.readouterr().out
    out = Path("out")
    record = json.loads((out / "result.json").read_text())
    assert record["steps"] == 4 and len(record["curve"]["train"]) == 4 and len(record["curve"]["validation"]) == 2
    assert (record["world_size"], record["wrapper"], record["device"]) == (1, "none", "cpu")
    assert len(record["data"]["sha256"]) == len(record["batch_order"]["digest"]) == 64
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in log if "loss" in line] == [loss for _, loss in record["curve"]["train"]]

    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.config.use_cache is True and model.num_parameters() == record["parameters"]
    assert model.config.vocab_size == len(tokenizer) and tokenizer.decode(tokenizer("fox")["input_ids"]) == "fox"
    for folder in (out, out / "checkpoint-4"):
        assert json.loads((folder / "config.json").read_text())["use_cache"] is True
        assert not (folder / "training_args.bin").exists() and not (folder / "README.md").exists()

    again = parse(["--config", "out/config.yaml", "--output_dir", "again"])
    repeated = run(again, data=load_data(again), quiet=True)
    assert capsys.readouterr().out == ""
    assert repeated["metrics"] == record["metrics"] and repeated["batch_order"] == record["batch_order"]


def test_overwrite_and_resume(argv):
    assert main(argv) == 0
    first = json.loads(Path("out/result.json").read_text())
    Path("out/checkpoint-99").mkdir()
    assert main([*argv, "--overwrite"]) == 0
    assert not Path("out/checkpoint-99").exists()
    assert len(Path("out/log.jsonl").read_text().splitlines()) == len(first["curve"]["train"]) + 5
    assert main([*argv, "--resume", "--max_steps", "6"]) == 0
    resumed = json.loads(Path("out/result.json").read_text())
    assert resumed["steps"] == 6 and resumed["batch_order"]["steps"] == 6
    assert resumed["curve"]["train"][:4] == first["curve"]["train"]


def test_resume_where_nothing_is_left_takes_no_step(argv):
    """4 steps are inside the first epoch. A checkpoint that a killed run left half written does not count."""
    assert main(argv) == 0
    first = json.loads(Path("out/result.json").read_text())
    half = Path("out/checkpoint-9")
    half.mkdir()
    (half / "model.safetensors").write_bytes(Path("out/checkpoint-4/model.safetensors").read_bytes())
    assert main([*argv, "--resume"]) == 0
    again = json.loads(Path("out/result.json").read_text())
    for name in ("steps", "best_step", "metrics", "batch_order"):
        assert again[name] == first[name]


def test_ctrl_c_is_one_line(argv, capsys):
    def interrupt() -> None:
        while not Path("out/checkpoint-2/trainer_state.json").exists() and threading.main_thread().is_alive():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert main([*argv, "--max_steps", "100000"]) == 130
    assert "interrupted; --resume goes on" in capsys.readouterr().err
