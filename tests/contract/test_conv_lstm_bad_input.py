"""Options, frames, masks, states and targets that do not fit the ConvLSTM: one line each, before any work."""

from __future__ import annotations

import re

import pytest
import torch
from transformers.cache_utils import DynamicCache

from hf_seqmodels.models.configuration_conv_lstm import ConvLSTMConfig
from hf_seqmodels.models.configuration_lstm import LSTMConfig
from hf_seqmodels.models.modeling_conv_lstm import ConvLSTMForTimeSeriesPrediction

BAD_OPTIONS = {
    "kernel_size=4 is not allowed: it must be odd": {"kernel_size": 4},
    "kernel_size=-1": {"kernel_size": -1},
    "kernel_size=1000000000001": {"kernel_size": 10**12 + 1},
    "prediction_length=1000000000000": {"prediction_length": 10**12},
    "hidden_size=-3": {"hidden_size": -3},
    "num_hidden_layers=0": {"num_hidden_layers": 0},
    "num_channels=0": {"num_channels": 0},
    "prediction_length=0": {"prediction_length": 0},
    "image_size=0": {"image_size": 0},
    "image_size=[4, 5, 6]": {"image_size": [4, 5, 6]},
    "image_size=[]": {"image_size": []},
    "image_size=[4, -5]": {"image_size": [4, -5]},
    "image_size=None is not allowed: it must be given with peephole=True": {"peephole": True},
    "forget_bias=nan": {"forget_bias": float("nan")},
    "loss='l1' is not allowed: it must be 'mse' or 'bce'": {"loss": "l1"},
    "did you mean 'kernel_size'": {"kernal_size": 3},
}


