"""The recurrent encoder–decoder against the equations of Sutskever 2014, Bahdanau 2014 and Luong 2015, written out
token by token in the papers' notation: probabilities and gradients of every parameter, in fp64.
"""

import pytest
import torch

from model_table import assert_close, make_ids, named_gradients
from seq2seq_cases import build_system

SIGMOID, TANH = torch.sigmoid, torch.tanh


def named(model) -> dict[str, torch.Tensor]:
    """The model's own parameters, so that gradients of the reference arrive there too."""
    return {name.removeprefix("model."): parameter for name, parameter in model.named_parameters()}


def gated_unit(w: dict, prefix: str, suffix: str, x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """Bahdanau 2014, appendix A.1.1 (a GRU whose update gate z lets the new in, so ours is 1 − z):

    z = σ(W_z x + U_z s),  r = σ(W_r x + U_r s),  s̃ = tanh(W x + U [r ∘ s]),  s' = (1 − z) ∘ s + z ∘ s̃
    """
    W_r, W_z, W = w[f"{prefix}.weight_ih{suffix}"].chunk(3)
    U_r, U_z, U = w[f"{prefix}.weight_hh{suffix}"].chunk(3)
    b_r, b_z, b = (w[f"{prefix}.bias_ih{suffix}"] + w[f"{prefix}.bias_hh{suffix}"]).chunk(3)
    z = SIGMOID(-W_z @ x - U_z @ s - b_z)
    r = SIGMOID(W_r @ x + U_r @ s + b_r)
    proposed = TANH(W @ x + U @ (r * s) + b)
    return (1 - z) * s + z * proposed


def bahdanau(w: dict, source: list[int], target: list[int]) -> torch.Tensor:
    """Appendix A.2: log p(· | y_1 … y_{i−1}, x) for every i, (T, V)."""
    x = [w["encoder.embed_tokens.weight"][token] for token in source]
    zero = x[0].new_zeros(6)
    ahead, back, h = [zero], [zero], []
    for i in range(len(x)):
        ahead.append(gated_unit(w, "encoder.layers.0.rnn", "", x[i], ahead[-1]))
        back.append(gated_unit(w, "encoder.layers.0.rnn", "_reverse", x[-1 - i], back[-1]))
    h = [torch.cat([ahead[1 + j], back[len(x) - j]]) for j in range(len(x))]
    W_s = w["decoder.bridge.layers.0.h.weight"][:, 6:]
    s = TANH(W_s @ back[-1] + w["decoder.bridge.layers.0.h.bias"])  # s_0 = tanh(W_s ←h_1)
    W_a, U_a = (w[f"decoder.attention.score.{name}.weight"] for name in ("query", "key"))
    v_a, b_a = w["decoder.attention.score.vector.weight"][0], w["decoder.attention.score.key.bias"]
    U_o, V_o, C_o = w["decoder.readout.weight"].split((6, 5, 12), dim=1)
    found = []
    for token in target:
        y = w["decoder.embed_tokens.weight"][token]  # E y_{i−1}
        e = torch.stack([v_a @ TANH(W_a @ s + U_a @ h_j + b_a) for h_j in h])
        alpha = e.exp() / e.exp().sum()
        c = sum(a * h_j for a, h_j in zip(alpha, h, strict=True))
        t_tilde = U_o @ s + V_o @ y + C_o @ c + w["decoder.readout.bias"]
        t = torch.stack([torch.maximum(t_tilde[2 * j], t_tilde[2 * j + 1]) for j in range(6)])
        s = gated_unit(w, "decoder.layers.0.rnn", "", torch.cat([y, c]), s)  # W E y_{i−1} + C c_i
        found.append((w["lm_head.weight"] @ t).log_softmax(-1))
    return torch.stack(found)


def lstm_unit(w: dict, prefix: str, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple:
    """Zaremba 2014, which Sutskever and Luong use: gates i, f, g, o."""
    gates = w[f"{prefix}.weight_ih"] @ x + w[f"{prefix}.weight_hh"] @ h
    i, f, g, o = (gates + w[f"{prefix}.bias_ih"] + w[f"{prefix}.bias_hh"]).chunk(4)
    c = SIGMOID(f) * c + SIGMOID(i) * TANH(g)
    return SIGMOID(o) * TANH(c), c


def stack(w: dict, side: str, x: torch.Tensor, states: list[tuple]) -> torch.Tensor:
    """One step through two layers; `states` are replaced; the top layer's h."""
    for layer in range(2):
        states[layer] = lstm_unit(w, f"{side}.layers.{layer}.rnn", x, *states[layer])
        x = states[layer][0]
    return x


def luong(w: dict, source: list[int], target: list[int], score: str, feeding: bool) -> torch.Tensor:
    """Luong 2015, section 3.1 and eq. 5–6, with section 3.3 if `feeding`; score "none": Sutskever 2014, section 2."""
    zero = w["lm_head.weight"].new_zeros(6)
    states = [(zero, zero), (zero, zero)]
    h_bar = [stack(w, "encoder", w["encoder.embed_tokens.weight"][token], states) for token in source]
    h_tilde, found = zero, []
    for token in target:
        x = w["decoder.embed_tokens.weight"][token]
        h = stack(w, "decoder", torch.cat([x, h_tilde]) if feeding else x, states)
        h_tilde = h
        if score != "none":
            # score(h_t, h̄_s) = h_tᵀ h̄_s, or h_tᵀ W_a h̄_s; the layer holds W_a transposed
            W_a = w["decoder.attention.score.query.weight"].T if score == "general" else torch.eye(6).to(h)
            e = torch.stack([h @ W_a @ h_s for h_s in h_bar])
            a = e.exp() / e.exp().sum()
            c = sum(a_s * h_s for a_s, h_s in zip(a, h_bar, strict=True))
            h_tilde = TANH(w["decoder.combine.weight"] @ torch.cat([c, h]))  # eq. 5
        found.append((w["lm_head.weight"] @ h_tilde).log_softmax(-1))  # eq. 6
    return torch.stack(found)


def check(model, reference) -> None:
    """Log-probabilities and gradients of a fixed linear function of them, for two sources and targets."""
    source, target = make_ids(2, 6), make_ids(2, 5, seed=2)
    probe = torch.randn(2, 5, 23, dtype=torch.float64)
    actual = model(source, decoder_input_ids=target).logits.log_softmax(-1)
    (actual * probe).sum().backward()
    gradients = named_gradients(model)
    expected = torch.stack(
        [reference(named(model), *row) for row in zip(source.tolist(), target.tolist(), strict=True)]
    )
    assert_close(actual, expected, 1e-12, "papers seq2seq")
    (expected * probe).sum().backward()
    for name, gradient in named_gradients(model).items():
        if "bridge" not in name:
            assert gradient.any(), f"the reference does not read {name}"
            assert_close(gradients[name], gradient, 1e-12, "papers seq2seq", name)
        else:  # the half of W_s that the paper does not have is held at zero, and its gradient is nobody's
            wanted = slice(6, None) if gradient.ndim == 2 else slice(None)
            assert_close(gradients[name][..., wanted], gradient[..., wanted], 1e-12, "papers seq2seq", name)


def test_bahdanau():
    model = build_system("bahdanau", torch.float64)
    with torch.no_grad():
        model.model.decoder.bridge.layers[0]["h"].weight[:, :6] = 0  # the paper's W_s reads ←h_1 only
    check(model, bahdanau)


@pytest.mark.parametrize(
    ("score", "feeding"),
    [("general", False), ("general", True), ("dot", False), ("dot", True), ("none", False)],
    ids=["general", "general-feeding", "dot", "dot-feeding", "sutskever"],
)
def test_luong_and_sutskever(score, feeding):
    model = build_system("plain", torch.float64, score=score, input_feeding=feeding)
    check(model, lambda w, source, target: luong(w, source, target, score, feeding))
