"""LSH attention against Kitaev 2020 pair by pair, and against transformers' layer after copying the weights."""

import itertools
import math

import pytest
import torch
from transformers import ReformerConfig
from transformers.models.reformer.modeling_reformer import LSHSelfAttention

from hf_seqmodels import TransformerDecoderConfig
from hf_seqmodels.models.shared_lsh_attention import LSHAttention
from hf_seqmodels.models.shared_token_layout import lay_out_tokens
from model_table import TOLERANCE, assert_close, perturb

HEADS, HEAD_WIDTH, WIDTH = 2, 4, 6


def build_layer(is_causal: bool = True, dtype=torch.float64, layer_idx: int = 0, **options) -> LSHAttention:
    """The layer alone, every parameter far from zero."""
    sizes = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "head_dim": HEAD_WIDTH, "attention_pattern": "lsh"}
    config = TransformerDecoderConfig(**(sizes | options), attn_implementation="sdpa")
    layer = LSHAttention(config, layer_idx, is_causal).to(dtype).eval()
    layer.init_weights(config)
    perturb(layer, 1.0)
    return layer


def bucket_of(vector: torch.Tensor, rotations: torch.Tensor) -> int:
    """h(x) = argmax([x R; −x R]) (section 2, "Locality sensitive hashing"), number by number."""
    turned = [sum(x * r for x, r in zip(vector.tolist(), column.tolist(), strict=True)) for column in rotations.T]
    return max(range(2 * len(turned)), key=lambda b: turned[b] if b < len(turned) else -turned[b - len(turned)])


def attend_as_in_the_paper(layer: LSHAttention, x: torch.Tensor) -> torch.Tensor:
    """x (T, D) → (T, H·K) before the output layer; appendix A, each round with its N_ij and z."""
    length, rounds, size = len(x), layer.num_hashes, layer.chunk_length
    queries, values = (proj(x).view(length, HEADS, HEAD_WIDTH) for proj in (layer.qk_proj, layer.v_proj))
    output = []
    for head in range(HEADS):
        q, v = queries[:, head], values[:, head]
        # ‖k‖ = √K but for 1e-6 that the authors' code adds, so that there is a gradient at zero.
        k = [vector / (vector.square().mean() + 1e-6).sqrt() for vector in q]
        met = []  # P_i^(r), of eq. 4–6
        for r in range(rounds):
            one = layer.rotations is None
            h = [0 if one else bucket_of(vector, layer.rotations[head, :, r]) for vector in q]
            places = sorted(range(length), key=lambda i: (h[i], i))
            chunk = {i: places.index(i) // size for i in range(length)}
            met.append(
                [
                    {
                        j
                        for j in range(length)
                        if h[i] == h[j] and chunk[i] - 1 <= chunk[j] <= chunk[i] and (j <= i or not layer.is_causal)
                    }
                    for i in range(length)
                ]
            )
        for i in range(length):
            z, o = [], []
            for r in range(rounds):
                seen = sorted(met[r][i])
                times = [sum(j in met[other][i] for other in range(rounds)) for j in seen]  # N_ij
                # The paper's 10⁵ would round the scores to 1e-11; exp(−10³) is 0, too.
                minus = [1e3 if j == i else math.log(n) for j, n in zip(seen, times, strict=True)]
                scores = torch.stack([q[i] @ k[j] / math.sqrt(HEAD_WIDTH) for j in seen]) - torch.tensor(
                    minus, dtype=x.dtype
                )
                z.append(scores.logsumexp(0))
                o.append(sum((s - z[-1]).exp() * v[j] for s, j in zip(scores, seen, strict=True)))
            total = torch.stack(z).logsumexp(0)
            output.append(sum((z[r] - total).exp() * o[r] for r in range(rounds)))
    return torch.stack(output).view(HEADS, length, HEAD_WIDTH).transpose(0, 1).flatten(1)


SETTINGS = [
    {"num_buckets": buckets, "num_hashes": rounds, "lsh_chunk_length": size}
    for buckets, rounds, size in [(4, 1, 4), (4, 3, 4), (2, 2, 3), (6, 4, 64), (1, 2, 5), (1, 3, 64), (8, 2, 1)]
]


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_equals_the_paper(options, is_causal):
    layer, length = build_layer(is_causal, **options), 14
    x = torch.randn(length, WIDTH, dtype=torch.float64, requires_grad=True)
    inputs = [x, *layer.parameters()]
    results = []
    for output in (
        layer(x[None], lay_out_tokens(None, x[None]))[0][0],
        layer.o_proj(attend_as_in_the_paper(layer, x)),
    ):
        torch.manual_seed(1)
        results.append([output, *torch.autograd.grad((output * torch.randn_like(output)).sum(), inputs)])
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, TOLERANCE[torch.float64], "LSH, the paper")


