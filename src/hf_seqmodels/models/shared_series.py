"""From the caller's series to what a backbone reads: shapes and values checked, missing values filled, scaled, lagged.

Shapes: B batch, C steps of the past, P of the future, T = C + P, V variates, N time features.
"""

from typing import Any, NamedTuple

import torch

from .shared_distributions import IndependentOutput
from .shared_inputs import may_look_at


class Series(NamedTuple):
    """Past and future on one time axis."""

    values: torch.Tensor  # (B, T, V); anything, NaN too, where not observed
    observed: torch.Tensor  # (B, T, V) bool; never under padding
    features: torch.Tensor  # (B, T, N)
    mask: torch.Tensor | None  # (B, cached + T) attention mask; None: no padding
    num_past: int  # C

    @property
    def valid(self) -> torch.Tensor | None:
        """(B, T) bool: steps that are not padding; None: all."""
        return None if self.mask is None else self.mask[:, -self.values.shape[1] :].bool()

    def append_steps(self, features: torch.Tensor) -> "Series":
        """With steps behind the last, whose values are not known yet, one for each of `features` (B, P, N)."""
        batch, steps, _ = features.shape
        unknown = self.values.new_zeros(batch, steps, self.values.shape[-1])
        mask = self.mask
        return self._replace(
            values=torch.cat([self.values, unknown], dim=1),
            observed=torch.cat([self.observed, torch.zeros_like(unknown, dtype=torch.bool)], dim=1),
            features=torch.cat([self.features, features.to(self.features)], dim=1),
            mask=None if mask is None else torch.cat([mask, mask.new_ones(batch, steps)], dim=1),
        )


def read_series(
    config: Any,
    rules: IndependentOutput,
    past: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None],
    future: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None],
    attention_mask: torch.Tensor | None,
    num_cached: int,
    dtype: torch.dtype,
) -> Series:
    """Check what was passed and put past and future on one axis.

    Args:
        past, future: values, observed mask and time features, as [`TimeSeriesHead`] takes them; future values may be
            None.
        num_cached: steps that a cache has read before.
        dtype: of the model; values are at least fp32, since a scale needs it.

    Raises:
        ValueError: a shape does not fit, features are missing, or an observed value is one that `rules` forbid.
    """
    windows = [_read_window("past", config, past, dtype)]
    if future[0] is not None:
        windows.append(_read_window("future", config, future, dtype))
    elif any(part is not None for part in future):
        raise ValueError(
            "future_observed_mask or future_time_features was given without future_values: pass them too, or leave it "
            "out"
        )
    (batch, num_past), rows = windows[0][0].shape[:2], windows[-1][0].shape[0]
    if rows != batch:
        raise ValueError(f"past_values has {batch} rows and future_values {rows}: pass both for the same series")
    values, observed, features = (torch.cat(parts, dim=1) for parts in zip(*windows, strict=True))
    mask = _read_mask(attention_mask, (batch, num_cached + num_past), values.shape[1] - num_past)
    series = Series(values, observed, features, mask, num_past)
    if series.valid is not None:
        series = series._replace(observed=observed & series.valid[..., None])
    _check_values(config, rules, series)
    return series


def read_time_features(
    name: str, features: torch.Tensor | None, wanted: tuple[int, int, int], like: torch.Tensor
) -> torch.Tensor:
    """(B, T, N) features after a look at their shape; of width 0 for a model without any."""
    if features is None:
        if wanted[2]:
            raise ValueError(f"num_time_features={wanted[2]} and no {name}: pass it with shape {wanted}")
        return like.new_zeros(wanted)
    if tuple(features.shape) != wanted:
        raise ValueError(f"{name} has shape {tuple(features.shape)} and this model reads {wanted}: pass that shape")
    return features.to(like)


