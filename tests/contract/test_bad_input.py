"""A18, A20: nothing to read is defined or refused, never NaN; ids and positions out of range are named."""

import pytest
import torch

from model_table import (
    SIZES,
    Case,
    assert_close,
    build,
    each_case,
    each_case_and_head,
    each_causal_case,
    make_ids,
    output_of,
)

on_cpu = pytest.mark.skipif(
    "os.environ.get('HF_SEQMODELS_TEST_DEVICE', 'cpu') != 'cpu'", reason="looked at on the CPU"
)


def assert_finite_gradients(model: torch.nn.Module) -> None:
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


def make_labels(head: str, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    if head == "sequence-classification":
        return torch.arange(len(ids)) % SIZES["num_labels"]
    if head == "token-classification":
        return torch.where(mask.bool(), ids % SIZES["num_labels"], -100)
    return torch.where(mask.bool(), ids, -100)


@each_case_and_head
def test_row_of_padding_only(case, head):
    """Length 0 among others: finite everywhere, and the other rows do not notice."""
    model, ids = build(case, head), make_ids(3, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 1, 1, 0, 0]])
    output = output_of(model(ids, attention_mask=mask))
    assert torch.isfinite(output).all()
    others = output_of(model(ids[[0, 2]], attention_mask=mask[[0, 2]]))
    keep = ... if head == "sequence-classification" else mask[[0, 2]].bool()
    assert_close(output[[0, 2]][keep], others[keep], 1e-5, "A18 padding row")
    output.square().sum().backward()
    assert_finite_gradients(model)


@pytest.mark.parametrize("length", [1, 4])
@each_case_and_head
def test_batch_of_padding_only(case, head, length):
    """No token in the whole batch: finite outputs, loss and gradients."""
    model, ids = build(case, head), make_ids(2, length)
    mask = torch.zeros_like(ids)
    labels = None if head == "backbone" else make_labels(head, ids, mask)
    outputs = model(ids, attention_mask=mask, **({} if labels is None else {"labels": labels}))
    assert torch.isfinite(output_of(outputs)).all()
    loss = output_of(outputs).square().sum()
    if labels is not None:
        assert torch.isfinite(outputs.loss)
        loss = loss + outputs.loss
    loss.backward()
    assert_finite_gradients(model)


@pytest.mark.parametrize("length", [1, 4])
@each_causal_case
def test_no_target(case, length):
    """A row of one token has nothing to predict: the mean over no targets is 0, not 0/0."""
    model, ids = build(case, "causal-lm"), make_ids(2, length)
    loss = model(ids, labels=torch.full_like(ids, -100) if length > 1 else ids).loss
    assert loss == 0
    loss.backward()
    assert_finite_gradients(model)


@each_causal_case
def test_state_through_padding_only(case):
    """Reading nothing but padding leaves the state alone: what follows is what follows without it."""
    model, ids, more = build(case), make_ids(2, 4), make_ids(2, 3, seed=2)
    cache = model(ids, use_cache=True).past_key_values
    expected = model(more, past_key_values=cache, use_cache=True).last_hidden_state
    for padding in (1, 3):
        cache = model(ids, use_cache=True).past_key_values
        mask = torch.cat([torch.ones_like(ids), torch.zeros(2, padding, dtype=torch.long)], dim=1)
        cache = model(ids[:, :padding], attention_mask=mask, past_key_values=cache, use_cache=True).past_key_values
        mask = torch.cat([mask, torch.ones_like(more)], dim=1)
        after = model(more, attention_mask=mask, past_key_values=cache, use_cache=True).last_hidden_state
        assert_close(after, expected, 1e-5, "A18 state")


@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (0, 0)])
@each_case_and_head
def test_no_tokens_at_all(case, head, shape):
    model = build(case, head)
    width = model.get_input_embeddings().embedding_dim
    for inputs in ({"input_ids": torch.zeros(shape, dtype=torch.long)}, {"inputs_embeds": torch.zeros(*shape, width)}):
        with pytest.raises(ValueError, match="holds no tokens: pass at least one row and one token"):
            model(**inputs)
        with pytest.raises(ValueError, match="holds no tokens"):
            model(**inputs, attention_mask=torch.zeros(shape, dtype=torch.long))


@on_cpu
@pytest.mark.parametrize("wrong", [SIZES["vocab_size"], -1, 10**6])
@each_case
def test_token_id_out_of_range(case, wrong):
    ids = make_ids(2, 4)
    ids[1, 2] = wrong
    for head in case.heads:
        with pytest.raises(ValueError, match=f"token id {wrong} is outside the vocabulary of {SIZES['vocab_size']}"):
            build(case, head)(ids)


@each_case
def test_inputs_and_mask_that_do_not_fit(case):
    model, ids = build(case), make_ids(2, 4)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(ids, inputs_embeds=model.get_input_embeddings()(ids))
    with pytest.raises(ValueError, match="does not fit 4 positions"):
        model(ids, attention_mask=torch.ones(2, 3))


def test_sequence_beyond_the_learned_table():
    model = build(Case("seq_transformer_decoder", "plain"), "causal-lm", max_position_embeddings=6)
    model(make_ids(1, 6))
    with pytest.raises(ValueError, match="a sequence of 7 tokens is beyond the 6 learned positions"):
        model(make_ids(1, 7))


@on_cpu
def test_generation_beyond_the_learned_table():
    model = build(Case("seq_transformer_decoder", "plain"), "causal-lm", max_position_embeddings=6)
    with pytest.raises(ValueError, match="a sequence of 7 tokens is beyond the 6 learned positions"):
        model.generate(make_ids(1, 4), max_new_tokens=5, do_sample=False)


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
def test_other_positions_have_no_limit(positions):
    model = build(Case("seq_transformer_decoder", "plain"), max_position_embeddings=6, positions=positions)
    assert torch.isfinite(model(make_ids(1, 50)).last_hidden_state).all()


@pytest.mark.parametrize(
    "case", [Case(name, "bidirectional") for name in ("seq_rnn", "seq_lstm", "seq_gru", "seq_attention_rnn")], ids=str
)
def test_bidirectional_has_no_causal_head_and_no_state(case):
    with pytest.raises(ValueError, match="bidirectional=True sees the token it should predict"):
        build(case, "causal-lm")
    with pytest.raises(ValueError, match="bidirectional=True has no state to continue from"):
        build(case)(make_ids(1, 3), use_cache=True)
