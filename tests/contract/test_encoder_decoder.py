"""What the encoder–decoder Transformer promises beyond the table: its layouts, two paddings, a cache of the source."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    DynamicCache,
    EncoderDecoderCache,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from hf_seqmodels.models.configuration_transformer import TransformerConfig
from hf_seqmodels.models.modeling_transformer import TransformerForSeq2SeqLM
from model_table import (
    TOLERANCE,
    assert_close,
    assert_same_gradients,
    make_ids,
    make_mask,
    named_gradients,
    perturb,
)

SIZES = {"vocab_size": 23, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 20, "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 2}
T5 = {"positions": "relative", "norm": "rmsnorm", "norm_position": "pre", "use_bias": False, "share_embeddings": True}
T5 |= {"tie_word_embeddings": True, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 9}
LAYOUTS = {
    "vaswani": {"share_embeddings": True, "tie_word_embeddings": True},
    "t5": T5,
    "learned_pre": {"positions": "learned", "norm_position": "pre", "num_decoder_layers": 1},
    "rotary": {"positions": "rotary", "num_decoder_layers": 3, "head_dim": 4, "hidden_act": "swiglu"},
    "features": {"num_features": 5, "norm_position": "pre"},
}


def slow_but(*names: str, among: dict) -> list:
    """The others are left to the slow run."""
    return [pytest.param(name, marks=[] if name in names else pytest.mark.slow) for name in among]


each_layout = pytest.mark.parametrize("layout", slow_but("vaswani", "t5", among=LAYOUTS))
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
NEW = 5


def build(layout: str, dtype: torch.dtype = torch.float32, **options) -> TransformerForSeq2SeqLM:
    torch.manual_seed(0)
    config = TransformerConfig(**(SIZES | LAYOUTS[layout] | options))
    model = TransformerForSeq2SeqLM(config).to(dtype).eval()
    perturb(model)
    return model


def make_source(model, batch: int = 5, length: int = 8) -> dict[str, torch.Tensor]:
    if model.config.num_features is None:
        return {"input_ids": make_ids(batch, length)}
    torch.manual_seed(1)
    return {"input_features": torch.randn(batch, length, model.config.num_features).to(model.dtype)}


def pick(source: dict, rows, columns) -> dict:
    return {name: value[rows][columns][None] for name, value in source.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@each_layout
def test_row_in_batch_equals_row_alone(layout, attention, dtype):
    """A1, A4: source and target padded anywhere, each in its own way; values and gradients."""
    model = build(layout, dtype, attn_implementation=attention)
    source, target = make_source(model), make_ids(5, 8, seed=2)
    source_mask, target_mask = make_mask("mixed"), make_mask("holes").flip(0)
    masks = {"attention_mask": source_mask, "decoder_attention_mask": target_mask}
    together = model(**source, decoder_input_ids=target, **masks).logits
    probe = torch.randn(together.shape).to(dtype)
    (together * probe)[target_mask.bool()].sum().backward()
    gradients = named_gradients(model)
    for i in range(5):
        seen, written = source_mask[i].bool(), target_mask[i].bool()
        alone = model(**pick(source, i, seen), decoder_input_ids=target[i][written][None]).logits[0]
        (alone * probe[i][written]).sum().backward()
        assert_close(together[i][written], alone, TOLERANCE[dtype], "encoder–decoder, padding", f"row {i}")
    assert_same_gradients(gradients, named_gradients(model), TOLERANCE[dtype], "encoder–decoder, padding")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("poison", [float("nan"), pytest.param(float("inf"), marks=pytest.mark.slow)])
@each_layout
def test_nothing_under_padding_leaks(layout, poison, attention):
    """A19, bit-exact, on both sides."""
    model, mask = build(layout, attn_implementation=attention), make_mask("mixed")
    tokens, results = mask.bool(), []
    torch.manual_seed(1)
    name = "input_features" if layout == "features" else "inputs_embeds"
    source, target = torch.randn(5, 8, 5 if layout == "features" else 12), torch.randn(5, 8, 12)
    for fill in (0.0, poison):
        source_in, target_in = (
            torch.where(tokens[..., None], x, fill if fill != 0 else x).requires_grad_() for x in (source, target)
        )
        inputs = {name: source_in, "decoder_inputs_embeds": target_in}
        logits = model(**inputs, attention_mask=mask, decoder_attention_mask=mask).logits[tokens]
        logits.square().sum().backward()
        results.append((logits.detach(), source_in.grad, target_in.grad, named_gradients(model)))
    clean, poisoned = results
    assert torch.isfinite(poisoned[0]).all()
    for expected, actual in zip(clean[:3], poisoned[:3], strict=True):
        assert torch.equal(actual, expected)
    assert not poisoned[1][~tokens].any() and not poisoned[2][~tokens].any()
    for key, gradient in clean[3].items():
        assert torch.equal(poisoned[3][key], gradient), key


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@every_layout
def test_a_row_of_padding_is_finite(layout, attention):
    model = build(layout, attn_implementation=attention)
    mask = torch.ones(3, 8, dtype=torch.long)
    mask[0] = 0
    source, target = make_source(model, 3), make_ids(3, 4)
    for masks in ({"attention_mask": mask}, {"decoder_attention_mask": mask[:, :4]}):
        outputs = model(**source, decoder_input_ids=target, labels=target, **masks)
        assert torch.isfinite(outputs.logits).all()
        outputs.loss.backward()
        assert all(torch.isfinite(gradient).all() for gradient in named_gradients(model).values())


MODES = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 0, "num_return_sequences": 2},
    "beam": {"num_beams": 3, "num_return_sequences": 2},
    "static": {"cache_implementation": "static"},
    "static beam": {"cache_implementation": "static", "num_beams": 2},
}


def generate(model, source, **options):
    torch.manual_seed(7)
    defaults = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "output_logits": True}
    return model.generate(**source, **(defaults | {"return_dict_in_generate": True, "output_scores": True} | options))


@pytest.mark.parametrize("prompted", [pytest.param(False, marks=pytest.mark.slow), True], ids=["start", "prompt"])
@pytest.mark.parametrize("mode", slow_but("greedy", "beam", "static", among=MODES))
@each_layout
def test_generation_gives_the_scores_of_the_uncached_forward_pass(layout, mode, prompted):
    model, mask, options = build(layout), make_mask("mixed"), dict(MODES[mode])
    source, prompt_mask = make_source(model), torch.ones(5, 1, dtype=torch.long)
    if prompted:  # what the decoder starts from, padded on the left
        prompt_mask = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 0, 1], [1, 1, 1], [0, 1, 1]])
        prompt = torch.where(prompt_mask.bool(), make_ids(5, 3, seed=4), 0)
        options |= {"decoder_input_ids": prompt, "decoder_attention_mask": prompt_mask}
    result = generate(model, source, attention_mask=mask, **options)
    copies = len(result.sequences) // 5
    repeated = {name: value.repeat_interleave(copies, 0) for name, value in source.items()}
    prompt_mask = prompt_mask.repeat_interleave(copies, 0)
    whole_mask = torch.cat([prompt_mask, prompt_mask.new_ones(len(prompt_mask), NEW)], dim=1)
    with torch.no_grad():
        logits = model(
            **repeated,
            attention_mask=mask.repeat_interleave(copies, 0),
            decoder_input_ids=result.sequences,
            decoder_attention_mask=whole_mask,
            use_cache=False,
        ).logits[:, -NEW - 1 : -1]
    if "num_beams" not in options:
        assert_close(torch.stack(result.logits, dim=1), logits, 1e-5, "encoder–decoder, generation")
        return
    options.pop("cache_implementation", None)
    uncached = generate(model, source, attention_mask=mask, **options, use_cache=False)
    assert torch.equal(result.sequences, uncached.sequences)
    assert_close(result.sequences_scores, uncached.sequences_scores, 1e-5, "encoder–decoder, beams")
    assert_close(torch.stack(result.logits), torch.stack(uncached.logits), 1e-5, "encoder–decoder, beams")


@every_layout
def test_pieces_with_a_cache_equal_the_whole(layout):
    """A5; the source is read once: later calls need neither it nor the encoder's outputs."""
    model, mask = build(layout), make_mask("mixed")
    source, target = make_source(model), make_ids(5, 8, seed=2)
    whole = model(**source, attention_mask=mask, decoder_input_ids=target, decoder_attention_mask=mask).logits
    cache, pieces, start = None, [], 0
    for length in (3, 1, 4):
        given = source if cache is None else {}
        piece = model(
            **given,
            attention_mask=mask,
            decoder_input_ids=target[:, start : start + length],
            decoder_attention_mask=mask[:, : start + length],
            past_key_values=cache,
            use_cache=True,
        )
        pieces.append(piece.logits)
        cache, start = piece.past_key_values, start + length
    tokens = mask.bool()
    assert_close(torch.cat(pieces, 1)[tokens], whole[tokens], 1e-5, "encoder–decoder, pieces")
    assert cache.is_updated == dict.fromkeys(range(model.config.num_decoder_layers), True)
    assert [layer.keys.shape[2] for layer in cache.cross_attention_cache.layers] == [8] * len(cache.is_updated)


