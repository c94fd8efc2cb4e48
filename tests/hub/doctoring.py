"""Helpers of the doctor's tests: tiny checkpoints with a card, models with faults, and what the doctor said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hf_seqmodels.hub.doctor import CHECKS, diagnose
from hf_seqmodels.hub.doctor_patient import Finding
from model_table import perturb

CODE = Path(__file__).with_name("broken_models.py")
CARD = """\
---
license: apache-2.0
library_name: transformers
---
# A model

It was made for a test.
"""
# A process of its own takes seconds: one test of the default run has it, the slow ones all.
QUICK = [name for name in CHECKS if name != "fresh_process"]
TOKENS = {"vocab_size": 23, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDTHS = SIZES | {"intermediate_size": 16, "max_position_embeddings": 32}
GPT2 = TOKENS | SIZES | {"n_positions": 32, "num_labels": 3}
T5 = TOKENS | {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}


def write(model: Any, folder: Path, card: str | None = CARD) -> Path:
    """Save a model whose every parameter is far from zero, and a card beside it."""
    torch.manual_seed(0)
    perturb(model)
    model.save_pretrained(folder)
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def with_code(name: str, folder: Path, **options: Any) -> Path:
    """A checkpoint of a class of broken_models.py, which lies in the folder."""
    import broken_models

    cls = getattr(broken_models, name)
    config = cls.config_class(**(TOKENS | WIDTHS if cls.config_class.model_type == "bert" else GPT2) | options)
    write(cls(config), folder)
    shutil.copy(CODE, folder / "modeling_broken.py")
    auto = next(auto for ending, auto in AUTO.items() if issubclass(cls, getattr(transformers, ending)))
    edit_json(folder / "config.json", auto_map={auto: f"modeling_broken.{name}"})
    return folder


AUTO = {
    "GPT2LMHeadModel": "AutoModelForCausalLM",
    "GPT2ForTokenClassification": "AutoModelForTokenClassification",
    "BertForTokenClassification": "AutoModelForTokenClassification",
    "BertModel": "AutoModel",
}


def edit_json(path: Path, **values: Any) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Let `change` work on the tensors of model.safetensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def examine(folder: Path, trust: bool = False, only: Sequence[str] | None = QUICK) -> dict[str, Finding]:
    """What the doctor says, by name of check."""
    return {each.name: each for each in diagnose(folder, trust_remote_code=trust, only=only)}


def failed(findings: dict[str, Finding]) -> list[str]:
    """The names of the checks that failed."""
    return [name for name, finding in findings.items() if finding.ok is False]


def assert_healthy(findings: dict[str, Finding], *skipped: str) -> None:
    """Nothing failed, and only these were skipped, each with a reason."""
    assert not failed(findings), {name: findings[name].measured for name in failed(findings)}
    assert {name for name, each in findings.items() if each.ok is None} == set(skipped)
    assert all(len(each.measured) > 3 for each in findings.values())


@pytest.fixture
def own_modules(tmp_path, monkeypatch):
    """Code from a checkpoint is copied here before it runs, and not into the user's cache."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
