"""A7: Keras' SimpleRNN, LSTM and GRU into ours: layers and files, values and gradients, and what is refused."""

import io
import itertools
import json
import os
import random
import zipfile

import numpy as np
import pytest
import torch

os.environ["KERAS_BACKEND"] = "torch"  # read when keras is imported
keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")

from hf_seqmodels.convert.keras import from_keras  # noqa: E402
from model_table import assert_close  # noqa: E402

INPUTS, UNITS = 3, 5
ROW = "A7 import Keras"
CELLS = {
    "tanh": ("SimpleRNN", {}),
    "relu": ("SimpleRNN", {"activation": "relu"}),
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {"reset_after": True}),
    "gru-before": ("GRU", {"reset_after": False}),
}
SUFFIXES = (".keras", ".h5", ".weights.h5")

each_cell = pytest.mark.parametrize("cell", CELLS)
each_form = pytest.mark.parametrize(
    ("layers", "both", "use_bias"),
    list(itertools.product((1, 2), (False, True), (True, False))),
    ids=str,
)


def build(cell, layers=1, both=False, use_bias=True, **options):
    """A Sequential with weights and biases far from zero; the last layer gives the outputs of all steps too."""
    name, own = CELLS[cell]
    model = keras.Sequential([keras.Input((None, INPUTS))])
    for _ in range(layers):
        layer = getattr(keras.layers, name)(UNITS, return_sequences=True, use_bias=use_bias, **(own | options))
        model.add(keras.layers.Bidirectional(layer) if both else layer)
    drawn = np.random.default_rng(0)
    model.set_weights([drawn.normal(size=weight.shape) * 0.5 for weight in model.get_weights()])
    return model


@each_form
@each_cell
def test_values_and_gradients_equal_keras(cell, layers, both, use_bias):
    source = build(cell, layers, both, use_bias)
    model, report = from_keras(source)
    assert report.max_difference <= 1e-5 and report.tensors == len(source.get_weights()) and not report.assumed
    x = torch.randn(3, 9, INPUTS).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    output, expected = model(input_features=x).last_hidden_state, source(twin, training=False)
    assert_close(output, expected, 1e-5, ROW)
    probe = torch.randn_like(expected)
    (output * probe).sum().backward()
    (expected * probe).sum().backward()
    assert_close(x.grad, twin.grad, 1e-5, ROW, "gradient of the input")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("both", [False, True], ids=["one", "both"])
@each_cell
def test_files_give_the_same_model(cell, both, suffix, tmp_path):
    source = build(cell, 2, both, dropout=0.2, recurrent_dropout=0.2)  # their random seeds are saved too
    path = tmp_path / f"model{suffix}"
    if suffix == ".weights.h5":
        source.save_weights(path)
    else:
        source.save(path)
    options = {"nonlinearity": "relu"} if cell == "relu" and suffix == ".weights.h5" else {}
    model, report = from_keras(path, **options)
    expected, _ = from_keras(source)
    assert report.max_difference <= 1e-5
    assert bool(report.assumed) == (suffix == ".weights.h5" and not options)
    assert model.config.to_dict() == expected.config.to_dict()
    theirs = expected.state_dict()
    assert model.state_dict().keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())


def test_eleven_layers_keep_their_order(tmp_path):
    """lstm_10 comes after lstm_9, and not after lstm_1 as in the file."""
    source = build("lstm", 11)
    source.save_weights(tmp_path / "deep.weights.h5")
    model, _ = from_keras(tmp_path / "deep.weights.h5")
    expected, _ = from_keras(source)
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_gru_without_biases_does_not_tell_where_it_resets(tmp_path):
    build("gru", use_bias=False).save_weights(tmp_path / "gru.weights.h5")
    model, report = from_keras(tmp_path / "gru.weights.h5")
    assert model.config.reset_after and "reset_after=True" in report.assumed


@each_cell
def test_a_layer_alone(cell):
    layer = build(cell).layers[0]
    model, _ = from_keras(layer)
    x = torch.randn(2, 6, INPUTS)
    assert_close(model(input_features=x).last_hidden_state, layer(x, training=False), 1e-5, ROW)


def test_the_last_output_of_a_layer_that_gives_only_that():
    layer = keras.layers.GRU(UNITS)
    x = torch.randn(2, 6, INPUTS)
    expected = layer(x, training=False)
    model, _ = from_keras(layer)
    assert_close(model(input_features=x).last_hidden_state[:, -1], expected, 1e-5, ROW)


def test_the_callers_random_states_stay_as_they_are():
    source = build("lstm", dropout=0.3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    from_keras(source)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])


def sequential(*layers):
    return keras.Sequential([keras.Input((None, INPUTS)), *layers])


class Own(keras.layers.LSTM):
    """A class of the user's: its equations are unknown."""