def test_encoder_outputs_stand_for_the_source():
    model, mask, target = build("t5"), make_mask("mixed"), make_ids(5, 4, seed=2)
    source = make_source(model)
    encoded = model.get_encoder()(**source, attention_mask=mask)
    again = model(encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=target).logits
    assert torch.equal(again, model(**source, attention_mask=mask, decoder_input_ids=target).logits)


@every_layout
def test_attention_weights(layout):
    model, mask = build(layout, attn_implementation="eager"), make_mask("mixed")
    outputs = model(
        **make_source(model), attention_mask=mask, decoder_input_ids=make_ids(5, 6), output_attentions=True,
        output_hidden_states=True,
    )  # fmt: skip
    encoder, decoder = model.config.num_hidden_layers, model.config.num_decoder_layers
    assert [tuple(weights.shape) for weights in outputs.encoder_attentions] == [(5, 2, 8, 8)] * encoder
    assert [tuple(weights.shape) for weights in outputs.decoder_attentions] == [(5, 2, 6, 6)] * decoder
    assert [tuple(weights.shape) for weights in outputs.cross_attentions] == [(5, 2, 6, 8)] * decoder
    assert len(outputs.encoder_hidden_states) == encoder + 1 and len(outputs.decoder_hidden_states) == decoder + 1
    for weights in outputs.cross_attentions:
        assert_close(weights.sum(-1), torch.ones(5, 2, 6), 1e-5, "encoder–decoder, weights")
        assert not weights.masked_select(~mask.bool()[:, None, None].expand_as(weights)).any()
    assert not any(weights.triu(1).any() for weights in outputs.decoder_attentions)


