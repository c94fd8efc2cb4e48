"""ONNX models compute what torch computes, for batches and lengths that they were not made with."""

from __future__ import annotations

import copy
import importlib.util
import json

import numpy as np
import onnx
import pytest
import torch

import hf_seqmodels.hub.onnx_graphs as onnx_graphs
from hf_seqmodels.hub.onnx_check import check_sequence, first_states, open_session, run_steps
from hf_seqmodels.hub.onnx_export import (
    EXPORTED,
    TRANSLATIONS,
    OnnxExportError,
    export_onnx,
    export_sequence,
    make_plan,
)
from hf_seqmodels.models import shared_recurrent_model
from model_table import PAIRS, Case, assert_close, build, each_pair, make_mask

ERROR = 1e-5
WITH_STEP = [
    Case("seq_rnn", "relu"),
    Case("seq_lstm", "peephole"),
    Case("seq_gru", "reset_before"),
    Case("seq_attention_rnn", "additive"),
    Case("seq_transformer_decoder", "rotary"),
]
SLOW = [
    (case, head)
    for case, head in PAIRS
    if case.architecture in EXPORTED and (head == "causal-lm" or case.variant in ("plain", "bidirectional"))
]


def save(case: Case, head: str, folder, **options) -> torch.nn.Module:
    model = build(case, head, **options)
    model.save_pretrained(folder, save_code=False)
    return model


@pytest.fixture(scope="module", params=WITH_STEP, ids=str)
def exported(request, tmp_path_factory):
    """A causal language model of each architecture: model, folder of the ONNX files, report."""
    folder = tmp_path_factory.mktemp("onnx")
    model = save(request.param, "causal-lm", folder, num_hidden_layers=1)
    return model, folder / "onnx", export_onnx(folder, folder / "onnx")


def tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(1, 23, (batch, length), generator=torch.Generator().manual_seed(batch + length))


def run_sequence(folder, ids, mask) -> np.ndarray:
    given = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    return open_session(folder / "model.onnx").run(["logits"], given)[0]


def test_sequences_equal_torch_and_padded_rows_equal_alone(exported):
    model, folder, _ = exported
    for batch, length in ((1, 1), (6, 1), (1, 5), (2, 40)):
        ids = tokens(batch, length)
        with torch.no_grad():
            expected = model(ids).logits
        assert_close(
            torch.tensor(run_sequence(folder, ids, torch.ones_like(ids))), expected, ERROR, "ONNX", "sequence"
        )
    ids, mask = tokens(5, 8), make_mask("mixed")
    together = run_sequence(folder, ids, mask)
    for row, kept, found in zip(ids, mask.bool(), together, strict=True):
        with torch.no_grad():
            expected = model(row[kept][None]).logits[0]
        alone = run_sequence(folder, row[kept][None], torch.ones(1, int(kept.sum()), dtype=torch.long))[0]
        assert_close(torch.tensor(found)[kept], expected, ERROR, "ONNX", "padded row")
        assert_close(torch.tensor(found)[kept], torch.tensor(alone), ERROR, "ONNX", "padded row, alone")


def test_a_row_of_padding_only_harms_nobody(exported):
    _, folder, _ = exported
    ids, mask = tokens(3, 6), torch.ones(3, 6, dtype=torch.long)
    mask[1] = 0
    found = torch.tensor(run_sequence(folder, ids, mask))
    alone = torch.tensor(run_sequence(folder, ids[:1], mask[:1]))
    assert found.isfinite().all()
    assert_close(found[:1], alone, ERROR, "ONNX", "beside padding")


def test_steps_equal_the_sequence(exported):
    model, folder, _ = exported
    session = open_session(folder / "model_step.onnx")
    for batch, length in ((1, 13), (2, 1)):
        ids = tokens(batch, length)
        with torch.no_grad():
            expected = model(ids).logits
        found = torch.tensor(run_steps(session, ids.numpy(), np.ones_like(ids)))
        assert_close(found, expected, ERROR, "ONNX", "steps")
    ids, mask = tokens(5, 8), make_mask("mixed")  # a row whose token is masked stands still
    found = run_steps(session, ids.numpy(), mask.numpy())
    whole = run_sequence(folder, ids, mask)
    assert_close(torch.tensor(found[mask > 0]), torch.tensor(whole[mask > 0]), ERROR, "ONNX", "padded steps")


