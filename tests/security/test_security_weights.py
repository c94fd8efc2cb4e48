"""C1, C6: weights are safetensors inside the folder; no pickle is opened, and no file outside is read."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from canaries import build, in_one_line, pickled, save_canary
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from hf_seqmodels.models import ARCHITECTURES
from hf_seqmodels.models.modeling_gru import GRUForCausalLM, GRUModel

LOADERS = {
    "own class": GRUForCausalLM.from_pretrained,
    "AutoModelForCausalLM": AutoModelForCausalLM.from_pretrained,
    "AutoModel": AutoModel.from_pretrained,
}
each_loader = pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A saved model, without code."""
    build().save_pretrained(tmp_path / "model", save_code=False)
    return tmp_path / "model"


@pytest.fixture
def canary(tmp_path) -> Path:
    """What a pickle would create; and proof that opening one does."""
    proof, file = tmp_path / "proof", tmp_path / "canary"
    pickle.loads(pickled(proof))
    assert proof.exists() and not file.exists()
    return file


def unpack(folder: Path) -> dict[str, torch.Tensor]:
    """Take the weights out of the folder."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    return tensors


# ---- C1 ---------------------------------------------------------------------------------------------------------


@each_loader
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "model.pkl", "model.ckpt"])
def test_a_folder_with_pickles_only_is_refused(load, name, folder, canary):
    """Honest ones too: transformers would load the first of them without a word."""
    tensors = unpack(folder)
    torch.save(tensors, folder / name)
    for again in (False, True):
        with pytest.raises(
            ValueError, match="only safetensors are read, since opening a pickle can run its code"
        ) as e:
            load(folder)
        assert name in in_one_line(e.value)
        if not again:
            save_canary(folder / name, canary)
    assert not canary.exists()


@each_loader
def test_sharded_pickles_are_refused(load, folder):
    torch.save(unpack(folder), folder / "pytorch_model-00001-of-00001.bin")
    names = dict.fromkeys(build().state_dict(), "pytorch_model-00001-of-00001.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    with pytest.raises(ValueError, match="only safetensors are read"):
        load(folder)


@each_loader
def test_the_safetensors_are_loaded_where_both_lie(load, folder, canary):
    save_canary(folder / "pytorch_model.bin", canary)
    loaded, expected = load(folder), build()
    for name, tensor in expected.model.state_dict().items():
        assert torch.equal(loaded.base_model.state_dict()[name], tensor)
    assert not canary.exists()


def test_a_pickle_cannot_be_asked_for(folder, canary):
    save_canary(folder / "pytorch_model.bin", canary)
    with pytest.raises(ValueError, match="use_safetensors=False is not allowed: only safetensors are read"):
        AutoModelForCausalLM.from_pretrained(folder, use_safetensors=False)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is no \.safetensors file"):
        GRUForCausalLM.from_pretrained(folder / "pytorch_model.bin", config=build().config)
    (folder / "x.dat").write_bytes(pickled(canary))
    with pytest.raises(ValueError, match=r"x\.dat is no \.safetensors file"):
        GRUForCausalLM.from_pretrained(folder / "x.dat", config=build().config)
    assert not canary.exists()


@each_loader
@pytest.mark.parametrize("name", ["adapter_model.bin", "other.safetensors.index.json"])
def test_a_configuration_does_not_choose_the_weights(load, name, folder, canary):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"transformers_weights": name}))
    with pytest.raises(ValueError, match=f"transformers_weights='{re.escape(name)}' is not allowed"):
        load(folder)
    save_canary(folder / "adapter_model.bin", canary)
    with pytest.raises(ValueError, match=r"is not allowed|is a pickle"):
        load(folder)
    assert not canary.exists()


@each_loader
def test_a_pickled_adapter_is_refused(load, folder, canary):
    """peft's own loader would open it."""
    settings = {"peft_type": "LORA", "r": 2, "target_modules": ["lm_head"], "base_model_name_or_path": str(folder)}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_canary(folder / "adapter_model.bin", canary)
    with pytest.raises(ValueError, match=r"adapter_model\.bin is a pickle: only safetensors are read"):
        load(folder)
    assert not canary.exists()


@pytest.mark.parametrize("tied", [False, True])
def test_the_way_out_works(tied, tmp_path):
    """What the message tells to call turns a pickle that one trusts into safetensors."""
    model = build("seq_transformer_decoder", tie_word_embeddings=tied)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError) as error:
        AutoModelForCausalLM.from_pretrained(tmp_path)
    way = "from_pretrained(None, config=…, state_dict=torch.load(…, weights_only=True)) and save_pretrained"
    assert way in str(error.value)
    state = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    type(model).from_pretrained(None, config=model.config, state_dict=state).save_pretrained(tmp_path)
    loaded, ids = AutoModelForCausalLM.from_pretrained(tmp_path), torch.tensor([[1, 2, 3]])
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_every_architecture_refuses(tmp_path):
    for model_type, architecture in ARCHITECTURES.items():
        model = build(model_type)
        model.config.save_pretrained(tmp_path / model_type)
        torch.save(model.state_dict(), tmp_path / model_type / "pytorch_model.bin")
        for loader in (architecture.models["backbone"], AutoModel):
            with pytest.raises(ValueError, match="only safetensors are read"):
                loader.from_pretrained(tmp_path / model_type)


