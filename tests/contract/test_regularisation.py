"""Regularisation of the recurrent architectures against its definitions: values and gradients, the masks the same."""

import copy

import pytest
import torch
import torch.nn.functional as F

from hf_seqmodels.models.shared_recurrence import find_valid_steps
from hf_seqmodels.models.shared_regularisation import LockedDropout, activation_penalty
from model_table import (
    CELLS,
    RECURRENT,
    Case,
    assert_close,
    assert_same_gradients,
    build,
    build_layer,
    make_ids,
    make_mask,
    named_gradients,
)

V, E, D = 23, 12, 12
B, T = 5, 8
# What acts in training only; each alone changes what a model computes there.
IN_TRAINING = {
    "dropout": 0.4,
    "input_dropout": 0.3,
    "output_dropout": 0.2,
    "embedding_dropout": 0.3,
    "weight_drop": 0.5,
    "weight_noise": 0.1,
}
PENALTIES = {"activation_reg": 2.0, "temporal_activation_reg": 1.5}
each_architecture = pytest.mark.parametrize("architecture", RECURRENT)
each_cell = pytest.mark.parametrize("cell", CELLS)
each_direction = pytest.mark.parametrize("bidirectional", [False, True])


def plain(architecture: str) -> Case:
    return Case(architecture, "plain")


# -- where it acts ----------------------------------------------------------------------------------------------------
@each_architecture
def test_nothing_acts_in_evaluation(architecture):
    """Not a bit of difference to the model without the options, and no random number drawn."""
    model = build(plain(architecture), "causal-lm")
    options = IN_TRAINING | PENALTIES | {"variational_dropout": True}
    regularised = build(plain(architecture), "causal-lm", **options)
    regularised.load_state_dict(model.state_dict())
    ids, mask = make_ids(B, T), make_mask("mixed")
    state = torch.get_rng_state()
    expected, outputs = (m(ids, attention_mask=mask, labels=ids, use_cache=True) for m in (model, regularised))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(outputs.logits, expected.logits) and torch.equal(outputs.loss, expected.loss)


@each_architecture
def test_off_draws_nothing_in_training(architecture):
    """The options cost nothing until they are used: a training step takes no random number."""
    model = build(plain(architecture), "causal-lm").train()
    ids, state = make_ids(B, T), torch.get_rng_state()
    model(ids).logits.sum().backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert model.model(ids).activation_penalty is None


@each_architecture
@pytest.mark.parametrize("option", IN_TRAINING)
def test_each_acts_in_training(architecture, option):
    """Alone, too; once more it draws other numbers, and the parameters stay as they are."""
    model = build(plain(architecture), "causal-lm", **{option: IN_TRAINING[option]})
    before = copy.deepcopy(model.state_dict())
    ids = make_ids(B, T)
    evaluated = model.eval()(ids).logits
    first, second = (model.train()(ids).logits for _ in range(2))
    assert (first - evaluated).abs().max() > 1e-3 and (first - second).abs().max() > 1e-3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.state_dict().keys() == build(plain(architecture), "causal-lm").state_dict().keys()


@each_direction
@pytest.mark.parametrize("reentrant", [False, True])
@each_architecture
def test_gradient_checkpointing_draws_the_same(architecture, reentrant, bidirectional):
    """Every layer runs twice, with the same masks and the same noise."""
    options = IN_TRAINING | {"variational_dropout": True, "residual": True, "num_hidden_layers": 3}
    model = build(plain(architecture), bidirectional=bidirectional, **options).train()
    ids, mask, results = make_ids(B, T), make_mask("mixed"), []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(3)
        output = model(ids, attention_mask=mask, use_cache=False).last_hidden_state
        output.square().sum().backward()
        results.append((output.detach(), named_gradients(model)))
    assert_close(results[1][0], results[0][0], 1e-6, "regularisation, checkpointed")
    assert_same_gradients(results[1][1], results[0][1], 1e-6, "regularisation, checkpointed")


