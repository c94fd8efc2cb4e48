"""Golden scores: for every architecture and head, stored and read back; a changed weight shows."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.utils import ModelOutput

from hf_seqmodels.hub import stranger, verify
from hf_seqmodels.hub.golden import (
    GOLDEN,
    OUTPUTS,
    auto_class_of,
    make_inputs,
    read_golden,
    scores,
    tolerance_of,
    write_golden,
)
from model_table import CASES, Case, build

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


def test_the_stranger_who_has_no_package_picks_the_same_scores():
    """stranger.py repeats a list of golden.py's, which it cannot import."""
    assert stranger.OUTPUTS == OUTPUTS
    for name in OUTPUTS:
        value = torch.randn(2, 3)
        outputs = ModelOutput({key: torch.zeros(2, 3) for key in reversed(OUTPUTS[OUTPUTS.index(name) + 1 :])})
        outputs |= {name: value, "end_logits": value}
        found = stranger.scores_of(outputs)
        assert torch.equal(found[..., 0] if name == "start_logits" else found, value)


# ---- half precision ---------------------------------------------------------------------------------------------
def shift_scores(folder, part):
    """Move the stored scores by a part of the largest one, or of 1."""
    with safe_open(folder / GOLDEN, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(folder / GOLDEN)
    tensors["scores"] += part * max(1.0, float(tensors["scores"].abs().max()))
    save_file(tensors, folder / GOLDEN, metadata=metadata)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head", ["causal-lm", "ctc", "audio-classification", "time-series-prediction"])
def test_models_of_half_precision_read_tokens_features_and_series(dtype, head, tmp_path):
    model = build(Case("seq_lstm", "plain"), head, dtype)
    write_golden(model, tmp_path)
    inputs, expected = read_golden(tmp_path)
    assert ("input_ids" in inputs) == (head == "causal-lm") and expected.dtype == torch.float32
    assert torch.equal(scores(model, inputs), expected) and torch.isfinite(expected).all()


def test_how_far_scores_may_be_from_stored_ones():
    assert tolerance_of(torch.float32) == tolerance_of(torch.float64) == tolerance_of(torch.float32, 50.0) == 1e-5
    assert tolerance_of(torch.bfloat16) == tolerance_of(torch.float16, 0.5) == 2e-2
    assert tolerance_of(torch.bfloat16, 50.0) == 1.0


def test_a_stranger_on_another_machine_verifies_a_bf16_model_of_features(tmp_path):
    model = build(Case("seq_lstm", "plain"), "audio-classification", torch.bfloat16)
    model.save_pretrained(tmp_path)
    write_golden(model, tmp_path)
    shift_scores(tmp_path, 4e-3)  # as another processor rounds
    answer = verify.verify_as_stranger(tmp_path)
    assert 1e-3 < answer["max_difference"] < 2e-2


@pytest.mark.parametrize(("dtype", "passes"), [("float32", 9e-6), ("bfloat16", 1.9e-2), ("float16", 1.9e-2)])
def test_what_a_stranger_may_answer_depends_on_the_dtype(dtype, passes, tmp_path):
    answer = {"imported_package": False, "saved_again_equal": True, "saved_again_difference": 0.0}
    answer |= {"dtype": dtype, "largest": 0.3}
    verify._check(tmp_path, answer | {"max_difference": passes}, None, False)
    for number, tolerance in ((2 * passes, None), (passes, passes / 2), (float("nan"), None)):
        with pytest.raises(verify.VerificationError, match="scores differ by"):
            verify._check(tmp_path, answer | {"max_difference": number}, tolerance, False)
