"""A18, A20: nothing to read is defined or refused, never NaN; ids and positions out of range are named."""

import pytest
import torch

from hf_seqmodels.models import ARCHITECTURES
from model_table import (
    FEATURE_HEADS,
    FEATURES,
    SEQUENCE_HEADS,
    SIZES,
    Case,
    assert_close,
    build,
    build_config,
    each_case,
    each_case_and_plain_head,
    each_causal_case,
    each_token_case,
    make_ids,
    make_inputs,
    make_labels,
    make_masks,
    output_of,
    poisonable,
)

on_cpu = pytest.mark.skipif(
    "os.environ.get('HF_SEQMODELS_TEST_DEVICE', 'cpu') != 'cpu'", reason="looked at on the CPU"
)


def assert_finite_gradients(model: torch.nn.Module) -> None:
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


@each_case_and_plain_head
def test_row_of_padding_only(case, head):
    """Length 0 among others: finite everywhere, and the other rows do not notice."""
    model, inputs = build(case, head), make_inputs(case, head, 3, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 1, 1, 0, 0]])
    output = output_of(model(**inputs, **make_masks(inputs, mask)))
    assert torch.isfinite(output).all()
    two = {name: value[[0, 2]] for name, value in inputs.items()}
    others = output_of(model(**two, **make_masks(two, mask[[0, 2]])))
    keep = ... if head in SEQUENCE_HEADS else mask[[0, 2]].bool()
    assert_close(output[[0, 2]][keep], others[keep], 1e-5, "A18 padding row")
    output[mask.bool() if head == "question-answering" else ...].square().sum().backward()
    assert_finite_gradients(model)


@pytest.mark.parametrize("length", [1, 4])
@each_case_and_plain_head
def test_batch_of_padding_only(case, head, length):
    """No token in the whole batch: finite outputs, loss and gradients."""
    model, inputs = build(case, head), make_inputs(case, head, 2, length)
    mask = torch.zeros(2, length, dtype=torch.long)
    labels = make_labels(case, head, mask)
    outputs = model(**inputs, **make_masks(inputs, mask), **labels)
    assert torch.isfinite(output_of(outputs)).all()
    loss = 0.0 if head == "question-answering" else output_of(outputs).square().sum()
    if labels:
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
@each_case_and_plain_head
def test_no_tokens_at_all(case, head, shape):
    model, inputs = build(case, head), make_inputs(case, head, 2, 4)
    empty = {name: value[: shape[0], : shape[1]] for name, value in inputs.items()}
    for given in (empty, poisonable(model, empty)):
        with pytest.raises(ValueError, match=r"holds no (tokens|frames): pass at least one row"):
            model(**given)
        with pytest.raises(ValueError, match=r"holds no (tokens|frames)"):
            model(**given, attention_mask=torch.zeros(shape, dtype=torch.long))


@on_cpu
@pytest.mark.parametrize("wrong", [SIZES["vocab_size"], -1, 10**6])
@each_token_case
def test_token_id_out_of_range(case, wrong):
    ids = make_ids(2, 4)
    ids[1, 2] = wrong
    for head in set(case.heads) - set(FEATURE_HEADS):
        with pytest.raises(ValueError, match=f"token id {wrong} is outside the vocabulary of {SIZES['vocab_size']}"):
            build(case, head)(ids)


@each_token_case
def test_inputs_and_mask_that_do_not_fit(case):
    model, ids = build(case), make_ids(2, 4)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(ids, inputs_embeds=model.get_input_embeddings()(ids))
    with pytest.raises(ValueError, match="does not fit 4 positions"):
        model(ids, attention_mask=torch.ones(2, 3))
    width = model.get_input_embeddings().embedding_dim
    for inputs in ({"input_ids": ids[0]}, {"input_ids": ids[None]}, {"inputs_embeds": torch.zeros(2, width)}):
        with pytest.raises(ValueError, match=r"does not fit this model: pass \(batch, positions"):
            model(**inputs)
    for wrong in (width - 1, width + 90):  # torch's LSTM on the CPU takes any width and computes something
        with pytest.raises(ValueError, match=rf"does not fit this model: pass \(batch, positions, {width}\)"):
            model(inputs_embeds=torch.zeros(2, 3, wrong))


