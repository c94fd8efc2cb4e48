"""FSDP2: sharded over two processes the models learn what they learn whole; where there is none, the run stops."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from ragged_training import train
from safetensors.torch import load_file
from test_distributed import free_port, launch

from hf_seqmodels.arguments import ConfigError
from hf_seqmodels.models import ARCHITECTURES
from hf_seqmodels.recipes import find_config, list_configs
from model_table import build_config, each_case

HERE = Path(__file__).parent
TRAIN_PY = HERE.parents[1] / "train.py"
CONFIGS = HERE.parents[1] / "configs" / "accelerate"
SHARDED = ["seq_rnn", "seq_lstm", "seq_gru", "seq_attention_rnn", "seq_transformer_decoder"]
SHARDED += ["seq_transformer", "seq_attention_rnn_seq2seq"]


@pytest.mark.parametrize(
    ("name", "kind", "processes", "machines"),
    [
        ("one_gpu", DistributedType.NO, 1, 1),
        ("one_node", DistributedType.MULTI_GPU, 8, 1),
        ("two_nodes", DistributedType.MULTI_GPU, 16, 2),
        ("fsdp2", DistributedType.FSDP, 8, 1),
    ],
)
def test_accelerate_reads_its_configurations(name, kind, processes, machines):
    file = CONFIGS / f"{name}.yaml"
    config = load_config_from_file(str(file))
    assert (config.distributed_type, config.num_processes, config.num_machines) == (kind, processes, machines)
    assert f"accelerate launch --config_file configs/accelerate/{name}.yaml" in file.read_text(encoding="utf-8")
    if kind == DistributedType.FSDP:
        found = config.fsdp_config
        assert (found["fsdp_version"], found["fsdp_auto_wrap_policy"]) == (2, "TRANSFORMER_BASED_WRAP")
        assert "fsdp_transformer_layer_cls_to_wrap" not in found  # the model says it, whichever it is


def test_accelerate_configurations_are_no_recipes():
    assert len(list(CONFIGS.glob("*.yaml"))) == 4
    assert not [name for name in list_configs() if name.startswith("accelerate")]
    with pytest.raises(ConfigError, match="there is no recipe"):
        find_config("accelerate/fsdp2")


@each_case
def test_layers_that_are_units_are_there(case):
    """Accelerate looks the names up in the model and gives up on one that it does not find."""
    for head in case.heads:
        with torch.device("meta"):
            model = ARCHITECTURES[case.architecture].models[head](build_config(case, head))
        assert model._no_split_modules
        assert set(model._no_split_modules) <= {type(module).__name__ for module in model.modules()}, head


def test_sharded_models_learn_what_whole_ones_learn(tmp_path):
    done = launch(2, HERE / "sharded_training.py", str(tmp_path / "found.json"), *SHARDED)
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = json.loads((tmp_path / "found.json").read_text())
    assert list(one) == list(other) == SHARDED
    for name in SHARDED:
        # A parameter with a single row stays whole, on one of the two; nothing is kept twice.
        assert [sum(pair) for pair in zip(one[name]["kept"], other[name]["kept"], strict=True)] == one[name]["size"]
        for found in (one[name], other[name]):
            assert found["wrapper"].startswith("FSDP") and found["units"] >= 5
            assert 0.4 < sum(found["kept"]) / sum(found["size"]) < 0.6
            for compared in ("loss", "gradients", "weights"):
                assert found[f"{compared}0"] < 1e-5 and found[f"{compared}1"] < 1e-5, (name, compared)
            assert found["inference"] < 1e-5, name


@pytest.mark.slow
def test_trainer_under_fsdp2_trains_saves_and_resumes(tmp_path):
    """With the settings of configs/accelerate/fsdp2.yaml; two processes are one, and a resumed run is the whole."""
    done = launch(2, HERE / "fsdp_training.py", str(tmp_path / "two"), "seq_gru")
    assert done.returncode == 0, done.stderr[-3000:]
    whole, resumed = json.loads((tmp_path / "two" / "record.json").read_text())
    alone = train("seq_gru", 8, 1, 21, str(tmp_path / "one"), save_strategy="epoch", eval_strategy="epoch")
    assert (whole["wrapper"], whole["world_size"]) == ("FSDPGRUForCausalLM", 2)
    assert whole["batch_order"] == alone["batch_order"] and whole["targets"] == alone["targets"]
    for name in ("losses", "grad_norms", "evaluation"):
        assert whole[name] == pytest.approx(alone[name], rel=1e-5, abs=0)
    assert (resumed["resumed_at_step"], resumed["losses"]) == (3, whole["losses"])
    models = [load_file(tmp_path / place / "checkpoint-6" / "model.safetensors") for place in ("two", "two/resumed")]
    expected = load_file(tmp_path / "one" / "checkpoint-6" / "model.safetensors")
    assert models[0].keys() == expected.keys()
    for name, weight in expected.items():
        assert models[0][name].equal(models[1][name])
        assert (models[0][name] - weight).abs().max() < 1e-5


def accelerate(config: str, *argv: str) -> subprocess.Popen:
    """`accelerate launch` with one of the configurations and its options, then train.py with its own."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{config}.yaml")]
    environment = {
        **os.environ,
        "PYTHONPATH": str(TRAIN_PY.parent / "src"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *argv], env=environment, **pipes)


@pytest.fixture
def training(tmp_path) -> list[str]:
    argv = ["--model_type", "seq_lstm", "--hidden_size", "8", "--block_size", "16", "--max_steps", "2"]
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40 + split)
        argv += [f"--{split}_file", str(tmp_path / f"{split}.txt")]
    return [*argv, "--output_dir", str(tmp_path / "out")]


@pytest.mark.slow
def test_without_fsdp_the_run_stops_unless_told_otherwise(tmp_path, training):
    """Accelerate takes DDP on a CPU, without a word."""
    port = ["--num_processes", "2", "--main_process_port", str(free_port())]
    run = accelerate("fsdp2", *port, str(TRAIN_PY), *training)
    said = run.communicate(timeout=300)[1]
    assert run.returncode != 0 and "FSDP was asked for" in said and "--allow_ddp true" in said
    run = accelerate("fsdp2", *port, str(TRAIN_PY), *training, "--overwrite", "--allow_ddp", "true")
    said = run.communicate(timeout=300)[1]
    assert run.returncode == 0, said[-3000:]
    assert said.count("WARNING: FSDP was asked for and the model is wrapped in 'DistributedDataParallel'") == 1
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert record["wrapper"] == "DistributedDataParallel" and "(allow_ddp)" in record["fallback"]


@pytest.mark.slow
def test_two_nodes_meet(tmp_path, training):
    """Both on this machine: what `accelerate launch` is told on each of two, but for the address."""
    meeting = ["--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port())]
    nodes = [
        accelerate("two_nodes", *meeting, "--machine_rank", rank, str(TRAIN_PY), *training, "--expect_processes", "2")
        for rank in "01"
    ]
    said = [node.communicate(timeout=300)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said[0][-2000:] + said[1][-2000:]
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (record["world_size"], record["wrapper"], record["steps"]) == (2, "DistributedDataParallel", 2)
