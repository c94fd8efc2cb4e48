"""A5: pieces of a sequence with the state carried over give what the whole sequence gives."""

import functools

import pytest
import torch
from transformers import DynamicCache, StaticCache

from model_table import (
    CELLS,
    TOLERANCE,
    Case,
    assert_close,
    assert_same_gradients,
    build,
    build_layer,
    each_causal_case,
    make_ids,
    make_mask,
    named_gradients,
)

PIECES = {"chunks": [3, 1, 2, 2], "steps": [1] * 8, "two": [5, 3]}
each_cutting = pytest.mark.parametrize("cutting", PIECES)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])


def read_in_pieces(model, ids: torch.Tensor, mask: torch.Tensor | None, cutting: str) -> torch.Tensor:
    """Logits of `ids` (B, T), read piece by piece with the returned cache."""
    cache, outputs, end = None, [], 0
    for size in PIECES[cutting]:
        start, end = end, end + size
        so_far = None if mask is None else mask[:, :end]
        output = model(ids[:, start:end], attention_mask=so_far, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        outputs.append(output.logits)
    assert end == ids.shape[1] == cache.get_seq_length()
    return torch.cat(outputs, dim=1)


@each_dtype
@each_cutting
@pytest.mark.parametrize("padding", ["none", "mixed"])
@each_causal_case
def test_pieces_equal_whole(case, padding, cutting, dtype):
    """Values and gradients: the carried state is differentiable."""
    model, ids = build(case, "causal-lm", dtype), make_ids(5, 8)
    mask = None if padding == "none" else make_mask(padding)
    tokens = make_mask(padding).bool()
    whole = model(ids, attention_mask=mask).logits
    probe = torch.randn(whole[tokens].shape).to(dtype)
    (whole[tokens] * probe).sum().backward()
    gradients = named_gradients(model)
    pieces = read_in_pieces(model, ids, mask, cutting)
    (pieces[tokens] * probe).sum().backward()
    assert_close(pieces[tokens], whole[tokens], TOLERANCE[dtype], "A5 pieces")
    assert_same_gradients(named_gradients(model), gradients, TOLERANCE[dtype], "A5 pieces")
    with torch.no_grad():
        assert_close(read_in_pieces(model, ids, mask, cutting)[tokens], whole[tokens], TOLERANCE[dtype], "A5 pieces")


TORCH = {
    "tanh": torch.nn.RNN,
    "relu": functools.partial(torch.nn.RNN, nonlinearity="relu"),
    "lstm": torch.nn.LSTM,
    "gru": torch.nn.GRU,
}


@each_dtype
@pytest.mark.parametrize("cutting", [*PIECES, "whole"])
@pytest.mark.parametrize("cell", TORCH)
def test_carrying_is_bit_exact_with_torch(cell, cutting, dtype):
    """The same pieces through torch.nn's module, its state carried: not a bit of difference.

    (torch's pieces and torch's whole differ in the last bit for some sizes, since a product's blocking depends on T.)
    """
    layer, x = build_layer(cell, dtype), torch.randn(3, 8, 5, dtype=dtype)
    twin = TORCH[cell](5, 4, batch_first=True).to(dtype)
    twin.load_state_dict({f"{name}_l0": parameter for name, parameter in layer.named_parameters()})
    states, twin_states = layer.initial_states(x), None
    whole, _ = layer.run(x, states)
    outputs = []
    for piece in x.split(PIECES.get(cutting, 8), dim=1):
        output, states = layer.run(piece, states)
        expected, twin_states = twin(piece, twin_states)
        outputs.append(output)
        assert torch.equal(output, expected)
    final = twin_states if isinstance(twin_states, tuple) else (twin_states,)
    for carried, expected in zip(states, final, strict=True):
        assert torch.equal(carried, expected)
    assert_close(torch.cat(outputs, dim=1), whole, TOLERANCE[dtype], "A5 pieces")


@pytest.mark.parametrize("cell", CELLS)
def test_one_step_without_gradients(cell):
    """The one-step kernel that generation uses, with and without padding, against the sequence kernel."""
    layer, x = build_layer(cell, torch.float32), torch.randn(3, 8, 5)
    whole, final = layer.run(x, layer.initial_states(x))
    states, outputs = layer.initial_states(x), []
    with torch.no_grad():
        for t in range(8):
            output, states = layer.run(x[:, t : t + 1], states)
            outputs.append(output)
    assert_close(torch.cat(outputs, dim=1), whole, 1e-5, "A5 one step")
    for carried, expected in zip(states, final, strict=True):
        assert_close(carried, expected, 1e-5, "A5 one step")


@each_causal_case
def test_cache_is_returned_only_when_asked_for(case):
    for head in ("backbone", "causal-lm", "sequence-classification", "token-classification"):
        model, ids = build(case, head), make_ids(2, 4)
        assert getattr(model(ids, use_cache=False), "past_key_values", None) is None
        if head != "token-classification":
            assert model(ids, use_cache=True).past_key_values.get_seq_length() == 4
        model.config.use_cache = False
        assert getattr(model(ids), "past_key_values", None) is None


@each_causal_case
def test_nothing_is_kept_on_the_modules(case):
    """State goes in and comes out: a call leaves no trace on the next one."""
    model, ids = build(case, "causal-lm"), make_ids(2, 6)
    first = model(ids).logits
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(make_ids(2, 9, seed=5), use_cache=True)
    assert torch.equal(model(ids).logits, first)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert len(model.state_dict()) == len(before)


def relative_decoder():
    options = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 5}
    return build(Case("seq_transformer_decoder", "plain"), dtype=torch.float64, positions="relative", **options)


