"""Every way of generating from the recurrent encoder–decoder gives the scores of the uncached forward pass."""

import itertools

import pytest
import torch
from test_generation import MODES, state_bytes

from model_table import assert_close, make_ids
from seq2seq_cases import SOURCE_MASK, build_system, each_system

NEW = 5
each_mode = pytest.mark.parametrize("mode", [mode for mode in MODES if "chunks" not in mode])


def build_source() -> tuple[torch.Tensor, torch.Tensor]:
    """Sources padded left, right, with holes, and one of a single token."""
    return make_ids(*SOURCE_MASK.shape).masked_fill(SOURCE_MASK == 0, 0), SOURCE_MASK


def generate(model, ids, mask=None, **options):
    """generate() from a fixed seed; never stops early, so that every step is compared."""
    torch.manual_seed(7)
    defaults = {"max_new_tokens": NEW, "do_sample": False, "output_logits": True, "output_scores": True}
    options = defaults | {"return_dict_in_generate": True} | options
    return model.generate(ids, attention_mask=mask, **options)


@torch.no_grad()
def uncached_logits(model, ids, mask, sequences: torch.Tensor, new: int = NEW) -> torch.Tensor:
    """(B, new, V): one forward pass over the whole target, the positions that the generated tokens came from."""
    times = len(sequences) // len(ids)
    ids, mask = ids.repeat_interleave(times, dim=0), mask.repeat_interleave(times, dim=0)
    logits = model(ids, attention_mask=mask, decoder_input_ids=sequences[:, :-1], use_cache=False).logits
    return logits[:, -new:]


@each_mode
@each_system
def test_scores_equal_the_uncached_forward_pass(system, mode):
    model, (ids, mask), options = build_system(system), build_source(), MODES[mode]
    result = generate(model, ids, mask, **options)
    assert result.sequences.shape[1] == 1 + NEW
    expected = uncached_logits(model, ids, mask, result.sequences)
    if "num_beams" not in options:
        assert_close(torch.stack(result.logits, dim=1), expected, 1e-5, "generation seq2seq")
        return
    tokens = result.sequences[:, -NEW:, None]
    scores = expected.log_softmax(-1).gather(-1, tokens).squeeze(-1).sum(-1) / NEW
    assert_close(result.sequences_scores, scores, 1e-5, "generation seq2seq")


@pytest.mark.parametrize("mode", ["greedy", "beam several"])
def test_from_what_the_encoder_returned(mode):
    model, (ids, mask) = build_system("luong"), build_source()
    encoded = model.get_encoder()(ids, attention_mask=mask)
    expected = generate(model, ids, mask, **MODES[mode])
    actual = generate(model, None, mask, encoder_outputs=encoded, **MODES[mode])
    assert torch.equal(actual.sequences, expected.sequences)
    assert_close(torch.stack(actual.logits), torch.stack(expected.logits), 1e-5, "generation seq2seq")


def test_a_target_read_in_chunks_is_refused():
    """transformers would cut the source's mask to the target's chunks; it must not pass unnoticed."""
    model, (ids, mask) = build_system("plain"), build_source()
    target = torch.cat([torch.ones(5, 1, dtype=torch.long), make_ids(5, 4, seed=2)], dim=1)
    with pytest.raises(ValueError, match=r"attention_mask of shape \(5, 2\) does not fit"):
        generate(model, ids, mask, decoder_input_ids=target, prefill_chunk_size=2)


@pytest.mark.parametrize("mode", ["greedy", "beam several", "beam-sample"])
@each_system
def test_every_step_equals_generation_without_a_cache(system, mode):
    model, (ids, mask) = build_system(system), build_source()
    cached = generate(model, ids, mask, **MODES[mode])
    uncached = generate(model, ids, mask, use_cache=False, **MODES[mode])
    assert uncached.past_key_values is None and cached.past_key_values is not None
    assert torch.equal(cached.sequences, uncached.sequences)
    assert_close(torch.stack(cached.logits), torch.stack(uncached.logits), 1e-5, "generation seq2seq")


@each_system
def test_continuing(system):
    """From a returned cache; and from a target of one's own, padded on the left."""
    model, (ids, mask) = build_system(system), build_source()
    first = generate(model, ids, mask)
    second = generate(model, ids, mask, decoder_input_ids=first.sequences, past_key_values=first.past_key_values)
    straight = generate(model, ids, mask, max_new_tokens=2 * NEW)
    assert torch.equal(second.sequences, straight.sequences)
    assert_close(torch.stack(second.logits), torch.stack(straight.logits[NEW:]), 1e-5, "generation seq2seq")
    with pytest.raises(ValueError, match="past_key_values holds 10 tokens and decoder_input_ids only 6"):
        generate(model, ids, mask, decoder_input_ids=first.sequences, past_key_values=second.past_key_values)

    start = torch.tensor([[1, 5, 6]] * 5)
    padded = torch.cat([torch.ones(5, 1, dtype=torch.long), torch.zeros(5, 2, dtype=torch.long), start[:, 1:]], dim=1)
    target_mask = torch.tensor([[1, 0, 0, 1, 1]] * 5)
    plain = generate(model, ids, mask, decoder_input_ids=start)
    holes = generate(model, ids, mask, decoder_input_ids=padded, decoder_attention_mask=target_mask)
    assert_close(torch.stack(holes.logits), torch.stack(plain.logits), 1e-5, "generation seq2seq")