# -- dropout ----------------------------------------------------------------------------------------------------------
def test_locked_dropout():
    """A row's unit is dropped at all steps or at none, each row's for itself, the kept ones scaled by 1 / (1 − p)."""
    x = torch.rand(40, 6, 50) + 1
    ratio = LockedDropout(0.25)(x) / x
    assert_close(ratio, torch.where(ratio > 0, 1 / 0.75, 0.0), 1e-6, "locked dropout")
    assert torch.equal(ratio > 0, (ratio[:, :1] > 0).expand_as(ratio))
    assert 0.2 < (ratio[:, 0] == 0).float().mean() < 0.3
    assert not torch.equal(ratio[0] > 0, ratio[1] > 0)
    assert LockedDropout(0.25).eval()(x) is x


@pytest.mark.parametrize("locked", [False, True])
@each_architecture
def test_where_dropout_acts(architecture, locked):
    """On what the first layer reads, between the layers, and on the output; with one mask over time if locked."""
    options = {"variational_dropout": locked, "num_hidden_layers": 3, "embedding_size": E}
    options |= {name: IN_TRAINING[name] for name in ("dropout", "input_dropout", "output_dropout")}
    model = build(plain(architecture), dtype=torch.float64, **options).train()
    ids, mask, results = make_ids(B, T), make_mask("mixed"), []

    def by_hand():
        steps = find_valid_steps(mask.bool())
        hidden = torch.where(mask.bool()[..., None], model.embed_tokens(ids), 0.0)
        for layer, p in zip([*model.layers, None], [0.3, 0.4, 0.4, 0.2], strict=True):
            shape = (B, 1, D) if locked else (B, T, D)
            hidden = hidden * F.dropout(torch.ones(shape, dtype=hidden.dtype), p)
            if layer is not None:
                output = layer(hidden, steps=steps)
                hidden = output[0] if isinstance(output, tuple) else output
        return hidden

    probe = torch.randn(B, T, D, dtype=torch.float64)
    for run in (lambda: model(ids, attention_mask=mask).last_hidden_state, by_hand):
        torch.manual_seed(5)
        output = run()
        (output * probe).sum().backward()
        results.append((output.detach(), named_gradients(model)))
    assert_close(results[0][0], results[1][0], 1e-12, "where dropout acts")
    assert_same_gradients(results[0][1], results[1][1], 1e-12, "where dropout acts")


# -- weights ----------------------------------------------------------------------------------------------------------
def draw_by_hand(layer, drop: float, noise: float) -> tuple[dict, dict]:
    """What each parameter should be in the forward pass, and the factor of its gradient."""
    values, factors = {}, {}
    for name, parameter in layer.named_parameters():
        value, factor = parameter.detach(), torch.ones_like(parameter)
        if drop and name.removesuffix("_reverse") == "weight_hh":
            factor = F.dropout(factor, drop)
            value = value * factor
        if noise:
            value = value + noise * torch.randn_like(value)
        values[name], factors[name] = value, factor
    return values, factors


