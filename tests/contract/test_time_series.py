"""The time-series head: what it predicts, what it is trained on, what padding and missing values change (nothing)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_seqmodels.models import ARCHITECTURES
from model_table import PADDINGS, assert_close, assert_same_gradients, make_mask, named_gradients
from series_cases import (
    FUTURE,
    HEAD,
    PAST,
    V,
    build_head,
    each_architecture,
    each_distribution,
    make_batch,
    make_series,
    past_of,
    take_rows,
)


# -- what is predicted ------------------------------------------------------------------------------------------------
def slow_loss(model: Any, batch: dict[str, torch.Tensor], scaling: str | None) -> tuple[list, torch.Tensor]:
    """Row by row, step by step, each from its whole prefix: parameters and the mean of −log p, in plain numbers."""
    all_params, losses = [], []
    for row in range(len(batch["past_values"])):
        x = torch.cat([batch["past_values"][row], batch["future_values"][row]]).tolist()
        seen = torch.cat([batch["past_observed_mask"][row], batch["future_observed_mask"][row]]).tolist()
        features = torch.cat([batch["past_time_features"][row], batch["future_time_features"][row]]).tolist()
        loc, scale = [0.0] * V, [1.0] * V
        for v in range(V):
            known = [x[t][v] for t in range(PAST) if seen[t][v]]
            if scaling == "mean":
                scale[v] = sum(abs(value) for value in known) / len(known)
            elif scaling == "std":
                loc[v] = sum(known) / len(known)
                scale[v] = (sum((value - loc[v]) ** 2 for value in known) / len(known)) ** 0.5
        read = [[0.0] * V + features[0]]
        for t in range(1, len(x)):
            before = [(x[t - 1][v] - loc[v]) / scale[v] if seen[t - 1][v] else 0.0 for v in range(V)]
            read.append(before + features[t])
        for t in range(len(x)):
            prefix = torch.tensor([read[: t + 1]], dtype=model.dtype)
            mean, deviation = model.parameter_projection(model.model(input_features=prefix).last_hidden_state[0, -1:])
            all_params.append((mean[0], deviation[0]))
            log_p = torch.zeros((), dtype=model.dtype)
            for v in range(V):
                mu, sigma = loc[v] + scale[v] * mean[0, v], scale[v] * deviation[0, v]
                if seen[t][v]:
                    log_p = log_p - (x[t][v] - mu) ** 2 / (2 * sigma**2) - (2 * np.pi * sigma**2).log() / 2
            if any(seen[t]):
                losses.append(-log_p)
    return all_params, torch.stack(losses).mean()


@each_architecture
@pytest.mark.parametrize("scaling", [None, "mean", "std"])
def test_equals_the_slow_loop(name, scaling):
    """Lagged inputs, time features, scaling, missing values and the loss, with gradients, in fp64."""
    model = build_head(name, dtype=torch.float64, scaling=scaling)
    batch = make_batch(model, rows=2)
    outputs = model(**batch)
    params, loss = slow_loss(model, batch, scaling)
    for index in range(2):
        expected = torch.stack([step[index] for step in params]).view(2, PAST + FUTURE, V)
        assert_close(outputs.params[index], expected, 1e-12, "A5 series steps")
    assert_close(outputs.loss, loss, 1e-12, "A5 series loss")
    outputs.loss.backward()
    gradients = named_gradients(model)
    loss.backward()
    assert_same_gradients(gradients, named_gradients(model), 1e-12, "A5 series loss")


@each_architecture
def test_piano_roll(name):
    """Boulanger-Lewandowski 2012: −Σ_v x_v log p_v + (1 − x_v) log(1 − p_v) in nats, averaged over the steps."""
    model = build_head(name, "bernoulli", variates=7, features=0, dtype=torch.float64)
    roll = make_series("bernoulli", 3, 9, 7).double()
    assert model.config.num_features == 7
    nll = 0.0
    for row in roll:
        shifted = torch.cat([torch.zeros(1, 7, dtype=torch.float64), row[:-1]])
        hidden = model.model(input_features=shifted[None]).last_hidden_state[0]
        linear = model.parameter_projection.proj[0]
        logits = (hidden @ linear.weight.T + linear.bias).detach().cpu().numpy()
        for x, z in zip(row.cpu().numpy(), logits, strict=True):
            p = 1 / (1 + np.exp(-z))
            nll -= (x * np.log(p) + (1 - x) * np.log(1 - p)).sum()
    loss = model(past_values=roll).loss
    assert_close(loss, torch.tensor(nll / 27, dtype=torch.float64), 1e-12, "series piano roll")


# Chung 2014, table 1 counts the recurrent layer with one bias and no output layer; its speech models read 20 samples.
CHUNG = {
    "lstm": ("seq_lstm", {"peephole": True}, 4, 36, 19.8, 195, 169.1),
    "gru": ("seq_gru", {"reset_after": False}, 3, 46, 20.2, 227, 168.9),
    "tanh": ("seq_rnn", {}, 1, 100, 20.1, 400, 168.4),
}
PIANO_ROLL_TOTALS = {"lstm": 21_508, "gru": 22_904, "tanh": 27_888}  # 88 notes, both of torch's biases, output layer


@pytest.mark.parametrize("unit", CHUNG)
def test_sizes_of_chung_2014(unit):
    name, options, gates, music_units, music_thousands, speech_units, speech_thousands = CHUNG[unit]

    def counts(inputs: int, units: int) -> tuple[int, int]:
        sizes = {"num_features": inputs, "hidden_size": units, "num_hidden_layers": 1}
        config = ARCHITECTURES[name].config(distribution_output="bernoulli", **sizes, **options)
        model = ARCHITECTURES[name].models[HEAD](config)
        recurrent = sum(p.numel() for p in model.model.parameters())
        return recurrent - gates * units, sum(p.numel() for p in model.parameters())

    assert round(counts(20, speech_units)[0] / 1000, 1) == speech_thousands
    recurrent, total = counts(88, music_units)
    assert total == PIANO_ROLL_TOTALS[unit]
    assert 0.9 <= recurrent / 1000 / music_thousands <= 1.0  # the paper's number is that of about 100 inputs
    assert abs(counts(100, music_units)[0] / 1000 - music_thousands) < 0.1


@each_architecture
@each_distribution
def test_every_parameter_learns(name, distribution):
    model = build_head(name, distribution)
    outputs = model(**make_batch(model))
    assert torch.isfinite(outputs.loss)
    outputs.loss.backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name


@each_distribution
def test_bf16(distribution):
    """Parameters and loss stay fp32, and near the fp32 model's."""
    model = build_head("seq_gru", distribution)
    batch = make_batch(model)
    expected = model(**batch).loss
    outputs = model.to(torch.bfloat16)(**batch)
    assert outputs.loss.dtype == torch.float32 and {p.dtype for p in outputs.params} == {torch.float32}
    assert_close(outputs.loss, expected, 5e-2, "series bf16")


