"""What is saved comes back bit for bit, and what is missing is never made up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from exporting import CAUSAL, PLAIN, build_word_tokenizer, digest, tensors_of
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from hf_seqmodels.models import ARCHITECTURES, HEADS
from model_table import PAIRS, Case, build, build_config, each_case_and_head, each_pair, make_ids, output_of

each_causal = pytest.mark.parametrize("case", CAUSAL, ids=str)


def options_of(model: torch.nn.Module) -> dict:
    """The configuration, without where it came from."""
    return {name: value for name, value in model.config.to_dict().items() if name not in ("_name_or_path", "auto_map")}


@each_case_and_head
def test_every_tensor_comes_back_bit_for_bit(case, head, tmp_path):
    """A11 and, since every weight lies one above where initialisation would put it, A14."""
    model = build(case, head)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    model.save_pretrained(tmp_path)
    auto = getattr(transformers, HEADS[head])
    for again in (auto.from_pretrained(tmp_path), type(model).from_pretrained(tmp_path)):
        assert type(again) is type(model)
        assert digest(again) == digest(model)
        assert options_of(again) == options_of(model)


def test_digest_sees_every_kind_of_tensor():
    model = build(PLAIN[0])
    before = digest(model)
    model.layers[0].register_buffer("count", torch.zeros(2), persistent=False)
    model.layers[0].packed = [torch.zeros(2)]
    assert set(digest(model)) - set(before) == {"layers.0.count", "layers.0.packed[0]"}
    model.layers[0].packed[0][0] = -0.0
    assert digest(model) != before
    assert len(tensors_of(model)) == len(before) + 2


# -- A12: what is missing ---------------------------------------------------------------------------------------------
def without(folder: Path, key: str) -> Path:
    """A copy of the checkpoint in `folder` that lacks one tensor."""
    copy = folder.with_name(f"{folder.name}_without")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    tensors = load_file(copy / "model.safetensors")
    del tensors[key]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@each_pair([pair for pair in PAIRS if pair[0].variant == "plain"])
def test_missing_backbone_tensor_raises(case, head, tmp_path):
    folder = tmp_path / "model"
    build(case, head).save_pretrained(folder)
    key = next(key for key in load_file(folder / "model.safetensors") if "layers.1." in key)
    broken = without(folder, key)
    for auto in ("AutoModel", HEADS[head]):
        with pytest.raises(ValueError, match=rf"lacks 1 tensors of .*'(model\.)?{key.removeprefix('model.')}'"):
            getattr(transformers, auto).from_pretrained(broken)
    with pytest.raises(ValueError, match="incomplete"):
        ARCHITECTURES[case.architecture].models[head].from_pretrained(broken)


@each_causal
def test_missing_head_raises_where_the_checkpoint_had_it(case, tmp_path):
    for head, key, auto in (
        ("causal-lm", "lm_head.weight", AutoModelForCausalLM),
        ("sequence-classification", "score.weight", AutoModelForSequenceClassification),
        ("token-classification", "score.bias", AutoModelForTokenClassification),
    ):
        build(case, head).save_pretrained(tmp_path / head)
        with pytest.raises(ValueError, match=f"lacks 1 tensors.*'{key}'"):
            auto.from_pretrained(without(tmp_path / head, key))


@each_causal
@pytest.mark.parametrize("source", ["causal-lm", "backbone"])
def test_only_a_new_head_is_new(case, source, tmp_path):
    model = build(case, source)
    model.save_pretrained(tmp_path)
    pooled = {"pooling.weight"} if case.architecture == "seq_attention_rnn" else set()
    for auto, new in (
        (AutoModel, set()),
        (AutoModelForCausalLM, set() if source == "causal-lm" else {"lm_head.weight"}),
        (AutoModelForSequenceClassification, {"score.weight", "score.bias"} | pooled),
        (AutoModelForTokenClassification, {"score.weight", "score.bias"}),
    ):
        again, info = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert info["missing_keys"] == new
        ours, theirs = (getattr(each, "model", each).state_dict() for each in (model, again))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        assert all(torch.isfinite(tensor).all() for tensor in again.state_dict().values())


@each_causal
def test_tied_weights_are_stored_once_and_stay_tied(case, tmp_path):
    model = build(case, "causal-lm", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert digest(again) == digest(model)


# -- ways of loading --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    folders = {}
    for case in CAUSAL:
        folders[case.architecture] = tmp_path_factory.mktemp(case.architecture)
        build(case, "causal-lm").save_pretrained(folders[case.architecture])
    return folders


@each_causal
def test_shards_and_subfolder(case, saved, tmp_path):
    folder = tmp_path / "repository" / "deep"
    model = AutoModelForCausalLM.from_pretrained(saved[case.architecture])
    model.save_pretrained(folder, max_shard_size="3KB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    assert digest(AutoModelForCausalLM.from_pretrained(tmp_path / "repository", subfolder="deep")) == digest(model)


@each_causal
@pytest.mark.parametrize(
    "options", [{"device_map": "cpu"}, {"device_map": "auto"}, {"use_safetensors": True}], ids=str
)
def test_loading_options_keep_the_weights(case, options, saved):
    plain = AutoModelForCausalLM.from_pretrained(saved[case.architecture])
    again = AutoModelForCausalLM.from_pretrained(saved[case.architecture], **options)
    assert digest(again) == digest(plain)
    ids = make_ids(2, 5)
    assert torch.equal(output_of(again(ids)), output_of(plain(ids)))


@each_causal
def test_bfloat16(case, saved):
    """A10: within 2e-2 of fp32, loaded and generating."""
    full = AutoModelForCausalLM.from_pretrained(saved[case.architecture])
    half = AutoModelForCausalLM.from_pretrained(saved[case.architecture], dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    rounded = AutoModelForCausalLM.from_pretrained(saved[case.architecture])
    rounded.load_state_dict({key: tensor.bfloat16().float() for key, tensor in full.state_dict().items()})
    ids = make_ids(2, 6)
    with torch.no_grad():
        error = (half(ids).logits.float() - rounded(ids).logits).abs().max() / rounded(ids).logits.abs().max()
        scores = half.generate(
            ids, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        again = half(scores.sequences[:, :-1]).logits[:, 5:]
    assert error <= 2e-2
    largest = again.abs().max()
    assert (torch.stack(scores.logits, 1).float() - again.float()).abs().max() / largest <= 2e-2


@each_causal
def test_labels_travel(case, saved, tmp_path):
    names = {0: "bad", 1: "fair", 2: "good"}
    model = AutoModelForSequenceClassification.from_pretrained(
        saved[case.architecture], id2label=names, label2id={name: index for index, name in names.items()}
    )
    assert model.score.out_features == model.config.num_labels == 3
    model.save_pretrained(tmp_path)
    build_word_tokenizer().save_pretrained(tmp_path)
    answer = transformers.pipeline("text-classification", model=str(tmp_path))(["w5 w6", "w3 w4 w5 w9"], batch_size=2)
    assert [each["label"] in names.values() for each in answer] == [True, True]
    assert all(0.3 < each["score"] < 1 for each in answer)


@each_case_and_head
def test_auto_classes_know_the_architectures(case, head):
    config = build_config(case, head)
    assert type(AutoConfig.for_model(case.architecture)) is type(config)
    model = getattr(transformers, HEADS[head]).from_config(config)
    assert type(model) is ARCHITECTURES[case.architecture].models[head]


@each_causal
def test_weights_in_one_block_are_saved_apart(case, saved, tmp_path):
    """On a GPU cuDNN's parameters are views of one block of memory; saving must not take them for shared ones."""
    model = AutoModelForCausalLM.from_pretrained(saved[case.architecture])
    parameters = [parameter for name, parameter in model.named_parameters() if "layers.0." in name]
    block, start = torch.zeros(sum(parameter.numel() for parameter in parameters)), 0
    for parameter in parameters:
        view = block[start : start + parameter.numel()].view_as(parameter)
        view.copy_(parameter.data)
        parameter.data = view
        start += parameter.numel()
    model.save_pretrained(tmp_path)
    assert digest(AutoModelForCausalLM.from_pretrained(tmp_path)) == digest(model)


def test_configuration_file_says_what_was_saved(saved):
    for case in CAUSAL:
        written = json.loads((saved[case.architecture] / "config.json").read_text())
        assert written["model_type"] == case.architecture
        assert written["architectures"] == [ARCHITECTURES[case.architecture].models["causal-lm"].__name__]
        config = build_config(case)
        assert {name: written[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers")} == {
            name: getattr(config, name) for name in ("vocab_size", "hidden_size", "num_hidden_layers")
        }


# -- a user's own subclass --------------------------------------------------------------------------------------------
class Elsewhere(ARCHITECTURES["seq_lstm"].models["causal-lm"]):
    """A class whose file is not among ours, so that no code is saved for it; the weights are."""


def test_subclass_of_another_folder_saves_without_code(tmp_path):
    model = Elsewhere(build_config(Case("seq_lstm", "plain")))
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())
    assert digest(Elsewhere.from_pretrained(tmp_path)) == digest(model)
