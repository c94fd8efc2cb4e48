"""Attention maps and gradient flow against what they are by definition."""

import pytest
import torch

from hf_seqmodels.evaluation.internals import attention_weights, carries_state, gradient_flow
from model_table import Case, build, make_ids


def test_gradient_flow_is_the_derivative_of_the_last_loss_by_each_state():
    """Against finite differences: the state is pushed along the gradient, the rest of the text is read again."""
    model = build(Case("seq_gru", "plain"), "causal-lm", torch.float64, num_hidden_layers=1)
    ids = make_ids(1, 7)
    flow = gradient_flow(model, ids)
    assert list(flow) == ["layer 1, h"] and len(flow["layer 1, h"]) == 5

    def loss(cache, rest):
        scores = model(input_ids=rest, past_key_values=cache, use_cache=True).logits[:, -1]
        return -scores.log_softmax(-1)[0, ids[0, -1]]

    for distance in (1, 3):
        read, rest = ids[:, : 6 - distance], ids[:, 6 - distance : 6]
        gradient = torch.zeros(model.config.hidden_size, dtype=torch.float64)
        for unit in range(len(gradient)):
            values = []
            for push in (1e-6, -1e-6):
                with torch.no_grad():
                    cache = model(input_ids=read, use_cache=True).past_key_values
                    cache.layers[0].states["h"][..., unit] += push
                    values.append(loss(cache, rest))
            gradient[unit] = (values[0] - values[1]) / 2e-6
        assert flow["layer 1, h"][distance - 1] == pytest.approx(gradient.norm().item(), rel=1e-5)


def test_every_layer_and_state_has_a_curve_and_the_model_is_left_as_it_was():
    model = build(Case("seq_lstm", "stacked"), "causal-lm").train()
    flow = gradient_flow(model, make_ids(3, 10))
    assert list(flow) == [f"layer {n}, {state}" for n in (1, 2, 3) for state in ("h", "c")]
    assert all(len(lengths) == 8 and all(value > 0 for value in lengths) for lengths in flow.values())
    assert model.training and all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("head", ["token-classification", "sequence-classification"])
def test_classifiers_read_every_token(head):
    flow = gradient_flow(build(Case("seq_rnn", "plain"), head), make_ids(2, 6))
    assert {len(lengths) for lengths in flow.values()} == {5}


def test_a_memory_that_grows_is_no_state():
    flow = gradient_flow(build(Case("seq_attention_rnn", "plain"), "causal-lm"), make_ids(2, 6))
    assert set(flow) <= {f"layer {n}, {state}" for n in (1, 2) for state in ("h", "c")} and flow


def test_who_carries_a_state():
    assert carries_state(build(Case("seq_lstm", "plain"), "causal-lm"))
    for case, head in (
        (Case("seq_lstm", "bidirectional"), "token-classification"),
        (Case("seq_transformer_decoder", "plain"), "causal-lm"),
        (Case("seq_transformer_decoder", "lsh"), "causal-lm"),
        (Case("seq_attention_rnn_seq2seq", "plain"), "seq2seq-lm"),
        (Case("seq_conv_lstm", "plain"), "time-series-prediction"),
        (Case("seq_gru", "plain"), "ctc"),
        (Case("seq_gru", "plain"), "backbone"),
    ):
        assert not carries_state(build(case, head)), case


def test_attention_weights_are_the_models_own():
    ids = make_ids(1, 8)
    model = build(Case("seq_transformer_decoder", "plain"), "causal-lm")
    found = attention_weights(model, ids)
    model.set_attn_implementation("eager")
    expected = model(ids, output_attentions=True).attentions
    assert [name for name, _ in found] == ["layer 1", "layer 2"]
    for (_, matrix), weights in zip(found, expected, strict=True):
        assert torch.equal(matrix, weights[0].mean(0)) and torch.allclose(matrix.sum(-1), torch.ones(8))
        assert (matrix.triu(1) == 0).all(), "nobody looks ahead"
    assert attention_weights(build(Case("seq_lstm", "plain"), "causal-lm"), ids) == []
    ((name, cross),) = attention_weights(
        build(Case("seq_attention_rnn_seq2seq", "dot"), "seq2seq-lm"), ids, decoder_input_ids=ids[:, :5]
    )
    assert name == "cross-attention" and cross.shape == (5, 8)
