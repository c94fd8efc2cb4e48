"""The doctor lets healthy checkpoints pass, ours and others, and says in one line what it cannot examine."""

from __future__ import annotations

import json
import shutil
import socket

import pytest
import torch
import transformers
from doctoring import (  # noqa: F401
    GPT2,
    SIZES,
    T5,
    TOKENS,
    WIDTHS,
    assert_healthy,
    edit_json,
    examine,
    failed,
    own_modules,
    with_code,
    write,
)
from safetensors.torch import load_file, save_file

from hf_seqmodels.hub import doctor
from hf_seqmodels.hub.doctor import CHECKS, diagnose, main
from hf_seqmodels.hub.files import write_checksums
from hf_seqmodels.hub.golden import GOLDEN, write_golden
from hf_seqmodels.models import ARCHITECTURES
from loopback_hub.hub_process import LoopbackHub, run_client
from model_table import PAIRS, Case, build, each_pair

FILES = ("shard_index", "checksums", "tokenizer", "golden")  # what the toy folders do not have
NO_TEXT = ("generation_config", "cache", "cache_left", "beam")  # what only those that generate have
NO_TIES = ("tied_weights",)
NO_LABELS = ("accumulation",)
TWO_STACKS = ("cache_left",)
NO_INPUT = ("padding_right", "padding_left", "padding_batch")  # what needs something to read that can be made up
LAYERS = {"layers": 2, "attention_heads": 2, "ffn_dim": 16}
VIT = SIZES | {"intermediate_size": 16, "image_size": 8, "patch_size": 4}
BART = TOKENS | {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in LAYERS.items()}
BART |= {"d_model": 8, "max_position_embeddings": 32, "decoder_start_token_id": 2, "forced_eos_token_id": 2}

