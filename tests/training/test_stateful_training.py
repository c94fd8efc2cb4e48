"""Carried state in training and evaluation: against a loop written out, over accumulation, processes and a resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from carried_training import BLOCK, DOCUMENTS, IDS, make_trainer, tiny, train
from test_distributed import launch
from transformers import GPT2Config, TrainerCallback

from hf_seqmodels.arguments import ConfigError, SeqTrainingArguments
from hf_seqmodels.data import StreamCollator, StreamDataset
from hf_seqmodels.loading import RunData
from hf_seqmodels.run import check_positions
from hf_seqmodels.training import SeqTrainer

RECURRENT = ("seq_rnn", "seq_lstm", "seq_gru", "seq_attention_rnn")


def state_of(cache, row: int) -> list[torch.Tensor]:
    return [state[row] for layer in cache.layers for state in layer.states.values()]


@pytest.mark.parametrize("model_type", RECURRENT)
def test_the_loss_of_a_window_is_that_of_the_whole_row(tmp_path, model_type):
    """Without learning, the windows' losses add up to those of the rows read in one piece."""
    options = {"learning_rate": 1e-30, "num_train_epochs": 1, "weight_decay": 0.0, "max_grad_norm": 0.0}
    trainer = make_trainer(model_type, 4, 1, str(tmp_path), **options)
    trainer.model.config.dropout = trainer.model.model.dropout.p = 0.0
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    dataset = trainer.train_dataset
    targets = [sum(len(dataset[w * 4 + r]["input_ids"]) for r in range(4)) for w in range(dataset.num_windows)]
    summed = sum(loss * count for loss, count in zip(losses, targets, strict=True))
    model, total = trainer.model.eval(), 0.0
    for row in range(4):
        pieces = [dataset[w * 4 + row] for w in range(dataset.num_windows)]
        ids, labels = (torch.cat([torch.tensor(p[name]) for p in pieces]) for name in ("input_ids", "shift_labels"))
        total += F.cross_entropy(model(ids[None]).logits[0], labels, reduction="sum").item()
    assert summed == pytest.approx(total, rel=1e-5)