def check_kernels(layout, *names):
    model, mask = build(layout), make_mask("mixed")
    inputs = make_source(model) | {"attention_mask": mask, "decoder_input_ids": make_ids(5, 6, seed=2)}
    logits = {}
    with torch.no_grad():
        for name in ("eager", *names):
            model.set_attn_implementation(name)
            logits[name] = model(**inputs).logits
    for name in names:
        assert_close(logits[name], logits["eager"], 1e-5, "encoder–decoder, kernels", name)


@every_layout
def test_attention_functions_agree(layout):
    check_kernels(layout, "sdpa")


@pytest.mark.slow  # it is compiled, for half a minute
@pytest.mark.parametrize("layout", ["vaswani", "t5"])
def test_flex_attention_agrees(layout):
    check_kernels(layout, "flex_attention")


@pytest.mark.parametrize("reentrant", [pytest.param(False, marks=pytest.mark.slow), True])
@each_layout
def test_gradient_checkpointing_changes_no_gradient(layout, reentrant):
    model, mask, target = build(layout).train(), make_mask("mixed"), make_ids(5, 8, seed=2)
    inputs = make_source(model) | {"attention_mask": mask, "labels": target.masked_fill(mask == 0, -100)}
    model(**inputs, use_cache=False).loss.backward()
    expected = named_gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model(**inputs, use_cache=False).loss.backward()
    assert any(gradient.any() for gradient in expected.values())
    assert_same_gradients(named_gradients(model), expected, 1e-6, "encoder–decoder, checkpointing")


@every_layout
def test_bf16(layout):
    """A10."""
    model, mask = build(layout), make_mask("mixed")
    inputs = make_source(model) | {"attention_mask": mask, "decoder_input_ids": make_ids(5, 6, seed=2)}
    expected = model(**inputs).logits.softmax(-1)
    inputs = {name: x.bfloat16() if x.is_floating_point() else x for name, x in inputs.items()}
    logits = model.bfloat16()(**inputs).logits
    assert logits.dtype == torch.bfloat16
    assert_close(logits.float().softmax(-1), expected, 2e-2, "encoder–decoder, bf16")


@every_layout
def test_saving_and_sharing(layout, tmp_path):
    """One matrix where one was asked for; what is loaded computes the same, and fresh weights are drawn, not found."""
    model = build(layout)
    fresh = TransformerForSeq2SeqLM(model.config)
    for name, parameter in fresh.named_parameters():
        if name.endswith("relative_bias.weight") or "proj.weight" in name:
            assert 0.3 < parameter.std() / model.config.initializer_range < 3, name
    parameters = model.named_parameters(remove_duplicate=False)
    tables = {id(parameter) for name, parameter in parameters if "embed_tokens" in name}
    tied, shared = model.config.tie_word_embeddings, model.config.share_embeddings
    assert len(tables) == (1 if shared or layout == "features" else 2)
    assert (id(model.lm_head.weight) in tables) == tied
    assert model.lm_head.weight is model.get_decoder_embeddings().weight or not tied
    inputs = make_source(model) | {"decoder_input_ids": make_ids(5, 4)}
    model.save_pretrained(tmp_path)
    loaded = TransformerForSeq2SeqLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    loaded.resize_token_embeddings(30)
    assert loaded(**inputs).logits.shape[-1] == 30
    assert loaded.get_decoder_embeddings().num_embeddings == 30


