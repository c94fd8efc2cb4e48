"""What the Transformer encoder promises beyond the table: it sees both sides; token types, pooling, positions."""

from __future__ import annotations

import pytest
import torch

from hf_seqmodels.models.configuration_transformer_encoder import TransformerEncoderConfig
from hf_seqmodels.models.modeling_transformer_encoder import (
    TransformerEncoderForMaskedLM,
    TransformerEncoderForQuestionAnswering,
    TransformerEncoderForSequenceClassification,
    TransformerEncoderForTokenClassification,
    TransformerEncoderModel,
)
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
SIZES |= {"intermediate_size": 20, "max_position_embeddings": 64, "num_labels": 3}
# Few buckets, so that eight tokens reach the logarithmic ones and the last.
RELATIVE = {"positions": "relative", "relative_attention_num_buckets": 8, "relative_attention_max_distance": 5}
LAYOUTS = {
    "bert": {"tie_word_embeddings": True, "lm_head_bias": True},
    "relative": RELATIVE | {"norm": "rmsnorm", "norm_position": "pre", "use_bias": False, "pooling": "mean"},
    "rotary": {"positions": "rotary", "hidden_act": "geglu", "pooling": "attention", "lm_head_transform": False},
    "sinusoidal": {"positions": "sinusoidal", "embedding_norm": False, "type_vocab_size": 0, "final_norm": True},
    "none": {"positions": "none", "norm_position": "pre", "final_norm": False, "hidden_act": "gelu_new"},
}
HEADS = [
    TransformerEncoderForMaskedLM,
    TransformerEncoderForSequenceClassification,
    TransformerEncoderForTokenClassification,
    TransformerEncoderForQuestionAnswering,
]
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_attention = pytest.mark.parametrize("attention", ["eager", "sdpa"])


def build(layout, model_class=TransformerEncoderModel, dtype=torch.float32, **options):
    torch.manual_seed(0)
    model = model_class(TransformerEncoderConfig(**(SIZES | LAYOUTS[layout] | options))).to(dtype).eval()
    perturb(model)
    return model


def make_types(model, mask):
    """Second text from each row's middle token on; None for a model without token types."""
    return (mask.cumsum(1) > mask.sum(1, keepdim=True) / 2).long() if model.config.type_vocab_size else None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@each_attention
@each_layout
def test_row_in_batch_equals_row_alone(layout, attention, dtype):
    """A1, A4 with token types: values and gradients."""
    model, ids, mask = build(layout, dtype=dtype, attn_implementation=attention), make_ids(5, 8), make_mask("mixed")
    types = make_types(model, mask)
    together = model(ids, attention_mask=mask, token_type_ids=types).last_hidden_state
    probe = torch.randn(together.shape).to(dtype)
    (together * probe)[mask.bool()].sum().backward()
    gradients = named_gradients(model)
    for i, tokens in enumerate(mask.bool()):
        row_types = None if types is None else types[i][tokens][None]
        alone = model(ids[i][tokens][None], token_type_ids=row_types).last_hidden_state[0]
        (alone * probe[i][tokens]).sum().backward()
        assert_close(together[i][tokens], alone, TOLERANCE[dtype], "encoder, padding", f"row {i}")
    assert_same_gradients(gradients, named_gradients(model), TOLERANCE[dtype], "encoder, padding")