def test_training_is_truncated_back_propagation_written_out(tmp_path):
    """SGD on two windows by hand: the state goes on, the gradient does not."""
    trainer = make_trainer(
        "seq_gru", 4, 1, str(tmp_path), optim="sgd", lr_scheduler_type="constant", warmup_steps=0, learning_rate=0.5,
        max_steps=3, max_grad_norm=0.0, weight_decay=0.0,
    )  # fmt: skip
    trainer.train()
    model, dataset, state = tiny("seq_gru").train(), trainer.train_dataset, None
    for window in range(3):
        batch = StreamCollator(0)([dataset[window * 4 + row] for row in range(4)])
        outputs = model(batch["input_ids"], past_key_values=state, use_cache=True)
        F.cross_entropy(outputs.logits.flatten(0, 1), batch["shift_labels"].flatten()).backward()
        state = outputs.past_key_values
        for layer in state.layers:
            layer.detach()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.5 * parameter.grad
                parameter.grad = None
    for ours, wanted in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)
    ends = trainer.carried.caches[0].layers[0].states["h"]
    torch.testing.assert_close(ends, state.layers[0].states["h"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", RECURRENT)
def test_window_length_does_not_change_the_evaluation(tmp_path, model_type):
    trainer = make_trainer(model_type, 4, 1, str(tmp_path))
    found = [trainer.evaluate(StreamDataset(IDS[:101], 2, block)) for block in (1, 3, 50)]
    assert {entry["eval_tokens"] for entry in found} == {100}
    for entry in found[1:]:
        assert entry["eval_loss"] == pytest.approx(found[0]["eval_loss"], rel=1e-6)
    cold = make_trainer(model_type, 4, 1, str(tmp_path), carry_state=False)
    assert cold.evaluate(StreamDataset(IDS[:101], 2, 3))["eval_loss"] != pytest.approx(found[0]["eval_loss"], rel=1e-4)


def test_evaluation_leaves_the_carried_state_alone(tmp_path):
    quiet = train("seq_lstm", 4, 1, str(tmp_path / "a"), eval_strategy="no")
    often = train("seq_lstm", 4, 1, str(tmp_path / "b"), eval_strategy="steps", eval_steps=1)
    assert often["weights"] == quiet["weights"] and len(often["evaluation"]) > len(quiet["evaluation"]) == 0


def test_accumulated_windows_carry_their_own_rows(tmp_path):
    whole = train("seq_gru", 4, 1, str(tmp_path))
    parts = train("seq_gru", 1, 4, str(tmp_path))
    assert parts["batch_order"] == whole["batch_order"]
    assert parts["losses"] == pytest.approx(whole["losses"], rel=1e-5)


@pytest.mark.parametrize("model_type", ["seq_gru", "seq_attention_rnn"])
def test_rows_that_end_before_others_leave_micro_batches_without_tokens(tmp_path, model_type):
    """57 targets in 4 rows: the third window of 7 has a token in the first row alone. Documents: 3 rows end early."""
    for options in ({"ids": IDS[:58]}, {"ids": IDS[:100], "documents": [0, 60, 70, 80]}):
        whole = train(model_type, 4, 1, str(tmp_path), **options)
        parts = train(model_type, 1, 4, str(tmp_path), **options)
        assert parts["losses"] == pytest.approx(whole["losses"], rel=1e-5)
        for name in ("batch_order", "targets"):
            assert parts[name] == whole[name]


def test_two_processes_carry_the_rows_of_one(tmp_path):
    alone = train("seq_gru", 4, 1, str(tmp_path / "a"))
    script, out = Path(__file__).with_name("carried_training.py"), tmp_path / "record.json"
    done = launch(2, script, str(out), "seq_gru", "2", "1", str(tmp_path / "b"))
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads(out.read_text())
    assert (record["world_size"], record["wrapper"]) == (2, "DistributedDataParallel")
    assert record["batch_order"] == alone["batch_order"] and record["targets"] == alone["targets"]
    for name in ("losses", "evaluation"):
        assert record[name] == pytest.approx(alone[name], rel=1e-5)


# ---- documents --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", RECURRENT)
def test_documents_begin_from_nothing(tmp_path, model_type):
    """Each document's loss is what the document has alone, whatever stands before it in its row."""
    trainer = make_trainer(model_type, 4, 1, str(tmp_path), documents=DOCUMENTS)
    model, total = trainer.model.eval(), 0.0
    for first, last in zip(DOCUMENTS, [*DOCUMENTS[1:], len(IDS)], strict=True):
        ids = torch.tensor([2, *IDS[first:last]])
        total += F.cross_entropy(model(ids[None, :-1]).logits[0], ids[1:], reduction="sum").item()
    found = trainer.evaluate(StreamDataset(IDS, 2, BLOCK, documents=DOCUMENTS, start_id=2))
    assert found["eval_tokens"] == len(IDS)
    assert found["eval_loss"] == pytest.approx(total / len(IDS), rel=1e-5)
    trained = train(model_type, 4, 1, str(tmp_path), documents=DOCUMENTS)
    assert trained["targets"] == 2 * len(IDS) and sum(trained["losses"][-5:]) < sum(trained["losses"][:5])


# ---- resume -----------------------------------------------------------------------------------------------------


class Stop(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


@pytest.mark.parametrize("step", [1, 7, 14, 15, 16, 20])
def test_resume_goes_on_to_the_bit(tmp_path, step):
    """15 windows an epoch: inside the first, at its end, inside the second."""
    options = {"save_strategy": "steps", "save_steps": 1, "random_lengths": True, "save_total_limit": 40}
    whole = train("seq_lstm", 2, 2, str(tmp_path / "whole"), **options)
    stopped = make_trainer("seq_lstm", 2, 2, str(tmp_path / "cut"), **options)
    stopped.add_callback(Stop(step))
    stopped.train()
    again = train("seq_lstm", 2, 2, str(tmp_path / "cut"), resume=True, **options)
    assert again["weights"] == whole["weights"] and again["losses"] == whole["losses"]
    assert again["batch_order"] == whole["batch_order"] and again["resumed_at_step"] == step


def test_a_checkpoint_without_states_is_refused(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 4, "max_steps": 4}
    train("seq_gru", 4, 1, str(tmp_path), **options)
    (file,) = (tmp_path / "checkpoint-4").glob("carried_state-*")
    kept = file.read_bytes()
    file.write_bytes(kept[:-9])
    with pytest.raises(ConfigError, match=r"carried_state-0.safetensors is damaged"):
        train("seq_gru", 4, 1, str(tmp_path), resume=True, **options)
    file.unlink()
    with pytest.raises(ConfigError, match="states of 0 processes and this run has 1"):
        train("seq_gru", 4, 1, str(tmp_path), resume=True, **options)
    shutil.copy(tmp_path / "checkpoint-4" / "config.json", tmp_path)
    file.write_bytes(kept)
    file.with_name("carried_state-1.safetensors").write_bytes(kept)
    with pytest.raises(ConfigError, match="states of 2 processes"):
        train("seq_gru", 4, 1, str(tmp_path), resume=True, **options)


@pytest.mark.parametrize(("before", "after"), [((4, 1), (2, 2)), ((1, 2), (1, 1)), ((4, 1), (8, 1))])
def test_a_checkpoint_of_other_rows_is_refused(tmp_path, before, after):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    train("seq_gru", *before, str(tmp_path), **options)
    with pytest.raises(ConfigError, match=rf"in {before[1]} micro-batches and this run has {after[1]} of {after[0]}:"):
        train("seq_gru", *after, str(tmp_path), resume=True, **options)


# ---- what cannot be carried ---------------------------------------------------------------------------------------


def test_models_without_a_bounded_state_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="TransformerDecoderForCausalLM does not have"):
        make_trainer("seq_transformer_decoder", 4, 1, str(tmp_path))
    args = SeqTrainingArguments(
        output_dir=str(tmp_path), carry_state=True, eval_strategy="no", load_best_model_at_end=False
    )
    model = tiny("seq_attention_rnn")
    model.config.window = None
    with pytest.raises(ConfigError, match="window=None"):
        SeqTrainer(model=model, args=args, quiet=True)
    for name in ("gradient_checkpointing", "activation_checkpointing"):
        with pytest.raises(ConfigError, match="carry_state and activation_checkpointing exclude each other"):
            SeqTrainingArguments(output_dir=str(tmp_path), carry_state=True, **{name: True})


def test_windows_of_random_length_need_positions():
    data = RunData({"train": StreamDataset(np.arange(4000), 2, 30, random_lengths=True)}, None, "")
    longest = data.windows["train"].longest
    check_positions(GPT2Config(n_positions=longest), data)
    with pytest.raises(ConfigError, match=rf"up to {longest} tokens and the model has {longest - 1} positions"):
        check_positions(GPT2Config(n_positions=longest - 1), data)


def test_rows_and_batches_that_do_not_fit_are_refused(tmp_path):
    trainer = make_trainer("seq_gru", 4, 1, str(tmp_path))
    trainer.train_dataset = StreamDataset(IDS, 3, BLOCK)
    with pytest.raises(ValueError, match="3 rows and a step reads 4"):
        trainer.train()
