"""The contract of the foundation for frames: the ConvLSTM's backbone and its prediction head."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import AutoModelForTimeSeriesPrediction
from transformers.cache_utils import DynamicCache

from hf_seqmodels.models.configuration_conv_lstm import ConvLSTMConfig
from hf_seqmodels.models.modeling_conv_lstm import ConvLSTMForTimeSeriesPrediction, ConvLSTMLayer, ConvLSTMModel
from model_table import (
    PADDINGS,
    TOLERANCE,
    assert_close,
    assert_same_gradients,
    make_mask,
    named_gradients,
    perturb,
)

SIZES = {"hidden_size": 3, "num_hidden_layers": 2, "num_channels": 2, "prediction_length": 3, "num_labels": 3}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "peephole": {"peephole": True, "image_size": [4, 5]},
    "stacked": {"num_hidden_layers": 3, "dropout": 0.1, "kernel_size": 5, "loss": "bce"},
}
PIECES = {"chunks": [3, 1, 2, 2], "steps": [1] * 8}

each_variant = pytest.mark.parametrize("variant", VARIANTS)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
each_class = pytest.mark.parametrize("cls", [ConvLSTMModel, ConvLSTMForTimeSeriesPrediction])


def build(variant: str = "plain", cls: Any = ConvLSTMForTimeSeriesPrediction, dtype=torch.float64, **options: Any):
    """A tiny model in eval mode, every parameter far from zero."""
    torch.manual_seed(0)
    model = cls(ConvLSTMConfig(**(SIZES | VARIANTS[variant] | options))).to(dtype).eval()
    perturb(model)
    return model


def make_frames(batch: int, length: int, dtype=torch.float64, seed: int = 1) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.rand(batch, length, 2, 4, 5, dtype=dtype)


# -- the layer --------------------------------------------------------------------------------------------------------
def build_layer(peephole: bool, dtype=torch.float64, input_channels: int = 2) -> ConvLSTMLayer:
    config = ConvLSTMConfig(hidden_size=3, peephole=peephole, image_size=[4, 5])
    torch.manual_seed(0)
    layer = ConvLSTMLayer(config, input_channels).to(dtype)
    layer.init_weights(config)
    perturb(layer, 0.3)
    return layer


@each_dtype
@pytest.mark.parametrize("padding", ["none", "mixed"])
@pytest.mark.parametrize("peephole", [False, True])
def test_fast_path_equals_frame_by_frame(peephole, padding, dtype):
    layer, frames = build_layer(peephole, dtype), make_frames(5, 8, dtype).requires_grad_()
    mask = None if padding == "none" else make_mask(padding).bool()
    states = [torch.randn(5, 3, 4, 5, dtype=dtype, requires_grad=True) for _ in "hc"]
    probes = [torch.randn(*shape, dtype=dtype) for shape in ((5, 8, 3, 4, 5), (5, 3, 4, 5), (5, 3, 4, 5))]
    results = []
    for path in (layer.forward, layer.run_frames):
        outputs = path(frames, *states, mask)
        gradients = torch.autograd.grad(
            sum((output * probe).sum() for output, probe in zip(outputs, probes, strict=True)),
            [frames, *states, *layer.parameters()],
        )
        results.append([*outputs, *gradients])
    for fast, slow in zip(*results, strict=True):
        assert_close(fast, slow, TOLERANCE[dtype], "A2 ConvLSTM frames")


@pytest.mark.parametrize("input_channels", [2, 0])
@pytest.mark.parametrize("peephole", [False, True])
def test_derivatives(peephole, input_channels):
    """A9: finite differences in the frames, both states and every parameter, with padding."""
    config = ConvLSTMConfig(hidden_size=2, peephole=peephole, image_size=[2, 3])
    torch.manual_seed(0)
    layer = ConvLSTMLayer(config, input_channels).double()
    layer.init_weights(config)
    perturb(layer, 0.5)
    names = [name for name, _ in layer.named_parameters()]
    mask = torch.tensor([[1, 1, 1], [0, 1, 0]]).bool()
    inputs = [torch.randn(*shape).double() for shape in ((2, 3, input_channels, 2, 3), (2, 2, 2, 3), (2, 2, 2, 3))]

    def compute(frames, h, c, *weights):
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (frames, h, c, mask))

    tensors = [tensor.detach().clone().requires_grad_() for tensor in (*inputs, *layer.parameters())]
    assert torch.autograd.gradcheck(compute, tensors)


# -- state and padding ------------------------------------------------------------------------------------------------
def read_in_pieces(model, frames: torch.Tensor, mask: torch.Tensor | None, cutting: str):
    """The backbone's output on `frames` (B, T, …), read piece by piece with the returned cache, and that cache."""
    cache, outputs, end = None, [], 0
    for size in PIECES[cutting]:
        start, end = end, end + size
        so_far = None if mask is None else mask[:, :end]
        output = model(frames[:, start:end], attention_mask=so_far, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        outputs.append(output.last_hidden_state)
    assert end == frames.shape[1] == cache.get_seq_length()
    return torch.cat(outputs, dim=1), cache


@each_dtype
@pytest.mark.parametrize("padding", ["none", "mixed"])
@pytest.mark.parametrize("cutting", PIECES)
@each_variant
def test_pieces_equal_whole(variant, cutting, padding, dtype):
    """A5, values, states and gradients: the carried state is differentiable."""
    model, frames = build(variant, ConvLSTMModel, dtype), make_frames(5, 8, dtype)
    mask = None if padding == "none" else make_mask(padding)
    whole = model(frames, attention_mask=mask, use_cache=True)
    probe = torch.randn_like(whole.last_hidden_state)
    (whole.last_hidden_state * probe).sum().backward()
    gradients = named_gradients(model)
    pieces, cache = read_in_pieces(model, frames, mask, cutting)
    (pieces * probe).sum().backward()
    assert_close(pieces, whole.last_hidden_state, TOLERANCE[dtype], "A5 ConvLSTM pieces")
    assert_same_gradients(named_gradients(model), gradients, TOLERANCE[dtype], "A5 ConvLSTM pieces")
    for layer, expected in zip(cache.layers, whole.past_key_values.layers, strict=True):
        for name in ("h", "c"):
            assert_close(layer.states[name], expected.states[name], TOLERANCE[dtype], "A5 ConvLSTM pieces")


def test_prediction_continues_from_a_state():
    """Frames that come in one by one: each prediction is the one from all frames so far; beams' moves keep rows."""
    model, frames, cache = build(), make_frames(2, 4), None
    for t in range(4):
        outputs = model(frames[:, t : t + 1], past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
        assert_close(outputs.prediction_outputs, model(frames[:, : t + 1]).prediction_outputs, 1e-12, "A5 ConvLSTM")
    cache.batch_select_indices(torch.tensor([1]))
    alone = model(frames[1:], past_key_values=cache).prediction_outputs
    twice = model(torch.cat([frames, frames], dim=1)).prediction_outputs
    assert_close(alone, twice[1:], 1e-12, "A5 ConvLSTM")


@each_dtype
@pytest.mark.parametrize("padding", [padding for padding in PADDINGS if padding != "none"])
@each_variant
def test_rows_in_a_batch_equal_rows_alone(variant, padding, dtype):
    """Wherever the padding is, and NaN under it: predictions, hidden states and gradients of each row by itself."""
    model, frames, mask = build(variant, dtype=dtype), make_frames(5, 8, dtype), make_mask(padding)
    valid, future = mask.bool(), make_frames(5, 3, dtype, seed=2)
    dirty = torch.where(valid[..., None, None, None], frames, torch.nan)
    batch = model(dirty, future_values=future, attention_mask=mask, output_hidden_states=True)
    batch.loss.backward()
    gradients, last = named_gradients(model), batch.hidden_states[-1]
    for row in range(5):
        alone = model(frames[row : row + 1, valid[row]], future[row : row + 1], output_hidden_states=True)
        (alone.loss / 5).backward()
        assert_close(batch.prediction_outputs[row], alone.prediction_outputs[0], TOLERANCE[dtype], "A3 ConvLSTM")
        assert_close(last[row, valid[row]], alone.hidden_states[-1][0], TOLERANCE[dtype], "A3 ConvLSTM")
    assert not last[~valid].any()
    assert_same_gradients(gradients, named_gradients(model), TOLERANCE[dtype], "A3 ConvLSTM")


@each_variant
def test_nothing_but_padding_is_finite(variant):
    """The prediction from the zero state, with finite gradients."""
    model, frames = build(variant), make_frames(2, 4)
    frames[1] = torch.nan
    mask = torch.tensor([[1] * 4, [0] * 4])
    outputs = model(frames, future_values=make_frames(2, 3), attention_mask=mask)
    outputs.loss.backward()
    assert torch.isfinite(outputs.prediction_outputs).all()
    assert all(torch.isfinite(gradient).all() for gradient in named_gradients(model).values())


def test_no_frame_looks_ahead():
    """A4: later frames change no earlier output."""
    model, frames = build("stacked", ConvLSTMModel), make_frames(2, 6)
    changed = torch.cat([frames[:, :4], make_frames(2, 2, seed=9)], dim=1)
    first, second = (model(x).last_hidden_state for x in (frames, changed))
    assert torch.equal(first[:, :4], second[:, :4])
    assert not torch.equal(first[:, 4:], second[:, 4:])


def test_state_is_returned_only_when_asked_for():
    frames = make_frames(2, 4)
    for cls in (ConvLSTMModel, ConvLSTMForTimeSeriesPrediction):
        model = build(cls=cls)
        assert model(frames).past_key_values.get_seq_length() == 4  # use_cache is the configuration's default
        assert model(frames, use_cache=False).past_key_values is None
        model.config.use_cache = False
        assert model(frames).past_key_values is None
        cache = model(frames, use_cache=True).past_key_values
        assert cache.get_seq_length() == 4
        assert model(frames, past_key_values=cache, use_cache=False).past_key_values is None
        first = model(frames).to_tuple()[0]
        model(make_frames(2, 3, seed=5), use_cache=True)
        assert torch.equal(model(frames).to_tuple()[0], first)  # nothing is kept on the modules


# -- training ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("reentrant", [False, True])
@each_variant
def test_gradient_checkpointing_changes_nothing(variant, reentrant):
    """A carried state too, which the layers get by hand; the frames have no gradient."""
    model, future = build(variant, dropout=0.0).train(), make_frames(2, 3)
    frames = make_frames(2, 6)
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        cache = DynamicCache(config=model.config)
        model(frames[:, :3], past_key_values=cache)
        loss = model(frames[:, 3:], future_values=future, past_key_values=cache).loss
        loss.backward()
        results.append((loss.detach(), named_gradients(model)))
    assert_close(results[1][0], results[0][0], 1e-12, "ConvLSTM checkpointing")
    assert_same_gradients(results[1][1], results[0][1], 1e-12, "ConvLSTM checkpointing")


@each_variant
def test_every_parameter_learns(variant):
    """None is left without a gradient (distributed training would wait for it)."""
    model = build(variant)
    model(make_frames(2, 4), future_values=make_frames(2, 3)).loss.backward()
    assert all(gradient.any() for gradient in named_gradients(model).values())


def test_memory_is_linear_in_time():
    """What is kept for the backward pass grows by the same number of bytes for each further frame."""

    def kept(length: int) -> int:
        sizes = {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs = build("peephole", ConvLSTMModel)(make_frames(1, length), use_cache=False)
        assert outputs.last_hidden_state.shape[1] == length  # alive, and with it what was kept
        return sum(sizes.values())

    two, four, eight, sixteen = (kept(length) for length in (2, 4, 8, 16))
    assert sixteen - eight == 2 * (eight - four) == 4 * (four - two) > 0


def test_generate_returns_one_path():
    model, frames = build("stacked"), make_frames(2, 4)
    sequences = model.generate(frames, attention_mask=torch.ones(2, 4)).sequences
    assert sequences.shape == (2, 1, 3, 2, 4, 5)
    assert not sequences.requires_grad
    assert torch.equal(sequences[:, 0], model(frames).prediction_outputs)
    assert (sequences > 0).all() and (sequences < 1).all()  # loss="bce": probabilities


def test_hidden_states_are_recorded():
    model, frames = build("stacked"), make_frames(2, 4)
    outputs = model(frames, output_hidden_states=True)
    assert len(outputs.hidden_states) == 4  # the frames and three layers of the encoder
    assert torch.equal(outputs.hidden_states[0], frames)
    assert torch.equal(outputs.hidden_states[-1], model.model(frames).last_hidden_state)
    assert model(frames).hidden_states is None


def test_bf16():
    """Autocast and bf16 weights stay near fp32, and the state follows the frames' type."""
    model, frames, future = build(dtype=torch.float32), make_frames(2, 4).float(), make_frames(2, 3).float()
    expected = model(frames, future_values=future)
    with torch.autocast("cpu", torch.bfloat16):
        actual = model(frames, future_values=future)
    assert_close(actual.prediction_outputs.detach(), expected.prediction_outputs.detach(), 2e-2, "ConvLSTM bf16")
    actual.loss.backward()
    model.bfloat16()
    half = model(frames, future_values=future, past_key_values=None)
    assert half.prediction_outputs.dtype == torch.bfloat16
    assert_close(half.prediction_outputs.detach(), expected.prediction_outputs.detach(), 5e-2, "ConvLSTM bf16")


# -- start, save, load ------------------------------------------------------------------------------------------------
def check_start(model) -> None:
    for layer in [*model.model.layers, *model.forecaster]:
        bias = layer.bias_ih.view(4, -1)
        assert (bias[1] == 1.5).all() and not bias[[0, 2, 3]].any()
        for gate in layer.weight_hh.flatten(1).chunk(4):
            torch.testing.assert_close(gate @ gate.T, torch.eye(len(gate)), atol=1e-5, rtol=0)
        assert not any(getattr(layer, f"peephole_{gate}").any() for gate in "ifo")
    for gate in model.model.layers[1].weight_ih.chunk(4):
        bound = (6 / (model.config.kernel_size**2 * 16)) ** 0.5  # Glorot 2010, eq. 16: one gate's fan, k · k · (8 + 8)
        assert 0.9 * bound < gate.abs().max() <= bound
    assert model.prediction.weight.std().item() == pytest.approx(0.1, rel=0.3)
    assert not model.prediction.bias.any()


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_start_after_construction_and_reload(kernel_size, tmp_path):
    options = {"hidden_size": 8, "peephole": True, "image_size": 5, "forget_bias": 1.5, "kernel_size": kernel_size}
    torch.manual_seed(0)
    model = ConvLSTMForTimeSeriesPrediction(ConvLSTMConfig(**options))
    check_start(model)
    model.save_pretrained(tmp_path)
    check_start(ConvLSTMForTimeSeriesPrediction.from_pretrained(tmp_path))


def test_loaded_parameters_are_not_filled_again():
    """One by one, as when a checkpoint has only some of a layer's tensors."""
    config = ConvLSTMConfig(hidden_size=3, peephole=True, image_size=[4, 5])
    for loaded, _ in build_layer(peephole=True).named_parameters():
        layer = build_layer(peephole=True)
        before = {name: parameter.clone() for name, parameter in layer.named_parameters()}
        layer.get_parameter(loaded)._is_hf_initialized = True
        layer.init_weights(config)
        for name, parameter in layer.named_parameters():
            assert torch.equal(parameter, before[name]) == (name == loaded), name


@each_class
@each_variant
def test_reload_gives_every_tensor_back(variant, cls, tmp_path):
    model, frames = build(variant, cls), make_frames(2, 4)
    model.save_pretrained(tmp_path, save_code=False)
    reloaded = cls.from_pretrained(tmp_path, dtype=torch.float64)
    for name, value in model.state_dict().items():
        assert torch.equal(reloaded.state_dict()[name], value), name
    assert torch.equal(reloaded(frames).to_tuple()[0], model(frames).to_tuple()[0])


@each_class
def test_missing_tensor_raises(cls, tmp_path):
    model = build(cls=cls)
    state = model.state_dict()
    lost = next(name for name in reversed(state) if "layers.1." in name or "forecaster.1." in name)
    del state[lost]
    model.save_pretrained(tmp_path, state_dict=state, save_code=False)
    with pytest.raises(ValueError, match=f"lacks 1 tensors of .*{lost}"):
        cls.from_pretrained(tmp_path)


def test_new_head_on_an_old_encoder(tmp_path):
    source = build(cls=ConvLSTMModel, dtype=torch.float32)
    source.save_pretrained(tmp_path, save_code=False)
    model = ConvLSTMForTimeSeriesPrediction.from_pretrained(tmp_path, prediction_length=2)
    for name, value in source.state_dict().items():
        assert torch.equal(model.model.state_dict()[name], value), name
    assert (model.forecaster[1].bias_ih.view(4, -1)[1] == 1).all()
    assert model(make_frames(2, 4)).prediction_outputs.shape == (2, 2, 2, 4, 5)


def test_saved_with_its_code(tmp_path):
    model, frames = build("peephole", dtype=torch.float32), make_frames(2, 4).float()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_conv_lstm.ConvLSTMConfig",
        "AutoModel": "modeling_conv_lstm.ConvLSTMModel",
        "AutoModelForTimeSeriesPrediction": "modeling_conv_lstm.ConvLSTMForTimeSeriesPrediction",
    }
    loaded = AutoModelForTimeSeriesPrediction.from_pretrained(tmp_path, trust_remote_code=True)
    assert torch.equal(loaded(frames).prediction_outputs, model(frames).prediction_outputs)
