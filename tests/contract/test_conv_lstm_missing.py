"""Frames with missing pixels: read as 0, left out of the loss, whatever they hold."""

from __future__ import annotations

import pytest
import torch
from test_conv_lstm import build, make_frames

from model_table import assert_close, assert_same_gradients, named_gradients

each_loss = pytest.mark.parametrize("loss", ["mse", "bce"])


def make_batch() -> dict[str, torch.Tensor]:
    """Past of 4 frames and future of 3 with a third of the pixels missing, which are NaN."""
    batch = {}
    for prefix, name, steps in (("past", "pixel_values", 4), ("future", "future_values", 3)):
        frames = make_frames(2, steps, seed=steps)
        observed = torch.rand(frames.shape) > 0.3
        batch |= {name: frames.masked_fill(~observed, float("nan")), f"{prefix}_observed_mask": observed.long()}
    return batch


def slow_loss(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Pixel by pixel, over the predictions from frames whose missing pixels are 0."""
    predicted = model(batch["pixel_values"].nan_to_num(0.0)).prediction_outputs
    errors = []
    for index in batch["future_observed_mask"].nonzero().tolist():
        p, x = predicted[tuple(index)], batch["future_values"][tuple(index)]
        bce = model.config.loss == "bce"
        errors.append(-(x * p.log() + (1 - x) * (1 - p).log()) if bce else (p - x).square())
    return torch.stack(errors).mean()


@each_loss
def test_missing_pixels(loss):
    """Values and gradients of the slow twin; all observed is as without masks."""
    model, batch = build(loss=loss), make_batch()
    expected = slow_loss(model, batch)
    expected.backward()
    gradients = named_gradients(model)
    model.zero_grad()
    outputs = model(**batch)
    outputs.loss.backward()
    assert_close(outputs.loss, expected, 1e-12, "ConvLSTM missing pixels", loss)
    assert_same_gradients(named_gradients(model), gradients, 1e-12, "ConvLSTM missing pixels")
    whole = {"pixel_values": make_frames(2, 4), "future_values": make_frames(2, 3)}
    ones = {"past_observed_mask": torch.ones(2, 4, 2, 4, 5), "future_observed_mask": torch.ones(1, 3, 1, 1, 1)}
    assert_close(model(**whole, **ones).loss, model(**whole).loss, 1e-12, "ConvLSTM all observed")


def test_missing_pixels_beside_padding_and_in_forecasts():
    """A mask with axes of 1; NaN under padding needs none; `generate` reads the mask too."""
    model, frames = build(), make_frames(2, 4)
    frames[:, 0], frames[..., 2, :] = float("nan"), float("nan")
    row_is_there, padding = torch.ones(1, 1, 1, 4, 1), torch.tensor([[0, 1, 1, 1]] * 2)
    row_is_there[..., 2, :] = 0
    found = model.generate(frames, attention_mask=padding, past_observed_mask=row_is_there)
    assert_close(found.sequences[:, 0], model(frames[:, 1:].nan_to_num(0.0))[0], 1e-12, "ConvLSTM missing row")
    with pytest.raises(ValueError, match=r"^pixel_values is nan in row 0 at frame 1: .* 0 in past_observed_mask$"):
        model(frames, attention_mask=padding)


def test_nothing_observed():
    """The loss is 0 and its gradients finite."""
    model, batch = build(), make_batch()
    loss = model(**batch | {"future_observed_mask": torch.zeros(2, 3, 2, 4, 5)}).loss
    loss.backward()
    assert loss == 0 and all(torch.isfinite(gradient).all() for gradient in named_gradients(model).values())


def test_parts_of_a_batch():
    """With the pixels counted over both, two rows weigh as in one batch (A16)."""
    model, batch = build(), make_batch()
    batch["future_observed_mask"][0, 1:] = 0
    count = model.count_targets(**batch)
    assert count == batch["future_observed_mask"].sum()
    parts = [{name: tensor[row : row + 1] for name, tensor in batch.items()} for row in (0, 1)]
    losses = [model(**part, num_items_in_batch=count).loss for part in parts]
    assert_close(sum(losses), model(**batch).loss, 1e-12, "ConvLSTM parts")