# ---- C6 ---------------------------------------------------------------------------------------------------------


def shard(folder: Path, name: str) -> None:
    names = dict.fromkeys(build().state_dict(), name)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))


@each_loader
@pytest.mark.parametrize("where", ["../outside.safetensors", "absolute", "inside/x.safetensors", "x.bin", 3])
def test_an_index_does_not_choose_other_files(load, where, folder):
    outside = folder.parent / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    shard(folder, str(outside) if where == "absolute" else where)
    if where == "inside/x.safetensors":
        (folder / "inside").mkdir()
        shutil.copy(outside, folder / where)
    with pytest.raises(ValueError, match=r"names .*: shards are \.safetensors files beside the index") as error:
        load(folder)
    in_one_line(error.value)
    shutil.copy(outside, folder / "one.safetensors")  # and a whole one is read
    shard(folder, "one.safetensors")
    assert load(folder) is not None


@each_loader
@pytest.mark.parametrize("text", ["{}", "[1]", "null", '{"weight_map": 3}', "{", "\xff", "[" * 100_000])
def test_an_index_that_is_none(load, text, folder):
    unpack(folder)
    (folder / INDEX).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="is no index of weights"):
        load(folder)


@each_loader
@pytest.mark.parametrize("name", ["model.safetensors", "one.safetensors"])
def test_links_out_of_the_folder_are_refused(load, name, folder):
    outside = folder.parent / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    (folder / name).symlink_to(outside)
    if name != "model.safetensors":
        shard(folder, name)
    with pytest.raises(ValueError, match="is a link out of its folder"):
        load(folder)
    (folder / name).unlink()
    shutil.copy(outside, folder / "real.bytes")
    (folder / name).symlink_to("real.bytes")  # a link inside is nobody's business
    assert load(folder) is not None


def test_the_hubs_cache_is_links_and_is_read(folder, tmp_path, monkeypatch):
    """By the snapshot's path, its subfolder's, and by the repository's name; a shard may not leave it either."""
    cache = tmp_path / "hub" / "models--who--what"
    snapshot, sha = cache / "snapshots" / ("0" * 40), "0" * 40
    (snapshot / "sub").mkdir(parents=True)
    (cache / "blobs").mkdir()
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(sha)
    for name in ("config.json", "model.safetensors"):
        (folder / name).rename(cache / "blobs" / name)
        (snapshot / name).symlink_to(Path("../../blobs", name))
        (snapshot / "sub" / name).symlink_to(Path("../../../blobs", name))
    options = {"cache_dir": tmp_path / "hub", "local_files_only": True}
    assert AutoModel.from_pretrained(snapshot) and AutoModel.from_pretrained(snapshot / "sub")
    assert AutoModel.from_pretrained(snapshot, subfolder="sub")
    assert GRUModel.from_pretrained("who/what", **options)
    save_file({"x": torch.zeros(1)}, tmp_path / "outside.safetensors")
    (snapshot / "model.safetensors").unlink()
    for name in ("../../../../outside.safetensors", str(tmp_path / "outside.safetensors")):
        shard(snapshot, name)
        with pytest.raises((ValueError, OSError)) as error:
            GRUModel.from_pretrained("who/what", **options)
        assert "lacks" not in str(error.value), "the file outside was read"


def test_a_repository_of_pickles_is_refused(folder, tmp_path, canary):
    snapshot = tmp_path / "hub" / "models--who--what" / "snapshots" / ("0" * 40)
    (snapshot.parent.parent / "refs").mkdir(parents=True)
    (snapshot.parent.parent / "refs" / "main").write_text("0" * 40)
    snapshot.mkdir(parents=True)
    shutil.copy(folder / "config.json", snapshot)
    save_canary(snapshot / "pytorch_model.bin", canary)
    for loader in (GRUForCausalLM, AutoModel):
        with pytest.raises(OSError, match=r"who/what has no model\.safetensors: only safetensors are read") as error:
            loader.from_pretrained("who/what", cache_dir=tmp_path / "hub", local_files_only=True)
        in_one_line(error.value)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["../x", "who/../what", "..", "a/b/c", "who/wh..at", "who//what", "-/x", "a" * 200])
def test_repository_names_that_are_none(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for loader in (GRUForCausalLM, AutoModel):
        with pytest.raises((ValueError, OSError)) as error:
            loader.from_pretrained(name)
        assert name in str(error.value) or "no file named" in str(error.value) or "config.json" in str(error.value)
