"""The sizes of Chung 2014 for polyphonic music, and that our recipes have them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_seqmodels.config import auto_class, parse
from hf_seqmodels.models import ARCHITECTURES

CONFIGS = Path(__file__).parent.parent.parent / "configs"
MUSIC = ("jsb_chorales", "musedata", "piano_midi")
# Table 1: parameters by architecture. Its inputs are 93 to 108 keys wide, ours 88.
CHUNG = {"lstm": 19_800, "gru": 20_200, "rnn": 20_100}
INPUTS = 100


def recipe(task: str, name: str) -> dict:
    return yaml.safe_load((CONFIGS / task / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("task", MUSIC)
@pytest.mark.parametrize("name", CHUNG)
def test_recurrent_layers_have_the_size_of_the_paper(task, name):
    """The layer alone, at 100 inputs and with one bias, where torch's layout has two."""
    found = recipe(task, name)
    options = found["model"] | {"num_features": INPUTS}
    model = auto_class(found["task"]).from_config(CONFIG_MAPPING[found["model_type"]](**options))
    layer = model.base_model.layers[0]
    size = sum(part.numel() for part in layer.parameters()) - layer.bias_hh.numel()
    assert len(model.base_model.layers) == 1 and size == pytest.approx(CHUNG[name], rel=0.01)


def parameters(path: Path, tmp_path: Path) -> int:
    run = parse(["--config", str(path), "--output_dir", str(tmp_path / "run")])
    with torch.device("meta"):
        return auto_class(run.run.task).from_config(run.model_config()).num_parameters()


@pytest.mark.parametrize("path", sorted((CONFIGS / "jsb_chorales").glob("*-300k.yaml")), ids=lambda path: path.stem)
def test_large_models_have_300_000_parameters(path, tmp_path):
    """Bai 2018, appendix A: all networks of one task about equally large."""
    assert parameters(path, tmp_path) == pytest.approx(300_000, rel=0.01)


def test_every_architecture_stands_beside_the_cells():
    for task in MUSIC:
        assert {path.stem for path in (CONFIGS / task).glob("*.yaml")} >= {
            "rnn", "lstm", "gru", "attention_rnn", "transformer_decoder",
        }  # fmt: skip
    assert len(list((CONFIGS / "jsb_chorales").glob("*-300k.yaml"))) == 5


@pytest.mark.parametrize("task", MUSIC)
@pytest.mark.parametrize("name", ["attention_rnn", "transformer_decoder"])
def test_others_are_about_as_large(task, name, tmp_path):
    """Head included: the cells of the paper have 21,000 to 29,000."""
    sizes = [parameters(CONFIGS / task / f"{cell}.yaml", tmp_path) for cell in CHUNG]
    assert min(sizes) <= parameters(CONFIGS / task / f"{name}.yaml", tmp_path) <= max(sizes)
    assert recipe(task, name)["model_type"] in ARCHITECTURES
