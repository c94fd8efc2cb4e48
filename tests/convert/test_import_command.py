"""`hf-seqmodels import` from the file to AutoModel, and what the shared machinery refuses."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM

from hf_seqmodels import GRUConfig, GRUForCausalLM, GRUModel
from hf_seqmodels.cli import main
from hf_seqmodels.convert.cli import SOURCES
from hf_seqmodels.convert.report import LIMIT, make_report
from hf_seqmodels.convert.tensors import build
from model_table import assert_close

INPUTS, HIDDEN = 5, 7


@pytest.fixture
def gru(tmp_path):
    """A torch.nn.GRU, and the file with its weights."""
    module = torch.nn.GRU(INPUTS, HIDDEN, 2, bidirectional=True, batch_first=True)
    save_file(module.state_dict(), tmp_path / "gru.safetensors")
    return module, tmp_path / "gru.safetensors"


def run(*arguments):
    return main(["import", *map(str, arguments)])


def test_from_the_file_to_auto_model(gru, tmp_path, capsys):
    module, path = gru
    folder = tmp_path / "new" / "folder"
    assert run("--from", "torch.nn", path, folder) == 0
    printed = capsys.readouterr().out
    assert "torch.nn.GRU → GRUModel: 16 tensors" in printed and str(folder) in printed
    assert ", relative to the largest output where that is above 1 (limit 1e-05)" in printed
    report = json.loads((folder / "import_report.json").read_text())
    assert report["source"] == "torch.nn.GRU" and report["max_difference"] <= report["limit"] == 1e-5
    assert {"config.json", "model.safetensors", "modeling_gru.py"} <= set(os.listdir(folder))
    assert not list(folder.glob("*.bin"))
    model = AutoModel.from_pretrained(folder)
    x = torch.randn(3, 6, INPUTS)
    assert_close(model(input_features=x).last_hidden_state, module(x)[0], 1e-5, "A6 import torch.nn")


def test_a_language_model_generates(tmp_path):
    torch.manual_seed(0)
    parts = torch.nn.ModuleDict(
        {"encoder": torch.nn.Embedding(9, 4), "rnn": torch.nn.LSTM(4, 6), "decoder": torch.nn.Linear(6, 9)}
    )
    torch.save(parts.state_dict(), tmp_path / "model.pt")
    assert run("--from", "torch.nn", "--torch_load", tmp_path / "model.pt", tmp_path / "lm") == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    ids = torch.tensor([[1, 2]])
    generated = model.generate(ids, max_new_tokens=4, do_sample=False)
    for _ in range(4):
        logits = parts["decoder"](parts["rnn"](parts["encoder"](ids[0]))[0])[-1]
        ids = torch.cat([ids, logits.argmax().view(1, 1)], dim=1)
    assert torch.equal(generated, ids)


def test_keras_file(tmp_path, capsys):
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    pytest.importorskip("h5py")
    source = keras.Sequential([keras.Input((None, INPUTS)), keras.layers.GRU(HIDDEN, return_sequences=True)])
    source.save(tmp_path / "gru.keras")
    assert run("--from", "keras", tmp_path / "gru.keras", tmp_path / "gru") == 0
    assert "keras.layers.GRU → GRUModel: 3 tensors" in capsys.readouterr().out
    x = torch.randn(3, 6, INPUTS)
    output = AutoModel.from_pretrained(tmp_path / "gru")(input_features=x).last_hidden_state
    assert_close(output, source(x, training=False), 1e-5, "A7 import Keras")


def test_nothing_is_written_when_something_does_not_fit(gru, tmp_path, capsys):
    module, path = gru
    tensors = module.state_dict()
    save_file({**tensors, "bias_hh_l1": torch.zeros(3)}, tmp_path / "bad.safetensors")
    torch.save(tensors, tmp_path / "gru.pt")
    for wrong, message in (
        ((tmp_path / "bad.safetensors",), "tensor 'bias_hh_l1' has shape (3,), expected (21,)"),
        ((tmp_path / "gru.pt",), "pass --torch_load"),
        ((tmp_path / "none.safetensors",), "does not exist"),
        ((path, "--nonlinearity", "relu"), "nonlinearity=relu belongs to the RNN"),
        ((path, "--prefix", "rnn"), "tensor 'rnn.weight_hh_l0' is missing"),
    ):
        source, *options = wrong
        assert run("--from", "torch.nn", *options, source, tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_an_option_of_another_source_is_refused(tmp_path, capsys):
    assert run("--from", "keras", "--prefix", "rnn", tmp_path / "x.keras", tmp_path / "out") == 2
    assert "--prefix means nothing to --from keras: it takes --nonlinearity" in capsys.readouterr().err


def test_a_folder_with_files_is_left_alone(gru, tmp_path, capsys):
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    assert run("--from", "torch.nn", gru[1], folder) == 2
    assert "is not empty" in capsys.readouterr().err
    assert os.listdir(folder) == ["mine.txt"]
    assert run("--from", "torch.nn", gru[1], folder / "mine.txt") == 2
    (folder / "mine.txt").unlink()
    assert run("--from", "torch.nn", gru[1], folder) == 0  # empty


def test_help_names_every_source(capsys):
    with pytest.raises(SystemExit) as done:
        run("--help")
    text = capsys.readouterr().out
    assert done.value.code == 0
    assert "relative to the largest output where that is above 1" in text
    for source in SOURCES:
        assert f"\n  {source} " in text.split("sources:")[1], source


def test_a_difference_above_the_limit_is_an_error():
    model, zeros = GRUModel(GRUConfig(num_features=2, hidden_size=2)), torch.zeros(1, 2)
    assert make_report("x", 1, model, zeros, zeros + LIMIT / 2).max_difference == pytest.approx(LIMIT / 2)
    assert make_report("x", 1, model, zeros + 100, zeros + 100 + 50 * LIMIT).max_difference <= LIMIT  # relative
    for other in (zeros + 2 * LIMIT, zeros + torch.nan, zeros - torch.inf):
        with pytest.raises(ValueError, match="computes something else"):
            make_report("x", 1, model, zeros, other)
    with pytest.raises(ValueError, match="outputs of shape"):
        make_report("x", 1, model, zeros, zeros[0])


def test_building_is_strict_about_our_own_names():
    config = GRUConfig(vocab_size=5, hidden_size=2, tie_word_embeddings=True)
    weights = {f"{name}": torch.randn_like(tensor) for name, tensor in GRUForCausalLM(config).state_dict().items()}
    del weights["lm_head.weight"]  # tied
    model = build(GRUForCausalLM, config, weights)
    assert torch.equal(model.lm_head.weight, weights["model.embed_tokens.weight"]) and not model.training
    name = "model.layers.0.weight_hh"
    for wrong in (
        {key: tensor for key, tensor in weights.items() if key != name},
        weights | {name: torch.zeros(1)},
    ):
        with pytest.raises(ValueError, match=f"tensor '{name}'"):
            build(GRUForCausalLM, config, wrong)
    with pytest.raises(ValueError, match="has no tensor 'more'"):
        build(GRUForCausalLM, config, weights | {"more": torch.zeros(1)})