@each_attention
@each_layout
def test_every_token_sees_every_token(layout, attention):
    """The gradient of one output reaches all tokens, on both sides, and no padding."""
    model, mask = build(layout, attn_implementation=attention), make_mask("mixed")
    embeddings = torch.randn(5, 8, 12, requires_grad=True)
    output = model(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
    first = mask.argmax(1)
    probe = torch.randn(5, 12)  # a plain sum would be constant after a norm
    (output[torch.arange(5), first] * probe).sum().backward()
    assert torch.equal(embeddings.grad.abs().sum(-1) > 0, mask.bool())


@each_attention
@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_a_row_of_padding_is_finite(head, attention):
    for layout in LAYOUTS:
        model, mask = build(layout, head, attn_implementation=attention), torch.ones(3, 6, dtype=torch.long)
        mask[1] = 0
        outputs = model(make_ids(3, 6), attention_mask=mask)
        for value in outputs.values():
            assert torch.isfinite(value).all()
            value.clamp(min=-1e6).square().sum().backward(retain_graph=True)
        assert all(torch.isfinite(gradient).all() for gradient in named_gradients(model).values())


@each_layout
def test_kernels_agree(layout):
    model, ids, mask = build(layout), make_ids(5, 8), make_mask("mixed")
    outputs = []
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        output = model(ids, attention_mask=mask).last_hidden_state[mask.bool()]
        output.square().sum().backward()
        outputs.append((output, named_gradients(model)))
    assert_close(outputs[0][0], outputs[1][0], 1e-5, "encoder, kernels")
    assert_same_gradients(outputs[0][1], outputs[1][1], 1e-5, "encoder, kernels")


def test_flash_attention_is_for_models_that_it_can_compute():
    """It has no place for the numbers of relative positions and would leave them out."""
    for layout in LAYOUTS:
        model = build(layout, TransformerEncoderForMaskedLM)
        for part in (model, model.model):
            assert part._supports_flash_attn == (layout != "relative")
            assert part._supports_flex_attn and part._supports_sdpa
    with pytest.raises(ValueError, match="does not support Flash Attention 2"):
        build("relative", attn_implementation="flash_attention_2")
    with pytest.raises(ValueError, match="does not support Flash Attention 2"):
        build("relative").set_attn_implementation("flash_attention_2")


def test_token_types():
    model, ids = build("bert"), make_ids(2, 6)
    zeros, ones = torch.zeros_like(ids), torch.ones_like(ids)
    assert torch.equal(model(ids).last_hidden_state, model(ids, token_type_ids=zeros).last_hidden_state)
    difference = model(ids, token_type_ids=ones).last_hidden_state - model(ids).last_hidden_state
    assert difference.abs().max() > 0.1
    with pytest.raises(ValueError, match=r"token type 2 is outside the 2 of this model \(0 to 1\)"):
        model(ids, token_type_ids=ones * 2)
    for wrong in (ones[:, :4], ones[:1], ones[0], ones[:, None]):
        with pytest.raises(
            ValueError, match=r"^token_type_ids of shape \(.*\) does not fit .* pass \(2, 6\), \(batch"
        ):
            model(ids, token_type_ids=wrong)
    without = build("sinusoidal")
    assert torch.equal(without(ids).last_hidden_state, without(ids, token_type_ids=ones).last_hidden_state)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_heads_hand_token_types_on(head):
    """Trainer gives a model the columns that its `forward` names, so they are named."""
    model, ids = build("bert", head), make_ids(2, 6)
    plain, typed = (next(iter(model(ids, token_type_ids=types).values())) for types in (None, torch.ones_like(ids)))
    assert not torch.allclose(plain, typed, atol=1e-3)
    assert "token_type_ids" in type(model).forward.__wrapped__.__code__.co_varnames


@pytest.mark.parametrize("padding", ["none", "mixed"])
@pytest.mark.parametrize("pooling", ["first", "mean", "attention"])
def test_pooling(pooling, padding):
    """Each against its definition, on one row after the other."""
    model = build("bert", TransformerEncoderForSequenceClassification, pooling=pooling)
    ids, mask = make_ids(5, 8), make_mask(padding)
    outputs = model(ids, attention_mask=mask, output_attentions=True)
    for i, tokens in enumerate(mask.bool()):
        hidden = model.model(ids[i][tokens][None]).last_hidden_state[0]
        if pooling == "first":
            pooled = torch.tanh(model.pooler.weight @ hidden[0] + model.pooler.bias)
        elif pooling == "mean":
            pooled = sum(hidden) / len(hidden)
        else:
            weights = torch.softmax(torch.tanh(hidden) @ model.pooler.weight, 0)
            pooled = torch.tanh(sum(weight * state for weight, state in zip(weights, hidden, strict=True)))
            assert_close(outputs.pooling_attentions[i][tokens], weights, 1e-5, "encoder, pooling")
            assert not outputs.pooling_attentions[i][~tokens].any()
        expected = model.score.weight @ pooled + model.score.bias
        assert_close(outputs.logits[i], expected, 1e-5, "encoder, pooling", f"row {i}")


@each_layout
def test_gradient_checkpointing_bf16_and_reload(layout, tmp_path):
    model, ids, mask = build(layout, TransformerEncoderForMaskedLM), make_ids(5, 8), make_mask("mixed")
    labels = ids.masked_fill(mask == 0, -100)
    outputs = model.train()(ids, attention_mask=mask, labels=labels)
    outputs.loss.backward()
    expected = named_gradients(model)
    for reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model(ids, attention_mask=mask, labels=labels).loss.backward()
        assert_same_gradients(named_gradients(model), expected, 1e-6, "encoder, checkpointing")
    model.gradient_checkpointing_disable()
    model.eval().save_pretrained(tmp_path)
    loaded = TransformerEncoderForMaskedLM.from_pretrained(tmp_path)
    logits = loaded(ids, attention_mask=mask).logits
    assert torch.equal(logits, model(ids, attention_mask=mask).logits)
    half = model.bfloat16()(ids, attention_mask=mask).logits[mask.bool()]
    assert_close(half.float().softmax(-1), logits[mask.bool()].softmax(-1), 2e-2, "encoder, bf16")


def test_initial_weights_are_drawn():
    config = TransformerEncoderConfig(**(SIZES | RELATIVE | {"pooling": "attention", "hidden_size": 48}))
    model = TransformerEncoderForSequenceClassification(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 or name.startswith("pooler"):
            assert 0.5 < parameter.std() / config.initializer_range < 1.6, name
    assert not TransformerEncoderForMaskedLM(config).transform.dense.bias.any()


def test_refused():
    model, ids = build("bert"), make_ids(2, 5)
    with pytest.raises(ValueError, match="has nothing to continue from: leave out past_key_values and use_cache"):
        model(ids, use_cache=True)
    with pytest.raises(ValueError, match="beyond the 64 learned positions"):
        model(make_ids(1, 65))
    for options, name in (
        ({"pooling": "last"}, "pooling"),
        ({"type_vocab_size": -1}, "type_vocab_size"),
        ({"type_vocab_size": 2, "num_features": 4}, "type_vocab_size"),
        ({"hidden_act": "silu"}, "hidden_act"),
    ):
        with pytest.raises(ValueError, match=f"{name}=.* is not allowed: it must be"):
            TransformerEncoderConfig(**options)