# class, options, what does not apply; `accumulation` where transformers' own head drops num_items_in_batch
STOCK = {
    "gpt2": ("GPT2LMHeadModel", GPT2, ()),
    "gpt2-rows": ("GPT2ForSequenceClassification", GPT2, (*NO_TEXT, *NO_TIES, *NO_LABELS)),
    "bert": ("BertForMaskedLM", TOKENS | WIDTHS, (*NO_TEXT, *NO_LABELS)),
    "bert-backbone": ("BertModel", TOKENS | WIDTHS, (*NO_TEXT, *NO_TIES, *NO_LABELS)),
    "bert-rows": ("BertForSequenceClassification", TOKENS | WIDTHS, (*NO_TEXT, *NO_TIES, *NO_LABELS, "padding_left")),
    "distilbert": (
        "DistilBertForTokenClassification",
        TOKENS | {"dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 16, "max_position_embeddings": 32},
        (*NO_TEXT, *NO_TIES, *NO_LABELS),
    ),
    "roberta": ("RobertaForMaskedLM", TOKENS | WIDTHS | {"max_position_embeddings": 40}, (*NO_TEXT, *NO_LABELS)),
    "t5": ("T5ForConditionalGeneration", T5, (*NO_LABELS, *TWO_STACKS)),
    "t5-v1.1": ("T5ForConditionalGeneration", T5 | {"tie_word_embeddings": False}, (*NO_LABELS, *TWO_STACKS)),
    "bart": ("BartForConditionalGeneration", BART, (*NO_LABELS, *TWO_STACKS)),
    "bert-choices": ("BertForMultipleChoice", TOKENS | WIDTHS, (*NO_TEXT, *NO_TIES, *NO_LABELS, *NO_INPUT)),
    "vit": ("ViTForImageClassification", VIT, (*NO_TEXT, *NO_TIES, *NO_LABELS, *NO_INPUT)),
    "gpt2-no-padding": (
        "GPT2ForSequenceClassification",
        GPT2 | {"pad_token_id": None},
        (*NO_TEXT, *NO_TIES, *NO_LABELS, *NO_INPUT),
    ),
    "llama": ("LlamaForCausalLM", TOKENS | WIDTHS | {"num_key_value_heads": 1}, ()),
}


WHY_NOT = {
    "vit": "the doctor makes up tokens, features and frames, and no more: ViTForImageClassification reads pixel_",
    "bert-choices": "BertForMultipleChoice needs more than input_ids",
    "gpt2-no-padding": "config.json has no pad_token_id",
}


@pytest.mark.parametrize("name", STOCK)
def test_stock_models_pass(name, tmp_path):
    cls, options, skipped = STOCK[name]
    cls = getattr(transformers, cls)
    findings = examine(write(cls(cls.config_class(**options)), tmp_path))
    assert_healthy(findings, *FILES, *skipped)
    if name == "bart":
        assert "positions shift" in findings["padding_left"].measured
    if name in ("vit", "bert-choices", "gpt2-no-padding"):
        assert WHY_NOT[name] in findings["padding_batch"].measured
        assert examine(tmp_path, only=["fresh_process"])["fresh_process"].measured.startswith(WHY_NOT[name][:9])
    elif name not in ("gpt2", "llama", "bert-backbone"):  # the number is told all the same
        assert "takes no account of num_items_in_batch" in findings["accumulation"].measured
        assert findings["accumulation"].number > 0.5


def test_bfloat16_is_examined_in_fp32_and_saved_as_it_is(tmp_path):
    config = transformers.LlamaConfig(**TOKENS, **WIDTHS, num_key_value_heads=1)
    findings = examine(write(transformers.LlamaForCausalLM(config).bfloat16(), tmp_path))
    assert_healthy(findings, *FILES)
    assert "bfloat16" in findings["load"].measured and findings["cache"].number < 1e-5


def shift_scores(folder, part):
    """Move the stored scores by a part of the largest one, or of 1."""
    tensors = load_file(folder / GOLDEN)
    tensors["scores"] += part * max(1.0, float(tensors["scores"].abs().max()))
    save_file(tensors, folder / GOLDEN)


@pytest.mark.parametrize("head", ["causal-lm", "audio-classification"])
def test_golden_scores_of_bfloat16_may_come_from_another_processor(head, tmp_path):
    model = build(Case("seq_lstm", "plain"), head, torch.bfloat16)
    write_golden(model.from_pretrained(write(model, tmp_path)), tmp_path)
    findings = examine(tmp_path)
    assert not failed(findings), {name: findings[name].measured for name in failed(findings)}
    assert findings["golden"].number == 0 and findings["golden"].limit == 2e-2
    shift_scores(tmp_path, 4e-3)
    assert 1e-3 < examine(tmp_path, only=["golden"])["golden"].number <= 2e-2
    shift_scores(tmp_path, 5e-2)
    assert failed(examine(tmp_path, only=["golden"])) == ["golden"]


def skipped_of_ours(case, head):
    skipped = {*FILES}
    if head not in ("causal-lm", "seq2seq-lm"):
        skipped |= {*NO_TEXT}
    if head == "seq2seq-lm":
        skipped |= {*TWO_STACKS}
    if head not in ("causal-lm", "seq2seq-lm", "masked-lm"):
        skipped |= {"tied_weights"}
    if head in ("backbone", "time-series-prediction"):
        skipped |= {"accumulation"}
    if head == "time-series-prediction" and case.architecture != "seq_conv_lstm":
        skipped |= {"padding_right", "padding_left"}
    return skipped


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_of_ours_passes(architecture, tmp_path):
    case = Case(architecture, "plain")
    findings = examine(write(build(case, case.main_head), tmp_path))
    assert_healthy(findings, *skipped_of_ours(case, case.main_head))


@pytest.mark.slow
@each_pair(PAIRS)
def test_every_variant_and_head_of_ours_passes(case, head, tmp_path):
    findings = examine(write(build(case, head), tmp_path))
    assert not failed(findings), {name: findings[name].measured for name in failed(findings)}
    assert {name for name, each in findings.items() if each.ok is None} == skipped_of_ours(case, head)


def test_tied_and_sharded_weights_pass(tmp_path):
    model = build(Case("seq_lstm", "plain"), "causal-lm", tie_word_embeddings=True)
    write(model, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="3KB")
    findings = examine(tmp_path)
    assert_healthy(findings, "checksums", "tokenizer", "golden")
    assert findings["tied_weights"].measured == "tie_word_embeddings True, 1 declared pairs share memory"


def test_keys_that_transformers_translates_are_neither_missing_nor_unexpected(tmp_path):
    """The first GPT-2 on the Hub has the backbone's names, without `transformer.`."""
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))
    write(model.transformer, tmp_path)
    edit_json(tmp_path / "config.json", architectures=["GPT2LMHeadModel"])
    findings = examine(tmp_path, only=["missing_keys", "unexpected_keys", "tied_weights"])
    assert not failed(findings) and "(keys renamed)" in findings["missing_keys"].measured


# ---- a fresh process --------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """An LSTM with everything that is published: code, golden scores, checksums."""
    folder = tmp_path_factory.mktemp("published")
    model = build(Case("seq_lstm", "plain"), "causal-lm")
    write(model, folder)
    write_golden(model, folder)
    write_checksums(folder)
    return folder