# -- padding, missing values, stretches -------------------------------------------------------------------------------
@each_architecture
@pytest.mark.parametrize(
    "padding", [pytest.param(p, marks=[] if p in ("right", "mixed") else pytest.mark.slow) for p in PADDINGS]
)
def test_row_in_batch_equals_row_alone(name, padding):
    """Steps, loss and gradients of each row, with NaN under the padding, missing values and a future behind it."""
    model = build_head(name, dtype=torch.float64, scaling="std")
    batch, mask = make_batch(model), make_mask(padding)
    for field in ("past_values", "past_time_features"):
        batch[field] = torch.where(mask[..., None].bool(), batch[field], float("nan"))
    together = model(**batch, attention_mask=mask, num_items_in_batch=1)
    together.loss.backward()
    gradients, total = named_gradients(model), 0.0
    valid = torch.cat([mask, mask.new_ones(len(mask), FUTURE)], dim=1).bool()
    for row in range(len(mask)):
        alone_batch = take_rows(batch, slice(row, row + 1))
        for field in past_of(batch):
            alone_batch[field] = batch[field][row][mask[row].bool()][None]
        alone = model(**alone_batch, num_items_in_batch=1)
        for ours, expected in zip(together.params, alone.params, strict=True):
            assert_close(ours[row][valid[row]], expected[0], 1e-12, "A2 series padding", f"row {row}")
        assert_close(together.scale[row], alone.scale[0], 1e-12, "A2 series padding")
        alone.loss.backward()
        total = total + alone.loss.detach()
    assert_close(together.loss, total, 1e-12, "A2 series padding", "loss")
    assert_same_gradients(gradients, named_gradients(model), 1e-12, "A2 series padding")


