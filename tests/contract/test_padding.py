"""A1–A4, A19: a batch gives each row what the row gives alone, wherever the padding is and whatever lies under it."""

import pytest
import torch

from model_table import (
    PADDINGS,
    SEQUENCE_HEADS,
    TOLERANCE,
    Case,
    assert_close,
    assert_same_gradients,
    build,
    cast,
    each_case_and_plain_head,
    each_causal_case,
    make_ids,
    make_inputs,
    make_mask,
    make_masks,
    named_gradients,
    output_of,
    poisonable,
)

# "mixed" holds a row of every kind; whole batches of one kind take the same paths.
DEFAULT_PADDINGS = ("none", "mixed")
each_padding = pytest.mark.parametrize(
    "padding", [pytest.param(p, marks=[] if p in DEFAULT_PADDINGS else pytest.mark.slow) for p in PADDINGS]
)


def row_name(case: Case, padding: str) -> str:
    if padding == "none":
        return "A1 batch"
    return "A2 padding" if case.recurrent else "A4 padding"


def check_rows(case: Case, head: str, padding: str, dtype: torch.dtype) -> None:
    """Each row in the batch against the row alone: outputs, and gradients of a fixed linear function of them."""
    model, mask = build(case, head, dtype), make_mask(padding)
    inputs = {name: cast(value, dtype) for name, value in make_inputs(case, head).items()}
    row, tolerance, per_token = row_name(case, padding), TOLERANCE[dtype], head not in SEQUENCE_HEADS
    together = output_of(model(**inputs, **(make_masks(inputs, mask) if padding != "none" else {})))
    # One weight for each output of each token.
    probe = torch.randn(*mask.shape, *together.shape[2 if per_token else 1 :]).to(dtype)

    def take(output: torch.Tensor, index: int, tokens: torch.Tensor) -> torch.Tensor:
        return output[index][tokens] if per_token else output[index]

    def weigh(output: torch.Tensor, index: int) -> torch.Tensor:
        weights = probe[index, : len(output)] if per_token else probe[index, 0]
        return (output * weights).sum()

    tokens = mask.bool()
    sum(weigh(take(together, i, tokens[i]), i) for i in range(len(mask))).backward()
    gradients = named_gradients(model)
    for i in range(len(mask)):
        alone = output_of(model(**{name: value[i][tokens[i]][None] for name, value in inputs.items()}))[0]
        weigh(alone, i).backward()
        assert_close(take(together, i, tokens[i]), alone, tolerance, row, f"row {i}")
    assert_same_gradients(gradients, named_gradients(model), tolerance, row)


@each_padding
@each_case_and_plain_head
def test_row_in_batch_equals_row_alone(case, head, padding):
    check_rows(case, head, padding, torch.float32)


@each_case_and_plain_head
def test_row_in_batch_equals_row_alone_in_fp64(case, head):
    check_rows(case, head, "mixed", torch.float64)


@each_padding
@each_causal_case
def test_final_state_ignores_padding(case, padding):
    """A2: the state after a padded row is the state after the row alone: named states, and what comes next."""
    model, ids, mask, following = build(case), make_ids(5, 8), make_mask(padding), make_ids(5, 2, seed=2)
    cache = model(ids, attention_mask=mask, use_cache=True).past_key_values
    states = [dict(getattr(layer, "states", {})) for layer in cache.layers]
    longer = torch.cat([mask, torch.ones_like(following)], dim=1)
    after = model(following, attention_mask=longer, past_key_values=cache, use_cache=True).last_hidden_state
    row = "A2 final state" if case.recurrent else "A4 final state"
    for i, tokens in enumerate(mask.bool()):
        alone = model(ids[i][tokens][None], use_cache=True).past_key_values
        for together, layer in zip(states, alone.layers, strict=True):
            for name in {"h", "c"} & together.keys():
                assert_close(together[name][i], layer.states[name][0], 1e-5, row, f"{name} of row {i}")
        expected = model(following[i][None], past_key_values=alone, use_cache=True).last_hidden_state[0]
        assert_close(after[i], expected, 1e-5, row, f"row {i} continued")