def _read_window(
    prefix: str, config: Any, given: tuple[torch.Tensor | None, ...], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values (B, T, V), observed (B, T, V) and features (B, T, N) of the past or the future."""
    values, observed, features = given
    width = config.num_variates
    wanted = f"(batch, steps, {width})" + (" or (batch, steps)" if width == 1 else "")
    if values is None:
        raise ValueError(f"this model reads series: pass {prefix}_values {wanted}")
    shape = tuple(values.shape)
    if shape[2:] not in {(width,), () if width == 1 else (width,)} or len(shape) < 2:
        raise ValueError(
            f"{prefix}_values has shape {shape} and this model reads {wanted}: num_features={config.num_features} of "
            f"which num_time_features={config.num_time_features} leave {width} variates"
        )
    if 0 in shape:
        raise ValueError(f"{prefix}_values of shape {shape} holds no steps: pass at least one row and one step")
    if observed is not None and tuple(observed.shape) != shape:
        raise ValueError(
            f"{prefix}_observed_mask has shape {tuple(observed.shape)} and {prefix}_values {shape}: pass one 0 or 1 "
            "for each value"
        )
    values = values.to(torch.promote_types(torch.promote_types(values.dtype, torch.float32), dtype))
    values = values.reshape(*shape[:2], width)
    observed = torch.ones_like(values, dtype=torch.bool) if observed is None else observed.reshape(values.shape).bool()
    wanted_features = (*shape[:2], config.num_time_features)
    return values, observed, read_time_features(f"{prefix}_time_features", features, wanted_features, values)


def _read_mask(
    attention_mask: torch.Tensor | None, past_shape: tuple[int, int], num_future: int
) -> torch.Tensor | None:
    """The mask of all steps, those of the future valid where it speaks of the past alone."""
    if attention_mask is None:
        return None
    batch, known = past_shape
    if tuple(attention_mask.shape) == past_shape:
        return torch.cat([attention_mask, attention_mask.new_ones(batch, num_future)], dim=1)
    if tuple(attention_mask.shape) != (batch, known + num_future):
        also = f" or {(batch, known + num_future)}, the future included" if num_future else ""
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}: pass {past_shape}{also}, with 1 for steps and 0 "
            "for padding"
        )
    return attention_mask


def _check_values(config: Any, rules: IndependentOutput, series: Series) -> None:
    """Name the first value that breaks a rule."""
    values = series.values
    if not may_look_at(values):
        return
    wrong = series.observed & ~rules.allowed(values)
    if wrong.any():
        row, step, variate = (int(index) for index in wrong.nonzero()[0])
        prefix, place = ("past", step) if step < series.num_past else ("future", step - series.num_past)
        number, name = values[row, step, variate].item(), config.distribution_output
        raise ValueError(
            f"{prefix}_values is {number:g} in row {row} at step {place}: distribution_output='{name}' takes "
            f"{rules.rule}; mark a missing value with 0 in {prefix}_observed_mask, or take another distribution"
        )
    wrong = ~torch.isfinite(series.features)
    if series.valid is not None:
        wrong &= series.valid[..., None]
    if wrong.any():
        row, step, _ = (int(index) for index in wrong.nonzero()[0])
        prefix, place = ("past", step) if step < series.num_past else ("future", step - series.num_past)
        raise ValueError(f"{prefix}_time_features is not finite in row {row} at step {place}: pass finite numbers")


def measure_scale(
    values: torch.Tensor, observed: torch.Tensor, scaling: str | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """loc and scale (B, 1, V) of each series and variate over its observed steps.

    `"mean"`: 0 and the mean absolute value. `"std"`: mean and standard deviation (over n, not n − 1). None: 0 and 1.
    A scale that says nothing is 1: nothing observed, all values zero, or all the same.
    """
    shape = (values.shape[0], 1, values.shape[2])
    loc, scale = values.new_zeros(shape), values.new_ones(shape)
    if scaling is None:
        return loc, scale
    count = observed.sum(1, keepdim=True).clamp(min=1)
    if scaling == "std":
        loc = torch.where(observed, values, 0.0).sum(1, keepdim=True) / count
        spread = (torch.where(observed, (values - loc).square(), 0.0).sum(1, keepdim=True) / count).sqrt()
    else:
        spread = torch.where(observed, values.abs(), 0.0).sum(1, keepdim=True) / count
    # The differences of equal values from their mean are rounding errors, not a scale.
    return loc, torch.where(spread > 1e-6 * loc.abs(), spread, scale)


def previous_steps(values: torch.Tensor, valid: torch.Tensor | None, first: torch.Tensor) -> torch.Tensor:
    """(B, T, V): the value of the step before each one in its row, across padding; `first` (B, V) at the start."""
    shifted = torch.cat([first[:, None], values], dim=1)
    if valid is None:
        return shifted[:, :-1]
    numbers = torch.arange(1, values.shape[1] + 1, device=values.device)  # places in `shifted`
    last = torch.where(valid, numbers, 0).cummax(dim=1).values
    before = torch.cat([torch.zeros_like(last[:, :1]), last[:, :-1]], dim=1)
    return shifted.gather(1, before[..., None].expand(-1, -1, values.shape[-1]))