@pytest.mark.parametrize("cache_class", [DynamicCache, StaticCache])
def test_relative_positions_that_the_caller_gives(cache_class):
    """Two texts in a row, say: the first pass reads the same positions with a cache and without one."""
    model, ids, holes = relative_decoder(), make_ids(2, 6), torch.ones(2, 6, dtype=torch.long)
    holes[1, 1] = 0
    sizes = {"max_cache_len": 9} if cache_class is StaticCache else {}
    for given in ([[0, 1, 2, 3, 0, 1]], [[0, 1, 2, 3, 0, 1]] * 2, [[0, 1, 2, 3, 0, 1], [5, 0, 3, 3, 0, 7]]):
        positions = torch.tensor(given)
        for mask in (torch.ones_like(ids), holes):  # without any, transformers would take them for packed texts
            keep = mask.bool()
            numbered = model(ids, mask, use_cache=False).last_hidden_state
            expected = model(ids, mask, positions, use_cache=False).last_hidden_state
            assert not torch.allclose(numbered[keep], expected[keep], atol=1e-3)
            for options in ({"use_cache": True}, {"past_key_values": cache_class(config=model.config, **sizes)}):
                output = model(ids, mask, positions, **options).last_hidden_state
                assert_close(output[keep], expected[keep], 1e-12, "A5 carried state", "positions")


def test_relative_positions_after_cached_tokens():
    """The cache does not know where its tokens stood: the tokens' numbers are taken, others are refused."""
    model, ids, mask = relative_decoder(), make_ids(2, 8), torch.ones(2, 8, dtype=torch.long)
    mask[1, [0, 5]] = 0
    numbers = (mask.cumsum(1) - 1).masked_fill(mask == 0, 7)  # under padding anything
    expected = model(ids, attention_mask=mask, use_cache=False).last_hidden_state[:, 4:][mask[:, 4:].bool()]
    for given in (numbers[:, 4:], None):
        cache = model(ids[:, :4], attention_mask=mask[:, :4]).past_key_values
        later = model(ids[:, 4:], attention_mask=mask, past_key_values=cache, position_ids=given).last_hidden_state
        assert_close(later[mask[:, 4:].bool()], expected, 1e-12, "A5 carried state", "positions")
    cache = model(ids[:, :4], attention_mask=mask[:, :4]).past_key_values
    for wrong in (numbers[:, 4:] + 1, torch.zeros(1, 4, dtype=torch.long)):
        with pytest.raises(
            ValueError, match=r"^position_ids other than the tokens' numbers .* leave out position_ids"
        ):
            model(ids[:, 4:], attention_mask=mask, past_key_values=cache, position_ids=wrong)