def test_all_checks_with_a_process_that_lacks_this_package(published):
    before = {path.name: path.read_bytes() for path in published.iterdir()}
    findings = examine(published, trust=True, only=None)
    assert list(findings) == list(CHECKS)
    assert_healthy(findings, "shard_index", "tokenizer")
    assert findings["golden"].number == 0 and findings["fresh_process"].number == 0
    assert "without hf_seqmodels" in findings["fresh_process"].measured
    assert {path.name: path.read_bytes() for path in published.iterdir()} == before


def test_code_that_only_works_beside_this_package_fails_in_a_fresh_process(published, tmp_path):
    folder = shutil.copytree(published, tmp_path / "copy")
    (folder / "shared_cells.py").unlink(missing_ok=True)
    (folder / "modeling_lstm.py").write_text("import hf_seqmodels\nfrom hf_seqmodels import *\n")
    findings = examine(folder, trust=True, only=["fresh_process", "load"])
    assert failed(findings) == ["fresh_process"]
    assert "hf_seqmodels" in findings["fresh_process"].measured and "\n" not in findings["fresh_process"].measured


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "bert", "t5", "bart"])
def test_stock_models_load_in_a_fresh_process(name, tmp_path):
    cls, options, _ = STOCK[name]
    cls = getattr(transformers, cls)
    findings = examine(write(cls(cls.config_class(**options)), tmp_path), only=["fresh_process"])
    assert findings["fresh_process"].ok, findings["fresh_process"].measured


# ---- the command ------------------------------------------------------------------------------------------------
def test_lines_json_and_exit_status(published, tmp_path, capsys):
    only = ["--only", "card", "finite_weights", "padding_left"]
    assert main([str(published), *only]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [
        ["ok", "card"],
        ["ok", "finite_weights"],
        ["ok", "padding_left"],
    ]
    assert lines[-1].startswith("3 ok, 0 failed, 0 skipped, ")
    folder = shutil.copytree(published, tmp_path / "copy")
    (folder / "README.md").unlink()
    assert main([str(folder), *only, "golden", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    found = {check["name"]: check for check in answer["checks"]}
    assert not answer["ok"] and answer["target"] == str(folder)
    assert [found[name]["status"] for name in ("card", "finite_weights", "padding_left")] == ["FAIL", "ok", "ok"]
    assert found["padding_left"]["number"] <= found["padding_left"]["limit"] == 1e-4


def test_what_was_asked_for_cannot_be_well_where_what_it_needs_fails(published, tmp_path, capsys):
    folder = shutil.copytree(published, tmp_path / "copy")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9])
    assert main([str(folder), "--only", "cache", "golden"]) == 1
    lines = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[:-1]]
    assert lines == [["FAIL", "safetensors"], ["skip", "golden"], ["skip", "cache"]]


def test_json_has_no_nan():
    from hf_seqmodels.hub.doctor_patient import Finding

    text = doctor.as_json("x", [Finding("cache", False, "nan", float("nan"), 1e-4)])
    assert json.loads(text, parse_constant=pytest.fail)["checks"][0]["number"] is None


def test_progress_names_each_check(published):
    seen = []
    diagnose(published, only=["shapes"], show=seen.append)
    assert seen == ["safetensors", "shard_index", "config", "shapes", ""]


def no_config(folder):
    (folder / "config.json").unlink()


def no_json(folder):
    (folder / "config.json").write_text("{")


def deep_json(folder):
    (folder / "config.json").write_text('{"a":' * 90 + "1" + "}" * 90)


def a_list(folder):
    (folder / "config.json").write_text("[]")


def foreign_attention(folder):
    edit_json(folder / "config.json", attn_implementation="somebody/kernel")


def foreign_attention_inside(folder):
    edit_json(folder / "config.json", text_config={"_attn_implementation": "somebody/kernel"})


def foreign_experts(folder):
    edit_json(folder / "config.json", _experts_implementation="somebody/kernel")


def unknown_type(folder):
    edit_json(folder / "config.json", model_type="nobody_knows", auto_map=None)


def own_type(folder):
    edit_json(folder / "config.json", model_type="nobody_knows")


def link_outside(folder):
    (folder / "notes.txt").symlink_to("/etc/hostname")


REFUSED = {
    no_config: "is no checkpoint: it has no config.json",
    no_json: "is no JSON",
    deep_json: "nested",
    a_list: "no JSON object",
    foreign_attention: 'attn_implementation "somebody/kernel": known are eager, sdpa',
    foreign_attention_inside: '_attn_implementation "somebody/kernel"',
    foreign_experts: '_experts_implementation "somebody/kernel"',
    unknown_type: 'model_type "nobody_knows": nothing installed knows it',
    own_type: "pass --trust_remote_code",
    link_outside: "'notes.txt' is a link out of the folder",
}