@each_architecture
@each_distribution
@pytest.mark.parametrize(
    "poison", [float("nan"), *(pytest.param(p, marks=pytest.mark.slow) for p in (float("inf"), -7.5))]
)
def test_missing_values_are_not_read(name, distribution, poison):
    """Bit-exact: whatever stands where nothing was observed, outputs, loss and gradients are the same."""
    scaling = None if distribution == "bernoulli" else "mean"
    model = build_head(name, distribution, scaling=scaling)
    results = []
    batch = make_batch(model)
    for fill in (0.0, poison):
        for prefix in ("past", "future"):
            values, observed = batch[f"{prefix}_values"], batch[f"{prefix}_observed_mask"]
            batch[f"{prefix}_values"] = torch.where(observed, values, fill)
        outputs = model(**batch)
        outputs.loss.backward()
        results.append((outputs, named_gradients(model)))
    (expected, expected_gradients), (outputs, gradients) = results
    assert torch.equal(outputs.loss, expected.loss) and torch.equal(outputs.scale, expected.scale)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(outputs.params, expected.params, strict=True))
    assert all(torch.equal(gradients[key], expected_gradients[key]) for key in gradients)


@pytest.mark.parametrize("scaling", [None, "mean", "std"])
def test_nothing_observed(scaling):
    """A series without a value has loc 0, scale 1 and no loss, alone or among others; it can still be drawn."""
    model = build_head("seq_lstm", scaling=scaling)
    batch = make_batch(model)
    for prefix in ("past", "future"):
        batch[f"{prefix}_observed_mask"][1] = False
    outputs = model(**batch)
    assert not outputs.loc[1].any() and (outputs.scale[1] == 1).all()
    others = model(**take_rows(batch, [0, 2, 3, 4]))
    assert_close(outputs.loss, others.loss, 1e-6, "A18 series row")
    alone = model(**take_rows(batch, [1]))
    assert alone.loss == 0
    alone.loss.backward()
    assert all(not parameter.grad.any() for parameter in model.parameters())
    paths = model.generate(
        **past_of(take_rows(batch, [1])), future_time_features=batch["future_time_features"][[1]]
    ).sequences
    assert torch.isfinite(paths).all()


@pytest.mark.parametrize("steps", [1, 3, 6, 11, 13])
@pytest.mark.parametrize("value", [0.0, 0.1, 123.456, -1e6])
def test_scale_of_a_constant_series(value, steps):
    """No scale is 0, or the rounding error of a mean."""
    values = torch.full((1, 14, V), value)
    observed = torch.arange(14)[:, None].expand(1, 14, V) < steps
    expected = {None: 1.0, "std": 1.0, "mean": abs(value) or 1.0}
    for scaling, scale in expected.items():
        outputs = build_head("seq_rnn", features=0, scaling=scaling)(values, past_observed_mask=observed)
        torch.testing.assert_close(outputs.scale, torch.full((1, 1, V), scale))


