"""What may leave, what is whole, and what is secret: every rule can refuse."""

import json
import os
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import save_file

from hf_seqmodels.hub.files import (
    CHECKSUMS,
    UnsafeFolder,
    check_checksums,
    check_folder,
    find_secrets,
    list_files,
    may_leave,
    read_checksums,
    weights_hash,
    write_checksums,
)


@pytest.fixture
def folder(tmp_path):
    """A small whole checkpoint with checksums."""
    root = tmp_path / "model"
    root.mkdir()
    (root / "config.json").write_text('{"model_type": "seq_gru"}')
    (root / "README.md").write_text("# A card\n")
    save_file({"a": torch.arange(6.0), "b": torch.ones(2, 3)}, root / "model.safetensors")
    write_checksums(root)
    return root


LEAVE = ["model.safetensors", "a/b.json", "x.py", "x.txt", "README.md", "p.png", "c.yaml", "t.jinja", "s.model"]
STAY = ["pytorch_model.bin", "a.pt", "a.pkl", "log.jsonl", ".env", "id_rsa", "x.sh", "model.onnx", "a.safetensors.tmp"]


@pytest.mark.parametrize("name", [*LEAVE, "SHA256SUMS", "LICENSE", ".gitattributes"])
def test_the_allow_list_lets_out(name):
    assert may_leave(name)


@pytest.mark.parametrize("name", STAY)
def test_the_allow_list_keeps_in(name):
    assert not may_leave(name)


def test_onnx_leaves_on_request_only():
    assert may_leave("model.onnx", onnx=True) and not may_leave("model.pt", onnx=True)


def test_a_whole_folder_passes_and_sha256sum_agrees(folder):
    check_folder(folder)
    assert check_checksums(folder) == []
    assert set(read_checksums(folder)) == {"README.md", "config.json", "model.safetensors"}
    assert subprocess.run(["sha256sum", "-c", CHECKSUMS], cwd=folder, capture_output=True).returncode == 0


def test_caches_are_not_listed_and_links_out_are_refused(folder, tmp_path):
    (folder / ".cache").mkdir()
    (folder / ".cache" / "token").write_text("x")
    assert ".cache/token" not in list_files(folder)
    (tmp_path / "outside.json").write_text("{}")
    os.symlink(tmp_path / "outside.json", folder / "inside.json")
    with pytest.raises(UnsafeFolder, match=r"'inside.json' is a link out of the folder"):
        list_files(folder)


def flip(folder, name, position):
    content = bytearray((folder / name).read_bytes())
    content[position] ^= 1
    (folder / name).write_bytes(bytes(content))


def test_one_flipped_bit_of_the_weights_is_named(folder):
    flip(folder, "model.safetensors", -1)
    check_folder(folder)  # header and length still agree: only the checksum can tell
    assert check_checksums(folder) == ["model.safetensors differs"]


def test_missing_added_and_changed_files_are_named(folder):
    (folder / "config.json").unlink()
    (folder / "README.md").write_text("other")
    (folder / "new.py").write_text("")
    assert check_checksums(folder) == ["config.json is missing", "README.md differs", "new.py is not listed"]
    (folder / CHECKSUMS).unlink()
    assert check_checksums(folder) == [f"there is no {CHECKSUMS}"]


@pytest.mark.parametrize("line", ["abc  x", f"{'0' * 64}  ../outside", f"{'0' * 64}  /etc/passwd"])
def test_checksums_that_lead_outside_are_refused(folder, line):
    (folder / CHECKSUMS).write_text(f"{line}\n")
    with pytest.raises(UnsafeFolder, match="no checksum of a file inside"):
        check_checksums(folder)


def remove(name):
    return lambda folder: (folder / name).unlink()


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def truncate(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-3])


INDEX = "model.safetensors.index.json"
REFUSED = {
    "no config": (remove("config.json"), "it has no config.json"),
    "no weights": (remove("model.safetensors"), "has no weights"),
    "a pickle": (write("pytorch_model.bin", ""), r"'pytorch_model.bin' may be a pickle"),
    "a pickle in capitals": (write("X.PKL", ""), r"'X.PKL' may be a pickle"),
    "no JSON": (write("config.json", "{"), r"'config.json' is no JSON"),
    "JSON that is a list": (write("config.json", "[]"), "holds no JSON object"),
    "JSON nested deeply": (write("config.json", "[" * 100_000), "nested more than 64 levels"),
    "large JSON": (write("config.json", json.dumps({"x": "y" * 1_000_001})), "more than the 1,000,000 allowed"),
    "truncated weights": (truncate, r"'model.safetensors' is truncated or damaged"),
    "an index out of the folder": (write(INDEX, '{"weight_map": {"a": "../x.safetensors"}}'), r"'\.\./x.safetensors'"),
    "an absolute index": (write(INDEX, '{"weight_map": {"a": "/etc/x.safetensors"}}'), "beside the index"),
    "an index of pickles": (write(INDEX, '{"weight_map": {"a": "x.bin"}}'), "beside the index"),
    "an index without its shard": (write(INDEX, '{"weight_map": {"a": "x.safetensors"}}'), "is not there"),
    "an index without a map": (write(INDEX, "{}"), "has no weight_map"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_folder_that_is_not_whole_is_refused_in_one_line(folder, what):
    spoil, message = REFUSED[what]
    spoil(folder)
    with pytest.raises(UnsafeFolder, match=message) as caught:
        check_folder(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(UnsafeFolder, match="is no folder"):
        check_folder(tmp_path / "nowhere")


SECRETS = {
    "Hugging Face token": "hf_" + "aB3" * 11,
    "GitHub token": "ghp_" + "a1B2" * 9,
    "AWS key": "AKIA" + "ABCD" * 4,
    "OpenAI-like key": "sk-" + "a1B2" * 10,
    "private key": "-----BEGIN RSA PRIVATE " + "KEY-----",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_secrets_are_found_and_not_repeated(folder, kind):
    assert find_secrets(folder) == []
    (folder / "notes.txt").write_text(f"token: {SECRETS[kind]}\n")
    assert find_secrets(folder) == [("notes.txt", kind)]


def test_a_secret_in_the_header_of_the_weights_is_found(folder):
    save_file({"a": torch.ones(1)}, folder / "model.safetensors", metadata={"by": SECRETS["Hugging Face token"]})
    assert find_secrets(folder) == [("model.safetensors", "Hugging Face token")]


def test_the_users_own_token_is_found_whatever_it_looks_like(folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "canary-of-no-known-kind")
    (folder / "config.json").write_text('{"a": "canary-of-no-known-kind"}')
    assert find_secrets(folder) == [("config.json", "your own Hugging Face token")]


def test_the_hash_of_the_weights_is_of_the_weights_alone(folder, tmp_path):
    before = weights_hash(folder)
    (folder / "README.md").write_text("other")
    assert weights_hash(folder) == before
    flip(folder, "model.safetensors", -1)
    assert weights_hash(folder) != before
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in (1, 2):
        shutil.copy(folder / "model.safetensors", shards / f"model-0000{number}-of-00002.safetensors")
    assert len({weights_hash(shards), weights_hash(folder)}) == 2
    with pytest.raises(UnsafeFolder, match=r"no model.safetensors"):
        weights_hash(tmp_path)
