"""ConvLSTM against Shi 2015 written out in numpy, one pixel at a time, and against the LSTM where they coincide."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_seqmodels.models.configuration_conv_lstm import ConvLSTMConfig
from hf_seqmodels.models.configuration_lstm import LSTMConfig
from hf_seqmodels.models.modeling_conv_lstm import ConvLSTMForTimeSeriesPrediction, ConvLSTMLayer
from hf_seqmodels.models.modeling_lstm import LSTMLayer
from model_table import TOLERANCE, assert_close, perturb

ROW = "A6 ConvLSTM"


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def convolve(weight: np.ndarray, image: np.ndarray) -> np.ndarray:
    """(O, I, k, k) over (I, H, W), pixels outside the image being zero: (O, H, W)."""
    outputs, _, side, _ = weight.shape
    _, height, width = image.shape
    result = np.zeros((outputs, height, width))
    for row in range(height):
        for column in range(width):
            for down in range(side):
                for right in range(side):
                    y, x = row + down - side // 2, column + right - side // 2
                    if 0 <= y < height and 0 <= x < width:
                        result[:, row, column] += weight[:, :, down, right] @ image[:, y, x]
    return result


def equation_3(x: np.ndarray | None, h: np.ndarray, c: np.ndarray, w: dict[str, np.ndarray]):
    """One step of Shi 2015, eq. 3, on one sequence's X (I, H, W), H and C (D, H, W); x None: nothing is read."""
    w_hi, w_hf, w_hc, w_ho = np.split(w["weight_hh"], 4)
    b_i, b_f, b_c, b_o = (b[:, None, None] for b in np.split(w["bias_ih"], 4))
    of_input = [0.0] * 4 if x is None else [convolve(w_x, x) for w_x in np.split(w["weight_ih"], 4)]
    w_ci, w_cf, w_co = (w.get(f"peephole_{gate}", 0.0) for gate in "ifo")
    i = sigmoid(of_input[0] + convolve(w_hi, h) + w_ci * c + b_i)
    f = sigmoid(of_input[1] + convolve(w_hf, h) + w_cf * c + b_f)
    c = f * c + i * np.tanh(of_input[2] + convolve(w_hc, h) + b_c)
    o = sigmoid(of_input[3] + convolve(w_ho, h) + w_co * c + b_o)
    return o * np.tanh(c), c


def arrays(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: parameter.detach().double().numpy() for name, parameter in module.named_parameters()}


def predict(model: ConvLSTMForTimeSeriesPrediction, frames: np.ndarray, length: int) -> np.ndarray:
    """Figure 3 for one sequence (T, C, H, W): encoder, copied states, forecaster, 1 × 1 convolution; (T', C, H, W)."""
    zeros = np.zeros((model.config.hidden_size, *frames.shape[2:]))
    states = [(zeros, zeros) for _ in model.model.layers]
    for frame in frames:
        x = frame
        for index, layer in enumerate(model.model.layers):
            states[index] = equation_3(x, *states[index], arrays(layer))
            x = states[index][0]
    predicted = []
    for _ in range(length):
        x = None
        for index, layer in enumerate(model.forecaster):
            states[index] = equation_3(x, *states[index], arrays(layer))
            x = states[index][0]
        hidden = np.concatenate([h for h, _ in states])
        weight, bias = (parameter.detach().double().numpy() for parameter in model.prediction.parameters())
        predicted.append(np.einsum("od,dhw->ohw", weight[:, :, 0, 0], hidden) + bias[:, None, None])
    return np.stack(predicted)


VARIANTS = {
    "plain": {},
    "one_layer": {"num_hidden_layers": 1, "kernel_size": 1},
    "peephole": {"peephole": True, "image_size": [4, 5], "num_hidden_layers": 1},
    "stacked_peephole": {"peephole": True, "image_size": (4, 5), "num_hidden_layers": 3, "kernel_size": 5},
}


def build(dtype: torch.dtype = torch.float64, **options) -> ConvLSTMForTimeSeriesPrediction:
    torch.manual_seed(0)
    sizes = {"hidden_size": 3, "num_hidden_layers": 2, "num_channels": 2, "prediction_length": 2}
    model = ConvLSTMForTimeSeriesPrediction(ConvLSTMConfig(**(sizes | options))).to(dtype).eval()
    perturb(model, 0.3)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_predictions_are_the_papers(variant, dtype):
    model = build(dtype, **VARIANTS[variant])
    frames = torch.rand(2, 3, 2, 4, 5, dtype=dtype)
    actual = model(frames).prediction_outputs
    expected = np.stack([predict(model, row.double().numpy(), 2) for row in frames])
    assert_close(actual.detach(), torch.from_numpy(expected), TOLERANCE[dtype], ROW)


def test_loss_is_the_squared_error():
    model, frames, future = build(), torch.rand(1, 3, 2, 4, 5).double(), torch.randn(1, 2, 2, 4, 5).double()
    expected = np.mean((predict(model, frames[0].numpy(), 2) - future[0].numpy()) ** 2)
    assert model(frames, future_values=future).loss.item() == pytest.approx(expected, abs=1e-12)


def test_loss_is_the_papers_cross_entropy():
    """Section 4.1: −Σ T log P + (1 − T) log(1 − P), here as a mean over the pixels."""
    model, frames, future = build(loss="bce"), torch.rand(1, 3, 2, 4, 5).double(), torch.rand(1, 2, 2, 4, 5).double()
    p, t = sigmoid(predict(model, frames[0].numpy(), 2)), future[0].numpy()
    outputs = model(frames, future_values=future)
    assert outputs.loss.item() == pytest.approx(-np.mean(t * np.log(p) + (1 - t) * np.log(1 - p)), abs=1e-12)
    assert_close(outputs.prediction_outputs[0].detach(), torch.from_numpy(p), 1e-12, ROW)


@pytest.mark.parametrize("peephole", [False, True])
def test_on_one_pixel_it_is_the_lstm(peephole):
    """Section 3.1: the fully connected LSTM is the ConvLSTM whose features stand on a single cell; with gradients."""
    torch.manual_seed(0)
    config = ConvLSTMConfig(hidden_size=4, kernel_size=1, peephole=peephole, image_size=1)
    ours = ConvLSTMLayer(config, input_channels=5).double()
    lstm_config = LSTMConfig(hidden_size=4, embedding_size=5, peephole=peephole)
    lstm = LSTMLayer(lstm_config, 0).double()
    for layer, layer_config in ((ours, config), (lstm, lstm_config)):
        layer.init_weights(layer_config)
    perturb(lstm, 0.5)
    with torch.no_grad():
        lstm.bias_hh.zero_()
        for name, parameter in ours.named_parameters():
            parameter.copy_(getattr(lstm, name).view_as(parameter))
    x, h, c = (torch.randn(*shape, dtype=torch.float64) for shape in ((3, 6, 5), (1, 3, 4), (1, 3, 4)))
    expected, (expected_h, expected_c) = lstm.run(x, (h, c))
    actual = ours(x[..., None, None], h[0, ..., None, None], c[0, ..., None, None])
    probe = torch.randn_like(expected)
    (expected * probe).sum().backward()
    (actual[0][..., 0, 0] * probe).sum().backward()
    for tensor, wanted in zip(actual, (expected, expected_h[0], expected_c[0]), strict=True):
        assert_close(tensor[..., 0, 0], wanted, 1e-12, ROW)
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, getattr(lstm, name).grad.view_as(parameter), 1e-12, ROW, name)
