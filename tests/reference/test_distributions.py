"""The distributions of the time-series head against scipy's, and their draws against their own moments."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import log_softmax, logsumexp

from hf_seqmodels.models.shared_configuration_stack import DISTRIBUTIONS
from hf_seqmodels.models.shared_distributions import build_distribution_output
from model_table import assert_close

B, T, V, K = 2, 3, 4, 5
PER_VARIATE = ("normal", "student_t", "negative_binomial", "bernoulli")
COUNTS = ("negative_binomial", "bernoulli")


def build_output(name: str, variates: int = V) -> Any:
    return build_distribution_output(SimpleNamespace(distribution_output=name, num_variates=variates, num_mixtures=K))


def draw_case(name: str, variates: int = V, dtype: torch.dtype = torch.float64) -> SimpleNamespace:
    """Parameters as a linear layer would give them, values that the distribution allows, and a scale."""
    output = build_output(name, variates)
    raw = [torch.randn(B, T, width, dtype=dtype) for width in output.args_dim.values()]
    values = torch.randn(B, T, variates, dtype=dtype) * 3 + 1
    values = {"negative_binomial": values.abs().floor(), "bernoulli": (values > 0).to(dtype)}.get(name, values)
    loc, scale = torch.randn(B, 1, variates, dtype=dtype), torch.rand(B, 1, variates, dtype=dtype) + 0.5
    if name in COUNTS:
        loc = torch.zeros_like(loc)
    if name == "bernoulli":
        scale = torch.ones_like(scale)
    observed = torch.rand(B, T, variates) > 0.3
    observed[0, 0], observed[0, 1] = True, False  # a step with all variates, and one with none
    return SimpleNamespace(
        output=output, raw=raw, params=output.domain_map(*raw), values=values, observed=observed, loc=loc, scale=scale
    )


def to_numpy(*tensors: torch.Tensor) -> list[np.ndarray]:
    return [tensor.detach().cpu().numpy() for tensor in tensors]


def squareplus(x: np.ndarray) -> np.ndarray:
    return (x + np.sqrt(x**2 + 4)) / 2


def reference_log_prob(name: str, raw: list[np.ndarray], x: np.ndarray, loc: np.ndarray, scale: np.ndarray) -> Any:
    """(B, T, V): log p of each variate by scipy, from the linear layers' outputs."""
    if name == "normal":
        return stats.norm.logpdf(x, loc + scale * raw[0], scale * squareplus(raw[1]))
    if name == "student_t":
        return stats.t.logpdf(x, 2 + squareplus(raw[0]), loc + scale * raw[1], scale * squareplus(raw[2]))
    if name == "negative_binomial":  # scipy's p is of the event that ends the count; the mean is r(1 − p)/p
        return stats.nbinom.logpmf(x, squareplus(raw[0]), 1 / (1 + scale * np.exp(raw[1])))
    return stats.bernoulli.logpmf(x, 1 / (1 + np.exp(-raw[0])))


@pytest.mark.parametrize("variates", [1, V])
@pytest.mark.parametrize("name", PER_VARIATE)
def test_log_prob_is_scipys(name, variates):
    case = draw_case(name, variates)
    raw = to_numpy(*case.raw)
    values, observed, loc, scale = to_numpy(case.values, case.observed, case.loc, case.scale)
    expected = -np.where(observed, reference_log_prob(name, raw, values, loc, scale), 0).sum(-1)
    nll = case.output.nll(case.params, case.values, case.observed, case.loc, case.scale)
    assert_close(nll, torch.as_tensor(expected), 1e-12, "distribution", name)
    assert nll[0, 1] == 0  # nothing observed


@pytest.mark.parametrize("variates", [1, V])
def test_log_prob_of_the_mixture(variates):
    """Σ_k π_k Π_v N(x_v; μ_kv, σ_kv) over the observed variates v, in numpy."""
    case = draw_case("gaussian_mixture", variates)
    logits, mean, deviation = to_numpy(*case.raw)
    values, observed, loc, scale = (a[:, :, None] for a in to_numpy(case.values, case.observed, case.loc, case.scale))
    shape = (B, T, K, variates)
    parts = stats.norm.logpdf(values, loc + scale * mean.reshape(shape), scale * squareplus(deviation).reshape(shape))
    expected = -logsumexp(log_softmax(logits, axis=-1) + np.where(observed, parts, 0).sum(-1), axis=-1)
    nll = case.output.nll(case.params, case.values, case.observed, case.loc, case.scale)
    assert_close(nll, torch.as_tensor(expected), 1e-12, "distribution", "mixture")
    everything = torch.ones_like(case.observed)
    log_prob = case.output.distribution(case.params, case.loc, case.scale).log_prob(case.values)
    assert_close(
        case.output.nll(case.params, case.values, everything, case.loc, case.scale), -log_prob, 1e-12, "distribution"
    )


def test_point_forecast_has_the_squared_error():
    case = draw_case("point")
    (raw,) = to_numpy(*case.raw)
    values, observed, loc, scale = to_numpy(case.values, case.observed, case.loc, case.scale)
    expected = np.where(observed, (raw - (values - loc) / scale) ** 2, 0).sum(-1)
    nll = case.output.nll(case.params, case.values, case.observed, case.loc, case.scale)
    assert_close(nll, torch.as_tensor(expected), 1e-12, "distribution", "point")
    assert_close(
        case.output.sample(case.params, case.loc, case.scale), case.loc + case.scale * case.raw[0], 0, "point"
    )
    with pytest.raises(ValueError, match="has no distribution"):
        case.output.distribution(case.params)


@pytest.mark.parametrize("name", [name for name in DISTRIBUTIONS if name != "point"])
def test_draws_have_the_moments_of_the_distribution(name):
    """5,000 draws: the mean within five standard errors, the standard deviation within a tenth."""
    case = draw_case(name)
    if name == "student_t":  # more degrees of freedom: the deviation of a sample of t_3 hardly settles
        case.params = (case.params[0] + 8, *case.params[1:])
    distribution = case.output.distribution(case.params, case.loc, case.scale)
    draws = torch.stack([case.output.sample(case.params, case.loc, case.scale) for _ in range(5000)])
    assert draws.shape[1:] == (B, T, V)
    deviation = distribution.variance.sqrt()
    assert ((draws.mean(0) - distribution.mean).abs() <= 5 * deviation / 5000**0.5).all()
    assert ((draws.std(0) / deviation - 1).abs() < 0.1).all()
    if name in COUNTS:
        assert case.output.allowed(draws).all()


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_parameters_stay_as_they_are(name):
    """transformers' negative binomial adds log(scale) to the logits that it was given."""
    case = draw_case(name)
    before = [param.clone() for param in case.params]
    first, second = (case.output.nll(case.params, case.values, case.observed, case.loc, case.scale) for _ in range(2))
    case.output.sample(case.params, case.loc, case.scale)
    assert torch.equal(first, second)
    assert all(torch.equal(param, old) for param, old in zip(case.params, before, strict=True))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_parameters_are_fp32_at_least(name):
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2):
        output = build_output(name)
        params = output.domain_map(*(torch.zeros(B, T, width, dtype=dtype) for width in output.args_dim.values()))
        assert {param.dtype for param in params} == {expected}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_values_that_are_allowed(name):
    values = torch.tensor([0.0, 1.0, 2.0, 0.5, -1.0, float("nan"), float("inf")])
    expected = {
        "negative_binomial": [True, True, True, False, False, False, False],
        "bernoulli": [True, True, False, False, False, False, False],
    }.get(name, [True] * 5 + [False] * 2)
    assert build_output(name).allowed(values).tolist() == expected
