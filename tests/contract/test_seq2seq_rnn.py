"""The recurrent encoder–decoder: rows, padding, chunks, twins, derivatives, precision, checkpointing, alignment."""

import pytest
import torch
from test_gradcheck import check, draw
from transformers import DynamicCache

from hf_seqmodels.models.shared_recurrence import find_valid_steps
from model_table import TOLERANCE, assert_close, assert_same_gradients, make_ids, named_gradients
from seq2seq_cases import SOURCE_MASK, TARGET_MASK, build_system, each_system, make_batch

SOURCE, TARGET = SOURCE_MASK.bool(), TARGET_MASK.bool()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@each_system
def test_row_in_batch_equals_row_alone(system, dtype):
    """A1, A2, A4: outputs and gradients, padding of every kind on both sides."""
    model, batch, tolerance = build_system(system, dtype), make_batch(), TOLERANCE[dtype]
    together = model(**batch).logits
    probe = torch.randn_like(together)
    (together * probe)[TARGET].sum().backward()
    gradients = named_gradients(model)
    for i in range(len(SOURCE)):
        source, target = batch["input_ids"][i][SOURCE[i]], batch["decoder_input_ids"][i][TARGET[i]]
        alone = model(source[None], decoder_input_ids=target[None]).logits[0]
        (alone * probe[i][TARGET[i]]).sum().backward()
        assert_close(together[i][TARGET[i]], alone, tolerance, "A2 seq2seq", f"row {i}")
    assert_same_gradients(gradients, named_gradients(model), tolerance, "A2 seq2seq")


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@each_system
def test_nothing_under_padding_leaks(system, poison):
    """A19, bit-exact, for the padding of the source and of the target."""
    model, results = build_system(system), []
    source, target = torch.randn(5, 8, 5), torch.randn(5, 7, 5)
    masks = {"attention_mask": SOURCE_MASK, "decoder_attention_mask": TARGET_MASK}
    for filling in (0.0, poison):
        embeddings = {
            "inputs_embeds": torch.where(SOURCE[..., None], source, filling).requires_grad_(),
            "decoder_inputs_embeds": torch.where(TARGET[..., None], target, filling).requires_grad_(),
        }
        logits = model(**embeddings, **masks).logits[TARGET]
        logits.square().sum().backward()
        inputs = {name: value.grad for name, value in embeddings.items()}
        results.append({"logits": logits.detach()} | inputs | named_gradients(model))
    for name, expected in results[0].items():
        assert torch.isfinite(expected).all(), name
        assert torch.equal(results[1][name], expected), name
    assert not results[1]["inputs_embeds"][~SOURCE].any()
    assert not results[1]["decoder_inputs_embeds"][~TARGET].any()


@each_system
def test_rows_of_padding_only_are_finite(system):
    """A18: a source without tokens, a target without tokens, both."""
    model, batch = build_system(system), make_batch()
    batch["attention_mask"] = SOURCE_MASK * torch.tensor([0, 1, 0, 1, 1])[:, None]
    batch["decoder_attention_mask"] = TARGET_MASK * torch.tensor([1, 0, 0, 1, 1])[:, None]
    logits = model(**batch, output_attentions=True).logits
    logits.sum().backward()
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(gradient).all() for gradient in named_gradients(model).values())
    assert_close(logits[3:][TARGET[3:]], model(**make_batch()).logits[3:][TARGET[3:]], 1e-5, "A2 seq2seq")


