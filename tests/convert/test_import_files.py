"""Which files are opened, and how: safetensors; pickles only when asked for, and never their code."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from hf_seqmodels.convert.files import read_tensors

WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}


class Trap:
    """Unpickling this makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def assert_weights(tensors):
    assert tensors.keys() == WEIGHTS.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in WEIGHTS.items())


def test_safetensors(tmp_path):
    save_file(WEIGHTS, tmp_path / "x.safetensors")
    assert_weights(read_tensors(tmp_path / "x.safetensors"))
    assert_weights(read_tensors(tmp_path))
    torch.save({}, tmp_path / "x.bin")
    assert_weights(read_tensors(tmp_path, torch_load=True))  # the folder's safetensors come first
    save_file(WEIGHTS, tmp_path / "y.safetensors")
    with pytest.raises(ValueError, match="holds 2 files of weights"):
        read_tensors(tmp_path)


def write_index(folder, names):
    text = json.dumps({"weight_map": {str(number): name for number, name in enumerate(names)}})
    (folder / "model.safetensors.index.json").write_text(text)


def test_shards(tmp_path):
    save_file({"a": WEIGHTS["a"]}, tmp_path / "1.safetensors")
    save_file({"b": WEIGHTS["b"]}, tmp_path / "2.safetensors")
    write_index(tmp_path, ["1.safetensors", "2.safetensors"])
    assert_weights(read_tensors(tmp_path))
    write_index(tmp_path, ["1.safetensors", "3.safetensors"])
    with pytest.raises(ValueError, match=r"names '3\.safetensors', which does not exist"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("where", ["../x.safetensors", "absolute", "x.bin"])
def test_an_index_does_not_choose_other_files_to_read(where, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(WEIGHTS, tmp_path / "x.safetensors")
    torch.save(WEIGHTS, folder / "x.bin")
    write_index(folder, [str(tmp_path / "x.safetensors") if where == "absolute" else where])
    with pytest.raises(ValueError, match=r"only \.safetensors files beside the index"):
        read_tensors(folder, torch_load=True)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_pickles_are_opened_only_when_asked_for(suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    torch.save(WEIGHTS, path)
    for source in (path, tmp_path):
        with pytest.raises(ValueError, match=r"is a pickle, which can run code .* --torch_load"):
            read_tensors(source)
        assert_weights(read_tensors(source, torch_load=True))


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_the_checkpoint_of_a_training_loop(key, tmp_path):
    torch.save({"epoch": 3, key: WEIGHTS, "optimizer": {"lr": 0.1}}, tmp_path / "x.pt")
    assert_weights(read_tensors(tmp_path / "x.pt", torch_load=True))


@pytest.mark.parametrize("form", ["torch", "torch, old format", "pickle"])
@pytest.mark.parametrize("allowed", [False, True])
def test_code_in_a_pickle_is_not_run(allowed, form, tmp_path):
    trap, path = tmp_path / "sprung", tmp_path / "x.pt"
    content = {**WEIGHTS, "c": Trap(trap)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(ValueError, match="Python objects beside tensors" if allowed else "is a pickle"):
        read_tensors(path, torch_load=allowed)
    assert not trap.exists()
    pickle.loads(pickle.dumps(content))
    assert trap.exists()  # the trap works


def test_a_whole_module_is_refused(tmp_path):
    torch.save(torch.nn.LSTM(2, 2), tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"save model\.state_dict\(\)"):
        read_tensors(tmp_path / "x.pt", torch_load=True)


@pytest.mark.parametrize("content", [[1], {}, {"a": WEIGHTS["a"], "b": 1}, {1: WEIGHTS["a"]}], ids=repr)
def test_what_is_no_state_dict_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"save model\.state_dict\(\)"):
        read_tensors(tmp_path / "x.pt", torch_load=True)


def test_files_of_other_kinds(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        read_tensors(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="holds no weights"):
        read_tensors(tmp_path)
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(ValueError, match="of no known kind"):
        read_tensors(tmp_path / "x.txt")
    for name in ("x.safetensors", "x.pt"):
        (tmp_path / name).write_bytes(b"\x80\x02 no weights")
        with pytest.raises(ValueError, match="damaged"):
            read_tensors(tmp_path / name, torch_load=True)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="is not an index"):
        read_tensors(tmp_path)
