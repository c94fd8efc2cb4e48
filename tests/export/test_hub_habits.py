"""What people do with any model of the Hub: resize, checkpoint gradients, compile, choose attention, use pipelines."""

from __future__ import annotations

import json

import pytest
import torch
from exporting import CAUSAL, PLAIN, WRITING, build_word_tokenizer, digest
from transformers import AutoModel, pipeline

from hf_seqmodels.models import ARCHITECTURES
from model_table import (
    CAUSAL_CASES,
    TRANSFORMERS,
    Case,
    assert_close,
    assert_same_gradients,
    build,
    build_config,
    make_ids,
    make_inputs,
    make_mask,
    named_gradients,
    output_of,
)

each_plain = pytest.mark.parametrize("case", PLAIN, ids=str)
each_causal = pytest.mark.parametrize("case", CAUSAL, ids=str)
each_writing = pytest.mark.parametrize("case", WRITING, ids=str)
each_reading = pytest.mark.parametrize("case", [case for case in PLAIN if case.reads_tokens], ids=str)
TRANSFORMER = Case("seq_transformer_decoder", "plain")


# -- resize_token_embeddings ------------------------------------------------------------------------------------------
SHAPES = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "same widths": {"embedding_size": 12, "tie_word_embeddings": True},
}


@each_writing
@pytest.mark.parametrize("size", [31, 17])
@pytest.mark.parametrize("shape", SHAPES)
def test_resize_token_embeddings(case, size, shape, tmp_path):
    """Growing and shrinking keeps what the kept tokens had, the head follows, and the result saves and loads."""
    options = dict(SHAPES[shape])
    if case.architecture in TRANSFORMERS:
        options.pop("embedding_size", None)
    model, inputs = build(case, case.main_head, **options), make_inputs(case, case.main_head, 2, 6)
    kept, inputs = min(size, 23), {name: ids % 17 for name, ids in inputs.items()}
    with torch.no_grad():
        before = model(**inputs).logits[..., :kept]
        model.resize_token_embeddings(size, mean_resizing=False)
        after = model(**inputs, labels=inputs["input_ids"])
    assert after.logits.shape[-1] == model.config.vocab_size == model.lm_head.weight.shape[0] == size
    assert torch.isfinite(after.loss)
    table = getattr(model.model, "decoder", model.model).embed_tokens  # that of the tokens which are predicted
    assert (model.lm_head.weight is table.weight) == options.get("tie_word_embeddings", False)
    assert_close(after.logits[..., :kept], before, 1e-6, "resize")
    with pytest.raises(ValueError, match=f"token id {size} is outside the vocabulary of {size}"):
        model(**{name: torch.full_like(ids, size) for name, ids in inputs.items()})
    model.save_pretrained(tmp_path)
    assert digest(type(model).from_pretrained(tmp_path)) == digest(model)


# -- gradient checkpointing -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", CAUSAL_CASES, ids=str)
def test_gradient_checkpointing_changes_nothing(case):
    mask = make_mask("mixed")
    ids = make_ids(*mask.shape)
    model = build(case, "causal-lm", dropout=0.0).train()

    def run() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100), use_cache=False).loss
        loss.backward()
        return loss.detach(), named_gradients(model)

    loss, gradients = run()
    calls = count_layer_calls(model)
    run()
    plain_calls, calls[0] = calls[0], 0
    model.gradient_checkpointing_enable()
    checkpointed_loss, checkpointed = run()
    assert calls[0] == 2 * plain_calls, "every layer runs again on the way back"
    assert_close(checkpointed_loss, loss, 1e-6, "gradient checkpointing")
    assert_same_gradients(checkpointed, gradients, 1e-6, "gradient checkpointing")


def count_layer_calls(model: torch.nn.Module) -> list[int]:
    """A one-element list that counts the forward passes of the first layer's first submodule that has parameters."""
    calls = [0]
    layer = model.model.layers[0]
    inner = getattr(layer, "attention_norm", None) or getattr(layer, "combine", None)
    if inner is not None:
        inner.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    else:  # a cell has no submodule: count through its own method
        run = layer.run
        layer.run = lambda *arguments: (calls.__setitem__(0, calls[0] + 1), run(*arguments))[1]
    return calls