@each_system
def test_chunks_with_the_state_equal_the_whole(system):
    """A5: the target in pieces of 3, 1 and 3 tokens; after the first the source is known to the cache."""
    model, batch = build_system(system), make_batch()
    whole = model(**batch).logits
    cache, pieces, source = None, [], {"input_ids": batch["input_ids"], "attention_mask": SOURCE_MASK}
    for start, end in ((0, 3), (3, 4), (4, 7)):
        outputs = model(
            **source,
            decoder_input_ids=batch["decoder_input_ids"][:, start:end],
            decoder_attention_mask=TARGET_MASK[:, :end],
            past_key_values=cache,
            use_cache=True,
        )
        cache, source = outputs.past_key_values, {}
        pieces.append(outputs.logits)
        assert cache.get_seq_length() == end
    assert_close(torch.cat(pieces, dim=1)[TARGET], whole[TARGET], 1e-5, "A5 seq2seq")


def run_decoder(decoder, run, steps) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """All results of `run` and the gradients of a fixed linear function of them in the inputs and parameters."""
    torch.manual_seed(3)
    dtype = decoder.layers[0].rnn.weight_hh.dtype
    x = torch.randn(5, 7, 5, dtype=dtype, requires_grad=True)
    values = torch.randn(5, 8, decoder.config.source_size, dtype=dtype, requires_grad=True)
    states = [
        tuple(torch.randn(1, 5, 6, dtype=dtype, requires_grad=True) for _ in layer.rnn.state_names)
        for layer in decoder.layers
    ]
    source = decoder.attention.prepare(values, SOURCE) if decoder.attention is not None else None
    output, hidden, weights, final, _ = run(x, steps, states, None, source, [{}] * len(states))
    results = [output, *hidden, *([weights] if weights is not None else []), *(s for layer in final for s in layer)]
    if steps is not None:  # under padding the weights are nobody's
        results = [torch.where(TARGET[..., None], r, 0.0) if r.shape[:2] == TARGET.shape else r for r in results]
    loss = sum((result * torch.randn(result.shape, dtype=dtype)).sum() for result in results)
    inputs = [x, values, *(s for layer in states for s in layer), *decoder.parameters()]
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    return results, [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, gradients, strict=True)]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("system", ["plain", "dot", "general", "none", "peephole", "deep_decoder"])
def test_all_steps_at_once_equal_step_by_step(system, dtype, padded):
    """The slow twin of the decoder without input feeding: values and gradients."""
    decoder = build_system(system, dtype).model.decoder
    steps = find_valid_steps(TARGET) if padded else None
    together = run_decoder(decoder, decoder.run_together, steps)
    by_steps = run_decoder(decoder, decoder.run_steps, steps)
    for fast, slow in zip(together, by_steps, strict=True):
        for actual, expected in zip(fast, slow, strict=True):
            assert_close(actual, expected, TOLERANCE[dtype], "slow twin seq2seq")


SCORES = [
    *((score, feeding) for score in ("additive", "dot", "general") for feeding in (False, True)),
    ("none", False),
]


@pytest.mark.parametrize(("score", "feeding"), SCORES)
def test_gradcheck_of_the_decoder(score, feeding):
    """A9: every score with and without input feeding, padding on both sides."""
    options = {"score": score, "input_feeding": feeding, "cell": "gru", "num_hidden_layers": 1, "hidden_size": 3}
    model = build_system("plain", torch.float64, embedding_size=2, share_embeddings=True, **options).model
    valid, source_mask = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1]]).bool(), torch.tensor([[1, 1, 1], [0, 1, 1]])
    steps = find_valid_steps(valid)

    def compute(x, values, state):
        decoder = model.decoder
        source = decoder.attention.prepare(values, source_mask.bool()) if decoder.attention is not None else None
        fed = x.new_zeros(2, 1, 3) if decoder.feeds_output else None
        run = decoder.run_steps if feeding else decoder.run_together
        output, _, _, states, _ = run(x, steps, [(state,)], fed, source, [{}])
        return output, states[0][0]

    check(model.decoder, compute, draw(2, 4, 2), draw(2, 3, 3), draw(1, 2, 3))


