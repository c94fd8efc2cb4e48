"""Every way of generating gives the scores of the uncached forward pass."""

import pytest
import torch

from model_table import CAUSAL_CASES, Case, assert_close, build, each_causal_case, make_ids

pytestmark = pytest.mark.covers(None, "causal-lm")
NEW = 5
PROMPT_MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]])
MODES = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 0},
    "sampling several": {"do_sample": True, "num_return_sequences": 3},
    "beam": {"num_beams": 3},
    "beam several": {"num_beams": 3, "num_return_sequences": 2},
    "beam-sample": {"num_beams": 3, "do_sample": True},
    "prefill in chunks": {"prefill_chunk_size": 4},
    "static cache": {"cache_implementation": "static"},
    "static cache, beam": {"cache_implementation": "static", "num_beams": 2},
}


def build_prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """A left-padded batch: a whole row, a padded one, and one of a single token."""
    mask = PROMPT_MASK.clone()
    return torch.where(mask.bool(), make_ids(*mask.shape), 0), mask


def build_causal(case: Case, **options):
    model = build(case, "causal-lm", **options)
    model.generation_config.pad_token_id = 0
    return model


def generate(model, ids=None, mask=None, **options):
    """generate() from a fixed seed; never stops early, so that every step is compared."""
    torch.manual_seed(7)
    defaults = {"max_new_tokens": NEW, "do_sample": False, "output_logits": True, "output_scores": True}
    options = defaults | {"return_dict_in_generate": True} | options
    return model.generate(ids, attention_mask=mask, **options)


