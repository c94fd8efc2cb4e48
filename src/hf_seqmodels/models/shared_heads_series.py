"""Time-series prediction: an autoregressive distribution over the next step (Salinas 2020; Chung 2014)."""

from typing import Any, ClassVar

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import SampleTSPredictionOutput
from transformers.utils.generic import can_return_tuple

from .shared_base import SequencePreTrainedModel
from .shared_distributions import Params, build_distribution_output
from .shared_outputs import TimeSeriesPredictionOutput
from .shared_series import Series, measure_scale, previous_steps, read_series, read_time_features


class TimeSeriesHead(SequencePreTrainedModel):
    """p(x_1, …, x_T) = Π_t p(x_t | x_1, …, x_{t−1}), with the same network over past and future (Salinas 2020, eq. 1):

    h_t = backbone(h_{t−1}, [x_{t−1}; f_t])     x_0 = 0; f_t are the time features of step t
    x_t ~ distribution_output(W h_t + b)

    **Scaling** (`config.scaling`): the backbone reads (x − loc) / scale and predicts in these units; the loss and the
    draws are in the series' own. loc and scale come from the observed steps of the past, so with `scaling` a
    likelihood of past steps has seen their size: to compare models by it, leave `scaling` out.

    **Missing values** (observed mask 0) are read as 0 after scaling (the past's mean with `"std"`), and count neither
    in the scale nor in the loss. A network that should know which are missing reads the mask as a time feature.

    **Padding** (attention mask 0) is not read at all, wherever it stands: the step after it follows the one before it.

    **Loss**: the mean of −log p in nats over steps with an observed value, each summed over its observed variates.
    Without `future_values` over the whole past: next-step prediction (piano rolls, waveforms). With them over past
    and future, as the network is the same; `config.context_loss=False` leaves the past out. `"point"` has the squared
    error, in units of the scale, in place of −log p.
    """

    auto_model = "AutoModelForTimeSeriesPrediction"
    main_input_name = "past_values"
    # Trainer counts targets by `labels`, which series have not, so it is told to average its accumulation steps: the
    # mean over their target steps only where each has as many. `SeqTrainer` asks `count_targets`.
    accepts_loss_kwargs = False
    backbone_class: ClassVar[type[nn.Module]]

    def __init__(self, config: Any):
        name = type(self).__name__
        if config.num_features is None:
            raise ValueError(f"{name} reads series: set num_features to the number of variates plus num_time_features")
        if getattr(config, "bidirectional", False):
            raise ValueError(f"{name}: bidirectional=True sees the step it should predict; use bidirectional=False")
        super().__init__(config)
        self.model = self.backbone_class(config)
        self.distribution_output = build_distribution_output(config)
        self.parameter_projection = self.distribution_output.get_parameter_projection(config.output_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        past_values: torch.Tensor | None = None,
        past_time_features: torch.Tensor | None = None,
        past_observed_mask: torch.Tensor | None = None,
        future_values: torch.Tensor | None = None,
        future_time_features: torch.Tensor | None = None,
        future_observed_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        previous_values: torch.Tensor | None = None,
        loc: torch.Tensor | None = None,
        scale: torch.Tensor | None = None,
        return_loss: bool = True,
        num_items_in_batch: int | torch.Tensor | None = None,
        **kwargs: Any,
    ) -> TimeSeriesPredictionOutput:
        """The distribution of every step given those before it, and the loss.

        Args:
            past_values (B, C, V), or (B, C) for one variate: numbers that the distribution allows (`bernoulli`: 0 and
                1; `negative_binomial`: counts). V = `num_features` − `num_time_features`.
            past_time_features (B, C, num_time_features): known in advance, those of step t at place t.
            past_observed_mask, as past_values: 1 observed, 0 missing (its value may be NaN). None: all observed.
            future_values, future_time_features, future_observed_mask: the same of the P steps that follow.
            attention_mask (B, C) or (B, C + P): 1 for steps, 0 for padding, in any pattern; with a cache the columns
                of the steps it has read come first. None: no padding.
            past_key_values: the state of a stretch read before, to go on from. It is updated.
            use_cache: return the state.
            previous_values (B, V), or (B,): with past_key_values the last value of that stretch, NaN if missing.
            loc, scale (B, 1, V): with past_key_values and scaling those that the first stretch returned.
            return_loss: compute the loss. (Trainer evaluates models whose default is True.)
            num_items_in_batch: target steps in the global batch, by which the summed loss is divided; without it the
                loss is the mean over this call's.

        Returns:
            `loss`, `params` (a tensor for each of `distribution_output.args_dim`; (B, T, V), of a mixture (B, T, K)
            and (B, T, K, V)), `loc`, `scale`, `past_key_values`, `hidden_states`, `attentions`.

        Raises:
            ValueError: a shape that does not fit, missing time features, an observed value that the distribution
                forbids (NaN and infinity by all), or a state without what belongs to it.
        """
        past = (past_values, past_observed_mask, past_time_features)
        future = (future_values, future_observed_mask, future_time_features)
        series = self._read(past, future, attention_mask, past_key_values)
        first = self._read_carried(series, past_key_values, previous_values, loc, scale)
        if loc is None or scale is None:
            loc, scale = self._measure(series)
        inputs = self._inputs(series, first, loc, scale)
        params, outputs = self._predict(
            inputs, series.mask, past_key_values=past_key_values, use_cache=use_cache, **kwargs
        )
        penalty = getattr(outputs, "activation_penalty", None)  # only in training, and with its options
        return TimeSeriesPredictionOutput(
            loss=self._loss(series, params, loc, scale, penalty, num_items_in_batch) if return_loss else None,
            params=params,
            loc=loc,
            scale=scale,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def output_distribution(self, params: Params, loc: torch.Tensor, scale: torch.Tensor) -> Any:
        """The torch distribution of the steps in the series' own units, from an output's `params`, `loc`, `scale`.

        Its batch shape is (B, T, V); that of a mixture (B, T), with event shape (V,).
        """
        return self.distribution_output.distribution(params, loc, scale)

    def count_targets(
        self,
        past_values: torch.Tensor | None = None,
        past_time_features: torch.Tensor | None = None,
        past_observed_mask: torch.Tensor | None = None,
        future_values: torch.Tensor | None = None,
        future_time_features: torch.Tensor | None = None,
        future_observed_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Steps that the loss of this batch is a mean over; takes the arguments of `forward`.

        Summed over the batches of an accumulation, as `SeqTrainer` does, it is their `num_items_in_batch`, with which
        k batches of b rows give the gradient of one batch of k·b.
        """
        past = (past_values, past_observed_mask, past_time_features)
        future = (future_values, future_observed_mask, future_time_features)
        return self._target_steps(self._read(past, future, attention_mask, None)).sum()

    @torch.no_grad()
    def generate(
        self,
        past_values: torch.Tensor,
        past_time_features: torch.Tensor | None = None,
        future_time_features: torch.Tensor | None = None,
        past_observed_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        num_parallel_samples: int | None = None,
    ) -> SampleTSPredictionOutput:
        """Draw sample paths of the `config.prediction_length` steps after the past (Salinas 2020, section 3).

        The past is read once; its state is then copied for each path. Draws come from torch's generator
        (`torch.manual_seed`). Call `model.eval()` first if the model has dropout.

        Args:
            future_time_features (B, prediction_length, num_time_features): needed if the model reads time features.
            num_parallel_samples: paths S of each series; default `config.num_parallel_samples`. A `"point"` forecast
                draws nothing and has one path.
            Other arguments: see `forward`.

        Returns:
            `sequences` (B, S, prediction_length), with (…, V) at the end if past_values have that axis.

        Raises:
            ValueError: as in `forward`; features of another number of steps; less than one path.
        """
        config = self.config
        paths = config.num_parallel_samples if num_parallel_samples is None else num_parallel_samples
        if paths < 1:
            raise ValueError(f"num_parallel_samples={paths} draws nothing: pass at least 1")
        if config.distribution_output == "point":
            paths = 1
        series = self._read((past_values, past_observed_mask, past_time_features), (None,) * 3, attention_mask, None)
        wanted = (len(past_values), config.prediction_length, config.num_time_features)
        features = read_time_features("future_time_features", future_time_features, wanted, series.values)
        loc, scale = self._measure(series)
        first = self._read_carried(series, None, None, None, None)
        read = series.append_steps(features[:, :1])
        params, outputs = self._predict(self._inputs(read, first, loc, scale), read.mask, use_cache=True)
        cache, mask = outputs.past_key_values, read.mask
        if paths > 1:
            cache.batch_repeat_interleave(paths)
        # From here on a row is a path, and a step is one call.
        params = tuple(part[:, -1:].repeat_interleave(paths, dim=0) for part in params)
        loc, scale, features = (part.repeat_interleave(paths, dim=0) for part in (loc, scale, features))
        mask = None if mask is None else mask.repeat_interleave(paths, dim=0)
        drawn = [self.distribution_output.sample(params, loc, scale)]
        for step in range(1, config.prediction_length):
            mask = None if mask is None else torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            inputs = torch.cat([(drawn[-1] - loc) / scale, features[:, step : step + 1]], dim=-1)
            params, _ = self._predict(inputs, mask, past_key_values=cache, use_cache=True)
            drawn.append(self.distribution_output.sample(params, loc, scale))
        return SampleTSPredictionOutput(
            sequences=torch.cat(drawn, dim=1).reshape(-1, paths, config.prediction_length, *past_values.shape[2:])
        )

    # -- one thing at a time ------------------------------------------------------------------------------------------
    def _read(
        self, past: tuple[Any, ...], future: tuple[Any, ...], attention_mask: torch.Tensor | None, cache: Cache | None
    ) -> Series:
        num_cached = 0 if cache is None else int(cache.get_seq_length())
        return read_series(self.config, self.distribution_output, past, future, attention_mask, num_cached, self.dtype)

    def _measure(self, series: Series) -> tuple[torch.Tensor, torch.Tensor]:
        """loc and scale (B, 1, V) of the past; constants for the gradient."""
        past = slice(0, series.num_past)
        values = series.values[:, past].detach()
        return measure_scale(values, series.observed[:, past], self.config.scaling)

    def _read_carried(
        self,
        series: Series,
        cache: Cache | None,
        previous_values: torch.Tensor | None,
        loc: torch.Tensor | None,
        scale: torch.Tensor | None,
    ) -> torch.Tensor:
        """(B, V): the value before the first step, in the series' units; NaN, which is read as 0, if there is none."""
        batch, _, width = series.values.shape
        goes_on = cache is not None and int(cache.get_seq_length()) > 0
        if goes_on and previous_values is None:
            raise ValueError(
                f"past_key_values goes on from an earlier stretch and previous_values is None: pass the last value of "
                f"that stretch, ({batch}, {width}), NaN where it was missing"
            )
        if (goes_on and self.config.scaling is not None and scale is None) or (loc is None) != (scale is None):
            raise ValueError("past_key_values goes on in the scale it was made in: pass loc and scale as it came with")
        if previous_values is None:
            return torch.full_like(series.values[:, 0], float("nan"))
        if previous_values.numel() != batch * width or len(previous_values) != batch:
            raise ValueError(
                f"previous_values has shape {tuple(previous_values.shape)} and must hold one step: ({batch}, {width})"
            )
        return previous_values.reshape(batch, width).to(series.values)

    def _inputs(self, series: Series, first: torch.Tensor, loc: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """(B, T, num_features): at step t the scaled value of the step before it and the features of t."""
        scaled = torch.where(series.observed, (series.values - loc) / scale, 0.0)
        first = torch.where(first.isnan(), 0.0, (first - loc[:, 0]) / scale[:, 0])
        return torch.cat([previous_steps(scaled, series.valid, first), series.features], dim=-1)

    def _predict(self, inputs: torch.Tensor, mask: torch.Tensor | None, **kwargs: Any) -> tuple[Params, Any]:
        """The parameters of each step's distribution in scaled units, and the backbone's outputs."""
        outputs = self.model(input_features=inputs.to(self.dtype), attention_mask=mask, **kwargs)
        return self.parameter_projection(outputs.last_hidden_state), outputs

    def _loss(
        self,
        series: Series,
        params: Params,
        loc: torch.Tensor,
        scale: torch.Tensor,
        penalty: torch.Tensor | None,
        num_items_in_batch: int | torch.Tensor | None,
    ) -> torch.Tensor:
        """−log p and the `penalty` (B, T) of the activations, summed over the target steps and divided by their
        number."""
        values = torch.where(series.observed, series.values, loc)
        each = self.distribution_output.nll(params, values, series.observed, loc, scale)
        if penalty is not None:
            each = each + penalty
        counted = self._target_steps(series)
        count = counted.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch).to(each.device)
        return torch.where(counted, each, 0.0).sum() / count.clamp(min=1)

    def _target_steps(self, series: Series) -> torch.Tensor:
        """(B, T) bool: the steps that the loss is a mean over."""
        counted = series.observed.any(-1)
        if not self.config.context_loss and series.num_past < counted.shape[1]:
            counted = counted.clone()
            counted[:, : series.num_past] = False
        return counted