@pytest.mark.parametrize(("drop", "noise"), [(0.5, 0), (0, 0.075), (0.3, 0.1)])
@each_direction
@pytest.mark.parametrize("options", [{}, {"layer_norm": True}], ids=["", "layer_norm"])
@each_cell
def test_weight_drop_and_noise(cell, options, bidirectional, drop, noise):
    """The layer is, for one pass, the layer with other weights: DropConnect on U, Gaussian noise on all."""
    options = options | {"bidirectional": bidirectional}
    layer = build_layer(cell, weight_drop=drop, weight_noise=noise, **options).train()
    x = torch.randn(B, T, 5, dtype=torch.float64, requires_grad=True)
    steps = find_valid_steps(make_mask("mixed").bool())
    probe = torch.randn(B, T, 4 * (1 + bidirectional), dtype=torch.float64)
    torch.manual_seed(7)
    output = layer(x, steps=steps)
    (dx,) = torch.autograd.grad((output * probe).sum(), x, retain_graph=True)
    (output * probe).sum().backward()
    torch.manual_seed(7)
    values, factors = draw_by_hand(layer, drop, noise)
    other = build_layer(cell, **options)
    other.load_state_dict(values)
    expected = other(x, steps=steps)
    (expected_dx,) = torch.autograd.grad((expected * probe).sum(), x, retain_graph=True)
    (expected * probe).sum().backward()
    assert_close(output, expected, 1e-12, "weight drop and noise")
    assert_close(dx, expected_dx, 1e-12, "weight drop and noise")
    for name, parameter in other.named_parameters():
        actual = layer.get_parameter(name).grad
        assert_close(actual, parameter.grad * factors[name], 1e-12, "weight drop and noise", name)


@pytest.mark.parametrize("name", ["weight_drop", "weight_noise"])
@pytest.mark.parametrize("cell", ["tanh", "relu", "lstm", "gru"])
def test_one_draw_serves_kernel_and_twin(cell, name):
    """Drawn weights that are given are used, by the kernel, the loop and a single step; nothing is drawn again."""
    layer, x = build_layer(cell, **{name: 0.3}).train(), torch.randn(3, T, 5, dtype=torch.float64)
    drawn, states = layer.draw_weights(), layer.initial_states(x)
    state = torch.get_rng_state()
    whole, _ = layer.run(x, states, None, drawn)
    assert_close(layer.run_scan(x, states, None, drawn)[0], whole, 1e-12, "weight drop and noise")
    with torch.no_grad():
        assert_close(layer.run(x[:, :1], states, None, drawn)[0], whole[:, :1], 1e-12, "weight drop and noise")
    assert torch.equal(torch.get_rng_state(), state)


def test_share_of_dropped_and_size_of_noise():
    layer = build_layer("lstm", hidden_size=100, embedding_size=100, weight_drop=0.3).train()
    dropped = layer.draw_weights()
    assert dropped.keys() == {"weight_hh"}
    assert 0.28 < (dropped["weight_hh"] == 0).double().mean() < 0.32
    layer = build_layer("lstm", hidden_size=100, embedding_size=100, weight_noise=0.075).train()
    noise = {name: value - layer.get_parameter(name) for name, value in layer.draw_weights().items()}
    assert noise.keys() == {name for name, _ in layer.named_parameters()}
    assert 0.073 < torch.cat([value.flatten() for value in noise.values()]).std() < 0.077


# -- AWD-LSTM, whole --------------------------------------------------------------------------------------------------
AWD = {
    "num_hidden_layers": 2, "embedding_size": E, "tie_word_embeddings": True, "variational_dropout": True,
    "embedding_dropout": 0.2, "input_dropout": 0.3, "dropout": 0.25, "output_dropout": 0.4, "weight_drop": 0.5,
} | PENALTIES  # fmt: skip