@torch.no_grad()
def uncached_logits(model, sequences: torch.Tensor, mask: torch.Tensor, new: int) -> torch.Tensor:
    """(B, new, V): one forward pass over the whole text, the positions that the generated tokens came from."""
    mask = mask.repeat_interleave(len(sequences) // len(mask), dim=0)
    mask = torch.cat([mask, mask.new_ones(len(sequences), sequences.shape[1] - mask.shape[1])], dim=1)
    return model(sequences, attention_mask=mask, use_cache=False).logits[:, -new - 1 : -1]


@pytest.mark.parametrize("mode", MODES)
@each_causal_case
def test_scores_equal_the_uncached_forward_pass(case, mode):
    model, (ids, mask), options = build_causal(case), build_prompts(), MODES[mode]
    result = generate(model, ids, mask, **options)
    assert result.sequences.shape[1] == ids.shape[1] + NEW
    expected = uncached_logits(model, result.sequences, mask, NEW)
    if "num_beams" not in options:
        logits = torch.stack(result.logits, dim=1)
        assert_close(logits, expected, 1e-5, "generation")
        return
    # The score of a beam is the mean log-probability of its tokens; sampled beams come out unordered.
    tokens = result.sequences[:, -NEW:, None]
    scores = expected.log_softmax(-1).gather(-1, tokens).squeeze(-1).sum(-1) / NEW
    assert_close(result.sequences_scores, scores, 1e-5, "generation, beams")


@pytest.mark.parametrize("mode", ["greedy", "beam several", "beam-sample"])
@each_causal_case
def test_every_step_equals_generation_without_a_cache(case, mode):
    """The logits of every beam at every step, not of the winner alone."""
    model, (ids, mask) = build_causal(case), build_prompts()
    cached = generate(model, ids, mask, **MODES[mode])
    uncached = generate(model, ids, mask, use_cache=False, **MODES[mode])
    assert uncached.past_key_values is None
    assert cached.past_key_values is not None
    assert torch.equal(cached.sequences, uncached.sequences)
    assert_close(torch.stack(cached.logits), torch.stack(uncached.logits), 1e-5, "generation, steps")


@each_causal_case
def test_continuing_from_a_returned_cache(case):
    model, (ids, mask) = build_causal(case), build_prompts()
    first = generate(model, ids, mask)
    longer = torch.cat([mask, torch.ones(len(mask), NEW, dtype=mask.dtype)], dim=1)
    second = generate(model, first.sequences, longer, past_key_values=first.past_key_values)
    expected = uncached_logits(model, second.sequences, mask, NEW)
    assert_close(torch.stack(second.logits, dim=1), expected, 1e-5, "generation, continued")
    straight = generate(model, ids, mask, max_new_tokens=2 * NEW)
    assert torch.equal(second.sequences, straight.sequences)


@pytest.mark.parametrize("mode", ["greedy", "beam", "sampling several"])
@each_causal_case
def test_inputs_embeds(case, mode):
    model, (ids, mask) = build_causal(case), build_prompts()
    embeddings = model.get_input_embeddings()(ids)
    from_ids = generate(model, ids, mask, **MODES[mode])
    from_embeddings = generate(model, mask=mask, inputs_embeds=embeddings, **MODES[mode])
    assert torch.equal(from_embeddings.sequences, from_ids.sequences[:, ids.shape[1] :])
    actual, expected = (torch.stack(result.logits) for result in (from_embeddings, from_ids))
    assert_close(actual, expected, 1e-5, "generation, embeddings")


@each_causal_case
def test_rows_that_end_early(case):
    """A row that has ended is fed padding; the others must not notice."""
    model, (ids, mask) = build_causal(case), build_prompts()
    first = generate(model, ids, mask).sequences[0, ids.shape[1] + 1].item()
    result = generate(model, ids, mask, eos_token_id=first)
    new = result.sequences.shape[1] - ids.shape[1]
    expected = uncached_logits(model, result.sequences, mask, new)
    for row, tokens in enumerate(result.sequences[:, ids.shape[1] :]):
        ends = (tokens == first).nonzero()
        until = int(ends[0]) + 1 if len(ends) else new
        actual = torch.stack(result.logits, dim=1)[row, :until]
        assert_close(actual, expected[row, :until], 1e-5, "generation", f"row {row}")
    assert (result.sequences[0, ids.shape[1] :] == first).any()


@each_causal_case
def test_cache_of_a_batch_is_that_of_its_rows(case):
    """Beams reorder, repeat and select rows of the cache: each row must carry all of its state along."""
    model, ids = build_causal(case), make_ids(3, 6)
    following = make_ids(3, 1, seed=3)
    expected = model(torch.cat([ids, following], dim=1)).logits[:, -1]
    for change, rows in (
        (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
        (lambda cache: cache.batch_select_indices(torch.tensor([1])), [1]),
    ):
        cache = model(ids, use_cache=True).past_key_values
        change(cache)
        logits = model(following[rows], past_key_values=cache, use_cache=True).logits[:, -1]
        assert_close(logits, expected[rows], 1e-5, "generation, beams")


def test_cache_can_be_reset_and_detached():
    for case in (Case("seq_lstm", "plain"), Case("seq_attention_rnn", "additive")):
        model, ids = build_causal(case), make_ids(2, 4)
        cache = model(ids, use_cache=True).past_key_values
        assert all(state.requires_grad for state in cache.layers[0].states.values() if state.is_floating_point())
        for layer in cache.layers:
            layer.detach()
        assert not any(state.requires_grad for layer in cache.layers for state in layer.states.values())
        cache.reset()
        assert cache.get_seq_length() == 0
        again = model(ids, past_key_values=cache, use_cache=True).logits
        assert torch.equal(again, model(ids).logits)
        with pytest.raises(ValueError, match="a recurrent state cannot forget its last"):
            cache.layers[0].crop(-1)


@each_causal_case
def test_assisted_generation(case):
    """Rejected tokens are taken back: keys and values can, a recurrent state cannot and says so from the start."""
    model, ids = build_causal(case), make_ids(1, 6)
    assistant = build_causal(case, seed=5)
    for options in ({"prompt_lookup_num_tokens": 2}, {"assistant_model": assistant}):
        if case.stateful:
            with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
                generate(model, ids, **options)
        else:
            assert torch.equal(generate(model, ids, **options).sequences, generate(model, ids).sequences)


@pytest.mark.parametrize("case", [case for case in CAUSAL_CASES if case.stateful], ids=str)
def test_quantized_cache_is_refused(case):
    with pytest.raises(ValueError, match=r"invalid layer types: .*seq_recurrent"):
        generate(build_causal(case), make_ids(1, 6), cache_implementation="quantized")


def state_bytes(cache) -> int:
    """Bytes of memory behind every tensor that can be reached from the cache (whole storages, not views)."""
    storages, seen, stack = {}, set(), [cache]
    while stack:
        item = stack.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            storages[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
        elif isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list | tuple | set):
            stack.extend(item)
        elif hasattr(item, "__dict__"):
            stack.extend(vars(item).values())
    return sum(storages.values())


@each_causal_case
def test_memory_while_generating(case):
    """A recurrent state has one size; an attention window bounds the memory; the others grow with the text."""
    model, ids = build_causal(case), make_ids(2, 3)
    short, long = (
        state_bytes(generate(model, ids, torch.ones_like(ids), max_new_tokens=new).past_key_values)
        for new in (10, 200)
    )
    assert short > 0
    if case.cell_only or case.variant in ("windowed", "sliding_window"):
        assert long == short
    else:
        assert long > 5 * short


def test_state_of_an_lstm_is_two_vectors_a_layer():
    """Guards the measure above: 2 layers × (h, c) × 3 rows × 12 columns × 4 bytes, and nothing besides."""
    cache = build_causal(Case("seq_lstm", "plain"))(make_ids(3, 9), use_cache=True).past_key_values
    assert state_bytes(cache) == 2 * 2 * 3 * 12 * 4


@pytest.mark.slow
@pytest.mark.parametrize("mode", [mode for mode in MODES if "static" not in mode])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("score", ["additive", "dot", "general"])
@pytest.mark.parametrize("window", [None, 1, 4])
def test_attention_rnn_options(cell, score, window, mode):
    options, prompts = {"cell": cell, "score": score, "window": window}, build_prompts()
    model = build_causal(Case("seq_attention_rnn", "plain"), **options)
    cached = generate(model, *prompts, **MODES[mode])
    whole = {name: value for name, value in MODES[mode].items() if name != "prefill_chunk_size"}
    uncached = generate(model, *prompts, use_cache=False, **whole)
    assert torch.equal(cached.sequences, uncached.sequences)
    assert_close(torch.stack(cached.logits), torch.stack(uncached.logits), 1e-5, "generation, steps")


def test_table_of_causal_cases():
    assert len(CAUSAL_CASES) >= 19