@pytest.mark.parametrize("layout", ["vaswani", "features"])
def test_stock_trainer_predicts_with_generate(layout, tmp_path):
    model = build(layout)
    rows = [{"labels": [5, 6, 2]}, {"labels": [7, 2]}] * 2
    for index, row in enumerate(rows):
        length = 3 + index
        if layout == "features":
            row["input_features"] = torch.randn(4, 5).tolist()
        else:
            row |= {"input_ids": list(range(3, 3 + length)), "attention_mask": [1] * length}
    arguments = Seq2SeqTrainingArguments(
        tmp_path, predict_with_generate=True, generation_max_length=6, per_device_train_batch_size=2, max_steps=2,
        report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no", per_device_eval_batch_size=2,
    )  # fmt: skip
    trainer = Seq2SeqTrainer(
        model, arguments, train_dataset=Dataset.from_list(rows), eval_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorForSeq2Seq(PadOnly(), model) if layout != "features" else collate_features,
    )  # fmt: skip
    trainer.train()
    prediction = trainer.predict(trainer.eval_dataset)
    assert prediction.predictions.shape[0] == 4 and prediction.predictions.shape[1] > 1
    assert ((prediction.predictions >= 0) & (prediction.predictions < 23)).all()
    assert torch.isfinite(torch.tensor(prediction.metrics["test_loss"]))


class PadOnly:
    """As much of a tokenizer as the collator needs."""

    padding_side = "right"

    def pad(self, features, return_tensors="pt", **kwargs):
        longest = {name: max(len(row[name]) for row in features) for name in features[0]}
        return {
            name: torch.tensor([list(row[name]) + [0] * (longest[name] - len(row[name])) for row in features])
            for name in features[0]
        }


def collate_features(rows):
    longest = max(len(row["labels"]) for row in rows)
    labels = [row["labels"] + [-100] * (longest - len(row["labels"])) for row in rows]
    return {"input_features": torch.tensor([row["input_features"] for row in rows]), "labels": torch.tensor(labels)}


def test_labels_make_the_decoder_inputs():
    model, ids = build("vaswani"), make_ids(2, 5)
    labels = make_ids(2, 4, seed=3)
    shifted = torch.cat([torch.zeros(2, 1, dtype=torch.long), labels[:, :-1]], dim=1)
    outputs = model(ids, labels=labels)
    assert_close(outputs.logits, model(ids, decoder_input_ids=shifted).logits, 1e-6, "encoder–decoder, labels")
    expected = torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())
    assert_close(outputs.loss, expected, 1e-6, "encoder–decoder, labels")


def test_bad_input():
    model, ids = build("vaswani"), make_ids(2, 5)
    with pytest.raises(ValueError, match="needs a target beside its source: pass labels"):
        model(ids)
    with pytest.raises(ValueError, match="pass exactly one of input_ids and inputs_embeds"):
        model(decoder_input_ids=ids)
    cache = EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config))
    model(ids, decoder_input_ids=ids, past_key_values=cache, use_cache=True)
    with pytest.raises(ValueError, match="does not cover the 6 positions"):
        mask = torch.ones(2, 1)
        model(decoder_input_ids=ids[:, :1], decoder_attention_mask=mask, past_key_values=cache)
    with pytest.raises(ValueError, match="has no place for the source"):
        model(ids, decoder_input_ids=ids, past_key_values=DynamicCache(config=model.config))
    with pytest.raises(ValueError, match="beyond the 64 learned positions"):
        build("learned_pre")(make_ids(1, 65), decoder_input_ids=ids[:1])
    with pytest.raises(ValueError, match="reads features"):
        build("features")(ids, decoder_input_ids=ids)
    for options, name in (
        ({"num_decoder_layers": 0}, "num_decoder_layers"),
        ({"share_embeddings": True, "num_features": 5}, "share_embeddings"),
        ({"decoder_start_token_id": 23}, "decoder_start_token_id"),
        ({"relative_attention_num_buckets": 5}, "relative_attention_num_buckets"),
        ({"relative_attention_max_distance": 16}, "relative_attention_max_distance"),
        ({"head_dim": 3, "positions": "rotary"}, "head_dim"),
        ({"num_attention_heads": 5}, "num_attention_heads"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder"),
    ):
        with pytest.raises(ValueError, match=f"{name}=.* is not allowed: it must be"):
            TransformerConfig(**(SIZES | options))
    with pytest.raises(ValueError, match=r"^TransformerConfig has no option 'attention_pattern'"):
        TransformerConfig(**SIZES, attention_pattern="lsh")
