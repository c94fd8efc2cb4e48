"""Tiny time-series models of every architecture, and batches of series for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_seqmodels.models.shared_configuration_stack import DISTRIBUTIONS
from model_table import Case, build

HEAD = "time-series-prediction"
NAMES = ("seq_rnn", "seq_lstm", "seq_gru", "seq_attention_rnn", "seq_transformer_decoder")
each_architecture = pytest.mark.parametrize("name", NAMES)
each_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS)
V, N, PAST, FUTURE = 2, 3, 8, 4


def build_head(name: str, distribution: str = "normal", variates: int = V, features: int = N, **options: Any) -> Any:
    sizes: dict[str, Any] = {
        "num_features": variates + features,
        "num_time_features": features,
        "prediction_length": FUTURE,
        "distribution_output": distribution,
        "num_mixtures": 3,
        "hidden_size": 8,
    }
    if name != "seq_transformer_decoder":
        sizes["embedding_size"] = None
    return build(Case(name, "plain"), HEAD, **(sizes | options))


def make_series(distribution: str = "normal", rows: int = 5, steps: int = PAST, variates: int = V) -> torch.Tensor:
    series = torch.randn(rows, steps, variates) * 3 + 2
    return {"negative_binomial": series.abs().floor(), "bernoulli": (series > 2).float()}.get(distribution, series)


def make_batch(model: Any, rows: int = 5, missing: float = 0.3) -> dict[str, torch.Tensor]:
    """Past and future of PAST and FUTURE steps, with time features and missing values, which are NaN."""
    config, batch = model.config, {}
    for prefix, steps in (("past", PAST), ("future", FUTURE)):
        values = make_series(config.distribution_output, rows, steps, config.num_variates).to(model.dtype)
        observed = torch.rand(values.shape) >= missing
        batch |= {
            f"{prefix}_values": torch.where(observed, values, float("nan")),
            f"{prefix}_observed_mask": observed,
            f"{prefix}_time_features": torch.randn(rows, steps, config.num_time_features).to(model.dtype),
        }
    return batch


def take_rows(batch: dict[str, torch.Tensor], rows: Any) -> dict[str, torch.Tensor]:
    return {name: tensor[rows] for name, tensor in batch.items()}


def past_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in batch.items() if name.startswith("past_")}
