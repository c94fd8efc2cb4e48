"""Options of the architectures with one stack of layers: what they read, and their heads."""

from .shared_configuration import MOST_WIDTH, SequenceConfig
from .shared_versions import strict

DISTRIBUTIONS = ("normal", "student_t", "negative_binomial", "gaussian_mixture", "bernoulli", "point")


@strict
class StackConfig(SequenceConfig):
    """Options of all architectures with one stack of layers (no encoder–decoder).

    Args:
        num_features (`int`, *optional*): the model reads `input_features` (B, T, F) of this width F instead of tokens.
        classifier_dropout (`float`, defaults to 0.0): dropout probability before a head that labels.
        lm_head_bias (`bool`, defaults to False): the output layer of a language model adds a bias.
        crf (`bool`, defaults to False): token classification with a linear-chain CRF (Lafferty 2001); the other
            heads do not read it.
        ctc_loss_reduction (`str`, defaults to `"mean"`): CTC loss of a batch: `"mean"`, each row's loss divided by the
            length of its labels, then averaged; or `"sum"`.
        ctc_zero_infinity (`bool`, defaults to True): rows whose labels do not fit into their frames have no loss,
            instead of an infinite one.
        inputs_to_logits_ratio (`int`, defaults to 1): samples of the raw sound for each frame that the model reads;
            the speech pipeline computes time stamps from it.
        num_time_features (`int`, defaults to 0): how many of the `num_features` columns are known in advance (hour,
            weekday, …); the others, which come first, are the variates of the series that are predicted.
        prediction_length (`int`, defaults to 1): steps that `generate()` draws.
        distribution_output (`str`, defaults to `"student_t"`): what the next step of a series is drawn from:
            `"normal"`, `"student_t"`, `"negative_binomial"` (counts), `"gaussian_mixture"` (waveforms, Chung 2014),
            `"bernoulli"` (piano rolls), or `"point"`, a forecast without a distribution.
        num_mixtures (`int`, defaults to 10): components of the Gaussian mixture.
        scaling (`str`, *optional*): what each variate of each series is divided by: `"mean"`, its mean absolute value
            over the past (Salinas 2020, section 3.3); `"std"`, its standard deviation there, after its mean is
            subtracted. None: nothing, as always for `"bernoulli"`; counts cannot be shifted and take no `"std"`.
        context_loss (`bool`, defaults to True): with `future_values` the loss is over past and future; False: over
            the future alone.
        num_parallel_samples (`int`, defaults to 100): sample paths that `generate()` draws.
    """

    num_features: int | None = None
    classifier_dropout: float | int = 0.0
    lm_head_bias: bool = False
    crf: bool = False
    ctc_loss_reduction: str = "mean"
    ctc_zero_infinity: bool = True
    inputs_to_logits_ratio: int = 1
    num_time_features: int = 0
    prediction_length: int = 1
    distribution_output: str = "student_t"
    num_mixtures: int = 10
    scaling: str | None = None
    context_loss: bool = True
    num_parallel_samples: int = 100

    def check_ranges(self) -> None:
        super().check_ranges()
        self.require_probability("classifier_dropout")
        rule = f"None (tokens) or between 1 and {MOST_WIDTH}"
        self.require("num_features", rule, self.num_features is None or 1 <= self.num_features <= MOST_WIDTH)
        self.require("ctc_loss_reduction", "'mean' or 'sum'", self.ctc_loss_reduction in ("mean", "sum"))
        for name in ("inputs_to_logits_ratio", "prediction_length", "num_mixtures", "num_parallel_samples"):
            self.require(name, f"between 1 and {MOST_WIDTH}", 1 <= getattr(self, name) <= MOST_WIDTH)
        rule = f"at least 0 and below num_features={self.num_features}, so that a variate is left to predict"
        self.require("num_time_features", rule, self.num_time_features >= 0 and self.num_variates >= 1)
        known = ", ".join(map(repr, DISTRIBUTIONS))
        self.require("distribution_output", f"one of {known}", self.distribution_output in DISTRIBUTIONS)
        scalings = {"bernoulli": (None,), "negative_binomial": (None, "mean")}
        allowed = scalings.get(self.distribution_output, (None, "mean", "std"))
        rule = f"one of {', '.join(map(repr, allowed))} with distribution_output='{self.distribution_output}'"
        self.require("scaling", rule, self.scaling in allowed)

    @property
    def num_variates(self) -> int:
        """Columns of a series that are predicted: `num_features` without the time features."""
        return (self.num_features or 1) - self.num_time_features
