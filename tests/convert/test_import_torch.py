"""torch.nn.RNN, LSTM and GRU into ours: values, gradients, whole small models, and what is refused."""

import functools

import pytest
import torch
from torch import nn

from hf_seqmodels.convert.torch_nn import from_torch
from model_table import assert_close

CELLS = {
    "tanh": nn.RNN,
    "relu": functools.partial(nn.RNN, nonlinearity="relu"),
    "lstm": nn.LSTM,
    "gru": nn.GRU,
}
INPUTS, HIDDEN, VOCABULARY = 5, 7, 11
ROW = "A6 import torch.nn"

each_cell = pytest.mark.parametrize("cell", CELLS)


class SmallModel(nn.Module):
    """The layout of PyTorch's word_language_model example: encoder, rnn, decoder."""

    def __init__(self, outputs: int = VOCABULARY, tied: bool = False, bias: bool = True, **options):
        super().__init__()
        self.encoder = nn.Embedding(VOCABULARY, HIDDEN if tied else INPUTS)
        self.rnn = nn.LSTM(self.encoder.embedding_dim, HIDDEN, 2, batch_first=True, **options)
        self.decoder = nn.Linear(HIDDEN * (2 if self.rnn.bidirectional else 1), outputs, bias=bias)
        if tied:
            self.decoder.weight = self.encoder.weight

    def forward(self, input_ids):
        return self.decoder(self.rnn(self.encoder(input_ids))[0])


def our_name(name: str) -> str:
    """ "weight_ih_l1_reverse" → "layers.1.weight_ih_reverse"."""
    plain, layer = name.removesuffix("_reverse").rsplit("_l", 1)
    return f"layers.{layer}.{plain}" + ("_reverse" if name.endswith("_reverse") else "")


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
@pytest.mark.parametrize("layers", [1, 2])
@each_cell
def test_values_and_gradients_equal_torch(cell, layers, bidirectional):
    source = CELLS[cell](INPUTS, HIDDEN, layers, bidirectional=bidirectional, batch_first=True)
    model, report = from_torch(source)
    assert report.max_difference <= 1e-5 and report.tensors == 4 * layers * (1 + bidirectional)
    assert not report.assumed and not model.training
    x = torch.randn(3, 9, INPUTS).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    output, expected = model(input_features=x).last_hidden_state, source(twin)[0]
    assert_close(output, expected, 1e-5, ROW)
    probe = torch.randn_like(expected)
    (output * probe).sum().backward()
    (expected * probe).sum().backward()
    assert_close(x.grad, twin.grad, 1e-5, ROW, "gradient of the input")
    theirs = dict(source.named_parameters())
    assert {our_name(name) for name in theirs} == {n for n, _ in model.named_parameters() if n.startswith("layers.")}
    for name, parameter in theirs.items():
        assert_close(model.get_parameter(our_name(name)).grad, parameter.grad, 1e-5, ROW, name)


@each_cell
def test_without_biases(cell):
    source = CELLS[cell](INPUTS, HIDDEN, 2, bias=False, batch_first=True)
    model, report = from_torch(source)
    assert report.tensors == 4
    x = torch.randn(2, 6, INPUTS)
    assert_close(model(input_features=x).last_hidden_state, source(x)[0], 1e-5, ROW)


def test_a_state_dict_does_not_tell_tanh_from_relu():
    source = nn.RNN(INPUTS, HIDDEN, nonlinearity="relu", batch_first=True)
    x = torch.randn(2, 6, INPUTS)
    told, report = from_torch(source.state_dict(), nonlinearity="relu")
    assert_close(told(input_features=x).last_hidden_state, source(x)[0], 1e-5, ROW)
    assert not report.assumed
    guessed, report = from_torch(source.state_dict())
    assert guessed.config.nonlinearity == "tanh" and report.assumed == "nonlinearity=tanh" in str(report)
    with pytest.raises(ValueError, match="nonlinearity='sigmoid' is not allowed"):
        from_torch(source.state_dict(), nonlinearity="sigmoid")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["fp64", "bf16"])
def test_other_precisions_arrive_in_fp32(dtype):
    source = nn.GRU(INPUTS, HIDDEN, batch_first=True).to(dtype)
    model, _ = from_torch(source)
    assert model.dtype == torch.float32
    assert torch.equal(model.layers[0].weight_ih, source.weight_ih_l0.float())


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_language_model(tied, bias):
    source = SmallModel(tied=tied, bias=bias).eval()
    model, report = from_torch(source.state_dict())
    assert type(model).__name__ == "LSTMForCausalLM" and model.config.tie_word_embeddings is tied
    assert report.tensors == len(source.state_dict())
    ids = torch.randint(VOCABULARY, (3, 8))
    assert_close(model(input_ids=ids).logits, source(ids), 1e-5, ROW)


@pytest.mark.parametrize("options", [{"outputs": 4}, {"bidirectional": True}], ids=["classes", "both"])
def test_tagger(options):
    source = SmallModel(**options).eval()
    model, _ = from_torch(source.state_dict())
    assert type(model).__name__ == "LSTMForTokenClassification"
    ids = torch.randint(VOCABULARY, (3, 8))
    assert_close(model(input_ids=ids).logits, source(ids), 1e-5, ROW)