@pytest.mark.parametrize("message", BAD_OPTIONS)
def test_bad_options(message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        ConvLSTMConfig(**BAD_OPTIONS[message])
    assert "ConvLSTMConfig" in str(error.value)


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


def build(**options) -> ConvLSTMForTimeSeriesPrediction:
    sizes = {"hidden_size": 3, "num_channels": 2, "prediction_length": 3}
    return ConvLSTMForTimeSeriesPrediction(ConvLSTMConfig(**(sizes | options))).eval()


FRAMES = {"pixel_values": zeros(2, 4, 2, 4, 5)}
BAD_INPUTS = {
    "no frames at all": ({}, {}, "this model reads frames: pass pixel_values (batch, frames, 2, height, width)"),
    "no time axis": ({}, {"pixel_values": zeros(2, 2, 4, 5)}, "pixel_values of shape (2, 2, 4, 5) does not fit"),
    "no channel axis": ({}, {"pixel_values": zeros(2, 2, 4)}, "pass (batch, frames, 2, height, width)"),
    "an axis too many": ({}, {"pixel_values": zeros(1, 2, 4, 2, 4, 5)}, "does not fit this model"),
    "channels": ({}, {"pixel_values": zeros(2, 4, 3, 4, 5)}, "pass (batch, frames, 2, height, width)"),
    "channels last": ({}, {"pixel_values": zeros(2, 4, 4, 5, 2)}, "pass (batch, frames, 2, height, width)"),
    "no frames": ({}, {"pixel_values": zeros(2, 0, 2, 4, 5)}, "holds no frames"),
    "no rows": ({}, {"pixel_values": zeros(0, 4, 2, 4, 5)}, "pass at least one row, frame and pixel"),
    "no pixels": ({}, {"pixel_values": zeros(2, 4, 2, 0, 5)}, "holds no frames"),
    "bytes": ({}, {"pixel_values": zeros(2, 4, 2, 4, 5).byte()}, "pixel_values are torch.uint8: pass floating-point"),
    "image size": ({"image_size": 4}, FRAMES, "pass (batch, frames, 2, 4, 4)"),
    "image size of peepholes": ({"image_size": [5, 4], "peephole": True}, FRAMES, "pass (batch, frames, 2, 5, 4)"),
    "future rank": ({}, FRAMES | {"future_values": zeros(2, 3, 4, 5)}, "future_values of shape (2, 3, 4, 5)"),
    "future length": ({}, FRAMES | {"future_values": zeros(2, 2, 2, 4, 5)}, "pass (2, 3, 2, 4, 5)"),
    "future rows": ({}, FRAMES | {"future_values": zeros(1, 3, 2, 4, 5)}, "pass (2, 3, 2, 4, 5)"),
    "future size": ({}, FRAMES | {"future_values": zeros(2, 3, 2, 5, 4)}, "pass (2, 3, 2, 4, 5)"),
    "future above 1": ({"loss": "bce"}, FRAMES | {"future_values": zeros(2, 3, 2, 4, 5) + 255}, "in [0, 1]"),
    "future below 0": ({"loss": "bce"}, FRAMES | {"future_values": zeros(2, 3, 2, 4, 5) - 1}, "in [0, 1]"),
    "future NaN": ({"loss": "bce"}, FRAMES | {"future_values": zeros(2, 3, 2, 4, 5) / 0}, "future_values is nan"),
    "future infinite": (
        {},
        FRAMES | {"future_values": zeros(2, 3, 2, 4, 5) + float("inf")},
        "future_values is inf in row 0 at frame 0: pass finite pixels, and mark missing ones with 0 in future",
    ),
    "past NaN": ({}, {"pixel_values": zeros(2, 4, 2, 4, 5) / 0}, "pixel_values is nan in row 0 at frame 0"),
    "past mask without pixels": (
        {},
        FRAMES | {"past_observed_mask": zeros(2, 4)},
        "past_observed_mask of shape (2, 4)",
    ),
    "future mask of the past": (
        {},
        FRAMES | {"future_values": zeros(2, 3, 2, 4, 5), "future_observed_mask": zeros(2, 4, 2, 4, 5)},
        "does not fit frames of (2, 3, 2, 4, 5)",
    ),
    "future mask alone": ({}, FRAMES | {"future_observed_mask": zeros(2, 3, 2, 4, 5)}, "without future_values"),
    "mask length": (
        {},
        FRAMES | {"attention_mask": zeros(2, 3)},
        "of shape (2, 3) does not fit 2 rows of 4",
    ),
    "mask rows": ({}, FRAMES | {"attention_mask": zeros(1, 4)}, "pass (2, 4)"),
    "mask rank": ({}, FRAMES | {"attention_mask": zeros(2, 4, 1)}, "pass (2, 4)"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_inputs(case):
    options, inputs, message = BAD_INPUTS[case]
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        build(**options)(**inputs)
    assert "\n" not in str(error.value)


BAD_CACHES = {
    "other frame size": (
        zeros(2, 4, 2, 5, 4),
        "a state of shape (2, 3, 4, 5) and these frames need (2, 3, 5, 4)",
    ),
    "other rows": (zeros(1, 4, 2, 4, 5), "pass the cache that belongs to this batch"),
}


@pytest.mark.parametrize("case", BAD_CACHES)
def test_state_of_other_frames(case):
    frames, message = BAD_CACHES[case]
    model = build()
    cache = model(**FRAMES, use_cache=True).past_key_values
    with pytest.raises(ValueError, match=re.escape(message)):
        model(frames, past_key_values=cache)


def test_mask_after_a_state():
    """Its columns speak of the new frames, or of all."""
    model = build()
    cache = model(**FRAMES, use_cache=True).past_key_values
    with pytest.raises(ValueError, match=re.escape("after 4 cached ones: pass (2, 8)")):
        model(**FRAMES, past_key_values=cache, attention_mask=torch.ones(2, 7))
    model(**FRAMES, past_key_values=cache, attention_mask=torch.ones(2, 8))


def test_cache_of_another_kind():
    with pytest.raises(ValueError, match=r"cannot hold recurrent state: build it with DynamicCache\(config"):
        build()(**FRAMES, past_key_values=DynamicCache())


def test_configuration_of_another_model():
    with pytest.raises(ValueError, match="model_type 'seq_conv_lstm', not 'seq_lstm'"):
        ConvLSTMForTimeSeriesPrediction(LSTMConfig())