def test_a_state_goes_on_from_where_it_was_left(exported):
    _, folder, _ = exported
    session, ids = open_session(folder / "model_step.onnx"), tokens(1, 4).numpy()
    names = [value.name for value in session.get_inputs() if value.name.startswith("past.")]
    past = first_states(session, 1)
    assert list(past) == names
    for t in range(2):
        mask = np.ones((1, 1), np.int64)
        _, *present = session.run(None, past | {"input_ids": ids[:, t : t + 1], "attention_mask": mask})
        past = dict(zip(names, present, strict=True))
    kept = copy.deepcopy(past)
    again = [session.run(None, kept | {"input_ids": ids[:, 2:3], "attention_mask": mask})[0] for _ in range(2)]
    assert np.array_equal(*again)
    assert_close(torch.tensor(again[0][0]), torch.tensor(run_steps(session, ids, ids * 0 + 1)[0, 2:3]), 1e-7, "ONNX")


def test_files_are_whole_and_say_what_they_are(exported):
    _, folder, report = exported
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert set(files) == {"model.onnx", "model_step.onnx", "onnx_report.json"}, "no data beside the models"
    assert json.loads(files["onnx_report.json"]) == report
    assert report["largest_error"] == max(max(found.values()) for found in report["errors"].values()) <= ERROR
    assert min(report["steps_per_second"][name] for name in ("onnxruntime", "torch_generate")) > 0
    for name, found in report["files"].items():
        assert found["bytes"] == len(files[name])
        for word in (str(folder).encode(), b"site-packages", b"/hf_seqmodels", b"forward("):
            assert word not in files[name], "where the graph comes from is nobody's business"
    rows = ["batch", "time"]
    assert report["files"]["model.onnx"]["inputs"] == {"input_ids": rows, "attention_mask": rows}
    assert report["files"]["model.onnx"]["outputs"] == {"logits": ["batch", "time", 23]}
    step = report["files"]["model_step.onnx"]
    for key, state in step["states"].items():
        assert step["inputs"][f"past.{key}"] == state["shape"]
        grown = ["past + 1" if size == "past" else size for size in state["shape"]]
        assert step["outputs"][f"present.{key}"] == grown
    assert open_session(folder / "model_step.onnx").get_modelmeta().custom_metadata_map["states"] == json.dumps(
        step["states"]
    )


def test_recurrent_layers_become_the_operators_of_their_names(exported):
    model, folder, _ = exported
    kinds = [node.op_type for node in onnx.load(folder / "model.onnx").graph.node]
    wanted = {"seq_rnn": "RNN", "seq_lstm": "LSTM", "seq_gru": "GRU", "seq_attention_rnn": "LSTM"}
    found = {kind for kind in kinds if kind in ("RNN", "LSTM", "GRU", "Scan", "Loop")}
    assert found == {wanted[model.config.model_type]} if model.config.model_type in wanted else not found


@pytest.mark.slow
def test_labels_of_sequences_have_no_step(tmp_path):
    save(Case("seq_lstm", "bidirectional"), "sequence-classification", tmp_path)
    report = export_onnx(tmp_path, tmp_path)
    assert report["files"]["model.onnx"]["outputs"] == {"logits": ["batch", 3]}
    assert not (tmp_path / "model_step.onnx").exists() and "steps_per_second" not in report


def test_a_wrong_graph_is_noticed_and_nothing_is_written(tmp_path, monkeypatch):
    save(Case("seq_gru", "plain"), "token-classification", tmp_path / "model")
    monkeypatch.setitem(onnx_graphs._OPERATORS, 3, ("GRU", [0, 1, 2]))  # torch's order of gates
    with pytest.raises(OnnxExportError, match="onnxruntime differs from torch by"):
        export_onnx(tmp_path / "model", tmp_path / "onnx")
    assert list((tmp_path / "onnx").iterdir()) == []