def awd_lstm(model, ids: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and loss as in Merity 2017's own code (model.py, embed_regularize.py, locked_dropout.py, main.py), on
    torch's LSTM. Every row has targets at its first T − 1 tokens, over which that code's means are taken."""
    matrix, twin = model.model.embed_tokens.weight, torch.nn.LSTM(E, D, batch_first=True).double()
    torch.manual_seed(seed)  # after the twin's own start was drawn
    mask = F.dropout(torch.ones(V, dtype=matrix.dtype), 0.2)
    hidden = F.embedding(ids, mask[:, None] * matrix)

    def lock(x, p):
        return x * F.dropout(torch.ones(B, 1, x.shape[2], dtype=x.dtype), p)

    hidden = lock(hidden, 0.3)
    for index, layer in enumerate(model.model.layers):
        weights = {f"{name}_l0": parameter for name, parameter in layer.named_parameters()}
        weights["weight_hh_l0"] = F.dropout(weights["weight_hh_l0"], 0.5)
        hidden, _ = torch.func.functional_call(twin, weights, (hidden,))
        if index == 0:
            hidden = lock(hidden, 0.25)
    dropped = lock(hidden, 0.4)
    logits = F.linear(dropped, matrix)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss = loss + 2.0 * dropped[:, :-1].pow(2).mean()
    return logits, loss + 1.5 * (hidden[:, 1:] - hidden[:, :-1]).pow(2).mean()


def test_awd_lstm():
    model, ids = build(plain("seq_lstm"), "causal-lm", torch.float64, **AWD).train(), make_ids(B, T)
    torch.manual_seed(11)
    output = model(ids, labels=ids)
    output.loss.backward()
    gradients = named_gradients(model)
    logits, loss = awd_lstm(model, ids, seed=11)
    loss.backward()
    assert_close(output.logits, logits, 1e-12, "AWD-LSTM")
    assert_close(output.loss, loss, 1e-7, "AWD-LSTM loss")  # transformers computes the cross-entropy in fp32
    assert_same_gradients(gradients, named_gradients(model), 1e-6, "AWD-LSTM loss")


# -- activation regularisation ----------------------------------------------------------------------------------------
def penalties_by_hand(hidden, dropped, mask, labels, alpha, beta, count):
    """Row by row over the tokens alone; each token that predicts a target has its share."""
    total = 0.0
    for row in range(len(mask)):
        tokens = [t for t in range(mask.shape[1]) if mask[row, t]]
        for place, t in enumerate(tokens):
            if t + 1 == mask.shape[1] or labels[row, t + 1] == -100:
                continue
            total = total + alpha * dropped[row, t].pow(2).mean()
            if place + 1 < len(tokens):
                total = total + beta * (hidden[row, t] - hidden[row, tokens[place + 1]]).pow(2).mean()
    return total / count


@pytest.mark.parametrize("padding", ["none", "mixed"])
@pytest.mark.parametrize("penalty", [*PENALTIES, "both"])
@each_architecture
def test_activation_regularisation(architecture, penalty, padding):
    chosen = {name: value for name, value in PENALTIES.items() if penalty in (name, "both")}
    model = build(plain(architecture), "causal-lm", torch.float64, output_dropout=0.4, **chosen).train()
    bare = build(plain(architecture), "causal-lm", torch.float64, output_dropout=0.4).train()
    bare.load_state_dict(model.state_dict())
    ids, mask = make_ids(B, T), make_mask(padding)
    labels = ids.masked_fill(mask == 0, -100)
    labels[0, :4] = -100  # a prompt
    kept = {}
    bare.model.output_dropout.register_forward_hook(lambda _, given, out: kept.update(hidden=given[0], dropped=out))
    losses = []
    for count in (None, 50):
        for m in (model, bare):
            torch.manual_seed(2)
            losses.append(m(ids, attention_mask=mask, labels=labels, num_items_in_batch=count).loss)
    alpha, beta = chosen.get("activation_reg", 0), chosen.get("temporal_activation_reg", 0)
    for index, divisor in enumerate(((labels[:, 1:] != -100).sum(), 50)):
        with_penalty, without = losses[2 * index : 2 * index + 2]
        expected = penalties_by_hand(kept["hidden"], kept["dropped"], mask, labels, alpha, beta, divisor)
        assert expected > 1e-3
        assert_close(with_penalty - without, expected, 1e-6, "activation regularisation")
        (without + expected).backward(retain_graph=True)
        with_penalty.backward(retain_graph=True)
        assert_same_gradients(named_gradients(model), named_gradients(bare), 1e-6, "activation regularisation")
    assert torch.equal(model.eval()(ids, labels=ids).loss, bare.eval()(ids, labels=ids).loss)


@pytest.mark.parametrize("padding", ["none", "mixed", "holes"])
def test_penalty_of_each_token(padding):
    """(B, T): a row's last token has no change to a next one, wherever it stands, and padding has nothing."""
    mask = make_mask(padding)
    hidden, dropped = (torch.randn(B, T, D) for _ in range(2))
    expected = torch.zeros(B, T)
    for row in range(B):
        tokens = [t for t in range(T) if mask[row, t]]
        for t, after in zip(tokens, [*tokens[1:], None], strict=True):
            expected[row, t] = 2.0 * dropped[row, t].pow(2).mean()
            if after is not None:
                expected[row, t] += 1.5 * (hidden[row, t] - hidden[row, after]).pow(2).mean()
    assert_close(activation_penalty(hidden, dropped, mask.bool(), 2.0, 1.5), expected, 1e-6, "penalty")


def test_activation_regularisation_accumulates():
    """Parts of a batch with the whole batch's count add up to the whole."""
    model = build(plain("seq_lstm"), "causal-lm", **PENALTIES).train()
    ids, mask = make_ids(B, T), make_mask("right")
    labels = ids.masked_fill(mask == 0, -100)
    whole = model(ids, attention_mask=mask, labels=labels).loss
    count = (labels[:, 1:] != -100).sum()
    rows = [slice(0, 2), slice(2, 5)]
    parts = [model(ids[r], attention_mask=mask[r], labels=labels[r], num_items_in_batch=count).loss for r in rows]
    assert_close(sum(parts), whole, 1e-6, "activation regularisation")


# -- residual connections ---------------------------------------------------------------------------------------------
@each_direction
@each_architecture
def test_residual(architecture, bidirectional):
    """Every layer but the first adds what it reads, before dropout; the recorded hidden states have it in them."""
    options = {"num_hidden_layers": 3, "residual": True, "dropout": 0.3, "bidirectional": bidirectional}
    model = build(plain(architecture), dtype=torch.float64, **options).train()
    ids, mask, results = make_ids(B, T), make_mask("mixed"), []

    def by_hand():
        steps = find_valid_steps(mask.bool())
        hidden, all_hidden = torch.where(mask.bool()[..., None], model.embed_tokens(ids), 0.0), []
        for index, layer in enumerate(model.layers):
            output = layer(F.dropout(hidden, 0.3) if index else hidden, steps=steps)
            output = output[0] if isinstance(output, tuple) else output
            hidden = hidden + output if index else output
            all_hidden.append(hidden)
        return all_hidden

    def by_model():
        return model(ids, attention_mask=mask, output_hidden_states=True).hidden_states[1:]

    for run in (by_model, by_hand):
        torch.manual_seed(5)
        hidden = run()
        hidden[-1].square().sum().backward()
        results.append((torch.stack(tuple(hidden)).detach(), named_gradients(model)))
    assert_close(results[0][0], results[1][0], 1e-12, "residual")
    assert_same_gradients(results[0][1], results[1][1], 1e-12, "residual")
    assert not results[0][0][:, mask == 0].any()


@pytest.mark.parametrize("padding", ["none", "mixed"])
@each_architecture
def test_carried_state_with_layer_norm_and_residual(architecture, padding):
    """The options that change the equations leave the state's promise whole: pieces give what the whole gives."""
    model = build(plain(architecture), "causal-lm", layer_norm=True, residual=True)
    ids, mask, cache, pieces = make_ids(B, T), make_mask(padding), None, []
    whole = model(ids, attention_mask=mask).logits
    for start, end in ((0, 3), (3, 4), (4, 8)):
        output = model(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        pieces.append(output.logits)
    tokens = mask.bool()
    assert_close(torch.cat(pieces, 1)[tokens], whole[tokens], 1e-5, "A5 pieces")
    alone = model(ids[4:, tokens[4]]).logits[0]
    assert_close(whole[4, tokens[4]], alone, 1e-5, "padding")
