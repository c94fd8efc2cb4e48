"""What a new model starts from: after construction, in bf16, and where a checkpoint had no head."""

import math

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification

from hf_seqmodels.models import ARCHITECTURES
from model_table import (
    CELLS,
    Case,
    build,
    build_config,
    each_case,
    each_case_and_head,
    each_token_case,
)

KEEPING_GATE = {"lstm": ("forget_bias", 1), "peephole": ("forget_bias", 1), "gru": ("update_bias", 1)}
KEEPING_GATE["reset_before"] = KEEPING_GATE["gru"]
INPUT, HIDDEN = 20, 24

each_cell = pytest.mark.parametrize("cell", CELLS)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
each_direction = pytest.mark.parametrize("bidirectional", [False, True])


def new_layer(cell: str, dtype: torch.dtype = torch.float32, **options):
    """The first layer of a model as the Auto classes make it."""
    architecture, cell_options = CELLS[cell]
    sizes = {"hidden_size": HIDDEN, "embedding_size": INPUT, "vocab_size": 9}
    config = ARCHITECTURES[architecture].config(**(sizes | cell_options | options))
    return AutoModel.from_config(config, dtype=dtype).layers[0]


def gates(layer, name: str, direction: str) -> list[torch.Tensor]:
    parameter = getattr(layer, name + direction)
    return list(parameter.detach().chunk(layer.num_gates))


def check_default_start(layer, cell: str, dtype: torch.dtype) -> None:
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for direction in layer.directions:
        for gate in gates(layer, "weight_hh", direction):
            assert gate.dtype == dtype
            product = gate.float() @ gate.float().T
            torch.testing.assert_close(product, torch.eye(HIDDEN), atol=tolerance, rtol=0)
        bound = math.sqrt(6 / (INPUT + HIDDEN))  # Glorot 2010, eq. 16: one gate's rows, not all gates'
        for gate in gates(layer, "weight_ih", direction):
            assert 0.9 * bound < gate.abs().max() <= bound * (1 + tolerance)
            assert gate.float().std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)
        for index, gate in enumerate(gates(layer, "bias_ih", direction)):
            keeps = cell in KEEPING_GATE and index == KEEPING_GATE[cell][1]
            assert (gate == (1.0 if keeps else 0.0)).all(), f"gate {index}"
        assert not any(gate.any() for gate in gates(layer, "bias_hh", direction))
        if cell == "peephole":
            assert not any(getattr(layer, f"peephole_{k}{direction}").any() for k in "ifo")


@each_dtype
@each_direction
@each_cell
def test_start_after_construction(cell, bidirectional, dtype):
    check_default_start(new_layer(cell, dtype, bidirectional=bidirectional), cell, dtype)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_cells_inside_the_attention_rnn_start_the_same(cell):
    config = ARCHITECTURES["seq_attention_rnn"].config(hidden_size=HIDDEN, embedding_size=INPUT, cell=cell)
    check_default_start(AutoModel.from_config(config).layers[0].rnn, "tanh" if cell == "rnn" else cell, torch.float32)


@each_cell
def test_uniform_start(cell):
    """torch's default, U(−1/√D, 1/√D), for both matrices; the biases stay as they are by `bias_init`."""
    layer, bound = new_layer(cell, weight_init="uniform"), 1 / math.sqrt(HIDDEN)
    for name in ("weight_ih", "weight_hh"):
        weight = getattr(layer, name)
        assert 0.95 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize("cell", KEEPING_GATE)
def test_keeping_bias_is_an_option(cell):
    option, gate = KEEPING_GATE[cell]
    layer = new_layer(cell, bidirectional=True, **{option: 2.5})
    for direction in layer.directions:
        assert (gates(layer, "bias_ih", direction)[gate] == 2.5).all()