def build_pair(is_causal: bool, **options):
    """Ours, with an output layer that changes nothing, and transformers'."""
    width = HEADS * HEAD_WIDTH
    layer = build_layer(is_causal, hidden_size=width, use_bias=False, **options)
    theirs = LSHSelfAttention(
        ReformerConfig(
            hidden_size=width, num_attention_heads=HEADS, attention_head_size=HEAD_WIDTH, is_decoder=is_causal,
            num_hashes=layer.num_hashes, num_buckets=max(layer.num_buckets, 2), hash_seed=layer.config.hash_seed,
            lsh_attn_chunk_length=layer.chunk_length, lsh_num_chunks_before=0, lsh_num_chunks_after=0,
            lsh_attention_probs_dropout_prob=0.0, attn_layers=["lsh"], axial_pos_embds=False,
        ),
        layer_idx=0,
    ).double().eval()  # fmt: skip
    with torch.no_grad():
        layer.o_proj.weight.copy_(torch.eye(width))
        theirs.query_key.weight.copy_(layer.qk_proj.weight)
        theirs.value.weight.copy_(layer.v_proj.weight)
    return layer, theirs


def check_pair(layer, theirs, x: torch.Tensor) -> None:
    pairs = [(layer.qk_proj.weight, theirs.query_key.weight), (layer.v_proj.weight, theirs.value.weight)]
    output, expected = layer(x, lay_out_tokens(None, x))[0], theirs(x).hidden_states
    assert_close(output, expected, TOLERANCE[torch.float64], "LSH, transformers")
    probe = torch.randn_like(output)
    ours = torch.autograd.grad((output * probe).sum(), [x, *(pair[0] for pair in pairs)])
    wanted = torch.autograd.grad((expected * probe).sum(), [x, *(pair[1] for pair in pairs)])
    for actual, gradient in zip(ours, wanted, strict=True):
        assert_close(actual, gradient, TOLERANCE[torch.float64], "LSH, transformers")


@pytest.mark.parametrize("is_causal", [True, False])
def test_one_bucket_equals_transformers_on_a_short_text(is_causal):
    """transformers' layer does not hash a text that fits a chunk."""
    layer, theirs = build_pair(is_causal, num_buckets=1, num_hashes=2, lsh_chunk_length=16)
    check_pair(layer, theirs, torch.randn(2, 11, HEADS * HEAD_WIDTH, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("is_causal", [True, False])
def test_full_buckets_equal_transformers(is_causal):
    """Where every bucket fills exactly one chunk, transformers' chunks are ours; the tokens come in any order."""
    buckets, size = 4, 8
    layer, theirs = build_pair(is_causal, num_buckets=buckets, num_hashes=1, lsh_chunk_length=size)
    with torch.no_grad():
        layer.qk_proj.weight.copy_(torch.eye(HEADS * HEAD_WIDTH))
        theirs.query_key.weight.copy_(layer.qk_proj.weight)
        torch.manual_seed(layer.config.hash_seed)  # as transformers draws its rotations
        drawn = torch.randn(HEADS, HEAD_WIDTH, 1, buckets // 2, dtype=torch.float64)
        layer.rotations.copy_(drawn)
    # Around the columns of R, in each head: such a vector is nearest to its column.
    columns = torch.cat([drawn[:, :, 0], -drawn[:, :, 0]], dim=-1)  # (H, K, buckets)
    members = torch.stack([torch.arange(buckets).repeat(size)[torch.randperm(buckets * size)] for _ in range(HEADS)])
    x = torch.stack([columns[head, :, members[head]].T for head in range(HEADS)], dim=1).flatten(1)
    x = (x + 0.02 * torch.randn_like(x))[None].requires_grad_()
    found = layer.hash(layer.split_heads(x))
    assert torch.equal(found[0, :, 0], members)
    check_pair(layer, theirs, x)


def test_hash_equals_transformers():
    layer, theirs = build_pair(True, num_buckets=6, num_hashes=3, lsh_chunk_length=4)
    vectors = torch.randn(2, HEADS, 15, HEAD_WIDTH, dtype=torch.float64)
    expected = theirs._hash_vectors(vectors, 3, None).view(2, HEADS, 3, 15) - torch.arange(3).view(-1, 1) * 6
    torch.manual_seed(layer.config.hash_seed)
    layer.rotations.copy_(torch.randn(layer.rotations.shape, dtype=torch.float64))
    assert torch.equal(layer.hash(vectors), expected)
    for head, index in itertools.product(range(HEADS), range(3)):
        alone = [bucket_of(vector, layer.rotations[head, :, index]) for vector in vectors[0, head]]
        assert alone == expected[0, head, index].tolist()