def test_parts_by_name():
    source = SmallModel().eval()
    ids, x = torch.randint(VOCABULARY, (3, 8)), torch.randn(3, 8, INPUTS)
    renamed = {
        name.replace("encoder", "drop.tokens").replace("decoder", "out"): tensor
        for name, tensor in source.state_dict().items()
    }
    model, _ = from_torch(renamed, embedding="drop.tokens", decoder="out")
    assert_close(model(input_ids=ids).logits, source(ids), 1e-5, ROW)
    for prefix in ("rnn", "rnn."):
        model, report = from_torch(renamed, prefix=prefix)  # these alone, the rest is not read
        assert type(model).__name__ == "LSTMModel" and report.tensors == 8
        assert_close(model(input_features=x).last_hidden_state, source.rnn(x)[0], 1e-5, ROW)
    without_decoder = {name: tensor for name, tensor in renamed.items() if not name.startswith("out")}
    model, _ = from_torch(without_decoder, embedding="drop.tokens")
    assert_close(model(input_ids=ids).last_hidden_state, source.rnn(source.encoder(ids))[0], 1e-5, ROW)


def changed(**tensors):
    """A good state dict with some tensors replaced, or left out (None)."""
    good = dict(nn.LSTM(INPUTS, HIDDEN, 2, bidirectional=True).state_dict())
    return {name: tensor for name, tensor in (good | tensors).items() if tensor is not None}


ROWS = 4 * HIDDEN
REFUSED = {
    "no layers": ({}, "'weight_hh_l0' is missing"),
    "missing": (changed(weight_hh_l1_reverse=None), "'weight_hh_l1_reverse' is missing"),
    "missing bias": (changed(bias_hh_l0=None), "'bias_hh_l0' is missing"),
    "a layer between": (
        {name.replace("_l1", "_l2"): tensor for name, tensor in changed().items()},
        "'weight_ih_l1' is missing",
    ),
    "unexpected": (changed(extra=torch.zeros(1)), "'extra' is unexpected"),
    "width": (changed(weight_ih_l1=torch.zeros(ROWS, 3)), r"'weight_ih_l1' has shape \(28, 3\), expected \(28, 14\)"),
    "axes": (changed(weight_ih_l0=torch.zeros(ROWS)), r"'weight_ih_l0' has shape \(28,\), expected 2 axes"),
    "bias": (changed(bias_ih_l0=torch.zeros(3)), r"'bias_ih_l0' has shape \(3,\), expected \(28,\)"),
    "gates": (changed(weight_hh_l0=torch.zeros(2 * HIDDEN, HIDDEN)), r"'weight_hh_l0' has shape \(14, 7\)"),
    "empty": (changed(weight_hh_l0=torch.zeros(0, 0)), r"'weight_hh_l0' has shape \(0, 0\)"),
    "integers": (
        changed(weight_hh_l0=torch.zeros(ROWS, HIDDEN, dtype=torch.int8)),
        "'weight_hh_l0' holds torch.int8",
    ),
    "proj_size": (nn.LSTM(INPUTS, HIDDEN, proj_size=3).state_dict(), "'weight_hr_l0' belongs to proj_size"),
    "two stacks": (nn.ModuleDict({"a": nn.GRU(2, 2), "b": nn.GRU(2, 2)}).state_dict(), "'a.', 'b.': choose one"),
    "another part": (nn.ModuleDict({"rnn": nn.GRU(2, 2), "norm": nn.LayerNorm(2)}).state_dict(), "'norm.weight'"),
    "not finite": (changed(bias_ih_l1=torch.full((ROWS,), torch.nan)), "differ by nan"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_first_tensor_that_does_not_fit_is_named(case):
    tensors, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as caught:
        from_torch(tensors)
    assert "\n" not in str(caught.value)


def test_parts_that_do_not_fit_are_named():
    whole = SmallModel().state_dict()
    with pytest.raises(ValueError, match=r"'encoder.weight' has shape \(11, 6\), expected \(11, 5\)"):
        from_torch(whole | {"encoder.weight": torch.zeros(VOCABULARY, INPUTS + 1)})
    with pytest.raises(ValueError, match=r"'decoder.bias' has shape \(10,\), expected \(11,\)"):
        from_torch(whole | {"decoder.bias": torch.zeros(VOCABULARY - 1)})
    with pytest.raises(ValueError, match=r"'out.weight' is missing"):
        from_torch(whole, decoder="out")
    with pytest.raises(ValueError, match="belongs to the RNN, and these tensors are a seq_lstm's"):
        from_torch(whole, nonlinearity="relu")


def test_the_callers_random_state_and_module_stay_as_they_are():
    source = nn.LSTM(INPUTS, HIDDEN, dropout=0.5, num_layers=2)
    before, weights = torch.get_rng_state(), {name: t.clone() for name, t in source.state_dict().items()}
    model, _ = from_torch(source)
    assert torch.equal(torch.get_rng_state(), before) and source.training
    with torch.no_grad():
        model.layers[0].weight_ih.zero_()  # a copy
    assert all(torch.equal(source.state_dict()[name], tensor) for name, tensor in weights.items())
