"""An encoder under an RNN, exported: a stranger's process without the package builds, loads and saves it again."""

import json

import pytest
import torch
from exporting import run_apart
from safetensors.torch import save_file
from transformers import RobertaConfig

from hf_seqmodels.models import ARCHITECTURES

SIZES = {
    "vocab_size": 23, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 14,
    "max_position_embeddings": 20, "pad_token_id": 0,
}  # fmt: skip


@torch.no_grad()
def test_a_stranger_loads_hybrids(tmp_path):
    """BERT and RoBERTa under cells, one of them frozen; what the stranger saves loads here with the same numbers."""
    made = {}
    for kind, architecture, freeze in (("bert", "seq_lstm", False), ("roberta", "seq_gru", True)):
        torch.manual_seed(1)
        config = ARCHITECTURES[architecture].config
        cls = ARCHITECTURES[architecture].models["backbone"]
        model = cls(config(encoder={"model_type": kind} | SIZES, freeze_encoder=freeze, hidden_size=8)).eval()
        folder = tmp_path / "exported" / kind
        model.save_pretrained(folder)
        ids, mask = torch.randint(3, 23, (2, 6)), torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]])
        expected = model(ids, attention_mask=mask).last_hidden_state
        probe = {"input.input_ids": ids, "input.attention_mask": mask, "output": expected}
        save_file(probe, folder / "probe.safetensors")
        made[kind] = (cls, ids, mask, expected, freeze)
    found = json.loads(run_apart("run_stranger.py", tmp_path / "exported", tmp_path / "again", cwd=tmp_path))
    assert found.keys() == made.keys()
    for kind, (cls, ids, mask, expected, freeze) in made.items():
        assert found[kind]["output_error"] <= 1e-6
        assert found[kind]["module"].startswith("transformers_modules.")
        loaded = cls.from_pretrained(tmp_path / "again" / kind)
        assert torch.equal(loaded(ids, attention_mask=mask).last_hidden_state, expected)
        assert all(parameter.requires_grad is not freeze for parameter in loaded.encoder.parameters())


def test_an_unknown_encoder_says_what_to_do():
    with pytest.raises(ValueError, match="import the package that registers this one"):
        ARCHITECTURES["seq_lstm"].config(encoder={"model_type": "seq_nobody"} | SIZES)


def test_a_configuration_with_labels_comes_back():
    """An encoder's labels are kept by number, and numbers are no names of kernels."""
    config = ARCHITECTURES["seq_lstm"].config(encoder=RobertaConfig(**SIZES, num_labels=3).to_dict(), hidden_size=8)
    again = type(config).from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict() and again.encoder.num_labels == 3