# -- torch.compile ----------------------------------------------------------------------------------------------------
def check_compiled(case: Case, backend: str) -> None:
    torch._dynamo.reset()
    model = build(case, "causal-lm", dropout=0.0)
    compiled = torch.compile(model, backend=backend)
    for length in (5, 7):
        ids = make_ids(3, length)
        mask = torch.ones_like(ids)
        mask[0, :2] = 0
        plain = model(ids, attention_mask=mask, labels=ids)
        plain.loss.backward()
        gradients = named_gradients(model)
        again = compiled(ids, attention_mask=mask, labels=ids)
        again.loss.backward()
        assert_close(again.logits, plain.logits, 1e-5, "torch.compile")
        assert_same_gradients(named_gradients(model), gradients, 1e-5, "torch.compile")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[] if case.architecture == "seq_gru" else pytest.mark.slow, id=str(case))
        for case in CAUSAL
    ],
)
def test_compiled_values_are_the_same(case):
    """Traced only, without a C++ compiler; recurrent layers are opaque to it, and the graph breaks around them."""
    check_compiled(case, "eager")


@pytest.mark.slow
@pytest.mark.parametrize("case", [Case("seq_lstm", "plain"), TRANSFORMER], ids=str)
def test_inductor_values_are_the_same(case):
    check_compiled(case, "inductor")


def test_transformer_compiles_into_one_graph():
    torch._dynamo.reset()
    model = build(TRANSFORMER)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    ids = make_ids(2, 6)
    assert_close(output_of(compiled(ids, use_cache=False)), output_of(model(ids)), 1e-5, "torch.compile")


# -- attention implementations ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("variant", ARCHITECTURES["seq_transformer_decoder"].variants)
@pytest.mark.parametrize("padding", ["none", "left", "right", "holes"])
def test_sdpa_is_eager(variant, padding):
    case = Case("seq_transformer_decoder", variant)
    eager, sdpa = (build(case, attn_implementation=name) for name in ("eager", "sdpa"))
    mask = make_mask(padding)
    ids = make_ids(*mask.shape)
    outputs = [output_of(model(ids, attention_mask=mask))[mask.bool()] for model in (eager, sdpa)]
    assert_close(outputs[1], outputs[0], 1e-5, "sdpa")


@pytest.mark.slow
def test_flex_forward_is_eager():
    eager, flex = (build(TRANSFORMER, attn_implementation=name) for name in ("eager", "flex_attention"))
    mask = make_mask("right")
    ids = make_ids(*mask.shape)
    with torch.no_grad():
        outputs = [output_of(model(ids, attention_mask=mask))[mask.bool()] for model in (eager, flex)]
    assert_close(outputs[1], outputs[0], 1e-5, "flex attention")


@each_plain
def test_unknown_attention_is_refused(case, tmp_path):
    model = build(case)
    model.save_pretrained(tmp_path)
    for load in (
        lambda: AutoModel.from_pretrained(tmp_path, attn_implementation="banana"),
        lambda: AutoModel.from_config(build_config(case), attn_implementation="banana"),
        lambda: build_config(case, attn_implementation="someone/kernels"),
    ):
        with pytest.raises(ValueError, match=r"attn_implementation='.*' is not allowed|is not supported"):
            load()
    if case.architecture not in TRANSFORMERS:  # there is one way only, and the error says so
        with pytest.raises(ValueError, match="does not support an attention implementation"):
            AutoModel.from_pretrained(tmp_path, attn_implementation="sdpa")
    assert AutoModel.from_pretrained(tmp_path, attn_implementation="eager")


def test_attention_from_a_file_is_never_fetched(tmp_path):
    """C5: a name in config.json that is no known one is refused, and nothing is asked for elsewhere."""
    build(TRANSFORMER).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"attn_implementation": "someone/kernels"}))
    with pytest.raises(ValueError, match=r"attn_implementation='someone/kernels' is not allowed in a configuration"):
        AutoModel.from_pretrained(tmp_path)


# -- pipelines --------------------------------------------------------------------------------------------------------
@each_causal
def test_text_generation_pipeline_pads_left_without_harm(case):
    model = build(case, "causal-lm", pad_token_id=0, eos_token_id=2)
    write = pipeline("text-generation", model=model, tokenizer=build_word_tokenizer())
    texts = ["w5 w6 w7 w8", "w9"]
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "return_full_text": False}
    together = [answer[0]["generated_text"] for answer in write(texts, batch_size=2, **options)]
    alone = [write(text, **options)[0]["generated_text"] for text in texts]
    assert together == alone
    assert all(together)


@each_reading
def test_feature_extraction_pipeline(case):
    extract = pipeline("feature-extraction", model=build(case), tokenizer=build_word_tokenizer())
    features = torch.tensor(extract("w5 w6 w7"))
    assert features.shape == (1, 3, 12)


@each_reading
def test_token_classification_pipeline(case):
    model = build(case, "token-classification", id2label={0: "O", 1: "NAME", 2: "PLACE"})
    answer = pipeline("token-classification", model=model, tokenizer=build_word_tokenizer(), ignore_labels=[])("w5 w6")
    assert [each["word"] for each in answer] == ["w5", "w6"]
    assert {each["entity"] for each in answer} <= {"O", "NAME", "PLACE"}
