"""Sessions refuse what does not belong to them: models, inputs and files, in one line, and stay as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from session_cases import LSTM, REFUSED, make_stream, start, tensor_of
from transformers import BertConfig, BertForMaskedLM, BertModel, GPT2Config, GPT2Model

from hf_seqmodels import StreamingSession
from hf_seqmodels.inference import SessionFileError
from hf_seqmodels.inference.session_file import KEY, _seal
from model_table import Case, build

# -- models -----------------------------------------------------------------------------------------------------------
REASONS = (
    "an encoder–decoder reads its whole source",
    "bidirectional=True reads every text from its end",
    "each of its tokens sees the whole text",
    "its head weighs all tokens of a text",
    "an answer is looked for in the whole text",
)


def refusal(model: Any, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        StreamingSession(model, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


ONE_EACH = list({(case.architecture, head, case.bidirectional): (case, head) for case, head in REFUSED}.values())


@pytest.mark.parametrize("pairs", [ONE_EACH, pytest.param(REFUSED, marks=pytest.mark.slow)], ids=["one each", "all"])
def test_models_that_must_see_everything(pairs):
    """What does not read a stream says why not."""
    said: dict[str, tuple[Case, str]] = {}
    for case, head in pairs:
        message = refusal(build(case, head))
        (reason,) = [reason for reason in REASONS if f"cannot read a stream: {reason}" in message]
        said.setdefault(reason, (case, head))
    assert said.keys() == set(REASONS)


def test_options_that_see_everything():
    assert "a CRF scores the labels of a whole row" in refusal(build(LSTM, "token-classification", crf=True))
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    bert = BertConfig(vocab_size=23, **sizes)
    on_bert = build(LSTM, "token-classification", encoder=bert, embedding_size=8)
    assert "the encoder under it sees the whole text" in refusal(on_bert)
    for model in (BertModel(bert), BertForMaskedLM(bert)):
        assert "each of its tokens sees the whole text" in refusal(model)
    small = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=23, bos_token_id=1, eos_token_id=2)
    assert "only causal language models are known" in refusal(GPT2Model(small))


@pytest.mark.parametrize("name", ["batch_size", "max_tokens"])
@pytest.mark.parametrize("size", [0, -1, 1.5, True])
def test_sizes(name, size):
    assert refusal(build(LSTM, "causal-lm"), **{name: size}).startswith(f"{name}={size} streams nothing")


def test_dropout_is_refused():
    model = build(LSTM, "causal-lm", dropout=0.5).train()
    session = StreamingSession(model)
    with pytest.raises(ValueError, match=r"^the model is in training mode, .* call model.eval\(\)"):
        session.feed(3)
    model.eval()
    session.feed(3)


# -- inputs -----------------------------------------------------------------------------------------------------------
FRAMES = torch.zeros(2, 3, 6)
NAN = FRAMES.clone()
NAN[1, 2, 4] = float("nan")
WRONG = {
    "token too large": ("causal-lm", [[3, 23], [4, 5]], "token id 23 is outside the vocabulary of 23"),
    "token below zero": ("causal-lm", [[3, 4], [4, -1]], "token id -1 is outside the vocabulary of 23"),
    "real tokens": ("causal-lm", torch.rand(2, 3), "tokens of torch.float32 are no token ids"),
    "yes or no": ("causal-lm", torch.ones(2, 3, dtype=torch.bool), "tokens of torch.bool are no token ids"),
    "text": ("causal-lm", "to be", "'to be' is text and this model reads tokens: feed numbers"),
    "texts": ("causal-lm", ["to", "be"], "a list of tokens that is no regular array of numbers"),
    "unequal rows": ("causal-lm", [[3, 4], [5]], "a list of tokens that is no regular array of numbers"),
    "nothing": ("causal-lm", [[], []], r"an input of shape \(2, 0\) holds no token: feed at least one"),
    "three streams": ("causal-lm", [[3], [4], [5]], r"input_ids of shape \(3, 1\) does not fit 2 streams"),
    "one number": ("causal-lm", 3, r"input_ids of shape \(\) does not fit 2 streams"),
    "series": ("causal-lm", FRAMES.long(), r"input_ids of shape \(2, 3, 6\) does not fit 2 streams of this model"),
    "other width": ("ctc", FRAMES[..., :5], r"input_features of shape \(2, 3, 5\) .* feed \(2, steps, 6\)"),
    "whole numbers": ("ctc", FRAMES.long(), "frames of torch.int64 are no real numbers: feed torch.float32"),
    "not a number": ("ctc", NAN, "input_features is nan in stream 1 at step 2: feed finite numbers"),
    "infinite": ("ctc", NAN.nan_to_num(float("-inf")), "input_features is -inf in stream 1 at step 2"),
    "missing": ("time-series-prediction", NAN, "past_values is nan in stream 1 at step 2: .* with observed=0"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_inputs(wrong):
    """Named before anything is read: the session is as it was."""
    head, given, message = WRONG[wrong]
    session, stream = start(LSTM, head)
    twin = StreamingSession(session.model, 2)
    for each in (session, twin):
        each.feed(stream[:, :3])
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        session.feed(given)
    assert "\n" not in str(caught.value) and session.position == 3
    assert torch.equal(tensor_of(session.feed(stream[:, 3:])), tensor_of(twin.feed(stream[:, 3:])))


def test_options_of_series():
    session = StreamingSession(build(LSTM, "time-series-prediction", num_time_features=2), 2)
    values = torch.zeros(2, 3, 4)
    for options, message in (
        ({}, "num_time_features=2 and no past_time_features"),
        ({"time_features": torch.zeros(2, 3, 1)}, r"time_features of shape \(2, 3, 1\) does not fit 2 streams"),
        ({"observed": torch.ones(2, 2, 4)}, r"observed has shape \(2, 2, 4\) and the values \(2, 3, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            session.feed(values, **options)
    with pytest.raises(ValueError, match="observed is for models with a time-series head: leave it out"):
        StreamingSession(build(LSTM, "causal-lm")).feed([3], observed=[1])


@pytest.mark.parametrize("case", [LSTM, Case("seq_transformer_decoder", "plain")], ids=str)
def test_a_failure_half_way_leaves_the_session_as_it_was(case):
    """The first layer had read the piece when the second one failed."""
    session, stream = start(case, "causal-lm")
    twin = StreamingSession(session.model, 2)
    for each in (session, twin):
        each.feed(stream[:, :3])

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = session.model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        session.feed(stream[:, 3:6])
    handle.remove()
    assert torch.equal(session.feed(stream[:, 3:]), twin.feed(stream[:, 3:]))


def test_writing():
    model = build(LSTM, "causal-lm")
    with pytest.raises(ValueError, match=r"^nothing was read yet: feed\(\) a prompt"):
        StreamingSession(model).stream(3)
    session = StreamingSession(model)
    session.feed(3)
    for options, message in (
        ({"temperature": -1.0}, "temperature=-1.0 draws nothing"),
        ({"temperature": float("nan")}, "temperature=nan draws nothing"),
        ({"num_tokens": -1}, "num_tokens=-1: pass 0 or more"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            session.stream(**({"num_tokens": 3} | options))
    with pytest.raises(ValueError, match=r"^LSTMForCTC is no language model"):
        StreamingSession(build(LSTM, "ctc")).generate(3)


# -- files ------------------------------------------------------------------------------------------------------------
def refused(model: Any, path: Path) -> str:
    with pytest.raises(SessionFileError) as caught:
        StreamingSession.restore(model, path)
    assert str(path) in str(caught.value) or "the session" in str(caught.value)
    return str(caught.value)


@pytest.fixture
def saved(tmp_path):
    session, stream = start(LSTM, "causal-lm")
    session.feed(stream)
    return session, session.save(tmp_path / "session.safetensors")


def test_damaged_files(saved, tmp_path):
    """Cut anywhere, or a bit turned anywhere: never a session that is a little wrong."""
    session, path = saved
    data, damaged = path.read_bytes(), tmp_path / "damaged.safetensors"
    for size in (0, 4, 8, 100, len(data) // 2, len(data) - 1):
        damaged.write_bytes(data[:size])
        assert "is no whole safetensors file" in refused(session.model, damaged)
    for place in range(0, len(data), 37):
        flipped = bytearray(data)
        flipped[place] ^= 1
        damaged.write_bytes(flipped)
        refused(session.model, damaged)
    assert "is no file" in refused(session.model, tmp_path / "elsewhere.safetensors")
    assert "is no file" in refused(session.model, tmp_path)


def test_other_files(saved, tmp_path):
    """Weights are no session, and are not overwritten by one."""
    session, _ = saved
    session.model.save_pretrained(tmp_path, save_code=False)
    weights = tmp_path / "model.safetensors"
    before = weights.read_bytes()
    assert "holds no session but other tensors" in refused(session.model, weights)
    for wrong, message in (
        (weights, "holds no session but other tensors: choose another file"),
        (tmp_path / "session.bin", r"sessions are safetensors files; end the name in \.safetensors"),
        (tmp_path / "none" / "session.safetensors", "there is no folder .*; make it first"),
    ):
        with pytest.raises(SessionFileError, match=message):
            session.save(wrong)
    assert weights.read_bytes() == before
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".*"))


def test_an_old_file_stays_until_the_new_one_is_whole(saved):
    session, path = saved
    before = path.read_bytes()
    session._cache.layers[0].surprise = object()
    with pytest.raises(SessionFileError, match=r"RecurrentCacheLayer\.surprise is of type object: .* cannot be saved"):
        session.save(path)
    assert path.read_bytes() == before and [each.name for each in path.parent.iterdir()] == [path.name]
    del session._cache.layers[0].surprise
    session.feed([[3], [4]])
    session.save(path)
    assert StreamingSession.restore(session.model, path).position == 13


def test_other_models(saved):
    _, path = saved
    model = build(LSTM, "causal-lm")
    assert StreamingSession.restore(model, path).position == 12, "the same weights, built again"
    with torch.no_grad():
        model.lm_head.weight[3, 3] += 1e-6
    assert "is a session of other weights" in refused(model, path)
    gru = Case("seq_gru", "plain")
    assert "is a session of model_type 'seq_lstm', and this model's is 'seq_gru'" in refused(
        build(gru, "causal-lm"), path
    )
    assert "is a session of class 'LSTMForCausalLM'" in refused(build(LSTM), path)
    assert "is a session of dtype 'float32'" in refused(build(LSTM, "causal-lm", torch.float64), path)
    assert "is a session of a model with hidden_size=12, and this one has 16" in refused(
        build(LSTM, "causal-lm", hidden_size=16), path
    )


def test_same_weights_read_differently(tmp_path):
    """A window is no weight, but what is remembered depends on it."""
    case = Case("seq_attention_rnn", "windowed")
    session, stream = start(case, "causal-lm")
    session.feed(stream)
    path = session.save(tmp_path / "session.safetensors")
    assert "with window=3, and this one has 5" in refused(build(case, "causal-lm", window=5), path)


def forge(path: Path, change: Any) -> Path:
    """A file with a good seal and a changed content."""
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()[KEY])
    tensors = load_file(path)
    change(tensors, facts)
    text = json.dumps(facts, sort_keys=True)
    forged = path.with_name("forged.safetensors")
    save_file(tensors, forged, metadata={KEY: text, "sha256": _seal(text, tensors)})
    return forged


STATE = "layers.0.states.h"
FORGED = {
    "state of another width": lambda tensors, _: tensors.update({STATE: tensors[STATE][..., :5].contiguous()}),
    "state of another dtype": lambda tensors, _: tensors.update({STATE: tensors[STATE].double()}),
    "state is lacking": lambda tensors, _: tensors.pop(STATE),
    "one state too many": lambda tensors, _: tensors.update({"layers.0.states.z": tensors[STATE].clone()}),
    "a layer too many": lambda tensors, _: tensors.update({"layers.7.states.h": tensors[STATE].clone()}),
    "another attribute": lambda tensors, _: tensors.update({"layers.0.update": tensors[STATE].clone()}),
    "more streams": lambda _, facts: facts.update(batch_size=10**12),
    "no streams": lambda _, facts: facts.update(batch_size=0),
    "other position": lambda _, facts: facts.update(position=13),
    "position in words": lambda _, facts: facts.update(position="ten"),
    "no facts of the model": lambda _, facts: facts.update(model=None),
    "position below zero": lambda _, facts: facts.update(position=-1),
    "nothing read": lambda _, facts: facts.update(position=0),
    "another layout of steps": lambda _, facts: facts.update(item_shape=[6]),
    "no position": lambda _, facts: facts.pop("position"),
    "a method as attribute": lambda _, facts: facts["layers"][0].update(read_states=3),
    "fewer layers": lambda _, facts: facts["layers"].pop(),
    "layers of another kind": lambda _, facts: facts.update(layers=[3, 4]),
    "another format": lambda _, facts: facts.update(format=2),
}


@pytest.mark.parametrize("how", FORGED)
def test_forged_files(how, saved):
    """A seal is no signature: what does not fit the model is refused, before a kernel reads past its end."""
    session, path = saved
    forged = forge(path, FORGED[how])
    with pytest.raises(ValueError) as caught:
        StreamingSession.restore(session.model, forged)
    assert "\n" not in str(caught.value)


def test_forging_is_what_fails(saved):
    """The same way without a change gives a session that can be read."""
    session, path = saved
    again = StreamingSession.restore(session.model, forge(path, lambda *_: None))
    stream = make_stream(LSTM, "causal-lm")
    assert torch.equal(again.feed(stream), session.feed(stream))


def test_pictures_are_as_large_as_the_first(tmp_path):
    """Sizes that the configuration leaves open are the stream's, until it is reset."""
    session, stream = start(Case("seq_conv_lstm", "plain"), "backbone")
    session.feed(stream[:, :2])
    again = StreamingSession.restore(session.model, session.save(tmp_path / "session.safetensors"))
    for each in (session, again):
        with pytest.raises(ValueError, match=r"pixel_values of shape \(2, 2, 1, 6, 5\) does not fit 2 streams"):
            each.feed(stream[:, :2, ..., :5])
    session.reset()
    session.feed(stream[:, :2, ..., :5])
    assert torch.equal(
        again.feed(stream[:, 2:]), start(Case("seq_conv_lstm", "plain"), "backbone")[0].feed(stream)[:, 2:]
    )