def test_scores_of_rows_are_compared_whole_also_where_there_are_as_many_labels_as_tokens(tmp_path):
    plan = make_plan(build(Case("seq_rnn", "plain"), "sequence-classification", num_labels=5, num_hidden_layers=1))
    export_sequence(plan, tmp_path / "model.onnx")
    assert check_sequence(plan, tmp_path / "model.onnx", [(1, 5)])["1x5"] <= ERROR
    with torch.no_grad():
        next(value for name, value in plan.model.named_parameters() if value.shape == (5,))[-1] += 1.0
    assert check_sequence(plan, tmp_path / "model.onnx", [(1, 5)])["1x5"] > 0.1, "the last of 5 tokens is padding"


def test_what_torch_has_no_words_for_is_translated_by_the_table(tmp_path, monkeypatch):
    options = {"attention_pattern": "lsh", "num_buckets": 4, "lsh_chunk_length": 4, "num_hidden_layers": 1}
    plan = make_plan(build(Case("seq_transformer_decoder", "plain"), "causal-lm", **options))
    monkeypatch.delitem(TRANSLATIONS, torch.ops.aten.sort.stable)
    with pytest.raises(OnnxExportError, match="cannot be exported to ONNX"):
        export_sequence(plan, tmp_path / "model.onnx")


RESTORED = [Case("seq_attention_rnn", "windowed"), Case("seq_transformer_decoder", "plain")]


@pytest.mark.parametrize("case", RESTORED, ids=str)
def test_the_model_is_as_before(case):
    def look():
        names = {name: set(vars(module)) for name, module in model.named_modules()}
        return names, model.config._attn_implementation, shared_recurrent_model.find_valid_steps

    model = build(case, "causal-lm")
    before = look()
    for one_step in (False, True):
        with onnx_graphs.exportable(model, one_step):
            assert look() != before
        assert look() == before


@pytest.mark.parametrize(
    ("case", "head", "options", "rule"),
    [
        (Case("seq_conv_lstm", "plain"), "time-series-prediction", {}, "model_type 'seq_conv_lstm'.*seq_lstm.* can$"),
        (Case("seq_transformer", "plain"), "seq2seq-lm", {}, "model_type 'seq_transformer'.*seq_lstm.* can$"),
        (Case("seq_gru", "plain"), "causal-lm", {"layer_norm": True}, "layer_norm=True.*layer_norm=False"),
        (Case("seq_lstm", "plain"), "token-classification", {"crf": True}, "crf=True.*crf=False"),
    ],
    ids=str,
)
def test_what_cannot_be_exported_is_named(tmp_path, case, head, options, rule):
    save(case, head, tmp_path / "model", **options)
    with pytest.raises(OnnxExportError, match=rule) as caught:
        export_onnx(tmp_path / "model", tmp_path / "onnx")
    assert "\n" not in str(caught.value) and not (tmp_path / "onnx").exists()


def test_missing_packages_are_named_before_any_work(tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
    with pytest.raises(OnnxExportError, match=r"onnxruntime: pip install 'hf_seqmodels\[onnx\]'"):
        export_onnx(tmp_path / "nowhere", tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


@pytest.mark.slow
@each_pair(SLOW)
def test_every_architecture_and_head(case, head, tmp_path):
    save(case, head, tmp_path)
    report = export_onnx(tmp_path, tmp_path)
    assert report["largest_error"] <= ERROR
    assert (tmp_path / "model_step.onnx").exists() == (head == "causal-lm")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("seq_transformer_decoder", {"positions": "relative"}),
        ("seq_transformer_decoder", {"positions": "none", "tie_word_embeddings": True}),
        ("seq_transformer_decoder", {"max_position_embeddings": 4}),
        ("seq_transformer_decoder", {"attention_pattern": "sliding_window", "attention_window": 1}),
        ("seq_transformer_decoder", {"attention_pattern": "lsh", "num_buckets": 4, "lsh_chunk_length": 4}),
        ("seq_lstm", {"tie_word_embeddings": True, "residual": True}),
        ("seq_attention_rnn", {"window": 1}),
        ("seq_attention_rnn", {"cell": "lstm", "peephole": True}),
    ],
    ids=str,
)
def test_other_options(architecture, options, tmp_path):
    save(Case(architecture, "plain"), "causal-lm", tmp_path, **options)
    assert export_onnx(tmp_path, tmp_path)["largest_error"] <= ERROR
