"""Optimizers against the equations of their papers, schedules epoch by epoch, and learning rates of random lengths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ragged_training import ragged_rows
from safetensors.torch import load_file
from small_training import NT_ASGD, STEPS_PER_EPOCH, small_trainer
from transformers import TrainerCallback

from hf_seqmodels.arguments import ConfigError, SeqTrainingArguments
from hf_seqmodels.training.nt_asgd import NTASGD
from hf_seqmodels.training.optim import PlateauDecay, build_optimizer, build_scheduler

RATE, DECAY, ALPHA, MOMENTUM, STEPS = 0.1, 0.03, 0.8, 0.7, 12


def arguments(folder, **options) -> SeqTrainingArguments:
    return SeqTrainingArguments(output_dir=str(folder), learning_rate=RATE, **{"weight_decay": DECAY} | options)


# ---- steps ------------------------------------------------------------------------------------------------------


def gradients(w: np.ndarray) -> np.ndarray:
    """Of f(w) = Σ (w − 1)⁴ / 4."""
    return (w - 1) ** 3


def sgd(w: np.ndarray, memory: dict, momentum: float) -> np.ndarray:
    memory["v"] = momentum * memory.get("v", 0) + gradients(w) + DECAY * w
    return w - RATE * memory["v"]


def rmsprop(w: np.ndarray, memory: dict, momentum: float) -> np.ndarray:
    """Tieleman & Hinton 2012, with L2 and momentum on the divided gradient as in Graves 2013, section 4.2."""
    gradient = gradients(w) + DECAY * w
    memory["n"] = ALPHA * memory.get("n", 0) + (1 - ALPHA) * gradient**2
    memory["v"] = momentum * memory.get("v", 0) + gradient / (np.sqrt(memory["n"]) + 1e-8)
    return w - RATE * memory["v"]


class Weights(torch.nn.Module):
    """Two words of two numbers, in an embedding: what AdamW would not decay."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding.from_pretrained(torch.tensor([[2.0, -1], [0.5, 3]]).double(), freeze=False)

    def descend(self, optimizer: torch.optim.Optimizer) -> np.ndarray:
        self.words.weight.grad = (self.words.weight.detach() - 1) ** 3
        optimizer.step()
        return self.values()

    def values(self) -> np.ndarray:
        return self.words.weight.detach().numpy().copy()


@pytest.mark.parametrize(
    ("options", "reference", "momentum"),
    [
        ({"optim": "sgd"}, sgd, 0.0),
        ({"optim": "sgd", "momentum": MOMENTUM}, sgd, MOMENTUM),
        ({"optim": "rmsprop", "rmsprop_alpha": ALPHA}, rmsprop, 0.0),
        ({"optim": "rmsprop", "rmsprop_alpha": ALPHA, "momentum": MOMENTUM}, rmsprop, MOMENTUM),
        ({"optim": "nt_asgd"}, sgd, 0.0),
    ],
)
def test_steps_are_those_of_the_equations(tmp_path, options, reference, momentum):
    """All weights decay, those of embeddings too."""
    model, memory = Weights(), {}
    optimizer, expected = build_optimizer(model, arguments(tmp_path, **options)), model.values()
    for _ in range(STEPS):
        expected = reference(expected, memory, momentum)
        np.testing.assert_allclose(model.descend(optimizer), expected, rtol=1e-12)


def test_averages_are_those_of_the_paper_and_of_torch(tmp_path):
    """The mean of w_T, …, w_K. torch's ASGD, with the settings of the authors' code, leaves out w_T and w_{T+1}."""
    model, torchs = Weights(), Weights()
    optimizer = build_optimizer(model, arguments(tmp_path, optim="nt_asgd", non_monotone_interval=1))
    for loss in (3.0, 2.0, 2.5):  # the last is better than the first, which was more than one evaluation ago
        optimizer.evaluated(loss)
    assert optimizer.averaged == 0
    model.descend(optimizer)
    optimizer.evaluated(2.1)  # worse than the second, which has been more than one evaluation ago by now
    assert optimizer.averaged == 1
    torchs.load_state_dict(model.state_dict())
    asgd = torch.optim.ASGD(torchs.parameters(), lr=RATE, lambd=0, t0=0, weight_decay=DECAY)
    iterates = [model.values()]
    for _ in range(STEPS):
        iterates.append(model.descend(optimizer))
        np.testing.assert_allclose(torchs.descend(asgd), iterates[-1], rtol=1e-6)  # it rounds γ to 32 bits
    optimizer.eval()
    np.testing.assert_allclose(model.values(), np.mean(iterates, 0), rtol=1e-12)
    (state,) = asgd.state.values()
    np.testing.assert_allclose(state["ax"].numpy(), np.mean(iterates[2:], 0), rtol=1e-6)
    optimizer.eval()
    optimizer.train()
    np.testing.assert_array_equal(model.values(), iterates[-1])
    assert np.abs(np.mean(iterates, 0) - iterates[-1]).max() > 0.1