@each_system
def test_bf16_is_close_to_fp32(system):
    half = build_system(system, torch.bfloat16, noise=0.1)
    full = build_system(system)
    full.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
    actual, expected = (model(**make_batch()).logits[TARGET] for model in (half, full))
    assert actual.dtype == torch.bfloat16
    assert_close(actual, expected, TOLERANCE[torch.bfloat16], "A10 seq2seq")


@each_system
def test_autocast_trains_and_continues(system):
    model, ids, target = build_system(system), make_ids(2, 6), make_ids(2, 5, seed=2)
    expected = model(ids, decoder_input_ids=target).logits
    with torch.autocast(ids.device.type, dtype=torch.bfloat16):
        outputs = model(ids, decoder_input_ids=target, labels=target)
        first = model(ids, decoder_input_ids=target[:, :3], use_cache=True)
        then = model(decoder_input_ids=target[:, 3:], past_key_values=first.past_key_values, use_cache=True).logits
    outputs.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert_close(outputs.logits.float(), expected, 5e-2, "autocast seq2seq")
    assert_close(then.float(), expected[:, 3:], 5e-2, "autocast seq2seq")


@each_system
def test_gradient_checkpointing_changes_no_gradient(system):
    model, results = build_system(system).train(), []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**make_batch()).logits[TARGET].square().sum().backward()
        results.append(named_gradients(model))
    assert_same_gradients(results[1], results[0], 1e-5, "checkpointing seq2seq")
    cache = build_system(system)(**make_batch(), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="gradient checkpointing runs every layer twice"):
        model(decoder_input_ids=make_ids(5, 1), past_key_values=cache)


@each_system
def test_alignment(system):
    """`output_attentions`: (B, T, S), a distribution over each source's tokens for each token of the target."""
    model = build_system(system)
    outputs = model(**make_batch(), output_attentions=True, output_hidden_states=True)
    depth = model.config.num_decoder_layers
    assert [tuple(states.shape) for states in outputs.decoder_hidden_states] == [(5, 7, 5)] + [(5, 7, 6)] * depth
    assert len(outputs.encoder_hidden_states) == model.config.num_hidden_layers + 1
    if model.config.score == "none":
        assert outputs.cross_attentions is None
        return
    (weights,) = outputs.cross_attentions
    assert weights.shape == (5, 7, 8)
    assert_close(weights.sum(-1), torch.ones(5, 7), 1e-6, "alignment")
    assert not weights.transpose(1, 2)[~SOURCE].any()
    assert model(**make_batch()).cross_attentions is None


def test_alignment_follows_the_source():
    """A decoder whose state equals one of the source's hidden states attends to that place."""
    attention = build_system("dot").model.decoder.attention
    values = 20 * torch.eye(6)[None]
    _, weights = attention(torch.eye(6)[None, [4, 1]], *attention.prepare(values, None))
    assert weights.argmax(-1).tolist() == [[4, 1]]


def test_stacked_decoder_asks_with_its_top_layer():
    """Bahdanau's s_{t−1} in a stack: the first token's weights depend on the top layer's initial state alone."""
    decoder = build_system("additive_rnn").model.decoder
    source, x = decoder.attention.prepare(torch.randn(1, 4, 6), None), torch.randn(1, 1, 5)
    low, top, other = torch.randn(3, 1, 1, 6).unbind(0)
    first, same, different = (
        decoder.run_steps(x, None, [(below,), (above,)], None, source, [{}, {}])[2]
        for below, above in ((low, top), (other, top), (low, other))
    )
    assert torch.equal(first, same)
    assert not torch.allclose(first, different)