@each_system
def test_beam_search_finds_what_brute_force_finds(system):
    """With as many beams as there are targets of two tokens, the best 16 of the 64 targets of three."""
    model = build_system(system, vocab_size=4, noise=1.0)
    ids = torch.tensor([[1, 3, 2], [2, 3, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    found = generate(model, ids, mask, num_beams=16, max_new_tokens=3, num_return_sequences=16)
    targets = torch.tensor([[1, *tokens] for tokens in itertools.product(range(4), repeat=3)])
    for row in range(2):
        logits = model(
            ids[row].expand(64, -1), attention_mask=mask[row].expand(64, -1), decoder_input_ids=targets[:, :-1]
        ).logits
        scores = logits.log_softmax(-1).gather(-1, targets[:, 1:, None]).squeeze(-1).sum(-1) / 3
        best = scores.topk(16)
        rows = slice(16 * row, 16 * (row + 1))
        assert torch.equal(found.sequences[rows], targets[best.indices])
        assert_close(found.sequences_scores[rows], best.values, 1e-5, "generation seq2seq")


@each_system
def test_rows_that_end_early(system):
    model, (ids, mask) = build_system(system), build_source()
    first = generate(model, ids, mask).sequences[0, 2].item()
    result = generate(model, ids, mask, eos_token_id=first)
    new = result.sequences.shape[1] - 1
    expected = uncached_logits(model, ids, mask, result.sequences, new)
    for row, tokens in enumerate(result.sequences[:, 1:]):
        ends = (tokens == first).nonzero()
        until = int(ends[0]) + 1 if len(ends) else new
        actual = torch.stack(result.logits, dim=1)[row, :until]
        assert_close(actual, expected[row, :until], 1e-5, "generation seq2seq", f"row {row}")
    assert (result.sequences[0, 1:] == first).any()


@pytest.mark.parametrize("mode", ["greedy", "beam", "static cache"])
@each_system
def test_alignment_while_generating(system, mode):
    """`output_attentions`: the alignment of each step is the row of the whole target's."""
    model, (ids, mask) = build_system(system), build_source()
    result = generate(model, ids, mask, output_attentions=True, output_hidden_states=True, **MODES[mode])
    assert len(result.cross_attentions) == NEW
    if system.startswith("none"):
        assert result.cross_attentions[0] is None
        return
    assert result.cross_attentions[0][0].shape == (len(ids) * MODES[mode].get("num_beams", 1), 1, 8)
    if mode != "beam":
        target = result.sequences[:, :-1]
        whole = model(ids, attention_mask=mask, decoder_input_ids=target, output_attentions=True)
        steps = torch.cat([weights for (weights,) in result.cross_attentions], dim=1)
        assert_close(steps, whole.cross_attentions[0], 1e-5, "generation seq2seq")


@each_system
def test_cache_of_a_batch_is_that_of_its_rows(system):
    """Beams reorder, repeat and select rows: the states, the output that is fed, and the source go along."""
    model, (ids, mask) = build_system(system), build_source()
    target, following = make_ids(5, 4, seed=2), make_ids(5, 1, seed=3)
    both = torch.cat([target, following], dim=1)
    expected = model(ids, attention_mask=mask, decoder_input_ids=both).logits[:, -1]
    for change, rows in (
        (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0, 4, 3])), [2, 0, 0, 4, 3]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]),
        (lambda cache: cache.batch_select_indices(torch.tensor([1])), [1]),
    ):
        outputs = model(ids, attention_mask=mask, decoder_input_ids=target, use_cache=True)
        change(outputs.past_key_values)
        again = model(decoder_input_ids=following[rows], past_key_values=outputs.past_key_values, use_cache=True)
        assert_close(again.logits[:, -1], expected[rows], 1e-5, "generation seq2seq")


def test_cache_can_be_reset_and_refuses_to_forget():
    model, (ids, mask) = build_system("luong"), build_source()
    batch = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": make_ids(5, 4, seed=2)}
    first = model(**batch, use_cache=True)
    first.past_key_values.reset()
    again = model(**batch, past_key_values=first.past_key_values, use_cache=True)
    assert torch.equal(again.logits, first.logits)
    with pytest.raises(ValueError, match="a recurrent state cannot forget its last"):
        first.past_key_values.crop(1)


@each_system
def test_memory_does_not_grow_with_the_target(system):
    """States of one size and the source: however long the target, the cache is as large."""
    model, (ids, mask) = build_system(system), build_source()
    short, long = (state_bytes(generate(model, ids, mask, max_new_tokens=new).past_key_values) for new in (10, 100))
    assert long == short > 0


def test_assisted_generation_is_refused():
    model, ids = build_system("plain"), make_ids(1, 6)
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        generate(model, ids, assistant_model=build_system("plain", seed=5))