@pytest.mark.parametrize(
    ("interval", "losses", "begins"),
    [
        (1, [5, 4, 3, 2, 1], None),
        (2, [5, 6, 6, 6], 3),  # the only one more than two evaluations ago is the first
        (2, [5, 6, 5, 5, 5], None),  # equal is not worse
        (5, [9, 9, 9, 9, 9, 9, 8, 9], None),
        (5, [9, 8, 9, 9, 9, 9, 9, 9], 7),
    ],
)
def test_when_averaging_begins(interval, losses, begins):
    """The rule of the authors' code: val_loss > min(best_val_loss[:-nonmono])."""
    optimizer = NTASGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, interval=interval)
    found = []
    for loss in losses:
        optimizer.evaluated(float(loss))
        found.append(optimizer.averaged)
    assert (found.index(1) if any(found) else None) == begins
    past: list[int] = []
    theirs = [(len(past) > interval and loss > min(past[:-interval])) or past.append(loss) for loss in losses]
    assert (theirs.index(True) if any(theirs) else None) == begins


def test_averages_are_evaluated_kept_and_not_trained_on(tmp_path):
    """The same steps as plain SGD's, whose own iterates are averaged here by hand."""
    iterates: list[dict[str, torch.Tensor]] = []

    class Collect(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            iterates.append({name: p.detach().clone() for name, p in model.named_parameters()})

    plain = small_trainer(tmp_path / "sgd", **{**NT_ASGD, "optim": "sgd", "non_monotone_interval": 5})
    plain.add_callback(Collect())
    plain.train()
    averaging = small_trainer(tmp_path / "nt", **NT_ASGD)
    averaging.train()
    count = averaging.pace()["averaged_iterates"]
    assert count == 5
    mean = {name: torch.stack([one[name] for one in iterates[-count:]]).mean(0) for name in iterates[0]}
    for name, weight in averaging.model.named_parameters():
        torch.testing.assert_close(weight.detach(), mean[name], rtol=1e-6, atol=1e-7)
    raw = averaging.optimizer.state_dict()["state"]
    for number, weight in enumerate(plain.model.parameters()):
        assert torch.equal(raw[number]["other"], weight)
    losses = [[line["loss"] for line in t.state.log_history if "loss" in line] for t in (plain, averaging)]
    assert losses[0] == losses[1]
    last = averaging.state.log_history[-2]["eval_loss"]
    plain.model.load_state_dict(mean)
    assert averaging.evaluate()["eval_loss"] == last == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-6)


def test_best_averages_are_the_model_at_the_end(tmp_path):
    """The last step is not evaluated; the best evaluation was of averages, which were others by the end."""
    often = {"eval_steps": 2, "save_steps": 2, "learning_rate": 8.0, "lr_scheduler_type": "constant"}
    trainer = small_trainer(tmp_path, load_best_model_at_end=True, **{**NT_ASGD, **often, "max_steps": 13})
    trainer.train()
    assert trainer.state.best_global_step == 12 and trainer.pace()["averaged_iterates"] == 4
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-6)
    saved = load_file(tmp_path / "checkpoint-12" / "model.safetensors")
    assert all(weight.equal(saved[name]) for name, weight in trainer.model.state_dict().items())


# ---- schedules --------------------------------------------------------------------------------------------------


def rates(scheduler, optimizer, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def one_weight() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)


def test_epoch_decay_is_zarembas(tmp_path):
    """`lr_decay = decay ** max(epoch + 1 - max_epoch, 0)`, with 4 and 1/2 of the 200-unit model."""
    args, optimizer = arguments(tmp_path, lr_scheduler_type="epoch_decay", warmup_steps=0), one_weight()
    found = rates(build_scheduler(optimizer, args, 21, steps_per_epoch=3), optimizer, 21)
    expected = [RATE * share for share in (1, 1, 1, 1, 1 / 2, 1 / 4, 1 / 8) for _ in range(3)]
    assert found == pytest.approx(expected, rel=1e-12)


