"""Stock save_pretrained, push_to_hub and Trainer's final save write the modelling files beside the weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from exporting import PLAIN, SHIPPED, SOURCE, WRITING, assert_ships_source
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoConfig, AutoModel, Trainer, TrainingArguments
from transformers.dynamic_module_utils import get_imports, get_relative_import_files

from hf_seqmodels.models import ARCHITECTURES, shared_versions
from model_table import assert_close, build, build_config, each_case_and_head, make_inputs

each_plain = pytest.mark.parametrize("case", PLAIN, ids=str)
each_writing = pytest.mark.parametrize("case", WRITING, ids=str)


@each_case_and_head
def test_save_pretrained_writes_the_code_of_all_heads(case, head, tmp_path):
    model = build(case, head)
    model.save_pretrained(tmp_path)
    assert_ships_source(tmp_path, case)
    assert getattr(model.config, "auto_map", None) is None, "saving leaves the model as it was"


@each_plain
def test_save_code_can_be_turned_off(case, tmp_path):
    build(case).save_pretrained(tmp_path, save_code=False)
    assert not list(tmp_path.glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())
    assert type(AutoModel.from_pretrained(tmp_path)) is ARCHITECTURES[case.architecture].models["backbone"]


@each_plain
def test_a_loaded_model_can_be_saved_without_code(case, tmp_path):
    """What was loaded from a folder with code remembers the `auto_map`, and must drop it for one without."""
    build(case).save_pretrained(tmp_path / "with")
    model = AutoModel.from_pretrained(tmp_path / "with")
    model.save_pretrained(tmp_path / "without", save_code=False)
    assert not list((tmp_path / "without").glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "without" / "config.json").read_text())
    model.save_pretrained(tmp_path / "again")
    assert_ships_source(tmp_path / "again", case)


@each_plain
def test_configuration_alone(case, tmp_path):
    """A new configuration is one file; one that came with code keeps its promise about the files it names."""
    config = build_config(case)
    config.save_pretrained(tmp_path / "alone")
    assert [path.name for path in (tmp_path / "alone").iterdir()] == ["config.json"]
    assert AutoConfig.from_pretrained(tmp_path / "alone").to_dict() == config.to_dict() | {
        "_name_or_path": str(tmp_path / "alone")
    }
    build(case).save_pretrained(tmp_path / "model")
    AutoConfig.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "from_model")
    assert_ships_source(tmp_path / "from_model", case)


@each_plain
def test_saving_twice_and_over_itself(case, tmp_path):
    model = build(case, case.main_head)
    model.save_pretrained(tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    model.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


@each_writing
def test_trainers_final_save(case, tmp_path):
    rows = Dataset.from_dict({"input_ids": [[3, 4, 5, 6]] * 4, "labels": [[3, 4, 5, 6]] * 4})
    arguments = TrainingArguments(tmp_path / "run", max_steps=2, save_steps=1, report_to="none", use_cpu=True)
    arguments.disable_tqdm = True
    trainer = Trainer(build(case, case.main_head), arguments, train_dataset=rows)
    trainer.train()
    trainer.save_model(tmp_path / "final")
    for folder in (tmp_path / "final", tmp_path / "run" / "checkpoint-1", tmp_path / "run" / "checkpoint-2"):
        assert_ships_source(folder, case)


@each_writing
def test_sharded_model_trains_and_saves_as_a_whole_one(case, tmp_path):
    """FSDP2 (in one process) gives the model a class of its own; what is saved is the plain model."""
    inputs = make_inputs(case, case.main_head, 2, 6)
    plain, sharded = (build(case, case.main_head, dropout=0.0) for _ in range(2))
    init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        layers = [module for module in sharded.modules() if type(module).__name__ in sharded._no_split_modules]
        assert len(layers) >= 2
        for module in (*layers, sharded):
            fully_shard(module, mesh=mesh)
        losses = []
        for model in (plain, sharded):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
            for _ in range(2):
                loss = model(**inputs, labels=inputs["input_ids"]).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.detach())
        whole = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True))  # as accelerate does
        sharded.save_pretrained(tmp_path / "saved", state_dict=whole)
    finally:
        destroy_process_group()
    assert losses[2:] == losses[:2]
    assert_ships_source(tmp_path / "saved", case)
    again = type(plain).from_pretrained(tmp_path / "saved")
    assert_close(again(**inputs).logits, plain(**inputs).logits, 1e-6, "sharded")


# -- the files themselves ---------------------------------------------------------------------------------------------
def test_strangers_need_torch_and_transformers_only():
    """transformers demands every import of a shipped file from a stranger; huggingface_hub comes with transformers."""
    for names in SHIPPED.values():
        for name in names:
            third_party = set(get_imports(SOURCE / name)) - set(sys.stdlib_module_names)
            assert third_party <= {"torch", "transformers", "huggingface_hub"}, name


@each_plain
def test_shipped_files_are_all_that_is_imported(case):
    stem = ARCHITECTURES[case.architecture].config.__module__.split(".")[-1].removeprefix("configuration_")
    start = SOURCE / f"modeling_{stem}.py"
    found = {Path(path).name for path in get_relative_import_files(start)} | {start.name}
    assert found == SHIPPED[case.architecture]


def test_too_old_versions_are_named_with_the_way_out():
    shared_versions.check_versions()
    shared_versions.check_versions({"torch": (2, 1)})
    with pytest.raises(ImportError, match=r"need torch >= 99\.0, found 2\..*: pip install -U 'torch>=99\.0'"):
        shared_versions.check_versions({"torch": (99, 0)})
    with pytest.raises(ImportError, match=r"need transformers >= 5\.999"):
        shared_versions.check_versions({"torch": (2, 1), "transformers": (5, 999)})


@pytest.mark.parametrize("architecture", SHIPPED)
def test_old_transformers_is_named_before_anything_newer_is_imported(architecture, tmp_path):
    """Shipped files where transformers says it is 4.57.1 and `huggingface_hub.dataclasses` does not exist."""
    for name in SHIPPED[architecture]:
        shutil.copyfile(SOURCE / name, tmp_path / name)
    configuration = f"configuration_{architecture.removeprefix('seq_')}.py"
    # Old loaders copy only what the first file itself imports, so it must name the file with the check.
    assert "from .shared_versions import" in (tmp_path / configuration).read_text()
    code = (
        "import importlib.metadata, sys, transformers\n"
        "importlib.metadata.version = lambda package: {'torch': '2.13.0', 'transformers': '4.57.1'}[package]\n"
        "sys.modules['huggingface_hub.dataclasses'] = None\n"
        f"import {tmp_path.name}.{configuration.removesuffix('.py')}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path.parent, capture_output=True, text=True, timeout=120
    )
    assert "ImportError: this model's files need transformers >= 5.17, found 4.57.1" in done.stderr