# -- initial values and the bridge ------------------------------------------------------------------------------------
def test_bridge():
    """One direction: the encoder's states as they are, the top layers aligned. Two: tanh of a linear layer each."""
    batch = make_batch()
    source = {name: batch[name] for name in ("input_ids", "attention_mask")}
    for system, sources in (("plain", [0, 1]), ("deep_encoder", [1, 2])):
        model = build_system(system).model
        encoded = model.encoder(**source)
        for states, layer in zip(model.decoder.bridge(encoded.final_states), sources, strict=True):
            assert torch.equal(torch.stack(states)[:, 0], encoded.final_states[:, layer].transpose(0, 1))
    model = build_system("deep_decoder").model
    assert model.decoder.bridge.sources == [0, 0, 0]
    encoded = model.encoder(**source)
    ends = torch.where(SOURCE, torch.arange(8), -1).amax(1), torch.where(SOURCE, torch.arange(8), 8).amin(1)
    rows = torch.arange(5)  # →h after the last token and ←h after the first
    h = torch.cat([encoded.last_hidden_state[rows, ends[0], :6], encoded.last_hidden_state[rows, ends[1], 6:]], dim=1)
    assert_close(encoded.final_states[:, 0, 0], h, 1e-6, "bridge")
    for index, states in enumerate(model.decoder.bridge(encoded.final_states)):
        linear = model.decoder.bridge.layers[index]["h"]
        assert_close(states[0][0], torch.tanh(h @ linear.weight.T + linear.bias), 1e-6, "bridge")


def test_initial_values():
    model = build_system("plain", noise=0.0, hidden_size=64, embedding_size=64, vocab_size=500).model
    for half in (model.encoder, model.decoder):
        assert 0.95 < half.embed_tokens.weight[1:].std() < 1.05
        assert not half.embed_tokens.weight[0].any()
        for layer in half.layers:
            assert layer.rnn.bias_ih[64:128].eq(1).all() and not layer.rnn.bias_ih[:64].any()
    for share, encoder, decoder in ((False, 1.0, 0.1), (True, 0.1, None)):
        tied = build_system("tied", noise=0.0, share_embeddings=share, embedding_size=64, vocab_size=500).model
        assert tied.encoder.embed_tokens.weight[1:].std().item() == pytest.approx(encoder, rel=0.05)
        table = tied.decoder.embed_tokens
        assert table is None if decoder is None else table.weight[1:].std().item() == pytest.approx(decoder, rel=0.05)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_dropout_acts_in_training_only(rate):
    for system in ("plain", "luong"):
        model, batch = build_system(system, dropout=rate), make_batch()
        quiet = model(**batch).logits
        model.train()
        first, second = model(**batch).logits, model(**batch).logits
        if rate == 0.0:
            assert_close(first[TARGET], quiet[TARGET], 1e-5, "dropout 0")
        else:
            assert not torch.equal(first, second)


@pytest.mark.parametrize(
    "options", [{"weight_drop": 0.4, "weight_noise": 0.1}, {"weight_noise": 0.1, "layer_norm": True}]
)
@pytest.mark.parametrize("system", ["plain", "general", "luong", "bahdanau"])
def test_weights_are_drawn_once_in_a_forward_pass(system, options):
    """With input feeding too the decoder is, for one pass over all its steps, the one with other weights."""
    model, batch = build_system(system, torch.float64, **options), make_batch()
    plain = build_system(system, torch.float64, layer_norm="layer_norm" in options)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(**batch).logits, plain(**batch).logits)
    torch.manual_seed(5)
    for half in (plain.model.encoder, plain.model.decoder):  # what they will draw, in their order
        for layer in half.layers:
            layer.rnn.weight_drop, layer.rnn.weight_noise = model.config.weight_drop, model.config.weight_noise
            for name, weight in layer.rnn.train().draw_weights().items():
                layer.rnn.get_parameter(name).data = weight.detach()
    torch.manual_seed(5)
    assert_close(model.train()(**batch).logits[TARGET], plain.eval()(**batch).logits[TARGET], 1e-12, "seq2seq weights")


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("system", ["plain", "luong", "bahdanau"])
def test_gradient_checkpointing_draws_the_same_weights(system, reentrant):
    model, results = build_system(system, weight_drop=0.4, weight_noise=0.1).train(), []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(5)
        model(**make_batch()).logits[TARGET].square().sum().backward()
        results.append(named_gradients(model))
    assert_same_gradients(results[1], results[0], 1e-5, "checkpointing seq2seq")


