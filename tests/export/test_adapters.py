"""PEFT adapters: LoRA on linear layers and embeddings, and on the cells' own weights through `target_parameters`.

LoRA of a cell goes by `target_parameters`, since a cell owns its parameters and has no linear layers; peft allows it
without `lora_dropout`. `target_modules="all-linear"` finds nothing in the RNN, LSTM and GRU, and peft says so.
"""

from __future__ import annotations

import pytest
import torch
from exporting import CAUSAL

from model_table import Case, assert_close, build, make_ids, make_mask, output_of

peft = pytest.importorskip("peft", reason="peft is not installed (pip install 'hf_seqmodels[dev]')")

EVERY_LINEAR = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
CELL = {"target_parameters": ["weight_hh", "weight_ih"]}
TABLE = [
    *[(case, "head", {"target_modules": ["lm_head"]}) for case in CAUSAL],
    *[(case, "embeddings", {"target_modules": ["embed_tokens"]}) for case in CAUSAL],
    *[(case, "cell", CELL) for case in CAUSAL if case.recurrent],
    (Case("seq_lstm", "peephole"), "cell", CELL),
    (Case("seq_gru", "reset_before"), "cell", CELL),
    (Case("seq_attention_rnn", "plain"), "attention", {"target_modules": ["query", "combine"]}),
    (Case("seq_transformer_decoder", "plain"), "attention", {"target_modules": ["q_proj", "v_proj"]}),
    (Case("seq_transformer_decoder", "llama"), "every linear", EVERY_LINEAR),
    (Case("seq_attention_rnn", "additive"), "every linear", EVERY_LINEAR),
]
each_adapter = pytest.mark.parametrize(
    ("case", "options"), [pytest.param(case, options, id=f"{case}-{name}") for case, name, options in TABLE]
)


@each_adapter
def test_adapter_trains_saves_and_merges(case, options, tmp_path):
    mask = make_mask("mixed")
    inputs = {"input_ids": make_ids(*mask.shape), "attention_mask": mask}
    base = build(case, "causal-lm", dropout=0.0)
    with torch.no_grad():
        before = output_of(base(**inputs))
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, init_lora_weights=False, **options))
    trained = {name: value for name, value in adapted.named_parameters() if value.requires_grad}
    assert trained and all("lora_" in name for name in trained)

    adapted.train()
    adapted(**inputs, labels=inputs["input_ids"]).loss.backward()
    for name, value in trained.items():
        assert value.grad is not None and value.grad.abs().sum() > 0, name

    adapted.eval()
    with torch.no_grad():
        after = output_of(adapted(**inputs))
    assert (after - before).abs().max() > 1e-6, "the adapter does something"
    adapted.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(build(case, "causal-lm", dropout=0.0), tmp_path).eval()
    with torch.no_grad():
        assert_close(output_of(again(**inputs)), after, 1e-6, "adapter reloaded")
        assert_close(output_of(again.unload()(**inputs)), before, 1e-6, "adapter taken away")
        merged = adapted.merge_and_unload()
        assert type(merged) is type(base)
        assert_close(output_of(merged(**inputs)), after, 1e-5, "adapter merged")


@pytest.mark.parametrize("case", [case for case in CAUSAL if case.recurrent], ids=str)
def test_adapted_cell_generates_what_it_computes(case):
    """The cached steps of generation run through the adapter too."""
    model = build(case, "causal-lm")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, init_lora_weights=False, **CELL)).eval()
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    out = adapted.generate(input_ids=make_ids(2, 4), **options)
    with torch.no_grad():
        again = adapted(input_ids=out.sequences[:, :-1]).logits[:, 3:]
    assert_close(torch.stack(out.logits, 1), again, 1e-5, "adapted generation")


@pytest.mark.parametrize("architecture", ["seq_rnn", "seq_lstm", "seq_gru"])
def test_all_linear_says_that_a_cell_has_none(architecture):
    model = build(Case(architecture, "plain"), "causal-lm")
    with pytest.raises(ValueError, match="No `target_modules` passed"):
        peft.get_peft_model(model, peft.LoraConfig(**EVERY_LINEAR))