def test_epoch_decay_warms_up_and_may_begin_within_an_epoch(tmp_path):
    options = {"lr_scheduler_type": "epoch_decay", "warmup_steps": 4, "decay_after": 1.5, "decay_factor": 0.25}
    optimizer = one_weight()
    found = rates(build_scheduler(optimizer, arguments(tmp_path, **options), 8, steps_per_epoch=3), optimizer, 8)
    assert found == pytest.approx([RATE * s for s in (0, 1 / 4, 1 / 2, 3 / 4 / 2, 1 / 2, 1 / 2, 1 / 8, 1 / 8)])
    with pytest.raises(ConfigError, match="epoch_decay counts epochs, and this data has no length"):
        build_scheduler(one_weight(), arguments(tmp_path, **options), 8)


@pytest.mark.parametrize("patience", [0, 2])
def test_plateau_is_torchs_with_a_warmup(patience):
    """After the warm-up the two agree, evaluation for evaluation."""
    losses = [3.0, 2.0, 2.0, 2.5, 1.0, 1.5, 1.0, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0]
    ours, theirs = one_weight(), one_weight()
    plateau = PlateauDecay(ours, 0.5, patience, warmup=4)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, factor=0.5, patience=patience, threshold=0)
    assert rates(plateau, ours, 4) == pytest.approx([0, RATE / 4, RATE / 2, RATE * 3 / 4])
    for loss in losses:
        plateau.evaluated(loss)
        reference.step(loss)
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12)
        assert plateau.get_last_lr() == [ours.param_groups[0]["lr"]]
        assert rates(plateau, ours, 2)[1] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12)
    assert plateau.decays == (9 if patience == 0 else 1)


def test_trainer_knows_epochs_and_evaluations(tmp_path):
    """5 steps make an epoch; the learning rates that are logged are those of the steps."""
    options = {"optim": "sgd", "learning_rate": 2.0, "max_steps": 12, "save_strategy": "no"}
    trainer = small_trainer(tmp_path, lr_scheduler_type="epoch_decay", decay_after=1, **options)
    trainer.train()
    found = [line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line]
    assert found == [2.0] * STEPS_PER_EPOCH + [1.0] * STEPS_PER_EPOCH + [0.5] * 2

    trainer = small_trainer(tmp_path, lr_scheduler_type="plateau", **{**options, "learning_rate": 8.0})
    trainer.train()
    rate, best, expected = 8.0, float("inf"), []
    for line in trainer.state.log_history:
        if "learning_rate" in line:
            expected.append(rate)
        if "eval_loss" in line:
            rate, best = rate if line["eval_loss"] < best else rate / 2, min(best, line["eval_loss"])
    found = [line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line]
    assert found == expected and 0 < trainer.lr_scheduler.decays < 11


# ---- random lengths ---------------------------------------------------------------------------------------------


def test_learning_rates_of_random_lengths(tmp_path):
    """SGD's first step is −γ · T/10 · ∇, so rescaled updates are the plain ones × T/10; logged is γ."""
    updates, lengths = {}, []

    class Before(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            updates[name] = [p.detach().clone() for p in model.parameters()]

    options = {"optim": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "constant", "weight_noise": 0.0}
    options |= {"max_steps": 1, "save_strategy": "no", "max_grad_norm": 0.0}
    for name, reference in (("plain", None), ("rescaled", 10)):
        trainer = small_trainer(tmp_path, rescale_to=reference, **options)
        trainer.add_callback(Before())
        trainer.train()
        after = [p.detach() for p in trainer.model.parameters()]
        updates[name] = [new - old for new, old in zip(after, updates[name], strict=True)]
        assert [line["learning_rate"] for line in trainer.state.log_history if "loss" in line] == [0.5]
        (batch,) = [inputs for inputs, _ in zip(trainer.get_train_dataloader(), range(1), strict=False)]
        lengths.append(batch["input_ids"].shape[1])
    assert lengths[0] == lengths[1] not in (0, 10) and lengths[0] <= max(map(len, ragged_rows(20)["input_ids"]))
    for plain, rescaled in zip(updates["plain"], updates["rescaled"], strict=True):
        torch.testing.assert_close(rescaled, plain * lengths[0] / 10, rtol=1e-4, atol=1e-7)
