"""Sliding-window attention with global tokens is full attention under the paper's mask; its memory stays bounded."""

import itertools

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from model_table import (
    TOLERANCE,
    Case,
    assert_close,
    assert_same_gradients,
    build,
    make_ids,
    make_mask,
    named_gradients,
)

LENGTH = 41  # of more than one block of queries, and not a multiple of a block
DECODER, ENCODER = "seq_transformer_decoder", "seq_transformer_encoder"
WINDOWS = [(DECODER, window) for window in (1, 2, 7, 41, 90)] + [(ENCODER, window) for window in (2, 4, 16, 90)]
each_window = pytest.mark.parametrize(("architecture", "window"), WINDOWS)
each_count = pytest.mark.parametrize("num_global", [0, 1, 3])
each_way = pytest.mark.parametrize("way", ["eager", "sdpa"])


def allowed_pairs(architecture: str, window: int, is_global: torch.Tensor) -> torch.Tensor:
    """(T, T): who sees whom, by the definition, pair by pair."""
    length = len(is_global)
    pairs = torch.zeros(length, length, dtype=torch.bool)
    for i, j in itertools.product(range(length), repeat=2):
        if architecture == DECODER:
            pairs[i, j] = j <= i and (i - j < window or bool(is_global[j]))
        else:
            pairs[i, j] = abs(i - j) <= window // 2 or bool(is_global[i]) or bool(is_global[j])
    return pairs


def build_pair(architecture: str, way: str, dtype=torch.float32, **options):
    """A model with the pattern, and one with full attention and the same weights."""
    case = Case(architecture, "plain")
    model = build(case, dtype=dtype, attention_pattern="sliding_window", attn_implementation=way, **options)
    full = build(case, dtype=dtype, attn_implementation="eager")
    full.load_state_dict(model.state_dict())
    return model, full


def check_equal(model, full, inputs: dict, pairs: torch.Tensor, dtype: torch.dtype) -> None:
    """Outputs and gradients of the pattern against full attention that is masked to `pairs` (B, T, T)."""
    ids = make_ids(len(pairs), pairs.shape[-1])
    mask = torch.zeros(pairs.shape, dtype=dtype).masked_fill(~pairs, torch.finfo(dtype).min)[:, None]
    results = []
    for network, given in ((model, inputs), (full, {"attention_mask": mask})):
        output = network(ids, use_cache=False, **given).last_hidden_state
        torch.manual_seed(0)
        (output * torch.randn(output.shape).to(dtype)).sum().backward()
        results.append((output, named_gradients(network)))
    (output, gradients), (expected, expected_gradients) = results
    assert_close(output, expected, TOLERANCE[dtype], "sliding window")
    assert_same_gradients(gradients, expected_gradients, TOLERANCE[dtype], "sliding window")


@each_way
@each_count
@each_window
def test_equals_full_attention_under_the_mask(architecture, window, num_global, way):
    options = {"attention_window": window, "num_global_tokens": num_global}
    for dtype in (torch.float32, torch.float64):
        model, full = build_pair(architecture, way, dtype, **options)
        pairs = allowed_pairs(architecture, window, torch.arange(LENGTH) < num_global)
        check_equal(model, full, {}, pairs.expand(2, -1, -1), dtype)


@each_way
def test_global_tokens_anywhere(way):
    """An encoder is told which tokens of which row are global, as many as each row has."""
    chosen = torch.zeros(3, LENGTH, dtype=torch.long)
    chosen[0, [0, 17, 40]] = 1
    chosen[1, 30] = 1
    model, full = build_pair(ENCODER, way, torch.float64, attention_window=6)
    pairs = torch.stack([allowed_pairs(ENCODER, 6, row.bool()) for row in chosen])
    check_equal(model, full, {"global_attention_mask": chosen}, pairs, torch.float64)


@each_way
def test_global_tokens_and_padding(way):
    """A row in a padded batch, with global tokens of its own, is the row alone; a global padding is none."""
    model, _ = build_pair(ENCODER, way, torch.float64, attention_window=2)
    ids, mask = make_ids(5, 8), make_mask("mixed")
    chosen = torch.tensor([0, 0, 0, 1, 0, 1, 0, 1]).expand(5, -1)
    together = model(ids, attention_mask=mask, global_attention_mask=chosen).last_hidden_state
    for i, tokens in enumerate(mask.bool()):
        alone = model(ids[i][tokens][None], global_attention_mask=chosen[i][tokens][None]).last_hidden_state[0]
        assert_close(together[i][tokens], alone, 1e-12, "sliding window", f"row {i}")
    only_padding = chosen * (1 - mask)
    some, none = (
        model(ids, attention_mask=mask, global_attention_mask=each).last_hidden_state
        for each in (only_padding, torch.zeros_like(mask))
    )
    assert torch.equal(some[mask.bool()], none[mask.bool()])


