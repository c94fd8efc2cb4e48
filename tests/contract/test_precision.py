"""A10: bf16 against fp32. A15: the same seed gives the same numbers."""

import hashlib

import pytest
import torch

from model_table import (
    SEQUENCE_HEADS,
    TOLERANCE,
    assert_close,
    build,
    cast,
    each_case,
    each_case_and_plain_head,
    make_inputs,
    make_mask,
    make_masks,
    output_of,
)


@each_case_and_plain_head
def test_bf16_is_close_to_fp32(case, head):
    """The same weights (those that bf16 can hold) in both precisions, on a padded batch."""
    # A bucket is the largest of several numbers, and which one that is changes with rounding.
    options = {"num_buckets": 1} if case.variant == "lsh" else {}
    half = build(case, head, torch.bfloat16, noise=0.1, **options)
    full = build(case, head, **options)
    full.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
    inputs, mask = make_inputs(case, head), make_mask("mixed")
    results = []
    for model in (half, full):
        given = {name: cast(value, model.dtype) for name, value in inputs.items()}
        results.append(output_of(model(**given, **make_masks(given, mask))))
    actual, expected = results
    assert actual.dtype == torch.bfloat16
    keep = ... if head in SEQUENCE_HEADS else mask.bool()
    assert_close(actual[keep], expected[keep], TOLERANCE[torch.bfloat16], "A10 bf16")


def loss_of(model, case, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """A loss of the model's main head, or of a backbone's output where the labels are series."""
    labels = {} if case.main_head == "time-series-prediction" else {"labels": inputs["input_ids"] % 3}
    outputs = model(**inputs, **labels)
    return outputs.loss if labels else output_of(outputs).square().mean()


def build_to_train(case, **options):
    return build(case, "backbone" if case.main_head == "time-series-prediction" else case.main_head, **options)


@each_case
def test_autocast_trains_and_continues(case):
    """Under autocast the state comes back in whatever precision the kernels left it, and must be readable again."""
    model, inputs = build_to_train(case), make_inputs(case, case.main_head, 2, 6)
    expected = output_of(model(**inputs))
    with torch.autocast(expected.device.type, dtype=torch.bfloat16):
        loss = loss_of(model, case, inputs)
        pieces = [output_of(model(**inputs))]
        if case.main_head == "causal-lm":
            ids = inputs["input_ids"]
            first = model(ids[:, :4], use_cache=True)
            pieces.append(model(ids[:, 4:], past_key_values=first.past_key_values, use_cache=True).logits)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    for logits in pieces:
        assert_close(logits.float(), expected[:, -logits.shape[1] :], 5e-2, "autocast")


def digest_after_training(case, seed: int) -> str:
    """sha256 of every parameter after three steps with dropout."""
    model = build_to_train(case, seed=seed, dropout=0.2).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(3):
        inputs = make_inputs(case, case.main_head, 3, 7, seed=seed + step)
        loss_of(model, case, inputs).backward()
        optimizer.step()
        optimizer.zero_grad()
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode() + parameter.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


@each_case
def test_same_seed_same_digest(case):
    first, again, other = (digest_after_training(case, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("rate", [0.0, 0.5])
@each_case
def test_dropout_acts_in_training_only(case, rate):
    model, inputs = build(case, dropout=rate), make_inputs(case, "backbone", 2, 6)
    quiet = model(**inputs).last_hidden_state
    model.train()
    first, second = model(**inputs).last_hidden_state, model(**inputs).last_hidden_state
    if rate == 0.0:
        assert_close(first, quiet, 1e-5, "dropout 0")
    else:
        assert not torch.equal(first, second)
    model.eval()
    assert torch.equal(model(**inputs).last_hidden_state, quiet)