@each_architecture
@pytest.mark.parametrize("cuts", [(3,), tuple(range(1, PAST))])
def test_stretches_equal_the_whole(name, cuts):
    """A long series in pieces, the state, the last value and the scale handed on."""
    model = build_head(name, dtype=torch.float64, scaling="mean")
    past = past_of(make_batch(model))
    whole = model(**past, use_cache=True)
    params, carried, last = [], {"loc": whole.loc, "scale": whole.scale}, None
    for start, stop in zip((0, *cuts), (*cuts, PAST), strict=True):
        piece = {field: tensor[:, start:stop] for field, tensor in past.items()}
        outputs = model(**piece, **carried, previous_values=last, use_cache=True)
        params.append(outputs.params)
        carried["past_key_values"], last = outputs.past_key_values, piece["past_values"][:, -1]
    for index, expected in enumerate(whole.params):
        assert_close(torch.cat([p[index] for p in params], dim=1), expected, 1e-12, "A6 series stretches")


# -- the loss ---------------------------------------------------------------------------------------------------------
def test_loss_over_the_future_alone():
    """`context_loss=False`: the steps of the past count in no way but as context."""
    batch = make_batch(build_head("seq_gru"), missing=0.0)
    everything, past, future = (build_head("seq_gru", context_loss=context) for context in (True, True, False))
    whole = everything(**batch).loss * (PAST + FUTURE)
    assert_close(future(**batch).loss * FUTURE, whole - past(**past_of(batch)).loss * PAST, 1e-5, "series context")
    assert_close(future(**past_of(batch)).loss, past(**past_of(batch)).loss, 0, "series context", "no future given")
    assert future(**batch, return_loss=False).loss is None


@pytest.mark.parametrize("context_loss", [True, False])
def test_accumulated_steps_equal_one_batch(context_loss):
    """A16: with the target steps counted over all of them, rows of any number of targets weigh as they should."""
    model = build_head("seq_lstm", dtype=torch.float64, context_loss=context_loss)
    batch = make_batch(model, missing=0.5) | {"attention_mask": make_mask("mixed")}
    batch["future_observed_mask"][:2] = False
    loss = model(**batch).loss
    loss.backward()
    expected = named_gradients(model)
    parts = [take_rows(batch, slice(start, start + 2)) for start in (0, 2, 4)]
    count = sum(model.count_targets(**part) for part in parts)
    assert count == model.count_targets(**batch)
    losses = [model(**part, num_items_in_batch=count).loss for part in parts]
    sum(losses).backward()
    assert_close(sum(losses), loss, 1e-12, "A16 series")
    assert_same_gradients(named_gradients(model), expected, 1e-12, "A16 series")


def test_activation_regularisation_counts():
    """In training the loss has α times the mean square of the backbone's output at the target steps (Merity 2017)."""
    model, alpha = build_head("seq_gru", activation_reg=0.7), 0.7
    batch, squares = make_batch(model, missing=0.5), []
    expected = model(**batch).loss
    model.model.register_forward_hook(lambda _, __, out: squares.append(out.last_hidden_state.square().mean(-1)))
    loss = model.train()(**batch).loss
    observed = torch.cat([batch["past_observed_mask"], batch["future_observed_mask"]], dim=1).any(-1)
    assert_close(loss - expected, alpha * squares[0][observed].mean(), 1e-5, "series activation_reg")


def test_trainer_of_transformers_trains_and_evaluates(tmp_path):
    """Unchanged and without `label_names`: it reads from the signature that the model returns a loss."""
    model = build_head("seq_lstm", noise=0.0).cpu()
    rows = [{name: tensor[0].cpu() for name, tensor in make_batch(model, rows=1).items()} for _ in range(8)]
    arguments = TrainingArguments(
        str(tmp_path), report_to="none", use_cpu=True, max_steps=6, learning_rate=0.05, disable_tqdm=True,
        gradient_accumulation_steps=2, per_device_train_batch_size=4, save_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    assert_close(torch.tensor(before), loss_of(model, rows), 1e-4, "series trainer")
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before


@torch.no_grad()
def loss_of(model: Any, rows: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return SimpleNamespace(**model.eval()(**batch)).loss
