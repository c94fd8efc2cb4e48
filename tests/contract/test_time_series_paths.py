"""The sample paths that the time-series head draws, and the head saved and loaded."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForTimeSeriesPrediction

from model_table import assert_close, make_mask
from series_cases import (
    FUTURE,
    PAST,
    V,
    build_head,
    each_architecture,
    each_distribution,
    make_batch,
    make_series,
    past_of,
)


# -- sample paths -----------------------------------------------------------------------------------------------------
def record_draws(model: Any) -> list[tuple[tuple[torch.Tensor, ...], torch.Tensor]]:
    """From now on: the parameters that each step was drawn from, and the draw."""
    draws, sample = [], model.distribution_output.sample

    def draw(params: Any, loc: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        drawn = sample(params, loc, scale)
        draws.append((params, drawn))
        return drawn

    model.distribution_output.sample = draw
    return draws


@each_architecture
@each_distribution
def test_paths_are_drawn_from_the_model(name, distribution):
    """Each step of each path was drawn from what a forward pass over the past and the path's own steps predicts."""
    scaling = {"bernoulli": None, "negative_binomial": "mean"}.get(distribution, "std")
    model = build_head(name, distribution, dtype=torch.float64, scaling=scaling)
    batch, mask, paths = make_batch(model), make_mask("mixed"), 1 if distribution == "point" else 3
    past, features = past_of(batch), batch["future_time_features"]
    draws = record_draws(model)
    sequences = model.generate(
        **past, future_time_features=features, attention_mask=mask, num_parallel_samples=3
    ).sequences
    assert sequences.shape == (5, paths, FUTURE, V)
    assert len(draws) == FUTURE
    assert torch.equal(torch.cat([drawn for _, drawn in draws], dim=1).view(sequences.shape), sequences)
    for path in range(paths):
        outputs = model(**past, future_values=sequences[:, path], future_time_features=features, attention_mask=mask)
        for index, expected in enumerate(outputs.params):
            used = torch.cat([params[index] for params, _ in draws], dim=1).unflatten(0, (5, paths))[:, path]
            assert_close(used, expected[:, PAST:], 1e-12, "A5 series paths", distribution)


@each_architecture
def test_draws_repeat_with_the_seed(name):
    model = build_head(name, variates=1, features=0, num_parallel_samples=6)
    series = make_series(variates=1)
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(model.generate(series[..., 0]).sequences)
    assert results[0].shape == (5, 6, FUTURE)
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    assert len(results[0][0, :, 0].unique()) == 6  # the paths differ
    assert model.generate(series, num_parallel_samples=2).sequences.shape == (5, 2, FUTURE, 1)


@each_distribution
def test_paths_have_the_moments_of_the_first_step(distribution):
    model = build_head("seq_gru", distribution, scaling=None if distribution == "bernoulli" else "mean")
    batch = make_batch(model, rows=1)
    features = batch["future_time_features"]
    future = {"future_values": make_series(distribution, 1, FUTURE), "future_time_features": features}
    outputs = model(**past_of(batch), **future)
    paths = model.generate(**past_of(batch), future_time_features=features, num_parallel_samples=5000).sequences[
        0, :, 0
    ]
    if distribution == "point":
        assert_close(paths, (outputs.loc + outputs.scale * outputs.params[0])[:, PAST], 1e-6, "series point")
        return
    first = model.output_distribution(outputs.params, outputs.loc, outputs.scale)
    mean, deviation = first.mean[0, PAST], first.variance[0, PAST].sqrt()
    assert ((paths.mean(0) - mean).abs() < 5 * deviation / 5000**0.5).all()
    heavy_tails = 0.3 if distribution == "student_t" else 0.1
    assert ((paths.std(0) / deviation - 1).abs() < heavy_tails).all()


@each_architecture
def test_paths_from_a_padded_row(name):
    """A forecast does not see padding either (the point forecast draws nothing, so that rows can be compared)."""
    model = build_head(name, "point", dtype=torch.float64, scaling="mean")
    batch, mask = make_batch(model), make_mask("mixed")
    future = batch["future_time_features"]
    together = model.generate(**past_of(batch), future_time_features=future, attention_mask=mask).sequences
    for row in range(len(mask)):
        past = {field: tensor[row][mask[row].bool()][None] for field, tensor in past_of(batch).items()}
        alone = model.generate(**past, future_time_features=future[row : row + 1]).sequences
        assert_close(together[row], alone[0], 1e-12, "A2 series paths", f"row {row}")


@each_architecture
def test_auto_model_round_trip(name, tmp_path):
    model = build_head(name, "gaussian_mixture", scaling="std")
    batch = make_batch(model)
    model.save_pretrained(tmp_path)
    again = AutoModelForTimeSeriesPrediction.from_pretrained(tmp_path).to(model.device)
    assert type(again) is type(model)
    assert again.config.distribution_output == "gaussian_mixture" and again.config.scaling == "std"
    assert torch.equal(again(**batch).loss, model(**batch).loss)
    assert type(AutoModelForTimeSeriesPrediction.from_config(model.config)) is type(model)
    assert model.main_input_name == "past_values" and not model.can_generate()  # generate() is not GenerationMixin's