L = keras.layers
REFUSED = {
    "go_backwards": (lambda: sequential(L.LSTM(4, name="a", go_backwards=True)), "'a' has go_backwards=True"),
    "activation": (lambda: sequential(L.LSTM(4, name="a", activation="relu")), "'a' has activation='relu'"),
    "rnn activation": (lambda: sequential(L.SimpleRNN(4, name="a", activation="linear")), "activation='linear'"),
    "gates": (
        lambda: sequential(L.GRU(4, name="a", recurrent_activation="hard_sigmoid")),
        "'a' has recurrent_activation='hard_sigmoid'",
    ),
    "inside": (
        lambda: sequential(L.Bidirectional(L.GRU(4, activation="elu"), name="b")),
        "'b/forward' has activation='elu'",
    ),
    "merge": (lambda: sequential(L.Bidirectional(L.LSTM(4), merge_mode="sum", name="b")), "'b' has merge_mode='sum'"),
    "dense": (lambda: sequential(L.LSTM(4), L.Dense(2, name="d")), "'d' is a Dense"),
    "sizes": (
        lambda: sequential(L.LSTM(4, return_sequences=True, name="a"), L.LSTM(5, name="b")),
        "'b' is not like 'a'",
    ),
    "kinds": (
        lambda: sequential(L.LSTM(4, return_sequences=True, name="a"), L.GRU(4, name="b")),
        "'b' is not like 'a'",
    ),
    "directions": (
        lambda: sequential(L.Bidirectional(L.LSTM(4, return_sequences=True), name="a"), L.LSTM(4, name="b")),
        "'b' is not like 'a/forward'",
    ),
    "backward layer": (
        lambda: sequential(
            L.Bidirectional(L.LSTM(4), backward_layer=L.LSTM(4, use_bias=False, go_backwards=True), name="b")
        ),
        "'b' reads backwards with other options",
    ),
    "unbuilt": (lambda: L.LSTM(4, name="a"), "'a' has no tensors yet"),
    "own class": (lambda: Own(4), "not a Own"),
    "own class inside": (lambda: sequential(Own(4, name="o")), "'Own' of layer 'o' is not Keras' own"),
    "no layer": (lambda: sequential(L.Dropout(0.5)), "there is no SimpleRNN, LSTM or GRU"),
    "something else": (lambda: torch.nn.LSTM(2, 2), "not a LSTM"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_named(case):
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as caught:
        from_keras(make())
    assert "\n" not in str(caught.value)


def edit_weights(path, edit):
    """Change the HDF5 part of a .keras file."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    buffer = io.BytesIO(parts["model.weights.h5"])
    with h5py.File(buffer, "r+") as file:
        edit(file["layers/lstm/cell/vars"])
    parts["model.weights.h5"] = buffer.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)


def replace(group, name, array):
    del group[name]
    group[name] = array


DAMAGED = {
    "missing": (lambda group: group.pop("2"), "'lstm_a/bias' is missing"),
    "unexpected": (lambda group: group.create_dataset("3", data=np.zeros(1)), "'lstm_a/3' is unexpected"),
    "shape": (
        lambda group: replace(group, "1", np.zeros((UNITS, 3))),
        r"'lstm_a/recurrent_kernel' has shape \(5, 3\), expected \(5, 20\)",
    ),
    "not finite": (lambda group: replace(group, "2", np.full(4 * UNITS, np.nan)), "differ by nan"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_the_first_tensor_of_a_file_that_does_not_fit_is_named(case, tmp_path):
    edit, message = DAMAGED[case]
    path = tmp_path / "model.keras"
    build("lstm", name="lstm_a").save(path)
    edit_weights(path, edit)
    with pytest.raises(ValueError, match=message):
        from_keras(path)


@pytest.mark.parametrize("kind", ["link", "virtual", "raw"])
def test_a_file_does_not_choose_other_files_to_read(kind, tmp_path):
    """HDF5 knows three ways to point into another file."""
    path, other, count = tmp_path / "model.weights.h5", tmp_path / "other.h5", 4 * UNITS
    with h5py.File(other, "w") as file:
        file["bias"] = np.zeros(count, np.float32)
    build("lstm").save_weights(path)
    with h5py.File(path, "r+") as file:
        group = file["layers/lstm/cell/vars"]
        del group["2"]
        if kind == "link":
            group["2"] = h5py.ExternalLink(str(other), "bias")
        elif kind == "virtual":
            layout = h5py.VirtualLayout((count,), np.float32)
            layout[:] = h5py.VirtualSource(str(other), "bias", (count,))
            group.create_virtual_dataset("2", layout)
        else:
            group.create_dataset("2", (count,), np.float32, external=[(str(other), 0, 4 * count)])
    with pytest.raises(ValueError, match="'/layers/lstm/cell/vars/2' points into another file"):
        from_keras(path)


def test_code_in_a_file_is_not_run(tmp_path):
    """A Lambda carries Python bytecode, and a registered name an import of the file's choice."""
    source = sequential(L.Lambda(lambda x: x, name="code"), L.LSTM(4))
    for suffix in (".keras", ".h5"):
        source.save(tmp_path / f"model{suffix}")
        with pytest.raises(ValueError, match="'code' is a Lambda"):
            from_keras(tmp_path / f"model{suffix}")
    build("lstm").save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        description = json.loads(archive.read("config.json"))
        weights = archive.read("model.weights.h5")
    layer = description["config"]["layers"][1]
    for key, value in (("registered_name", "theirs>LSTM"), ("module", "antigravity")):
        layer[key] = value
        with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
            archive.writestr("config.json", json.dumps(description))
            archive.writestr("model.weights.h5", weights)
        with pytest.raises(ValueError, match=rf"'LSTM' of layer 'lstm.*' is not Keras' own \({layer['module']}\)"):
            from_keras(tmp_path / "model.keras")


def test_files_of_other_kinds(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        from_keras(tmp_path / "none.keras")
    for name in ("a.txt", "a.keras", "a.h5", "a.weights.h5"):
        (tmp_path / name).write_text("no model")
        with pytest.raises(ValueError, match=r"no known kind|is damaged"):
            from_keras(tmp_path / name)
    mixed = sequential(L.LSTM(4, return_sequences=True), L.GRU(4))
    mixed.save_weights(tmp_path / "mixed.weights.h5")
    with pytest.raises(ValueError, match="weights of gru, lstm, without their order"):
        from_keras(tmp_path / "mixed.weights.h5")
    build("lstm").save(tmp_path / "lstm.keras")
    with pytest.raises(ValueError, match="tells its activations"):
        from_keras(tmp_path / "lstm.keras", nonlinearity="relu")