def test_final_state_has_the_names_of_the_cell():
    """Guards the comparison above: it would pass if the states had other names."""
    for name, states in (("seq_rnn", {"h"}), ("seq_lstm", {"h", "c"}), ("seq_gru", {"h"})):
        cache = build(Case(name, "plain"))(make_ids(2, 3), use_cache=True).past_key_values
        assert [set(layer.states) for layer in cache.layers] == [states, states]


@pytest.mark.parametrize("cell", ["seq_rnn", "seq_lstm", "seq_gru"])
@pytest.mark.parametrize("padding", ["none", "mixed"])
def test_backward_direction_reads_only_the_tokens_reversed(cell, padding):
    """A3: the second half of a bidirectional output is a forward network with its weights on the reversed tokens."""
    both = build(Case(cell, "bidirectional"), num_hidden_layers=1)
    forward, backward = (build(Case(cell, "plain"), num_hidden_layers=1) for _ in range(2))
    copy_direction(both, forward, "")
    copy_direction(both, backward, "_reverse")
    ids, mask = make_ids(5, 8), make_mask(padding).bool()
    output = both(ids, attention_mask=mask).last_hidden_state
    probe = torch.randn_like(output)
    (output * probe).sum().backward()
    gradients = named_gradients(both)
    width = output.shape[-1] // 2
    for i, tokens in enumerate(mask):
        row = ids[i][tokens][None]
        ahead = forward(row).last_hidden_state[0]
        behind = backward(row.flip(1)).last_hidden_state[0].flip(0)
        assert_close(output[i][tokens], torch.cat([ahead, behind], -1), 1e-5, "A3 reversal", f"row {i}")
        ((ahead * probe[i][tokens][:, :width]).sum() + (behind * probe[i][tokens][:, width:]).sum()).backward()
    for network, suffix in ((forward, ""), (backward, "_reverse")):
        for name, gradient in named_gradients(network).items():
            if name.startswith("layers.0."):
                assert_close(gradients[name + suffix], gradient, 1e-5, "A3 reversal", f"gradient of {name + suffix}")


@torch.no_grad()
def copy_direction(both: torch.nn.Module, single: torch.nn.Module, suffix: str) -> None:
    single.embed_tokens.weight.copy_(both.embed_tokens.weight)
    for name, parameter in single.layers[0].named_parameters():
        parameter.copy_(getattr(both.layers[0], name + suffix))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@each_case_and_plain_head
def test_nothing_under_padding_leaks(case, head, poison):
    """A19, bit-exact: NaN or infinity under the padding changes no output and no gradient."""
    model, mask = build(case, head), make_mask("mixed")
    tokens = mask.bool()
    clean = poisonable(model, make_inputs(case, head))
    poisoned = {
        name: torch.where(tokens.view(*tokens.shape, *[1] * (value.ndim - 2)), value, poison)
        for name, value in clean.items()
    }
    results = []
    for given in (clean, poisoned):
        given = {name: value.clone().requires_grad_() for name, value in given.items()}
        output = output_of(model(**given, **make_masks(given, mask)))
        output = output if head in SEQUENCE_HEADS else output[tokens]
        output.square().sum().backward()
        results.append((output.detach(), {name: value.grad for name, value in given.items()}, named_gradients(model)))
    (expected, expected_inputs, expected_gradients), (output, inputs, gradients) = results
    assert torch.equal(output, expected)
    assert torch.isfinite(output).all()
    for name, gradient in expected_inputs.items():
        assert torch.equal(inputs[name], gradient), name
        assert not gradient[~tokens].any(), name
    for name, gradient in expected_gradients.items():
        assert torch.equal(gradients[name], gradient), name


@pytest.mark.parametrize("head", ["backbone", "token-classification"])
@pytest.mark.parametrize("cell", ["seq_rnn", "seq_lstm", "seq_gru", "seq_attention_rnn"])
def test_output_under_padding_is_the_same_whatever_the_rest(cell, head):
    """Recurrent backbones promise zeros under padding."""
    model, mask = build(Case(cell, "plain"), head), make_mask("mixed")
    backbone = model if head == "backbone" else model.model
    hidden = backbone(make_ids(5, 8), attention_mask=mask).last_hidden_state
    assert not hidden[~mask.bool()].any()
    assert hidden[mask.bool()].any(-1).all()