@pytest.mark.parametrize("fault", REFUSED, ids=lambda fault: fault.__name__)
def test_what_is_no_checkpoint_is_named_in_one_line(fault, published, tmp_path, capsys):
    folder = shutil.copytree(published, tmp_path / "copy")
    fault(folder)
    refused([str(folder)], REFUSED[fault], capsys)


def refused(argv, words, capsys):
    assert main(argv) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("hf-seqmodels doctor: error: ") and told.err.count("\n") == 1
    assert words in told.err


@pytest.mark.parametrize(
    "name", ["user/..", "../user", "a/../b", "/nowhere/at/all", "./nowhere", "a/b/c", "~/model", "a\\b"]
)
def test_names_that_are_neither_folder_nor_repository(name, capsys):
    refused([name], f"'{name}' is no folder here and no name of a repository", capsys)


def test_options_that_mean_nothing(published, capsys):
    refused([str(published), "--only", "padding_lef"], "did you mean 'padding_left'?", capsys)
    refused([str(published), "--revision", "v1"], "--revision v1 is for a repository", capsys)
    refused([str(published / "config.json")], "is a file", capsys)


def test_code_runs_only_where_it_is_trusted(tmp_path, own_modules, capsys):  # noqa: F811
    folder = with_code("Healthy", tmp_path / "model")
    mark = tmp_path / "ran"
    code = (folder / "modeling_broken.py").read_text()
    (folder / "modeling_broken.py").write_text(f"open({str(mark)!r}, 'w').close()\n{code}")
    refused([str(folder)], "Healthy is code in the folder: pass --trust_remote_code", capsys)
    assert not mark.exists()
    assert examine(folder, trust=True, only=["load"])["load"].ok and mark.exists()


# ---- a repository -----------------------------------------------------------------------------------------------
def test_a_repository_is_downloaded_without_its_pickles(published, tmp_path):
    code = """
import json, sys
from hf_seqmodels.hub.doctor import main
only = ["--only", "pickles", "checksums", "load", "cache", "--json"]
status = [main(["user/model", *only]), main(["user/nothing"]), main(["user/model", "--revision", "v9"])]
print(json.dumps(status))
"""
    with LoopbackHub(tmp_path / "hub") as hub:
        files = {path.name: path.read_bytes() for path in published.iterdir()}
        hub.put("user/model", files | {"pytorch_model.bin": b"\x80\x04."})
        done = run_client(code, hub)
    text = done.stdout
    answer, end = json.JSONDecoder().raw_decode(text)
    found = {check["name"]: (check["status"], check["measured"]) for check in answer["checks"]}
    assert found["pickles"] == ("FAIL", "pytorch_model.bin may be a pickle, or hold other weights")
    assert [found[name][0] for name in ("checksums", "load", "cache")] == ["ok"] * 3, found
    assert json.loads(text[end:]) == [1, 2, 2]
    errors = [line for line in done.stderr.splitlines() if line.startswith("hf-seqmodels doctor: error: ")]
    assert len(errors) == 2 and "'user/nothing'" in errors[0] and "'user/model'" in errors[1]
    assert not list((tmp_path / "hub").rglob("pytorch_model.bin"))


EXAMINE = """
import json
from hf_seqmodels.hub.doctor import main
print(json.dumps(main(["user/model", "--only", "config"])))
"""


def assert_says_so_in_one_line(done):
    errors = [line for line in done.stderr.splitlines() if line.startswith("hf-seqmodels doctor: error: ")]
    assert json.loads(done.stdout) == 2 and "Traceback" not in done.stderr and len(errors) == 1
    assert "'user/model' is no folder here, and as a repository: " in errors[0]
    assert done.stderr.splitlines()[-1] == errors[0]


def test_a_connection_that_drops_while_files_come_is_told_in_one_line(published, tmp_path):
    with LoopbackHub(tmp_path / "hub") as hub:
        hub.put("user/model", {path.name: path.read_bytes() for path in published.iterdir()})
        hub.fail("HEAD", "/resolve/", "drop", times=-1)
        assert_says_so_in_one_line(run_client(EXAMINE, hub))


@pytest.mark.slow  # the client tries for half a minute
def test_a_hub_that_cannot_be_reached_is_told_in_one_line(tmp_path):
    with LoopbackHub(tmp_path / "hub") as hub:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            closed = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert_says_so_in_one_line(run_client(EXAMINE, hub, env={"HF_ENDPOINT": closed}))
