"""Golden scores: for every architecture and head, stored and read back; a changed weight shows."""

import pytest
import torch
from safetensors import safe_open

from hf_seqmodels.hub.golden import GOLDEN, auto_class_of, make_inputs, read_golden, scores, write_golden
from model_table import CASES, build

PLAIN = [(case, head) for case in CASES if case.variant == "plain" for head in case.heads]
ALL = [(case, head) for case in CASES for head in case.heads if case.variant != "plain"]


def check(case, head, folder):
    model = build(case, head)
    write_golden(model, folder)
    inputs, expected = read_golden(folder)
    assert inputs.keys() == make_inputs(model).keys()
    assert torch.equal(scores(model, inputs), expected) and torch.isfinite(expected).all() and expected.dim() >= 2
    with safe_open(folder / GOLDEN, framework="pt") as file:
        assert file.metadata() == {"model": type(model).__name__, "auto": type(model).auto_model}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1
    assert not torch.allclose(scores(model, inputs), expected, atol=1e-4), "another model, the same scores"


@pytest.mark.parametrize(("case", "head"), PLAIN, ids=str)
def test_golden_scores_are_kept_and_tell_models_apart(case, head, tmp_path):
    check(case, head, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "head"), ALL, ids=str)
def test_golden_scores_of_variants(case, head, tmp_path):
    check(case, head, tmp_path)


def test_models_of_transformers_have_golden_scores_too(tmp_path):
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        GPT2Config,
        GPT2LMHeadModel,
        T5Config,
        T5ForConditionalGeneration,
    )

    small = {"vocab_size": 50}
    gpt2 = GPT2LMHeadModel(GPT2Config(**small, n_embd=8, n_layer=1, n_head=2, n_positions=10))
    bert_sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    bert = BertForMaskedLM(BertConfig(**small, **bert_sizes))
    t5 = T5ForConditionalGeneration(T5Config(**small, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    wanted = ("AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM")
    for model, auto in zip((gpt2, bert, t5), wanted, strict=True):
        assert auto_class_of(model) == auto
        write_golden(model, tmp_path)
        inputs, expected = read_golden(tmp_path)
        assert torch.equal(scores(model, inputs), expected)
    assert make_inputs(gpt2)["input_ids"].shape == (2, 10), "no longer than its positions"


def test_what_is_stored_stays_small(tmp_path):
    model = build(CASES[0], "causal-lm", vocab_size=200_000)
    assert write_golden(model, tmp_path).stat().st_size < 3_500_000
    assert read_golden(tmp_path)[1].shape[1] == 2


def test_a_model_that_reads_something_else_is_named():
    model = build(CASES[0])
    model.main_input_name = "pixels_of_mars"
    with pytest.raises(ValueError, match="reads pixels_of_mars"):
        make_inputs(model)
