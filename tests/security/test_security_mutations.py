"""C5, C14, C15: broken files end in declared errors, never in a crash, a wait or much memory; checksums see all."""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from canaries import SIZES, build, in_one_line
from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification

from hf_seqmodels.hub.files import UnsafeFolder, check_checksums, check_folder, write_checksums
from hf_seqmodels.models import ARCHITECTURES

each_architecture = pytest.mark.parametrize("model_type", ARCHITECTURES)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A saved backbone of every architecture."""
    folder = tmp_path_factory.mktemp("mutations") / "made"
    for model_type in ARCHITECTURES:
        build(model_type, "backbone").save_pretrained(folder / model_type, save_code=False)
    return folder


def run_mutations(made: Path, count: int, seed: int, seconds: int) -> None:
    """In a process of its own, whose memory is limited, so that a crash is a finding too."""
    command = [sys.executable, str(Path(__file__).with_name("mutating.py")), str(made), str(count), str(seed)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)
    assert done.returncode == 0, f"{done.returncode}: {done.stdout[-1000:]} {done.stderr[-3000:]}"
    outcome = json.loads(done.stdout.splitlines()[-1])
    print(outcome["found"])
    assert outcome["leaks"] == []
    assert sum(outcome["found"].values()) >= 2 * (count + len(ARCHITECTURES)), "mutations were left out"
    assert {"loaded", "ValueError", "RuntimeError"} <= outcome["found"].keys()


def test_broken_files_and_sizes_end_in_declared_errors(made):
    """Every number of a configuration far too large, and 150 mutations of config.json and the weights."""
    run_mutations(made, 150, seed=0, seconds=280)


@pytest.mark.slow
def test_three_thousand_mutations(made):
    run_mutations(made, 3000, seed=1, seconds=1500)


# ---- C14 --------------------------------------------------------------------------------------------------------


@each_architecture
@pytest.mark.parametrize(
    ("name", "value"),
    [("num_hidden_layers", 10**9), ("hidden_size", 10**9), ("vocab_size", 10**12), ("num_labels", 10**12)],
)
def test_sizes_have_limits(model_type, name, value, made, tmp_path):
    """From a file, from keywords, and through AutoConfig, before anything of that size exists."""
    settings = json.loads((made / model_type / "config.json").read_text()) | {name: value}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    config = ARCHITECTURES[model_type].config
    for load in (
        lambda: config.from_pretrained(tmp_path),
        lambda: AutoConfig.from_pretrained(tmp_path),
        lambda: AutoModel.from_pretrained(tmp_path),
        lambda: config(**(SIZES | {name: value})),
    ):
        with pytest.raises(ValueError, match=f"{name}={value} is not allowed: it must be") as error:
            load()
        in_one_line(error.value)


@pytest.mark.parametrize("depth", [65, 500, 100_000])
@each_architecture
def test_json_does_not_nest_without_end(model_type, depth, made, tmp_path):
    text = (made / model_type / "config.json").read_text().rstrip()[:-1]
    (tmp_path / "config.json").write_text(text + ', "x": ' + "[" * depth + "]" * depth + "}")
    (tmp_path / "model.safetensors").write_bytes((made / model_type / "model.safetensors").read_bytes())
    architecture = ARCHITECTURES[model_type]
    for load in (architecture.config, architecture.models["backbone"]):
        with pytest.raises(ValueError, match=r"levels deep|holds no configuration") as error:
            load.from_pretrained(tmp_path)
        in_one_line(error.value)
    with pytest.raises(UnsafeFolder, match="nested more than 64 levels deep"):  # what export, push and doctor ask
        check_folder(tmp_path)


def test_what_a_configuration_may_nest(made, tmp_path):
    """The limit is far above what configurations hold."""
    nested: dict = {}
    for _ in range(60):
        nested = {"inner": nested}
    settings = json.loads((made / "seq_gru" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"notes": nested}))
    assert AutoConfig.from_pretrained(tmp_path).notes == nested


def test_a_configuration_larger_than_its_weights_allocates_nothing(made, tmp_path):
    """A width that is allowed, and weights of another: 300 MB would be filled before the shapes are compared."""
    settings = json.loads((made / "seq_gru" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"hidden_size": 5000, "embedding_size": 8}))
    (tmp_path / "model.safetensors").write_bytes((made / "seq_gru" / "model.safetensors").read_bytes())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((ValueError, RuntimeError), match=r"ignore_mismatched_sizes|asks for"):
        AutoModel.from_pretrained(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    settings |= {"num_labels": 5}  # a small new head is what from_pretrained is for
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert AutoModelForTokenClassification.from_pretrained(tmp_path).num_labels == 5


# ---- C15: the same bytes ----------------------------------------------------------------------------------------


def test_every_flipped_bit_shows_in_the_checksums(made, tmp_path):
    """safetensors has no checksum of its own: a flipped weight loads. `SHA256SUMS` names the file."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((made / "seq_lstm" / name).read_bytes())
    write_checksums(tmp_path)
    assert check_checksums(tmp_path) == []
    chance = random.Random(0)
    for name in ("config.json", "model.safetensors"):
        whole = (tmp_path / name).read_bytes()
        for _ in range(50):
            place, bit = chance.randrange(len(whole)), 1 << chance.randrange(8)
            (tmp_path / name).write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            assert check_checksums(tmp_path) == [f"{name} differs"]
        (tmp_path / name).write_bytes(whole[:-1])
        assert check_checksums(tmp_path) == [f"{name} differs"]
        (tmp_path / name).write_bytes(whole)
    assert check_checksums(tmp_path) == []


def test_truncated_weights_are_named(made, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((made / "seq_rnn" / name).read_bytes())
    whole = (tmp_path / "model.safetensors").read_bytes()
    for length in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cannot be loaded: SafetensorError") as error:
            AutoModel.from_pretrained(tmp_path)
        assert str(tmp_path) in in_one_line(error.value)
        with pytest.raises(UnsafeFolder, match=r"model\.safetensors"):
            check_folder(tmp_path)


# ---- C5 ---------------------------------------------------------------------------------------------------------


@each_architecture
@pytest.mark.parametrize("kind", ["attn", "experts"])
def test_a_file_does_not_choose_kernels_to_download(model_type, kind, made, tmp_path):
    settings = json.loads((made / model_type / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((made / model_type / "model.safetensors").read_bytes())
    for spelling in (f"{kind}_implementation", f"_{kind}_implementation", f"_{kind}_implementation_internal"):
        for name in ("someone/kernels", "banana", {"": "someone/kernels"}, 3):
            (tmp_path / "config.json").write_text(json.dumps(settings | {spelling: name}))
            with pytest.raises(ValueError, match="is not allowed in a configuration: it must be one of") as error:
                AutoModel.from_pretrained(tmp_path)
            in_one_line(error.value)
    (tmp_path / "config.json").write_text(json.dumps(settings | {f"{kind}_implementation": "eager"}))
    assert AutoModel.from_pretrained(tmp_path) is not None
