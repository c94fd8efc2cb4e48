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
    read_json,
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


def write_bytes(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def save(name):
    return lambda folder: torch.save({"a": torch.ones(2)}, folder / name)


def truncate(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-3])


INDEX = "model.safetensors.index.json"
REFUSED = {
    "no config": (remove("config.json"), "it has no config.json"),
    "no weights": (remove("model.safetensors"), "has no weights"),
    "a pickle": (write("pytorch_model.bin", ""), r"'pytorch_model.bin' may be a pickle"),
    "a pickle by another name": (write_bytes("notes.txt", b"\x80\x04\x95"), r"'notes.txt' begins like a pickle"),
    "an old pickle": (write_bytes("merges.json", b"\x80\x02}"), r"'merges.json' begins like a pickle"),
    "torch.save by another name": (save("spiece.model"), r"'spiece.model' begins like a pickle or a zip archive"),
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


def test_formats_of_their_own_may_begin_as_they_like(folder):
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).ljust(0x0280)
    content = len(header).to_bytes(8, "little") + header.encode() + bytes(4)
    assert content.startswith(b"\x80\x02")
    (folder / "model.safetensors").write_bytes(content)
    (folder / "model.onnx").write_bytes(b"PK\x03\x04")
    check_folder(folder)


def test_shards_lie_beside_their_index_also_in_a_folder_below(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / INDEX).write_text('{"weight_map": {"a": "model.safetensors"}}')
    with pytest.raises(UnsafeFolder, match=rf"'sub/{INDEX}' names the shard 'model.safetensors', which is not there"):
        check_folder(folder)  # the one above is another's
    shutil.copy(folder / "model.safetensors", folder / "sub" / "model.safetensors")
    check_folder(folder)
    (folder / "sub" / "model.safetensors").rename(folder / "sub" / "x.safetensors")
    (folder / "sub" / INDEX).write_text('{"weight_map": {"a": "x.safetensors"}}')
    check_folder(folder)


def test_the_record_of_a_long_run_is_read(folder):
    points = [{"step": step, "loss": 1 / (step + 1), "learning_rate": 1e-3 / (step + 1)} for step in range(18_000)]
    for name in ("result.json", "other.json"):
        (folder / name).write_text(json.dumps({"log": points}))
    assert read_json(folder / "result.json") == {"log": points}
    with pytest.raises(UnsafeFolder, match=r"'other.json' has .* more than the 1,000,000 allowed"):
        read_json(folder / "other.json")


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


MORE_SECRETS = {"fine-grained": "github_pat_" + "a1B2_" * 12, "project key": "sk-proj-" + "a1-B2_" * 10}


@pytest.mark.parametrize("before", ["\n", "\t", "\r", "_", "x", "é\n", ""], ids=repr)
@pytest.mark.parametrize("secret", [*SECRETS.values(), *MORE_SECRETS.values()], ids=[*SECRETS, *MORE_SECRETS])
def test_secrets_are_found_in_json_where_a_line_break_is_a_letter(folder, before, secret):
    if before == "x" and secret.startswith("sk-"):
        pytest.skip("ends a word")
    for after in ("", "\n", "_"):
        if after == "_" and ("_" in secret[5:] or secret.startswith("sk-")):
            continue  # is part of such a token, and makes it a longer one
        (folder / "config.json").write_text(json.dumps({"notes": f"login:{before}{secret}{after}"}))
        assert [name for name, _ in find_secrets(folder)] == ["config.json"], (before, after)


@pytest.mark.parametrize(
    "text",
    [
        "task-" + "name-of-a-long-thing-" * 3,
        "risk-and-disk-and-whatever-else-is-written-with-hyphens",
        "hf_seqmodels and hf_hub_download",
        "AKIA and " + "A" * 40,
        "hf_" + "a" * 70,
    ],
)
def test_words_are_no_secrets(folder, text):
    (folder / "config.json").write_text(json.dumps({"notes": f"see:\n{text}\n"}))
    assert find_secrets(folder) == []


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
