"""Series, forecasts and options that do not fit: one line with the value, the rule and the way out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from series_cases import (
    FUTURE,
    PAST,
    N,
    V,
    build_head,
    make_batch,
    past_of,
    take_rows,
)


def edit(**changes: Any) -> Any:
    return lambda batch: batch | changes


def put(field: str, value: float) -> Any:
    """The value, observed, in row 1 at step 2."""

    def change(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        values, observed = batch[field].clone(), batch[field.replace("values", "observed_mask")].clone()
        values[1, 2], observed[1, 2] = value, True
        return batch | {field: values, field.replace("values", "observed_mask"): observed}

    return change


NAN = float("nan")
BAD = {
    "nan": ("normal", put("past_values", NAN), "past_values is nan in row 1 at step 2: .*takes finite numbers; mark"),
    "infinite": ("point", put("future_values", -float("inf")), "future_values is -inf in row 1 at step 2"),
    "nan_count": ("negative_binomial", put("past_values", NAN), "past_values is nan .* whole numbers from 0 on"),
    "negative": (
        "negative_binomial",
        put("past_values", -1.0),
        "past_values is -1 in row 1 at step 2: .*past_observed",
    ),
    "fraction": ("negative_binomial", put("future_values", 2.5), "future_values is 2.5 .* future_observed_mask"),
    "loud": (
        "bernoulli",
        put("past_values", 0.5),
        "past_values is 0.5 .* distribution_output='bernoulli' takes 0 or 1",
    ),
    "no_past": ("normal", edit(past_values=None), r"this model reads series: pass past_values \(batch, steps, 2\)"),
    "flat": ("normal", edit(past_values=torch.zeros(5, PAST)), r"past_values has shape \(5, 8\) .* leave 2 variates"),
    "wide": ("normal", edit(future_values=torch.zeros(5, FUTURE, 3)), r"future_values has shape \(5, 4, 3\)"),
    "empty": ("normal", edit(past_values=torch.zeros(5, 0, V)), "holds no steps: pass at least one row and one step"),
    "rows": (
        "normal",
        lambda b: b | take_rows({k: b[k] for k in b if "future" in k}, [0]),
        "5 rows and future_values 1",
    ),
    "mask": ("normal", edit(past_observed_mask=torch.ones(5, PAST)), r"past_observed_mask has shape \(5, 8\)"),
    "no_features": ("normal", edit(past_time_features=None), "num_time_features=3 and no past_time_features"),
    "no_later_features": ("normal", edit(future_time_features=None), "no future_time_features: pass it with shape"),
    "short_features": ("normal", edit(future_time_features=torch.zeros(5, 2, N)), r"shape \(5, 2, 3\) .* \(5, 4, 3\)"),
    "nan_features": (
        "normal",
        edit(past_time_features=torch.full((5, PAST, N), NAN)),
        "past_time_features is not fin",
    ),
    "padding": ("normal", edit(attention_mask=torch.ones(5, 9)), r"shape \(5, 9\): pass \(5, 8\) or \(5, 12\)"),
    "no_scale": ("normal", edit(loc=torch.zeros(5, 1, V)), "pass loc and scale as it came with"),
    "mask_alone": (
        "normal",
        edit(future_values=None, future_time_features=None),
        "^future_observed_mask or future_time_features was given without future_values: pass them too, or leave",
    ),
    "features_alone": ("normal", edit(future_values=None, future_observed_mask=None), "given without future_values"),
    "previous": ("normal", edit(previous_values=torch.zeros(5, 3)), r"previous_values has shape \(5, 3\)"),
}


@pytest.mark.skipif("os.environ.get('HF_SEQMODELS_TEST_DEVICE', 'cpu') != 'cpu'", reason="looked at on the CPU")
@pytest.mark.parametrize("what", BAD)
def test_bad_series(what):
    """One line that names the value, the rule and the way out, before the backbone has run."""
    distribution, change, message = BAD[what]
    model = build_head("seq_gru", distribution)
    batch = make_batch(model)
    model.model.forward = None  # no work is started
    with pytest.raises(ValueError, match=message) as caught:
        model(**change(batch))
    assert "\n" not in str(caught.value)


def test_bad_forecasts():
    model = build_head("seq_gru")
    batch = make_batch(model)
    past, features = past_of(batch), batch["future_time_features"]
    with pytest.raises(
        ValueError, match=r"future_time_features has shape \(5, 3, 3\) and this model reads \(5, 4, 3\)"
    ):
        model.generate(**past, future_time_features=features[:, :3])
    with pytest.raises(ValueError, match="num_time_features=3 and no future_time_features"):
        model.generate(**past)
    with pytest.raises(ValueError, match="num_parallel_samples=0 draws nothing"):
        model.generate(**past, future_time_features=features, num_parallel_samples=0)
    with pytest.raises(ValueError, match="past_values is nan"):
        model.generate(**(past | {"past_observed_mask": None}), future_time_features=features)


def test_bad_continuations():
    model = build_head("seq_gru", scaling="mean")
    past = past_of(make_batch(model))
    outputs = model(**past, use_cache=True)
    state = {"past_key_values": outputs.past_key_values}
    with pytest.raises(ValueError, match=r"previous_values is None: pass the last value of that stretch, \(5, 2\)"):
        model(**past, **state, loc=outputs.loc, scale=outputs.scale)
    with pytest.raises(ValueError, match="pass loc and scale as it came with"):
        model(**past, **state, previous_values=past["past_values"][:, -1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distribution_output": "gaussian"}, "distribution_output='gaussian' .* one of 'normal'"),
        ({"distribution_output": "bernoulli", "scaling": "mean"}, "scaling='mean' .* one of None with"),
        ({"distribution_output": "negative_binomial", "scaling": "std"}, "scaling='std' .* one of None, 'mean' with"),
        ({"scaling": "max"}, "scaling='max' .* one of None, 'mean', 'std'"),
        ({"num_time_features": 5}, "num_time_features=5 .* below num_features=5"),
        ({"prediction_length": 0}, "prediction_length=0 .* between 1 and 1000000$"),
        ({"prediction_length": 10**12}, "prediction_length=1000000000000 .* between 1 and 1000000$"),
        ({"num_mixtures": 10**12}, "num_mixtures=1000000000000 .* between 1 and"),
        ({"num_parallel_samples": 10**12}, "num_parallel_samples=1000000000000 .* between 1 and"),
        ({"inputs_to_logits_ratio": 10**12}, "inputs_to_logits_ratio=1000000000000 .* between 1 and"),
        ({"num_features": None}, "num_time_features=3 .* below num_features=None"),
        ({"num_features": None, "num_time_features": 0}, "reads series: set num_features to the number of variates"),
        ({"bidirectional": True}, "bidirectional=True sees the step it should predict"),
    ],
)
def test_bad_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        build_head("seq_gru", **options)
