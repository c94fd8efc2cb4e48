"""Sessions: pieces are the whole, memory is constant, a session that was put away goes on to the bit."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from exporting import run_apart
from safetensors.torch import load_file, save_file
from session_cases import (
    LSTM,
    STREAMING,
    constant,
    feed_pieces,
    join,
    make_stream,
    quick_first,
    start,
    tensor_of,
)
from transformers import GPT2Config, GPT2LMHeadModel

from hf_seqmodels import StreamingSession
from hf_seqmodels.inference.session_file import flatten
from model_table import CAUSAL_CASES, TOLERANCE, Case, assert_close, build, build_config, output_of, perturb

ROW = "A5 pieces"
HERE = Path(__file__).parent
CONV = Case("seq_conv_lstm", "plain")
each_causal = pytest.mark.parametrize("case", CAUSAL_CASES, ids=str)


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"n_embd": 12, "n_layer": 2, "n_head": 2, "vocab_size": 23, "n_positions": 64}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)).eval()
    perturb(model)
    return model


# -- pieces -----------------------------------------------------------------------------------------------------------
PIECES = {"steps": [1] * 12, "chunks": [3, 1, 2, 6], "two": [7, 5]}


@quick_first(STREAMING)
def test_pieces_equal_the_model(case, head):
    """However the stream is cut: what the model says of the whole stream."""
    session, stream = start(case, head)
    with torch.no_grad():
        outputs = session.model(**{session.model.main_input_name: stream})
    names = ("params", "prediction_outputs")
    special = next((outputs[name] for name in names if name in outputs), None)
    whole = output_of(outputs) if special is None else tensor_of((special,)) if isinstance(special, tuple) else special
    for sizes in PIECES.values():
        session.reset()
        pieces = feed_pieces(session, stream, sizes)
        assert session.position == 12
        assert_close(join(pieces, whole, 12), whole, TOLERANCE[torch.float32], ROW)


@each_causal
def test_pieces_are_bit_exact_with_the_model(case):
    """The session adds nothing to the model and takes nothing away: the same pieces, the same bits."""
    session, stream = start(case, "causal-lm")
    cache = None
    for piece in stream.split([5, 1, 1, 5], dim=1):
        with torch.no_grad():
            outputs = session.model(piece, past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
        assert torch.equal(session.feed(piece), outputs.logits)


@each_causal
def test_streams_side_by_side(case):
    """A stream among others is what it is alone."""
    session, stream = start(case, "causal-lm", batch=3)
    together = torch.cat(feed_pieces(session, stream, [4, 1, 7]), dim=1)
    for row in range(3):
        alone = StreamingSession(session.model)
        found = torch.cat(feed_pieces(alone, stream[row : row + 1], [4, 1, 7]), dim=1)
        assert_close(found[0], together[row], TOLERANCE[torch.float32], "A2 padding", "streams")


def test_other_peoples_models():
    """GPT-2 of transformers, whose keys and values grow."""
    model = gpt2()
    session, stream = StreamingSession(model, 2), make_stream(LSTM, "causal-lm")
    with torch.no_grad():
        whole = model(stream).logits
    assert_close(torch.cat(feed_pieces(session, stream, [1, 4, 7]), 1), whole, 1e-5, ROW)
    assert session.state_bytes == 2 * 2 * 12 * 2 * 12 * 4  # layers, keys and values, width, streams, tokens, bytes


def test_shapes_of_single_steps():
    """A number, a list, one token for each stream; one frame or several; an array."""
    model = build(LSTM, "causal-lm")
    tokens = [3, 4, 5, 6]
    whole = StreamingSession(model).feed(torch.tensor([tokens]))
    for pieces in ([3, [4, 5], [[6]]], [torch.tensor(3), torch.tensor([4, 5]), torch.tensor([6]).numpy()]):
        session = StreamingSession(model)
        assert_close(torch.cat([session.feed(piece) for piece in pieces], 1), whole, 1e-6, ROW)
    two, column = StreamingSession(model, 2), torch.tensor([3, 4])
    assert torch.equal(two.feed(column), StreamingSession(model, 2).feed(column[:, None]))
    hear = build(LSTM, "ctc")
    frames = make_stream(LSTM, "ctc", 1, 3)
    whole = StreamingSession(hear).feed(frames)
    session = StreamingSession(hear)
    found = [session.feed(frames[0, 0].tolist()), session.feed(frames[0, 1:].double().numpy())]
    assert_close(torch.cat(found, 1), whole, 1e-6, ROW)


# -- memory -----------------------------------------------------------------------------------------------------------
CONSTANT = [pair for pair in STREAMING if constant(pair[0]) and pair[1] in (pair[0].main_head, "audio-classification")]
GROWING = [pair for pair in STREAMING if not constant(pair[0]) and pair[1] == "causal-lm"]


def kept_bytes(session: StreamingSession) -> int:
    """Memory under the session's tensors: all of what they are views of."""
    tensors = flatten(session._cache, session._carried)[0].values()
    return sum({tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


@pytest.mark.parametrize(("case", "head"), [pytest.param(*pair, id="-".join(map(str, pair))) for pair in CONSTANT])
def test_memory_is_constant(case, head, tmp_path):
    """After 10 and after 1,000 steps: the state, what its tensors keep alive, and the file."""
    options = {"positions": "rotary"} if "transformer" in case.architecture else {}
    session, stream = start(case, head, **options)
    stream = torch.cat([stream] * 9, dim=1)[:, :99]
    sizes = []
    for pieces in ([stream[:, :9], stream[:, 9]], [*stream[:, :9].unbind(1), *[stream] * 9, stream[:, :90]]):
        for piece in pieces:
            session.feed(piece)
        stored = session.save(tmp_path / "session.safetensors").stat().st_size
        sizes.append((session.state_bytes, kept_bytes(session), stored))
    assert session.position == 1000
    assert sizes[0][:2] == sizes[1][:2] and abs(sizes[0][2] - sizes[1][2]) < 64, "the position has more digits"


def test_nothing_else_grows():
    """Objects and tensors that are alive in this process, over a thousand steps of one token."""
    session = StreamingSession(build(LSTM, "causal-lm"))
    tokens, seen = make_stream(LSTM, "causal-lm", 1, 100)[0].tolist(), []
    for _ in range(2):
        for token in tokens * 5:
            session.feed(token)
        gc.collect()
        alive = gc.get_objects()
        seen.append((len(alive), sum(isinstance(thing, torch.Tensor) for thing in alive)))
        del alive
    assert session.position == 1000
    assert abs(seen[1][0] - seen[0][0]) < 50 and seen[1][1] == seen[0][1], "500 steps left something behind"


@pytest.mark.parametrize("case", [pair[0] for pair in GROWING], ids=str)
def test_what_grows_can_be_bounded(case):
    """The past that is attended to grows by the same for each token, and `max_tokens` refuses the one too many."""
    model, stream = build(case, "causal-lm"), make_stream(case, "causal-lm", 1, 12)
    session = StreamingSession(model, max_tokens=9)
    sizes = []
    for piece in stream[:, :9].split(3, dim=1):
        session.feed(piece)
        sizes.append(session.state_bytes)
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0] > 0
    with pytest.raises(ValueError, match=r"^9 steps were read and 1 more are beyond max_tokens=9: reset\(\) starts"):
        session.feed(stream[:, 9])
    assert session.position == 9
    session.reset()
    assert session.state_bytes == session.position == 0
    assert torch.equal(session.feed(stream[:, :9]), StreamingSession(model).feed(stream[:, :9]))


# -- put away and gone on with ----------------------------------------------------------------------------------------
def put_away(folder: Path, session: StreamingSession, stream: torch.Tensor) -> dict[str, torch.Tensor]:
    """Save model, session and the rest of its stream in the middle; what follows, uninterrupted."""
    session.model.save_pretrained(folder, **({"save_code": False} if hasattr(session.model, "auto_model") else {}))
    feed_pieces(session, stream[:, :7], [3, 1, 3])
    session.save(folder / "session.safetensors")
    save_file({"rest": stream[:, 7:].contiguous()}, folder / "rest.safetensors")
    answers = {}
    for index, piece in enumerate(stream[:, 7:].split([1, 2, 2], dim=1)):
        answer = session.feed(piece)
        answers |= {
            f"{index}.{part}": tensor
            for part, tensor in enumerate(answer[0] if isinstance(answer, tuple) else (answer,))
        }
    return answers | ({"written": session.generate(3)} if session.model.can_generate() else {})


def sessions_to_put_away() -> dict[str, tuple[StreamingSession, torch.Tensor]]:
    """Every causal language model; the other heads of a few; half and double precision; GPT-2."""
    heads = {LSTM, CONV}
    pairs = [pair for pair in STREAMING if pair[1] == "causal-lm" or pair[0] in heads]
    made = {"-".join(map(str, pair)): start(*pair) for pair in pairs}
    for dtype in (torch.bfloat16, torch.float64):
        made[f"lstm-{dtype}"] = StreamingSession(build(LSTM, "causal-lm", dtype), 2), made[f"{LSTM}-causal-lm"][1]
    made["gpt2"] = StreamingSession(gpt2(), 2), made[f"{LSTM}-causal-lm"][1]
    return made


def test_goes_on_to_the_bit_in_a_fresh_process(tmp_path):
    """Restored elsewhere = never interrupted: every number equal, and the tokens that are written then."""
    expected = {}
    folder = tmp_path / "sessions"
    for name, (session, stream) in sessions_to_put_away().items():
        expected[name] = put_away(folder / name, session, stream)
    assert len(expected) > 20
    run_apart(HERE / "run_restored.py", folder, cwd=tmp_path, hide_package=False)
    for name, answers in expected.items():
        found = load_file(folder / name / "went_on.safetensors")
        assert found.keys() == answers.keys()
        for key, answer in answers.items():
            assert torch.equal(found[key], answer), f"{name} {key}"


@pytest.mark.slow
@quick_first(STREAMING)
def test_goes_on_to_the_bit(case, head, tmp_path):
    """Every system, in this process; also before its first step."""
    session, stream = start(case, head)
    for size in (0, 1, 4):
        if size:
            session.feed(stream[:, :size])
        again = StreamingSession.restore(session.model, session.save(tmp_path / "session.safetensors"))
        assert (again.position, again.state_bytes, again.batch_size) == (session.position, session.state_bytes, 2)
    assert torch.equal(tensor_of(again.feed(stream)), tensor_of(session.feed(stream)))


# -- writing ----------------------------------------------------------------------------------------------------------
@each_causal
def test_writes_what_generate_writes(case):
    session, stream = start(case, "causal-lm", pad_token_id=0)
    session.feed(stream)
    options = {"do_sample": False, "attention_mask": torch.ones_like(stream)}
    expected = session.model.generate(stream, max_new_tokens=6, min_new_tokens=6, **options)[:, 12:]
    words = session.stream(6)
    first = [next(words), next(words)]
    assert session.position == 14, "a session has read what it has written, also when the loop is left"
    assert torch.equal(torch.cat([torch.stack(first, 1), session.generate(4)], 1), expected)
    assert session.generate(0).shape == (2, 0)


def test_draws(tmp_path):
    """The same generator, the same text; colder is greedier; a restored session draws what it would have drawn."""
    session, stream = start(LSTM, "causal-lm")
    session.feed(stream)
    path = session.save(tmp_path / "session.safetensors")

    def draw(temperature: float, seed: int) -> torch.Tensor:
        again = StreamingSession.restore(session.model, path)
        return again.generate(20, temperature, torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1.0, 0), draw(1.0, 0)) and not torch.equal(draw(1.0, 0), draw(1.0, 1))
    assert torch.equal(draw(1e-4, 0), session.generate(20))


