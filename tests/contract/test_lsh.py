"""LSH attention: the sorted chunks are the dense twin, padding and pieces change nothing, its memory is linear."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from hf_seqmodels import TransformerDecoderConfig
from hf_seqmodels.evaluation.attention_memory import build_model, train_once
from hf_seqmodels.models.shared_lsh_attention import LSHAttention
from hf_seqmodels.models.shared_token_layout import lay_out_tokens
from model_table import (
    TOLERANCE,
    Case,
    assert_close,
    assert_same_gradients,
    build,
    make_ids,
    named_gradients,
    perturb,
)

CASE = Case("seq_transformer_decoder", "plain")
LENGTH = 41  # not a multiple of a chunk
# (buckets, rounds, chunk): buckets that overflow their chunks, and that do not; one bucket; one chunk; chunks of one
GRID = list(itertools.product((1, 2, 8), (1, 3), (1, 4, 64)))
OVERFLOWING = {"num_buckets": 2, "num_hashes": 2, "lsh_chunk_length": 4}
ROOMY = {"num_buckets": 4, "num_hashes": 2, "lsh_chunk_length": 64}  # a chunk for every token
each_direction = pytest.mark.parametrize("is_causal", [True, False], ids=["decoder", "encoder"])
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def build_lsh(head: str = "backbone", dtype=torch.float32, **options):
    return build(CASE, head, dtype, attention_pattern="lsh", **options)


def build_layer(is_causal: bool, dtype=torch.float64, way: str = "sdpa", **options) -> LSHAttention:
    """The layer alone, every parameter far from zero."""
    sizes = {"hidden_size": 6, "num_attention_heads": 2, "head_dim": 4, "attention_pattern": "lsh"}
    torch.manual_seed(0)
    config = TransformerDecoderConfig(**sizes, **options, attn_implementation=way)
    layer = LSHAttention(config, 0, is_causal).to(dtype).eval()
    layer.init_weights(config)
    perturb(layer, 0.5)
    return layer


def random_mask(batch: int, length: int) -> torch.Tensor:
    """Padding anywhere; one row has none, and one a single token."""
    mask = torch.rand(batch, length) < 0.7
    mask[0], mask[1], mask[1, length // 2] = True, False, True
    return mask


def run(layer: LSHAttention, x: torch.Tensor, mask: torch.Tensor | None):
    """(B, T, D) → the outputs at tokens, the weights, and the gradients of a fixed linear function of the outputs."""
    x = x.clone().requires_grad_()
    output, weights = layer(x, lay_out_tokens(mask, x))
    output = output if mask is None else output[mask]
    torch.manual_seed(1)
    (output * torch.randn(output.shape).to(output.dtype)).sum().backward()
    return output, weights, {"x": x.grad} | named_gradients(layer)


@each_dtype
@each_direction
@pytest.mark.parametrize("setting", GRID, ids=str)
def test_chunks_equal_the_dense_twin(setting, is_causal, dtype):
    options = dict(zip(("num_buckets", "num_hashes", "lsh_chunk_length"), setting, strict=True))
    x, mask = torch.randn(4, LENGTH, 6, dtype=dtype), random_mask(4, LENGTH)
    fast, slow = (run(build_layer(is_causal, dtype, way, **options), x, mask) for way in ("sdpa", "eager"))
    assert fast[1] is None and slow[1].shape == (4, 2, LENGTH, LENGTH)
    assert_close(fast[0], slow[0], TOLERANCE[dtype], "LSH twin")
    assert_same_gradients(fast[2], slow[2], TOLERANCE[dtype], "LSH twin")


@each_dtype
@each_direction
@pytest.mark.parametrize("num_hashes", [1, 3])
@pytest.mark.parametrize("way", ["sdpa", "eager"])
def test_one_bucket_and_one_chunk_are_full_attention(way, num_hashes, is_causal, dtype):
    """Attention with keys that are the queries, normalised, over all tokens but the query itself."""
    options = {"num_buckets": 1, "num_hashes": num_hashes, "lsh_chunk_length": LENGTH}
    layer = build_layer(is_causal, dtype, way, **options)
    x = torch.randn(2, LENGTH, 6, dtype=dtype)
    output, _, gradients = run(layer, x, None)
    allowed = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(-1) if is_causal else ~torch.eye(LENGTH).bool()
    allowed[0, 0] |= is_causal  # nothing else is there

    x = x.clone().requires_grad_()
    query, value = (layer.split_heads(proj(x)) for proj in (layer.qk_proj, layer.v_proj))
    key = query / (query.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    context = F.scaled_dot_product_attention(query, key, value, allowed).transpose(1, 2).flatten(2)
    expected = layer.o_proj(context)
    torch.manual_seed(1)
    (expected * torch.randn(expected.shape).to(dtype)).sum().backward()
    assert_close(output, expected, TOLERANCE[dtype], "LSH full")
    assert_same_gradients(gradients, {"x": x.grad} | named_gradients(layer), TOLERANCE[dtype], "LSH full")


@each_direction
@pytest.mark.parametrize("way", ["sdpa", "eager"])
def test_padding_is_not_sorted(way, is_causal):
    """A row in a batch is the row alone, overflowing buckets included; NaN under the padding reaches nothing."""
    layer = build_layer(is_causal, torch.float64, way, **OVERFLOWING)
    x, mask = torch.randn(4, LENGTH, 6, dtype=torch.float64), random_mask(4, LENGTH)
    together, _, gradients = run(layer, x, mask)
    alone, at = [], 0
    for row, tokens in zip(x, mask, strict=True):
        alone.append(layer(row[tokens][None], lay_out_tokens(None, row[tokens][None]))[0][0])
        assert_close(together[at : at + len(alone[-1])], alone[-1], 1e-12, "LSH padding")
        at += len(alone[-1])
    torch.manual_seed(1)
    (torch.cat(alone) * torch.randn(together.shape).to(x.dtype)).sum().backward()
    alone_gradients = named_gradients(layer)
    del gradients["x"]
    assert_same_gradients(gradients, alone_gradients, 1e-12, "LSH padding")


def test_nothing_under_padding_leaks():
    model, ids, mask = build_lsh(**OVERFLOWING), make_ids(4, LENGTH), random_mask(4, LENGTH)
    clean = model.get_input_embeddings()(ids).detach()
    poisoned = torch.where(mask[..., None], clean, float("nan"))
    results = []
    for embeddings in (clean, poisoned):
        output = model(inputs_embeds=embeddings, attention_mask=mask.long()).last_hidden_state[mask]
        output.square().sum().backward()
        results.append((output.detach(), named_gradients(model)))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(results[0][1][name], gradient) for name, gradient in results[1][1].items())
    mask[2] = False
    assert torch.isfinite(model(ids, attention_mask=mask.long()).last_hidden_state).all()


@each_direction
def test_weights_are_those_of_the_rule(is_causal):
    """`output_attentions`: (B, H, T, T) over positions; a token sees itself only if it sees nothing else."""
    layer = build_layer(is_causal, way="eager", **OVERFLOWING)
    x, mask = torch.randn(4, LENGTH, 6, dtype=torch.float64), random_mask(4, LENGTH)
    weights = run(layer, x, mask)[1]
    alone = 0
    for row, tokens in zip(weights, mask, strict=True):
        seen = row[:, tokens]
        assert not seen[..., ~tokens].any()
        seen = seen[..., tokens]
        assert_close(seen.sum(-1), torch.ones(seen.shape[:-1], dtype=seen.dtype), 1e-12, "LSH twin", "weights")
        assert not is_causal or not seen.triu(1).any()
        own = seen.diagonal(dim1=1, dim2=2)
        assert ((own == 0) | (own == 1)).all()
        alone += int((own == 1).sum())
    assert alone >= 2 * 4 if is_causal else alone >= 2  # at least the first tokens, or the row of a single one


@pytest.mark.parametrize("positions", ["rotary", "learned"])
@pytest.mark.parametrize("way", ["sdpa", "eager"])
def test_pieces_equal_the_whole_while_no_bucket_overflows(way, positions):
    model = build_lsh("causal-lm", torch.float64, attn_implementation=way, positions=positions, **ROOMY)
    ids, mask = make_ids(3, 60), torch.ones(3, 60, dtype=torch.long)
    mask[1, :20], mask[2, [3, 7, 8, 33]] = 0, 0
    cache, pieces = None, []
    for start, end in ((0, 30), (30, 31), (31, 45), (45, 60)):
        outputs = model(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
        pieces.append(outputs.logits)
    whole = model(ids, attention_mask=mask).logits
    assert_close(torch.cat(pieces, 1)[mask.bool()], whole[mask.bool()], 1e-12, "LSH pieces")
    assert set(cache.layers[0].states) == {"keys", "values", "buckets"}


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 2, "do_sample": True}], ids=str)
def test_generation(options):
    """Greedy and beams, left-padded: the tokens of generation without a cache."""
    model, ids, mask = build_lsh("causal-lm", **ROOMY), make_ids(3, 20), torch.ones(3, 20, dtype=torch.long)
    mask[1, :9], mask[2, :19] = 0, 0
    sequences = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        settings = {"max_new_tokens": 8, "pad_token_id": 0, "do_sample": False} | options
        sequences.append(model.generate(ids, attention_mask=mask, use_cache=use_cache, **settings))
    assert torch.equal(*sequences)


def test_later_tokens_change_nothing_while_no_bucket_overflows():
    ids, other = make_ids(2, LENGTH), make_ids(2, LENGTH, seed=5)
    changed = torch.cat([ids[:, :25], other[:, 25:]], dim=1)
    differences = []
    for options in (ROOMY, OVERFLOWING):
        model = build_lsh(dtype=torch.float64, **options)
        outputs = [model(given).last_hidden_state[:, :25] for given in (ids, changed)]
        differences.append((outputs[0] - outputs[1]).abs().max().item())
    assert differences[0] < 1e-12 < 1e-3 < differences[1]  # the second is the paper's: chunks begin elsewhere


@torch.no_grad()
@pytest.mark.parametrize(("buckets", "mean", "changed"), [(32, 0, 0), (16, 0.002, 0.005), (2, 0.4, 0.67)])
def test_difference_between_cached_and_whole(buckets, mean, changed):
    """The setting and the numbers of `LSHAttention`'s docstring.

    `mean` is of |difference| over the standard deviation of the logits, `changed` the share of most likely tokens.
    """
    options = {"vocab_size": 1000, "hidden_size": 64, "initializer_range": 0.2, "positions": "rotary"}
    model = build_lsh("causal-lm", torch.float64, noise=0, num_buckets=buckets, **options)
    ids = make_ids(4, 512, 1000)
    whole = model(ids).logits[:, 256:]
    cache = model(ids[:, :256], use_cache=True).past_key_values
    steps = [model(token, past_key_values=cache, use_cache=True).logits for token in ids[:, 256:].split(1, dim=1)]
    difference = (torch.cat(steps, dim=1) - whole).abs() / whole.std()
    differing = torch.cat(steps, dim=1).argmax(-1) != whole.argmax(-1)
    assert difference.mean().item() == pytest.approx(mean, rel=0.5, abs=1e-12)
    assert differing.double().mean().item() == pytest.approx(changed, rel=0.5)


def test_rotations_are_saved_and_never_drawn_again(tmp_path):
    model = build_lsh("causal-lm", **OVERFLOWING)
    first, second = (layer.self_attn.rotations for layer in model.model.layers)
    assert first.shape == (2, 6, 2, 1) and not torch.equal(first, second)
    for seed, same in ((0, True), (1, False)):
        torch.manual_seed(99)
        again = build(CASE, seed=5, attention_pattern="lsh", hash_seed=seed, **OVERFLOWING)
        assert torch.equal(again.layers[0].self_attn.rotations, first) == same
    with torch.no_grad():
        first += 1
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype).save_pretrained(tmp_path / str(dtype), save_code=False)
        reloaded = type(model).from_pretrained(tmp_path / str(dtype), dtype=dtype)
        for layer, expected in zip(reloaded.model.layers, model.model.layers, strict=True):
            assert torch.equal(layer.self_attn.rotations, expected.self_attn.rotations)
    state = {name: value for name, value in model.state_dict().items() if "1.self_attn.rotations" not in name}
    model.save_pretrained(tmp_path / "incomplete", state_dict=state, save_code=False)
    with pytest.raises(ValueError, match=r"lacks 1 tensors of .*layers\.1\.self_attn\.rotations"):
        type(model).from_pretrained(tmp_path / "incomplete")
    assert build_lsh(num_buckets=1).layers[0].self_attn.rotations is None


@each_direction
def test_derivatives(is_causal):
    """A9; the hash is piecewise constant, and the numbers drawn are nowhere near a step."""
    layer = build_layer(is_causal, num_buckets=2, num_hashes=2, lsh_chunk_length=2)
    x = torch.randn(2, 7, 6, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 1, 0, 1]]).bool()
    names = [name for name, _ in layer.named_parameters()]

    def compute(x, *weights):
        weights = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(layer, weights, (x, lay_out_tokens(mask, x)))[0][mask]

    weights = [parameter.detach().requires_grad_() for parameter in layer.parameters()]
    assert torch.autograd.gradcheck(compute, (x, *weights))


def test_a_query_of_zeros_has_finite_gradients():
    """An embedding of zeros (the pad token's, where it is read as a word) has no direction to normalise."""
    layer = build_layer(True, torch.float32, use_bias=False, **OVERFLOWING)
    *_, gradients = run(layer, torch.zeros(1, 9, 6), None)
    assert all(gradient.abs().max() < 1e4 for gradient in gradients.values())


def test_gradient_checkpointing():
    model, ids = build_lsh(dtype=torch.float64, feed_forward_chunk=5, **OVERFLOWING).train(), make_ids(2, LENGTH)
    results = []
    for on in (False, True):
        if on:
            model.gradient_checkpointing_enable()
        model(ids, use_cache=False).last_hidden_state.square().sum().backward()
        results.append(named_gradients(model))
    assert_same_gradients(*results, 1e-12, "LSH checkpointing")


def test_half_precision():
    """bf16 on the same buckets (one), and finite with many; fp16 holds the score of a token with itself, too."""
    x = torch.randn(2, LENGTH, 6)
    options = {"num_buckets": 1, "num_hashes": 2, "lsh_chunk_length": 8}
    for way in ("sdpa", "eager"):
        half, full = (build_layer(True, dtype, way, **options) for dtype in (torch.bfloat16, torch.float32))
        full.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
        actual, expected = (run(layer, x.to(layer.o_proj.weight.dtype), None)[0] for layer in (half, full))
        assert_close(actual, expected, 2e-2, "LSH bf16")
        for dtype in (torch.bfloat16, torch.float16):
            output, _, gradients = run(build_layer(True, dtype, way, **OVERFLOWING), x.to(dtype), None)
            assert all(torch.isfinite(value).all() for value in (output, *gradients.values()))


@torch.no_grad()
@pytest.mark.parametrize("way", ["sdpa", "eager"])
def test_dropout_acts_on_the_weights(way):
    """Averaged over many draws it changes nothing; a single draw does."""
    layer, x = build_layer(True, torch.float32, way, attention_dropout=0.3, **OVERFLOWING), torch.randn(1, 17, 6)
    layout = lay_out_tokens(None, x)
    expected = layer(x, layout)[0]
    many, layer = x.expand(4000, -1, -1), layer.train()
    drawn = layer(many, lay_out_tokens(None, many))[0]
    assert (drawn[0] - drawn[1]).abs().max() > 0.1
    assert (drawn.mean(0) - expected[0]).abs().max() < 0.15


def test_memory_is_linear():
    """What training saves for twice the text is twice as much; of full attention, nearly four times."""
    lsh, full = ([train_once(build_model(pattern), tokens) for tokens in (1024, 2048)] for pattern in ("lsh", "full"))
    assert 1.9 < lsh[1] / lsh[0] < 2.1
    assert full[1] / full[0] > 3.5


# -- the feed-forward layer in pieces ---------------------------------------------------------------------------------
@each_dtype
@pytest.mark.parametrize("hidden_act", ["gelu", "swiglu"])
@pytest.mark.parametrize("chunk", [1, 5, LENGTH, 100])
def test_feed_forward_in_pieces(chunk, hidden_act, dtype):
    options = {"hidden_act": hidden_act, "positions": "rotary"}
    whole, pieces = (build(CASE, dtype=dtype, feed_forward_chunk=size, **options) for size in (0, chunk))
    results = []
    for model in (whole, pieces):
        output = model(make_ids(2, LENGTH)).last_hidden_state
        torch.manual_seed(1)
        (output * torch.randn(output.shape).to(dtype)).sum().backward()
        results.append((output, named_gradients(model)))
    assert_close(results[1][0], results[0][0], TOLERANCE[dtype], "feed-forward pieces")
    assert_same_gradients(results[1][1], results[0][1], TOLERANCE[dtype], "feed-forward pieces")
    with torch.no_grad():
        assert_close(
            pieces(make_ids(2, LENGTH)).last_hidden_state, results[0][0], TOLERANCE[dtype], "feed-forward pieces"
        )


def test_feed_forward_in_pieces_saves_memory():
    """The wide inner layer is not kept for the backward pass."""
    options = {"intermediate_size": 1200}
    whole, pieces = (train_once(build(CASE, feed_forward_chunk=size, **options), 200) for size in (0, 10))
    inner = 2 * 2 * 200 * 1200 * 4  # 2 layers, before and after the activation, fp32
    assert whole - pieces > 0.9 * inner


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("num_hashes", 0, "between 1 and 1000"),
        ("num_buckets", 3, "1, or an even number"),
        ("num_buckets", 0, "1, or an even number"),
        ("lsh_chunk_length", 0, "between 1 and"),
        ("hash_seed", -1, "between 0 and"),
        ("feed_forward_chunk", -1, "between 0 and"),
        ("positions", "relative", "relative positions need all T² scores"),
    ],
)
def test_wrong_options_are_refused(option, value, rule):
    with pytest.raises(ValueError, match=rf"{option}={value!r} is not allowed: it must be .*{rule}"):
        build_lsh(**{option: value})
