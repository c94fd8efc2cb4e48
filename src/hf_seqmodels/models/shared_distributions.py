"""What the next step of a series is drawn from, given the steps before it.

The interface and the maps from a linear layer's outputs to parameters are those of transformers' `time_series_utils`,
with three differences: each variate keeps its own axis, so that a missing one can be left out; parameters are fp32 at
least, since logarithms and gamma functions need it; and a series' `loc` and `scale` go into the parameters, which
therefore stay as they were (transformers' negative binomial changes them in place).

Shapes: B batch, T time, V variates, K components of a mixture. loc and scale are (B, 1, V).
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, MixtureSameFamily, Normal
from transformers.time_series_utils import DistributionOutput, NegativeBinomialOutput, NormalOutput, StudentTOutput

Params = tuple[torch.Tensor, ...]


def widen(arg: torch.Tensor) -> torch.Tensor:
    """fp32 at least."""
    return arg.to(torch.promote_types(arg.dtype, torch.float32))


class IndependentOutput(DistributionOutput):
    """One distribution for each of V variates, independent of each other given the past."""

    rule: ClassVar[str] = "finite numbers"  # what a value of the series must be
    event_shape: Any = ()

    @staticmethod
    def allowed(values: torch.Tensor) -> torch.Tensor:
        """Where `rule` holds."""
        return torch.isfinite(values)

    @classmethod
    def domain_map(cls, *args: torch.Tensor) -> Params:
        """The linear layers' outputs, each (B, T, V), as parameters (B, T, V)."""
        mapped: Any = super().domain_map
        return mapped(*(widen(arg)[..., None] for arg in args))  # transformers squeezes the last axis

    def rescale(self, params: Params, loc: torch.Tensor, scale: torch.Tensor) -> Params:
        """Parameters of loc + scale · x where `params` are those of x."""
        *others, mean, deviation = params
        return (*others, loc + scale * mean, scale * deviation)

    def distribution(
        self, distr_args: Any, loc: torch.Tensor | None = None, scale: torch.Tensor | None = None
    ) -> Distribution:
        """The distribution of the steps, with batch shape (B, T, V), in the units of the series."""
        if scale is not None:
            distr_args = self.rescale(distr_args, torch.zeros_like(scale) if loc is None else loc, scale)
        # Values are checked once, with a better message, where they come in.
        return self.distribution_class(**dict(zip(self.args_dim, distr_args, strict=True)), validate_args=False)

    def nll(
        self, params: Params, values: torch.Tensor, observed: torch.Tensor, loc: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        """(B, T): −log p of each step in nats, summed over the variates that are observed.

        Args:
            values (B, T, V): finite where not observed too; observed (B, T, V): bool.
        """
        log_prob = self.distribution(params, loc, scale).log_prob(values)
        return -torch.where(observed, log_prob, 0.0).sum(-1)

    def sample(self, params: Params, loc: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """(B, T, V): one draw for each step."""
        return self.distribution(params, loc, scale).sample()


class IndependentNormalOutput(IndependentOutput, NormalOutput):
    """N(μ, σ²), σ by squareplus."""


class IndependentStudentTOutput(IndependentOutput, StudentTOutput):
    """Student's t with more than two degrees of freedom, so that the variance is finite."""


class IndependentNegativeBinomialOutput(IndependentOutput, NegativeBinomialOutput):
    """Counts with mean r · e^logit. A scaled series has the mean times `scale`, through the logit: r stays."""

    rule = "whole numbers from 0 on (counts)"

    @staticmethod
    def allowed(values: torch.Tensor) -> torch.Tensor:
        return torch.isfinite(values) & (values >= 0) & (values == values.floor())

    def rescale(self, params: Params, loc: torch.Tensor, scale: torch.Tensor) -> Params:
        total_count, logits = params
        return total_count, logits + scale.log()


class IndependentBernoulliOutput(IndependentOutput):
    """Notes that sound or do not: the output layer of Boulanger-Lewandowski 2012 and Chung 2014 for piano rolls."""

    args_dim = {"logits": 1}
    distribution_class = Bernoulli
    rule = "0 or 1"

    @staticmethod
    def allowed(values: torch.Tensor) -> torch.Tensor:
        return (values == 0) | (values == 1)

    @classmethod
    def domain_map(cls, *args: torch.Tensor) -> Params:
        return tuple(map(widen, args))

    def rescale(self, params: Params, loc: torch.Tensor, scale: torch.Tensor) -> Params:
        return params  # the configuration refuses scaling


class PointOutput(IndependentOutput):
    """A forecast without a distribution. In place of −log p: the squared error, in units of the series' scale."""

    args_dim = {"loc": 1}

    @classmethod
    def domain_map(cls, *args: torch.Tensor) -> Params:
        return tuple(map(widen, args))

    def distribution(self, distr_args: Any, loc: Any = None, scale: Any = None) -> Distribution:
        raise ValueError("distribution_output='point' has no distribution: loc + scale * params[0] is the forecast")

    def nll(
        self, params: Params, values: torch.Tensor, observed: torch.Tensor, loc: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        error = params[0] - (values - loc) / scale
        return torch.where(observed, error.square(), 0.0).sum(-1)

    def sample(self, params: Params, loc: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return loc + scale * params[0]


class GaussianMixtureOutput(IndependentOutput):
    """Σ_k π_k N(x; μ_k, diag σ_k²): the variates share the component, as the samples of a frame do (Chung 2015).

    A missing variate is left out of each component's product, which is its exact marginal.
    """

    def __init__(self, dim: int, num_mixtures: int):
        self.dim, self.num_mixtures = dim, num_mixtures
        self.args_dim = {"logits": num_mixtures, "loc": num_mixtures * dim, "scale": num_mixtures * dim}

    def domain_map(self, *args: torch.Tensor) -> Params:  # type: ignore[override]
        """→ logits (B, T, K), means (B, T, K, V), standard deviations (B, T, K, V)."""
        logits, mean, deviation = map(widen, args)
        deviation = self.squareplus(deviation).clamp_min(torch.finfo(deviation.dtype).eps)
        shape = (self.num_mixtures, self.dim)
        return logits, mean.unflatten(-1, shape), deviation.unflatten(-1, shape)

    def rescale(self, params: Params, loc: torch.Tensor, scale: torch.Tensor) -> Params:
        logits, mean, deviation = params
        return logits, loc[..., None, :] + scale[..., None, :] * mean, scale[..., None, :] * deviation

    def distribution(
        self, distr_args: Any, loc: torch.Tensor | None = None, scale: torch.Tensor | None = None
    ) -> Distribution:
        """The distribution of the steps, with batch shape (B, T) and event shape (V,)."""
        if scale is not None:
            distr_args = self.rescale(distr_args, torch.zeros_like(scale) if loc is None else loc, scale)
        logits, mean, deviation = distr_args
        components = Independent(Normal(mean, deviation, validate_args=False), 1, validate_args=False)
        return MixtureSameFamily(Categorical(logits=logits, validate_args=False), components, validate_args=False)

    def nll(
        self, params: Params, values: torch.Tensor, observed: torch.Tensor, loc: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        logits, mean, deviation = self.rescale(params, loc, scale)
        log_prob = Normal(mean, deviation, validate_args=False).log_prob(values[..., None, :])  # (B, T, K, V)
        components = torch.where(observed[..., None, :], log_prob, 0.0).sum(-1)
        return -torch.logsumexp(F.log_softmax(logits, dim=-1) + components, dim=-1)


OUTPUTS: dict[str, type[IndependentOutput]] = {
    "normal": IndependentNormalOutput,
    "student_t": IndependentStudentTOutput,
    "negative_binomial": IndependentNegativeBinomialOutput,
    "bernoulli": IndependentBernoulliOutput,
    "point": PointOutput,
}


def build_distribution_output(config: Any) -> IndependentOutput:
    """The distribution that `config.distribution_output` names, over `config.num_variates` variates."""
    if config.distribution_output == "gaussian_mixture":
        return GaussianMixtureOutput(config.num_variates, config.num_mixtures)
    return OUTPUTS[config.distribution_output](config.num_variates)