@each_dtype
@each_direction
@pytest.mark.parametrize("cell", KEEPING_GATE)
def test_chrono_start(cell, bidirectional, dtype):
    """b = log U(1, T_max − 1), drawn for each unit; the LSTM's input gate the negative of it."""
    longest, gate = 50, KEEPING_GATE[cell][1]
    options = {"bias_init": "chrono", "chrono_max_time": longest, "bidirectional": bidirectional}
    layer = new_layer(cell, dtype, **options)
    for direction in layer.directions:
        biases = gates(layer, "bias_ih", direction)
        times = biases[gate].float().exp()
        assert (times >= 0.98).all()
        assert (times <= (longest - 1) * 1.02).all()
        assert times.max() > longest / 2  # of 24 draws
        assert len(times.unique()) > HIDDEN / 2
        if layer.num_gates == 4:
            assert torch.equal(biases[0], -biases[1])
        others = [bias for index, bias in enumerate(biases) if index not in ((0, 1) if layer.num_gates == 4 else (1,))]
        assert not any(bias.any() for bias in others)


@each_case_and_head
def test_start_follows_the_seed_and_is_finite(case, head):
    """No parameter is left as the memory happened to be."""
    cls, config = ARCHITECTURES[case.architecture].models[head], build_config(case, head)
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(cls(config).state_dict())
    for name, value in states[0].items():
        assert torch.isfinite(value).all()
        assert value.abs().max() <= 4, name
        assert torch.equal(value, states[1][name]), name
    assert any(not torch.equal(value, states[2][name]) for name, value in states[0].items())


@each_dtype
@each_case_and_head
def test_reload_gives_every_tensor_back(case, head, dtype, tmp_path):
    """A14: what was saved is not initialised again, whatever it is."""
    model = build(case, head, dtype)
    model.save_pretrained(tmp_path, save_code=False)
    reloaded = type(model).from_pretrained(tmp_path, dtype=dtype)
    expected, actual = model.state_dict(), reloaded.state_dict()
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


HEADS = {"score.weight", "score.bias", "pooling.weight", "pooler.weight", "pooler.bias"}


@each_dtype
@pytest.mark.parametrize("auto", [AutoModelForSequenceClassification, AutoModelForTokenClassification])
@each_token_case
def test_new_head_on_an_old_backbone(case, auto, dtype, tmp_path):
    """Only the head is new, and starts as in a new model; the backbone is the checkpoint's."""
    source = build(case, "causal-lm" if "causal-lm" in case.heads else "backbone", dtype)
    source.save_pretrained(tmp_path, save_code=False)
    model, info = auto.from_pretrained(tmp_path, dtype=dtype, num_labels=5, output_loading_info=True)
    new = set(info["missing_keys"])
    assert {"score.weight", "score.bias"} <= new <= HEADS
    backbone = getattr(source, "model", source)
    for name, value in backbone.state_dict().items():
        assert torch.equal(model.model.state_dict()[name], value), name
    for name in new:
        value = model.get_parameter(name)
        assert value.dtype == dtype
        if name.endswith("bias"):
            assert not value.any()
        else:
            assert 0 < value.float().std() < 2 * model.config.initializer_range


@each_case
def test_missing_backbone_tensor_raises(case, tmp_path):
    """A12: a backbone half loaded and half new would train, and never be noticed."""
    model = build(case)
    state = model.state_dict()
    lost = next(name for name in state if "layers.1." in name)
    del state[lost]
    model.save_pretrained(tmp_path, state_dict=state, save_code=False)
    for head in ("backbone", case.main_head):
        with pytest.raises(ValueError, match=f"lacks 1 tensors of .*{lost}"):
            ARCHITECTURES[case.architecture].models[head].from_pretrained(tmp_path)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
def test_transformer_start(positions):
    """N(0, initializer_range) for matrices, zero biases, norms of ones."""
    case = Case("seq_transformer_decoder", "plain")
    torch.manual_seed(0)
    model = AutoModel.from_config(build_config(case, positions=positions, hidden_size=48, initializer_range=0.1))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == (1 if name.endswith("weight") else 0)).all(), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            assert parameter.std().item() == pytest.approx(0.1, rel=0.15), name