# -- bad input --------------------------------------------------------------------------------------------------------
def test_bad_input_is_named():
    model, ids, target = build_system("plain"), make_ids(2, 4), make_ids(2, 3)
    cache = model(ids, decoder_input_ids=target, use_cache=True).past_key_values
    encoded = model.get_encoder()(ids)
    embeddings = model.get_input_embeddings()(target)
    for message, arguments in {
        "an encoder–decoder needs a target beside its source: pass labels, decoder_input_ids or": {"input_ids": ids},
        "pass exactly one of input_ids and inputs_embeds": {"decoder_input_ids": target},
        "pass only one of decoder_input_ids and": {
            "input_ids": ids,
            "decoder_input_ids": target,
            "decoder_inputs_embeds": embeddings,
        },
        "token id 99 is outside the vocabulary of 23": {"input_ids": ids, "decoder_input_ids": target + 99 - target},
        "label 23 is outside the vocabulary of 23": {"input_ids": ids, "labels": target - target + 23},
        r"labels of shape \(2, 4\) do not fit decoder inputs of \(2, 3\)": {
            "input_ids": ids,
            "decoder_input_ids": target,
            "labels": ids,
        },
        "holds no tokens": {"input_ids": ids, "labels": target[:, :0]},
        "this model reads tokens": {
            "input_ids": ids,
            "input_features": torch.zeros(2, 4, 3),
            "decoder_input_ids": target,
        },
        "2 sources do not fit 1 targets": {"input_ids": ids, "decoder_input_ids": target[:1]},
        "attention_mask has 3 columns for 4 tokens|does not fit 4 positions": {
            "input_ids": ids,
            "attention_mask": torch.ones(2, 3),
            "decoder_input_ids": target,
        },
        r"of shape \(2, 5\) does not fit encoder_outputs of \(2, 4\)": {
            "encoder_outputs": encoded,
            "attention_mask": torch.ones(2, 5),
            "decoder_input_ids": target,
        },
        "has no final states of the encoder": {
            "encoder_outputs": (encoded.last_hidden_state,),
            "decoder_input_ids": target,
        },
        "has no place for the source": {
            "input_ids": ids,
            "decoder_input_ids": target,
            "past_key_values": DynamicCache(config=model.config),
        },
        "holds the state of 2 rows and the input has 1": {
            "decoder_input_ids": target[:1],
            "past_key_values": cache,
        },
    }.items():
        with pytest.raises(ValueError, match=message) as raised:
            model(**arguments)
        assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="needs a target beside its source: pass decoder_input_ids or"):
        model.model(ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "luong"}, "score='luong' is not allowed: it must be 'additive', 'dot', 'general' or 'none'"),
        ({"score": "dot", "bidirectional": True}, "score='dot' is not allowed: .* bidirectional=True"),
        ({"score": "none", "input_feeding": True}, "input_feeding=True is not allowed: .* no context to feed"),
        ({"num_decoder_layers": 0}, "num_decoder_layers=0 is not allowed"),
        ({"decoder_start_token_id": 23}, "decoder_start_token_id=23 is not allowed: .* 22"),
        ({"cell": "rnn", "bias_init": "chrono"}, "bias_init='chrono' is not allowed"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder=False is not allowed"),
        ({"forget_bias": float("nan")}, "forget_bias=nan is not allowed"),
        ({"weight_drop": 5.0}, "weight_drop=5.0 is not allowed"),
        ({"residual": True}, "has no option 'residual', which belongs to recurrent networks with one stack of layers"),
        ({"num_features": 4}, "has no option 'num_features', which belongs to models of features"),
        ({"input_feding": True}, "has no option 'input_feding': did you mean 'input_feeding'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build_system("plain", **options)
