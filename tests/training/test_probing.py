"""Models of transformers whose losses do not do what their signature says."""

from __future__ import annotations

import json
import random

import pytest
import torch
from transformers import AutoModelForCausalLM, BartConfig, GPT2Config

from hf_seqmodels.arguments import ConfigError
from hf_seqmodels.config import parse
from hf_seqmodels.run import run
from hf_seqmodels.training.probing import LossKind, is_causal, loss_kind

TINY_GPT2 = GPT2Config(n_embd=16, n_head=2, n_layer=1, vocab_size=20, n_positions=16)
SMALL_BERT = ["--model_type", "bert", "--hidden_size", "16", "--num_attention_heads", "2", "--num_hidden_layers", "1"]
NO_DROPOUT = ["--hidden_dropout_prob", "0", "--attention_probs_dropout_prob", "0"]


@pytest.fixture
def texts(tmp_path):
    draw = random.Random(0)
    for split in ("train", "validation", "test"):
        rows = (" ".join(draw.choices(["ran", "dog", "cat", "sun", "moon", "tree"], k=5)) + "\n" for _ in range(40))
        (tmp_path / f"{split}.txt").write_text("".join(rows))
    return tmp_path


def test_the_loss_of_a_model_is_found_out():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(TINY_GPT2)
    model.loss_type = "ForCausalLM"
    ids = torch.randint(20, (2, 8))
    batch = {"input_ids": ids, "labels": ids}
    assert loss_kind(model, batch, shifts=True, takes_count=True) is LossKind.COUNTED
    assert loss_kind(model, batch, shifts=True, takes_count=False) is LossKind.MEAN
    assert loss_kind(model, batch, shifts=False, takes_count=False) is LossKind.OTHER
    assert model.training


def test_a_language_model_that_does_not_shift_its_labels_is_refused(texts, capsys):
    """BartForCausalLM compares each score with the token that it has just read."""
    options = ["--model_type", "bart", "--d_model", "16"]
    small = ["--decoder_layers", "1", "--decoder_attention_heads", "2", "--decoder_ffn_dim", "16"]
    argv = [*options, *small, "--dataset", "text", "--path", str(texts), "--block_size", "16", "--max_steps", "2"]
    with pytest.raises(ConfigError, match="BartForCausalLM has a loss of its own that is not the cross-entropy"):
        run(parse([*argv, "--output_dir", str(texts / "out")]), quiet=True)
    model = AutoModelForCausalLM.from_config(BartConfig(d_model=16, vocab_size=20, decoder_layers=1))
    ids = torch.randint(4, 20, (2, 8))
    found = loss_kind(model, {"input_ids": ids, "labels": ids}, shifts=True, takes_count=True)
    assert found is LossKind.OTHER


def test_a_mean_that_ignores_the_count_trains_and_is_scored_as_one(tmp_path):
    """BertForMaskedLM takes num_items_in_batch and ignores it: its loss would be divided twice."""
    first = []
    for size, parts in ((8, 1), (2, 4)):
        argv = [*SMALL_BERT, *NO_DROPOUT, "--task", "masked-lm", "--dataset", "cloze", "--max_steps", "1"]
        argv += ["--per_device_train_batch_size", str(size), "--gradient_accumulation_steps", str(parts)]
        out = tmp_path / str(size)
        record = run(parse([*argv, "--logging_steps", "1", "--output_dir", str(out)]), quiet=True)
        first.append(json.loads((out / "log.jsonl").read_text().splitlines()[0]))
        guess = record["metrics"]["test"]["loss"]
        assert 1.5 < guess < 4, "of about a dozen tokens, nearly untrained"
    assert first[0]["loss"] == pytest.approx(first[1]["loss"], rel=1e-5)
    assert first[0]["grad_norm"] == pytest.approx(first[1]["grad_norm"], rel=1e-4)


def test_broken_weights_are_called_by_their_name():
    model = AutoModelForCausalLM.from_config(TINY_GPT2)
    with torch.no_grad():
        model.transformer.wte.weight[1, 1] = torch.nan
    with pytest.raises(ValueError, match="scores that are not finite: its weights are broken"):
        is_causal(model)