# -- series -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", [LSTM, Case("seq_transformer_decoder", "rotary")], ids=str)
def test_series(case, tmp_path):
    """Time features, missing values and a scale: the distribution that each value was expected from."""
    options = {"num_time_features": 2, "scaling": "mean", "distribution_output": "normal"}
    model = build(case, "time-series-prediction", **options)
    values, features = torch.randn(2, 9, 4), torch.randn(2, 9, 2)
    observed = torch.rand(2, 9, 4) > 0.3
    values = values.masked_fill(~observed, float("nan"))
    given = {"past_observed_mask": observed, "past_time_features": features}
    first = {name: value[:, :5] for name, value in given.items()}
    with torch.no_grad():  # the scale of the first piece, as the head would take it
        start = model(past_values=values[:, :5], **first, use_cache=True, return_loss=False)
        whole = model(past_values=values, **given, loc=start.loc, scale=start.scale, return_loss=False)
    seen = torch.where(observed, values, 0.0)
    expected = model.output_distribution(whole.params, start.loc, start.scale).log_prob(seen)
    session = StreamingSession(model, 2)
    found = []
    for step, size in ((0, 5), (5, 1), (6, 3)):
        part = slice(step, step + size)
        answer = session.feed(values[:, part], observed=observed[:, part], time_features=features[:, part])
        found.append(model.output_distribution(*answer).log_prob(seen[:, part]))
        session = StreamingSession.restore(model, session.save(tmp_path / "session.safetensors"))
    assert_close(torch.cat(found, 1), expected, 1e-5, ROW)


def test_series_of_one_variate():
    config_options = {"num_features": 1}
    session = StreamingSession(build(LSTM, "time-series-prediction", **config_options))
    params, loc, _ = session.feed([[0.5], [1.5]])
    assert params[0].shape == (1, 2, 1) and loc.shape == (1, 1, 1)
    assert build_config(LSTM, "time-series-prediction", **config_options).num_variates == 1
    with pytest.raises(ValueError, match=r"past_values of shape \(2, 2\) does not fit 1 stream of this model"):
        session.feed([[0.5, 1.0], [1.5, 1.0]])
