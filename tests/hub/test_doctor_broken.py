"""Checkpoints broken on purpose: for each fault exactly the check that is made for it fails, and says what it saw."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from doctoring import (  # noqa: F401
    GPT2,
    QUICK,
    TOKENS,
    WIDTHS,
    edit_json,
    edit_weights,
    examine,
    failed,
    own_modules,
    with_code,
    write,
)
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_seqmodels.hub.doctor import CHECKS
from hf_seqmodels.hub.files import write_checksums
from hf_seqmodels.hub.golden import write_golden
from model_table import Case, build


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """A GPT-2 with golden scores."""
    folder = tmp_path_factory.mktemp("healthy")
    model = GPT2LMHeadModel(GPT2Config(**GPT2)).eval()
    write(model, folder)
    write_golden(model, folder)
    return folder


@pytest.fixture
def copy(healthy, tmp_path):
    """A copy of it, to be broken."""
    return shutil.copytree(healthy, tmp_path / "copy")


WEIGHT = "transformer.h.0.mlp.c_fc.weight"


# ---- faults of the files ----------------------------------------------------------------------------------------
def nan_weight(folder):
    edit_weights(folder, lambda tensors: tensors[WEIGHT][0].fill_(float("nan")))


def infinite_weight(folder):
    edit_weights(folder, lambda tensors: tensors[WEIGHT][0, 0].fill_(float("inf")))


def missing_key(folder):
    edit_weights(folder, lambda tensors: tensors.pop(WEIGHT))


def unexpected_key(folder):
    edit_weights(folder, lambda tensors: tensors.update(extra=torch.zeros(2)))


def untied(folder):
    edit_weights(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["transformer.wte.weight"] + 1}))
    (folder / "golden.safetensors").unlink()  # it is another model now


def pickle(folder):
    (folder / "training_args.bin").write_bytes(b"\x80\x04.")


def pickle_by_another_name(folder):
    torch.save({"a": torch.ones(2)}, folder / "merges.txt")


def secret(folder):
    (folder / "notes.txt").write_text("token: hf_" + "a" * 34)


def no_card(folder):
    (folder / "README.md").unlink()


def card_of_nobodys_licence(folder):
    text = (folder / "README.md").read_text()
    (folder / "README.md").write_text(text.replace("apache-2.0", "my-own-licence"))


def wrong_golden(folder):
    from safetensors import safe_open

    tensors = load_file(folder / "golden.safetensors")
    with safe_open(folder / "golden.safetensors", "pt") as file:
        metadata = file.metadata()
    tensors["scores"][0, 0, 0] += 1e-3
    save_file(tensors, folder / "golden.safetensors", metadata=metadata)


def flipped_bit(folder):
    (folder / "golden.safetensors").unlink()  # it would notice too
    write_checksums(folder)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-4] ^= 1  # the last place of a number's mantissa
    (folder / "model.safetensors").write_bytes(content)


def unlisted_file(folder):
    write_checksums(folder)
    (folder / "added.txt").write_text("later")


def truncated(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def _sharded(folder, change):
    GPT2LMHeadModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="5KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    change(content["weight_map"])
    index.write_text(json.dumps(content))


def index_outside(folder):
    _sharded(folder, lambda shards: shards.update({WEIGHT: "../elsewhere.safetensors"}))


def index_absolute(folder):
    _sharded(folder, lambda shards: shards.update({WEIGHT: "/etc/passwd"}))


def lost_shard(folder):
    _sharded(folder, lambda shards: (folder / shards[WEIGHT]).unlink())


def wrong_shard(folder):
    _sharded(
        folder,
        lambda shards: shards.update({WEIGHT: next(each for each in shards.values() if each != shards[WEIGHT])}),
    )


# ---- faults of the configuration --------------------------------------------------------------------------------
def vocabulary_of_another_size(folder):
    edit_json(folder / "config.json", vocab_size=40)


def no_layers(folder):
    edit_json(folder / "config.json", n_layer=-2)


def a_billion_layers(folder):
    edit_json(folder / "config.json", n_layer=10**9)


def a_billion_layers_by_another_name(folder):
    edit_json(folder / "config.json", decoder_layers=10**9)


def token_outside(folder):
    edit_json(folder / "config.json", eos_token_id=[2, 23])


def unknown_class(folder):
    edit_json(folder / "config.json", architectures=["GPT2ForEverything"])


def no_room_to_write(folder):
    edit_json(folder / "generation_config.json", max_new_tokens=-5)


def forced_token_outside(folder):
    edit_json(folder / "generation_config.json", forced_bos_token_id=99)


def tokenizer_with_more_tokens(folder):
    words = Tokenizer(WordLevel({f"w{index}": index for index in range(30)}, unk_token="w1"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w1").save_pretrained(folder)


def tokenizer_with_longer_texts(folder):
    words = Tokenizer(WordLevel({f"w{index}": index for index in range(20)}, unk_token="w1"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w1", model_max_length=64).save_pretrained(folder)


FILES = {
    nan_weight: ("finite_weights", WEIGHT),
    infinite_weight: ("finite_weights", "1 values"),
    missing_key: ("missing_keys", WEIGHT),
    unexpected_key: ("unexpected_keys", "extra is in the files"),
    untied: ("tied_weights", "declared tied and are apart"),
    pickle: ("pickles", "training_args.bin"),
    pickle_by_another_name: ("pickles", "merges.txt begins like a pickle"),
    secret: ("secrets", "notes.txt holds something like a Hugging Face token"),
    no_card: ("card", "no README.md"),
    card_of_nobodys_licence: ("card", "my-own-licence"),
    wrong_golden: ("golden", "stored scores"),
    flipped_bit: ("checksums", "model.safetensors differs"),
    unlisted_file: ("checksums", "added.txt is not listed"),
    truncated: ("safetensors", "'model.safetensors' is truncated or damaged"),
    no_weights: ("safetensors", "no model.safetensors"),
    index_outside: ("shard_index", "../elsewhere.safetensors"),
    index_absolute: ("shard_index", "/etc/passwd"),
    lost_shard: ("shard_index", "which is not there"),
    wrong_shard: ("shard_index", WEIGHT),
    vocabulary_of_another_size: ("shapes", "transformer.wte.weight is 23 x 8 in the file and 40 x 8"),
    no_layers: ("config", "num_hidden_layers is -2"),
    a_billion_layers: ("config", "1000000000"),
    a_billion_layers_by_another_name: ("config", "decoder_layers is 1000000000"),
    token_outside: ("config", "eos_token_id is 23, outside the vocabulary of 23"),
    unknown_class: ("config", "GPT2ForEverything"),
    no_room_to_write: ("generation_config", "max_new_tokens"),
    forced_token_outside: ("generation_config", "forced_bos_token_id is 99"),
    tokenizer_with_more_tokens: ("tokenizer", "30 tokens"),
    tokenizer_with_longer_texts: ("tokenizer", "model_max_length is 64"),
}


@pytest.mark.parametrize("fault", FILES, ids=lambda fault: fault.__name__)
def test_one_fault_of_the_files_fails_one_check(fault, copy):
    check, words = FILES[fault]
    fault(copy)
    findings = examine(copy)
    assert failed(findings) == [check], {name: findings[name].measured for name in failed(findings)}
    assert words in findings[check].measured
    for name in QUICK:  # what needs the check says that it cannot speak
        if check in CHECKS[name].needs:
            assert findings[name].ok is None and "says nothing" in findings[name].measured


@pytest.mark.slow
@pytest.mark.parametrize("fault", FILES, ids=lambda fault: fault.__name__)
def test_a_fresh_process_does_not_blame_itself(fault, copy):
    fault(copy)
    assert failed(examine(copy, only=None)) == [FILES[fault][0]]


def test_a_key_that_our_own_loading_refuses_is_named(tmp_path):
    write(build(Case("seq_lstm", "plain"), "causal-lm"), tmp_path)
    edit_weights(tmp_path, lambda tensors: tensors.pop("model.layers.1.weight_hh"))
    findings = examine(tmp_path)
    assert failed(findings) == ["missing_keys"]
    assert findings["missing_keys"].measured == "model.layers.1.weight_hh is not in the files"


def test_an_index_below_looks_for_its_shards_below(copy):
    _sharded(copy, lambda shards: None)
    shutil.copytree(copy, copy / "sub")
    assert not failed(examine(copy))
    lost = copy / "sub" / json.loads((copy / "sub" / "model.safetensors.index.json").read_text())["weight_map"][WEIGHT]
    edit_shard(lost)
    findings = examine(copy, only=["shard_index"])
    assert failed(findings) == ["shard_index"]
    assert f"'sub/model.safetensors.index.json' looks for {WEIGHT}" in findings["shard_index"].measured
    lost.unlink()
    findings = examine(copy, only=["shard_index"])
    assert "which is not there" in findings["shard_index"].measured


def edit_shard(file):
    tensors = load_file(file)
    tensors.pop(WEIGHT)
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_head_that_reads_text_alone_has_no_excuse_for_not_computing(tmp_path):
    """4 heads cannot share 3 keys: shapes fit the configuration, and no input does."""
    config = LlamaConfig(**TOKENS, **WIDTHS | {"num_attention_heads": 4, "num_key_value_heads": 3}, head_dim=4)
    findings = examine(write(LlamaForCausalLM(config), tmp_path))
    computes = {"padding_right", "padding_left", "padding_batch", "accumulation", "cache"}
    assert set(failed(findings)) == computes and findings["shapes"].ok and findings["load"].ok


def test_a_pickle_that_only_the_repository_holds_is_named(healthy):
    from hf_seqmodels.hub.doctor_files import pickles
    from hf_seqmodels.hub.doctor_patient import Patient

    finding = pickles(Patient(healthy, elsewhere=["config.json", "pytorch_model.bin"]))
    assert finding.ok is False and "pytorch_model.bin" in finding.measured


# ---- faults of the code -----------------------------------------------------------------------------------------
CODE = {
    "UninitialisedBuffer": ("uninitialised", "offsets differs from load to load"),
    "ForgottenTensor": ("uninitialised", "table[sums][0] has no memory after loading"),
    "WrongBuffer": ("uninitialised", "offsets is loaded otherwise than built"),
    "DrawnAtLoading": ("missing_keys", "extra.bias is not in the files"),
    "SeesPaddingOnTheLeft": ("padding_left", "before it"),
    "SeesTheBatch": ("padding_batch", "in a batch"),
    "NoNumberBesideThePadding": ("padding_batch", "nan"),
    "ForgetfulCache": ("cache", "with the cache"),
    "UnaskedCache": ("cache", "without the cache"),
    "ForgetsThePadding": ("cache_left", "after 2 of padding"),
    "StuckBeams": ("beam", "6 beams"),
    "NeverTies": ("tied_weights", "declared tied and are apart"),
    "TiesWithoutBeingAsked": ("tied_weights", "tie_word_embeddings is False"),
    "DropsTheCount": ("accumulation", "loss x 1.0000 in 1, "),
    "MeansOfMeans": ("accumulation", "loss x "),
    "GrowsWhenSaved": ("save_load", "bit for bit"),
    "RefusesToLoad": ("load", "this model cannot be loaded"),
}
SEVERAL = {
    "SeesPadding": ["padding_right", "padding_left", "padding_batch"],
    "SeesPaddingOnTheRight": ["padding_right", "padding_batch"],
}
OPTIONS = {"TiesWithoutBeingAsked": {"tie_word_embeddings": False}}


def prepare(name, folder):
    with_code(name, folder, **OPTIONS.get(name, {}))
    if name == "DrawnAtLoading":
        edit_weights(folder, lambda tensors: [tensors.pop(key) for key in ("extra.weight", "extra.bias")])
    if name == "NeverTies":
        edit_weights(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["transformer.wte.weight"] * 2}))


def test_code_without_a_fault_passes(tmp_path, own_modules):  # noqa: F811
    findings = examine(with_code("Healthy", tmp_path / "model"), trust=True)
    assert not failed(findings), {name: findings[name].measured for name in failed(findings)}
    assert findings["accumulation"].ok and findings["cache"].ok and findings["beam"].ok


@pytest.mark.parametrize("name", CODE)
def test_one_fault_of_the_code_fails_one_check(name, tmp_path, own_modules):  # noqa: F811
    check, words = CODE[name]
    prepare(name, tmp_path / "model")
    findings = examine(tmp_path / "model", trust=True)
    assert failed(findings) == [check], {name: findings[name].measured for name in failed(findings)}
    assert words in findings[check].measured
    if findings[check].limit is not None:
        assert not findings[check].number <= 3 * findings[check].limit


@pytest.mark.parametrize("name", SEVERAL)
def test_padding_that_is_seen_fails_where_it_is_seen(name, tmp_path, own_modules):  # noqa: F811
    findings = examine(with_code(name, tmp_path / "model"), trust=True)
    assert failed(findings) == SEVERAL[name]
