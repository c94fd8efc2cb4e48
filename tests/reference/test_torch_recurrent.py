"""A6: torch.nn.RNN, LSTM and GRU with our weights give our outputs, final states and gradients."""

import functools

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from model_table import EMBEDDING as SIZE_BELOW
from model_table import PADDINGS, SIZES, TOLERANCE, Case, assert_close, build, make_mask

TORCH = {
    "tanh": ("seq_rnn", "plain", torch.nn.RNN),
    "relu": ("seq_rnn", "relu", functools.partial(torch.nn.RNN, nonlinearity="relu")),
    "lstm": ("seq_lstm", "plain", torch.nn.LSTM),
    "gru": ("seq_gru", "plain", torch.nn.GRU),
}
EMBEDDING, HIDDEN = SIZE_BELOW["embedding_size"], SIZES["hidden_size"]


def torch_name(name: str) -> str:
    """ "layers.1.weight_ih_reverse" → "weight_ih_l1_reverse"."""
    _, layer, parameter = name.split(".")
    plain = parameter.removesuffix("_reverse")
    return f"{plain}_l{layer}" + parameter[len(plain) :]


def build_pair(cell: str, dtype: torch.dtype, layers: int, bidirectional: bool):
    architecture, variant, module = TORCH[cell]
    options = {"num_hidden_layers": layers, "bidirectional": bidirectional}
    model = build(Case(architecture, variant), dtype=dtype, **options)
    twin = module(EMBEDDING, HIDDEN, num_layers=layers, bidirectional=bidirectional, batch_first=True).to(dtype)
    names = {name: torch_name(name) for name, _ in model.named_parameters() if name.startswith("layers.")}
    twin.load_state_dict({names[name]: model.get_parameter(name) for name in names})  # strict: all names, no others
    return model, twin, names


each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
each_cell = pytest.mark.parametrize("cell", TORCH)
each_form = pytest.mark.parametrize(
    ("layers", "bidirectional"), [(1, False), (1, True), (2, False), (3, True)], ids=["1", "1-both", "2", "3-both"]
)


@each_dtype
@pytest.mark.parametrize("padding", ["none", "right"])
@each_form
@each_cell
def test_equals_torch(cell, layers, bidirectional, padding, dtype):
    model, twin, names = build_pair(cell, dtype, layers, bidirectional)
    mask, tolerance = make_mask(padding), TOLERANCE[dtype]
    row = "A6 torch fp64" if dtype == torch.float64 else "A6 torch fp32"
    inputs = [torch.randn(*mask.shape, EMBEDDING, dtype=dtype).requires_grad_()]
    inputs.append(inputs[0].detach().clone().requires_grad_())
    output = model(inputs_embeds=inputs[0], attention_mask=mask, use_cache=not bidirectional)
    packed = pack_padded_sequence(inputs[1], mask.sum(1).cpu(), batch_first=True, enforce_sorted=False)
    expected, final = twin(packed)
    expected = pad_packed_sequence(expected, batch_first=True, total_length=mask.shape[1])[0]
    assert_close(output.last_hidden_state, expected, tolerance, row)
    if not bidirectional:
        final = final if isinstance(final, tuple) else (final,)
        for index, layer in enumerate(output.past_key_values.layers):
            for name, state in zip(("h", "c"), final, strict=False):
                assert_close(layer.states[name], state[index], tolerance, row, f"final {name}")
    probe = torch.randn_like(expected)
    (output.last_hidden_state * probe).sum().backward()
    (expected * probe).sum().backward()
    assert_close(inputs[0].grad, inputs[1].grad, tolerance, row, "gradient of the input")
    theirs = dict(twin.named_parameters())
    assert len(theirs) == len(names)
    for name, their_name in names.items():
        assert_close(model.get_parameter(name).grad, theirs[their_name].grad, tolerance, row, name)


@each_cell
@pytest.mark.parametrize("padding", [p for p in PADDINGS if p not in ("none", "right")])
def test_any_padding_equals_torch_on_the_tokens_moved_left(cell, padding):
    """torch packs right padding only: move each row's tokens to its start, run torch, move the outputs back."""
    model, twin, _ = build_pair(cell, torch.float64, 2, True)
    mask = make_mask(padding).bool()
    x = torch.randn(*mask.shape, EMBEDDING, dtype=torch.float64)
    output = model(inputs_embeds=x, attention_mask=mask).last_hidden_state
    for row, tokens in enumerate(mask):
        assert_close(output[row][tokens], twin(x[row][tokens][None])[0][0], 1e-12, "A6 torch fp64", f"row {row}")
