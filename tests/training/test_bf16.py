"""Training with `--bf16 true`: on a CPU it runs under autocast, near fp32, with carried state too (A10)."""

from __future__ import annotations

import carried_training
import pytest
import ragged_training

CARRIED = ["seq_rnn", "seq_lstm", "seq_gru", "seq_attention_rnn"]


def compare(precise: dict, half: dict) -> None:
    assert (precise["mixed_precision"], half["mixed_precision"]) == ("no", "bf16")
    assert half["losses"] != precise["losses"]  # or nothing ran in bf16
    assert half["losses"] == pytest.approx(precise["losses"], rel=2e-2, abs=0)
    assert half["evaluation"] == pytest.approx(precise["evaluation"], rel=2e-2, abs=0)
    assert half["evaluation"][-1] < half["losses"][0] - 0.05
    assert (half["batch_order"], half["targets"]) == (precise["batch_order"], precise["targets"])


@pytest.mark.parametrize("model_type", [*CARRIED, "seq_transformer_decoder"])
def test_windows(tmp_path, model_type):
    options = {"num_train_epochs": 6}
    compare(
        *[ragged_training.train(model_type, 8, 1, 21, str(tmp_path), bf16=half, **options) for half in (False, True)]
    )


@pytest.mark.parametrize("model_type", CARRIED)
def test_streams_with_carried_state(tmp_path, model_type):
    options = {"num_train_epochs": 4, "learning_rate": 3e-2}
    compare(*[carried_training.train(model_type, 4, 1, str(tmp_path), bf16=half, **options) for half in (False, True)])