@each_token_case
def test_features_that_do_not_fit(case):
    """Each kind of model names the input that it reads, and a NaN width is no width."""
    model, ids, features = build(case, "audio-classification"), make_ids(2, 4), torch.randn(2, 4, FEATURES)
    assert model.main_input_name == "input_features"
    for given in ({"input_ids": ids}, {"inputs_embeds": features}, {"input_ids": ids, "input_features": features}, {}):
        with pytest.raises(ValueError, match=rf"num_features={FEATURES}\): pass input_features \(batch, positions"):
            model(**given)
    with pytest.raises(ValueError, match=rf"does not fit this model: pass \(batch, positions, {FEATURES}\)"):
        model(input_features=features[..., 1:])
    with pytest.raises(ValueError, match="this model reads tokens: pass input_ids or inputs_embeds"):
        build(case)(input_features=features)
    for head in {"ctc", "audio-classification"} & set(case.heads):
        with pytest.raises(ValueError, match="reads features: set num_features"):
            build(case, head, num_features=None)
    for head in {"causal-lm", "masked-lm"} & set(case.heads):
        with pytest.raises(ValueError, match="a language model reads tokens"):
            build(case, head, num_features=FEATURES, **({"embedding_size": FEATURES} if case.recurrent else {}))


@each_causal_case
def test_state_of_another_batch(case):
    """torch's LSTM would go on with the first rows of the state."""
    model, ids = build(case), make_ids(3, 4)
    for length in (1, 4):
        cache = model(ids, use_cache=True).past_key_values
        error = (ValueError, "state of 3 rows and the input has 2") if case.recurrent else (RuntimeError, "Sizes of")
        with pytest.raises(error[0], match=error[1]):
            model(ids[:2, :length], past_key_values=cache)


@each_causal_case
def test_state_under_gradient_checkpointing(case):
    """transformers' layers would leave the state out, with a warning, and generate() would read single tokens."""
    model, ids = build(case, "causal-lm"), make_ids(2, 4)
    cache = model(ids, use_cache=True).past_key_values
    model.gradient_checkpointing_enable()
    model.train()
    with pytest.raises(ValueError, match=r"gradient checkpointing .* cannot carry past_key_values"):
        model(ids, past_key_values=cache)
    with pytest.raises(ValueError, match=r"call model.eval\(\) to generate"):
        model.generate(ids, max_new_tokens=2)
    assert model(ids, labels=ids, use_cache=True).past_key_values is None
    model.eval()
    assert model(ids, past_key_values=cache, use_cache=True).past_key_values.get_seq_length() == 8


def test_mask_of_the_new_tokens_alone():
    """A recurrent state needs no more; attention would take the cached tokens' columns for padding."""
    for case in (Case("seq_lstm", "plain"), Case("seq_transformer_decoder", "plain")):
        model, ids = build(case), make_ids(2, 4)
        cache = model(ids, use_cache=True).past_key_values
        if case.recurrent:
            model(ids, attention_mask=torch.ones_like(ids), past_key_values=cache)
            continue
        with pytest.raises(ValueError, match="does not cover the 8 positions of the cached and the new tokens"):
            model(ids, attention_mask=torch.ones_like(ids), past_key_values=cache)


@each_case
def test_configuration_of_another_architecture(case):
    other = Case("seq_gru" if case.architecture != "seq_gru" else "seq_attention_rnn", "plain")
    for head in case.heads:
        cls = ARCHITECTURES[case.architecture].models[head]
        with pytest.raises(ValueError, match=f"model_type '{case.architecture}', not '{other.architecture}'"):
            cls(build_config(other, head))


@pytest.mark.parametrize("wrong", [-1, SIZES["vocab_size"]])
@each_case
def test_padding_token_outside_the_vocabulary(case, wrong):
    """torch takes −1 for the last token, which would then never be learned."""
    with pytest.raises(ValueError, match=f"pad_token_id={wrong} is not allowed: it must be None or a token id, 0 to"):
        build_config(case, pad_token_id=wrong)


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


@each_causal_case
def test_a_mask_of_another_width_is_refused(case):
    """Its last columns would silently be taken for the tokens."""
    model = build(case)
    ids = make_ids(3, 7)
    with pytest.raises(ValueError, match="12 columns for 7 tokens after 0 cached ones: give it 7"):
        model(ids, attention_mask=torch.ones(3, 12, dtype=torch.long))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_table_of_tokens_to_resize(architecture):
    heads = [head for head in (*FEATURE_HEADS, "time-series-prediction") if head in ARCHITECTURES[architecture].models]
    if not heads:
        pytest.skip("its decoder reads tokens")
    with pytest.raises(NotImplementedError, match="reads features: there is no table of tokens to resize"):
        build(Case(architecture, "plain"), heads[0]).resize_token_embeddings(30)