@each_way
def test_more_global_tokens_than_tokens(way):
    """All of them are global then, as in full attention; in a padded batch each row's are."""
    for architecture in (DECODER, ENCODER):
        model, full = build_pair(architecture, way, torch.float64, attention_window=2, num_global_tokens=6)
        check_equal(
            model, full, {}, allowed_pairs(architecture, 2, torch.ones(3).bool()).expand(2, -1, -1), torch.float64
        )
        ids, mask = make_ids(5, 8)[:, 3:], make_mask("mixed")[:, 3:]
        together = model(ids, attention_mask=mask).last_hidden_state
        for i, tokens in enumerate(mask.bool()):
            if tokens.any():
                alone = model(ids[i][tokens][None]).last_hidden_state[0]
                assert_close(together[i][tokens], alone, 1e-12, "sliding window", f"row {i}")


def test_the_caller_s_mask_of_global_tokens():
    """It is left as it is, and must have a value for each token."""
    model, _ = build_pair(ENCODER, "sdpa", attention_window=2)
    ids, mask, chosen = make_ids(5, 8), make_mask("mixed"), torch.ones(5, 8, dtype=torch.bool)
    model(ids, attention_mask=mask, global_attention_mask=chosen)
    assert chosen.all()
    for shape in ((5, 7), (1, 8), (8,), (5, 1, 8)):
        with pytest.raises(
            ValueError, match=r"^global_attention_mask of shape \(.*\) does not .* pass \(5, 8\), \(batch"
        ):
            model(ids, attention_mask=mask, global_attention_mask=torch.ones(shape))


def test_weights_are_those_of_the_mask():
    """`output_attentions`: (B, H, T, T) over positions, zero where a pair is not allowed; rows of tokens sum to 1."""
    for architecture in (DECODER, ENCODER):
        model, _ = build_pair(architecture, "eager", attention_window=2, num_global_tokens=1)
        mask = make_mask("mixed")
        attentions = model(make_ids(5, 8), attention_mask=mask, output_attentions=True).attentions
        assert [weights.shape for weights in attentions] == [(5, 2, 8, 8)] * 2
        for weights in attentions:
            for i, tokens in enumerate(mask.bool()):
                pairs = allowed_pairs(architecture, 2, torch.arange(int(tokens.sum())) < 1)
                row = weights[i][:, tokens]
                assert not row[..., ~tokens].any()
                assert torch.equal(row[..., tokens] > 0, pairs.expand_as(row[..., tokens]))
                assert_close(row.sum(-1), torch.ones(row.shape[:-1]), 1e-5, "sliding window", "weights")


@each_count
@pytest.mark.parametrize("window", [1, 4])
def test_memory_of_generation_is_bounded(window, num_global):
    """While generating, a layer holds W − 1 tokens and the global ones, whatever the length of the text."""
    case = Case(DECODER, "plain")
    options = {"attention_window": window, "num_global_tokens": num_global, "positions": "rotary"}
    model = build(case, "causal-lm", torch.float64, attention_pattern="sliding_window", **options)
    ids, cache, pieces = make_ids(2, 60), None, []
    for start, end in ((0, 30), (30, 31), (31, 45), (45, 60)):
        outputs = model(ids[:, start:end], past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
        pieces.append(outputs.logits)
        states = cache.layers[0].states
        assert states["keys"].shape[2] == states["values"].shape[2] == window - 1
        assert "global_keys" not in states or states["global_keys"].shape[2] == num_global
    assert_close(torch.cat(pieces, 1), model(ids).logits, 1e-12, "sliding window", "pieces")


def test_wrong_windows_are_refused():
    for architecture, window, rule in ((DECODER, 0, "between 1"), (DECODER, -3, "between 1"), (ENCODER, 5, "even")):
        with pytest.raises(ValueError, match=rf"attention_window={window} is not allowed: it must be .*{rule}"):
            build(Case(architecture, "plain"), attention_pattern="sliding_window", attention_window=window)
    with pytest.raises(
        ValueError, match=r"positions='relative' is not allowed: .* relative positions need all T² scores"
    ):
        build(Case(DECODER, "plain"), attention_pattern="sliding_window", positions="relative")
    for model in (build(Case(DECODER, "plain"), attention_pattern="sliding_window"), build(Case(ENCODER, "plain"))):
        with pytest.raises(ValueError, match="global_attention_mask is for encoders with attention_pattern"):
            model(make_ids(1, 4), global_attention_mask=torch.ones(1, 4))


def test_trainer_hands_global_tokens_on(tmp_path):
    """The stock Trainer drops columns that `forward` does not name."""
    case = Case(ENCODER, "sliding_window")
    row = {"input_ids": [3, 4, 5, 6, 7, 8], "global_attention_mask": [0, 0, 1, 0, 0, 0]}
    for head, labels in (("sequence-classification", 1), ("token-classification", [1] * 6), ("masked-lm", [2] * 6)):
        seen = []
        model = build(case, head)
        model.model.register_forward_pre_hook(lambda _, __, named, seen=seen: seen.append(named), with_kwargs=True)
        rows = Dataset.from_list([row | {"labels": labels}] * 4)
        arguments = TrainingArguments(tmp_path, max_steps=1, report_to="none", use_cpu=True, disable_tqdm=True)
        Trainer(model, arguments, train_dataset=rows).train()
        assert seen[0]["global_attention_mask"].tolist()[0] == row["global_attention_mask"]
