"""Quantized ONNX models: smaller, nearly as good, and both are reported as they are."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx
import pytest
import torch

from hf_seqmodels.hub.golden import write_golden
from hf_seqmodels.hub.onnx_check import open_session, run_steps
from hf_seqmodels.hub.onnx_export import export_onnx
from hf_seqmodels.hub.quantize import QuantizationError, compare, quantize
from model_table import Case, build, make_ids

ROWS = [row[:length] for row, length in zip(make_ids(40, 20).tolist(), [20] * 36 + [1, 2, 7, 19], strict=True)]


def export(case: Case, head: str, folder, **options):
    model = build(case, head, noise=0.1, num_hidden_layers=1, **options)
    model.save_pretrained(folder, save_code=False)
    write_golden(model, folder)
    export_onnx(folder, folder)
    return model


@pytest.fixture(scope="module")
def lstm(tmp_path_factory):
    """Model, folder of its ONNX files, report of their quantization over ROWS."""
    folder = tmp_path_factory.mktemp("lstm")
    model = export(Case("seq_lstm", "plain"), "causal-lm", folder, hidden_size=64)
    return model, folder, quantize(folder, folder / "int8", ROWS)


def test_sizes_and_operators_are_those_of_the_files(lstm):
    _, folder, report = lstm
    assert {file.name for file in (folder / "int8").iterdir()} == {*report, "quantization_report.json"}
    assert json.loads((folder / "int8" / "quantization_report.json").read_text()) == report
    assert set(report) == {"model_int8.onnx", "model_step_int8.onnx"}
    for name, found in report.items():
        assert found["bytes"]["int8"] == (folder / "int8" / name).stat().st_size
        assert found["bytes"]["float32"] == (folder / name.replace("_int8", "")).stat().st_size
        assert found["bytes"]["int8"] < 0.5 * found["bytes"]["float32"]
        model = onnx.load(folder / "int8" / name)
        left = sum(onnx.numpy_helper.to_array(t).nbytes for t in model.graph.initializer if t.data_type == 1)
        assert sum(found["float_bytes"].values()) == left
        assert found["quality"]["largest_difference"] > 0, "8 bits are not 32"
    assert report["model_int8.onnx"]["quantized"]["LSTM"] == 1
    assert report["model_step_int8.onnx"]["quantized"]["MatMul"] == 3  # W x, U h and the head


def test_bits_per_token_are_the_models_own(lstm):
    model, _, report = lstm
    bits, targets = 0.0, 0
    for row in ROWS:
        if len(row) > 1:
            with torch.no_grad():
                loss = model(torch.tensor([row]), labels=torch.tensor([row])).loss
            bits, targets = bits + loss.item() * (len(row) - 1) / math.log(2), targets + len(row) - 1
    for found in report.values():
        quality = found["quality"]
        assert quality["targets"] == targets and quality["scores"] == targets + len(ROWS) - 1
        assert quality["bits_per_token"]["float32"] == pytest.approx(bits / targets, abs=1e-5)
        assert quality["bits_per_token"]["int8"] == pytest.approx(bits / targets, abs=0.02)
        assert quality["same_first_choice"] > 0.9


def test_labels_say_what_is_a_target(lstm):
    model, folder, _ = lstm
    labels = [-100] * 15 + ROWS[0][15:]
    report = quantize(folder, folder / "labelled", [{"input_ids": ROWS[0], "labels": labels}])
    with torch.no_grad():
        loss = model(torch.tensor([ROWS[0]]), labels=torch.tensor([labels])).loss.item()
    quality = report["model_int8.onnx"]["quality"]
    assert quality["targets"] == 5
    assert quality["bits_per_token"]["float32"] == pytest.approx(loss / math.log(2), abs=1e-5)


def test_the_step_goes_on_from_its_states(lstm):
    _, folder, report = lstm
    session = open_session(folder / "int8" / "model_step_int8.onnx")
    ids = np.array([ROWS[0]])
    steps = run_steps(session, ids, np.ones_like(ids))
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    whole = open_session(folder / "model.onnx").run(None, given)[0]
    assert 0 < np.abs(steps - whole).max() <= report["model_step_int8.onnx"]["quality"]["largest_difference"] * 1.001


def graph(file, outputs):
    """A model whose outputs (B, T) are float32 of the tokens, times a number each."""
    from onnx import TensorProto, helper

    rows = ["batch", "time"]
    nodes = [helper.make_node("Cast", ["input_ids"], ["tokens"], to=TensorProto.FLOAT)]
    nodes += [helper.make_node("Identity", ["attention_mask"], ["mask"])]
    nodes += [helper.make_node("Mul", ["tokens", f"of.{name}"], [name]) for name in outputs]
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.INT64, rows) for name in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, rows) for name in outputs],
        [helper.make_tensor(f"of.{name}", TensorProto.FLOAT, [], [by]) for name, by in outputs.items()],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), file)
    return file


PADDED = {"input_ids": np.array([[3, 1, 2], [1, 5, 9]]), "attention_mask": np.array([[1, 1, 1], [1, 1, 0]])}


def test_all_outputs_of_question_answering_are_compared_over_tokens(tmp_path):
    before = graph(tmp_path / "before.onnx", {"start_logits": 1.0, "end_logits": 1.0})
    after = graph(tmp_path / "after.onnx", {"start_logits": 1.0, "end_logits": -1.0})
    same, other = (compare(before, file, [PADDED], False) for file in (before, after))
    assert same == {"largest_difference": 0.0, "same_first_choice": 1.0, "scores": 4}, "a start and an end each row"
    assert other == {"largest_difference": 10.0, "same_first_choice": 0.5, "scores": 4}, "5, and not the padding's 9"


def test_scores_of_rows_are_not_taken_for_those_of_tokens(tmp_path):
    """Three labels and three tokens: the mask says nothing about labels."""
    before, after = (graph(tmp_path / f"{by}.onnx", {"logits": by}) for by in (1.0, -1.0))
    assert compare(before, after, [PADDED], False) == {
        "largest_difference": 18.0,
        "same_first_choice": 0.0,
        "scores": 2,
    }


def test_scores_that_are_no_numbers_are_refused(tmp_path):
    before, after = (
        graph(tmp_path / "before.onnx", {"logits": 1.0}),
        graph(tmp_path / "nan.onnx", {"logits": math.nan}),
    )
    with pytest.raises(QuantizationError, match=r"nan\.onnx gives scores that are no numbers"):
        compare(before, after, [PADDED], False)


@pytest.mark.slow
def test_what_stays_in_float_is_said(tmp_path):
    model = export(Case("seq_gru", "plain"), "causal-lm", tmp_path, hidden_size=32)
    report = quantize(tmp_path, tmp_path)
    cell = sum(parameter.nbytes for parameter in model.model.layers.parameters())
    assert report["model_int8.onnx"]["float_bytes"]["GRU"] == cell
    assert "GRU" not in report["model_int8.onnx"]["quantized"]
    assert sum(report["model_step_int8.onnx"]["float_bytes"].values()) < 0.2 * cell
    quality = report["model_int8.onnx"]["quality"]
    assert quality["scores"] == 21 and "bits_per_token" not in quality  # the golden input: 2 rows of 12, 3 are padding
    assert report["model_step_int8.onnx"]["steps_per_second"]["int8"] > 0


def test_errors_name_the_way_out_and_write_nothing(lstm, tmp_path):
    _, folder, _ = lstm
    for source, rows, rule in (
        (tmp_path, None, "no model.onnx: export the model with --onnx"),
        (folder, [[1, 23]], "token id 23 is outside the vocabulary of 23"),
        (folder, [[1]], "nothing to predict"),
    ):
        with pytest.raises(QuantizationError, match=rule) as caught:
            quantize(source, tmp_path / "int8", rows)
        assert "\n" not in str(caught.value) and not (tmp_path / "int8").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "head"),
    [
        (Case("seq_rnn", "plain"), "causal-lm"),
        (Case("seq_attention_rnn", "windowed"), "causal-lm"),
        (Case("seq_transformer_decoder", "sliding_window"), "causal-lm"),
        (Case("seq_lstm", "bidirectional"), "sequence-classification"),
        (Case("seq_gru", "plain"), "ctc"),
        (Case("seq_lstm", "peephole"), "time-series-prediction"),
    ],
    ids=str,
)
def test_other_models(case, head, tmp_path):
    export(case, head, tmp_path)
    report = quantize(tmp_path, tmp_path)
    for found in report.values():
        assert 0 < found["quality"]["largest_difference"] < 0.5
    if head != "causal-lm":
        with pytest.raises(QuantizationError, match="rows of tokens are for causal language models"):
            quantize(tmp_path, tmp_path, ROWS)
