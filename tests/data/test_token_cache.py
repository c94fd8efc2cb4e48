"""Token streams are made once for each text, tokenizer and setting, and a damaged file is made anew."""

from __future__ import annotations

import json
import stat

import numpy as np
import pytest
from datasets import Dataset
from transformers import CTRLTokenizer

from hf_seqmodels.data import build_tokenizer, content_hash, token_streams
from hf_seqmodels.data.encoding import TokenStream, encode
from hf_seqmodels.data.token_cache import cache_file, cache_folder, read_streams, write_streams

SPLITS = {
    "train": Dataset.from_dict({"text": ["one two", "", "three two one"]}),
    "test": Dataset.from_dict({"text": ["two four"]}),
}
CONTENT = content_hash(SPLITS["train"])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/hf_seqmodels"


@pytest.fixture
def tokenizer():
    return build_tokenizer("words", SPLITS["train"]["text"])


def same(one: TokenStream, other: TokenStream) -> bool:
    return (
        np.array_equal(one.ids, other.ids)
        and np.array_equal(one.starts, other.starts)
        and (one.ids.dtype, one.starts.dtype) == (other.ids.dtype, other.starts.dtype)
        and one.counts == other.counts
    )


def test_the_second_load_equals_the_first_and_does_not_tokenize(tokenizer, cache):
    first = token_streams(SPLITS, tokenizer, "eos", CONTENT)
    assert [file.suffix for file in cache.iterdir()] == [".safetensors"]
    second = token_streams(SPLITS, tokenizer, "eos", CONTENT)
    for split, dataset in SPLITS.items():
        assert same(first[split], encode(dataset, tokenizer)) and same(second[split], first[split])
    # What is in the file is what comes, so nothing was tokenized.
    other = {split: TokenStream(stream.ids + 1, stream.starts, stream.counts) for split, stream in first.items()}
    write_streams(cache_file(CONTENT, tokenizer, "eos"), other)
    third = token_streams(SPLITS, tokenizer, "eos", CONTENT)
    assert all(same(third[split], other[split]) for split in SPLITS)


def test_whatever_decides_the_stream_decides_the_file(tokenizer):
    others = [
        cache_file(CONTENT, tokenizer, "nothing"),
        cache_file("0" * 64, tokenizer, "eos"),
        cache_file(CONTENT, build_tokenizer("words", SPLITS["train"]["text"], 5), "eos"),
        cache_file(CONTENT, build_tokenizer("characters", SPLITS["train"]["text"]), "eos"),
    ]
    ended = build_tokenizer("words", SPLITS["train"]["text"])
    ended.eos_token = "two"
    whole = build_tokenizer("words", SPLITS["train"]["text"])
    whole.split_special_tokens = False
    others += [cache_file(CONTENT, ended, "eos"), cache_file(CONTENT, whole, "eos")]
    files = {*others, cache_file(CONTENT, tokenizer, "eos")}
    assert len(files) == len(others) + 1
    assert {file.parent for file in files} == {cache_folder()}


def test_tokenizers_written_in_python_differ_by_more_than_their_vocabulary(tmp_path):
    files = []
    for name, merges in {"first": ["o n", "on e</w>"], "second": ["n e</w>", "o ne</w>"]}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
        words = ["<unk>", "</s>", "o@@", "n@@", "e", "on@@", "ne", "one"]
        (tmp_path / name / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
        paths = [str(tmp_path / name / file) for file in ("vocab.json", "merges.txt")]
        made = [CTRLTokenizer(*paths, eos_token="</s>") for _ in range(2)]
        files.append({cache_file(CONTENT, tokenizer, "eos") for tokenizer in made})
    assert [len(same) for same in files] == [1, 1] and files[0] != files[1]


def test_a_call_that_pads_does_not_change_the_file(tokenizer):
    before = cache_file(CONTENT, tokenizer, "eos")
    tokenizer(["one", "one two"], padding=True, truncation=True, max_length=5)
    assert cache_file(CONTENT, tokenizer, "eos") == before


@pytest.mark.parametrize("damage", ["cut", "emptied", "a flipped bit in the ids", "text", "other counts", "a folder"])
def test_a_damaged_file_is_made_anew(tokenizer, damage):
    true = token_streams(SPLITS, tokenizer, "eos", CONTENT)
    file = cache_file(CONTENT, tokenizer, "eos")
    whole = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(whole[:-5])
    elif damage == "emptied":
        file.write_bytes(b"")
    elif damage == "text":
        file.write_text("tokens")
    elif damage == "other counts":
        file.write_bytes(bytes(whole).replace(b'\\"rows\\": 3', b'\\"rows\\": 4'))
    elif damage == "a folder":
        file.unlink()
        file.mkdir()
    else:
        whole[-9] ^= 1
        file.write_bytes(whole)
    assert damage == "a folder" or file.read_bytes() != whole or damage.startswith("a flipped")
    assert read_streams(file) is None
    if damage == "a folder":
        with pytest.warns(UserWarning, match="the tokens are not kept: .* cannot be written"):
            again = token_streams(SPLITS, tokenizer, "eos", CONTENT)
    else:
        again = token_streams(SPLITS, tokenizer, "eos", CONTENT)
        assert read_streams(file) is not None
    assert all(same(again[split], true[split]) for split in SPLITS)
    assert not list(file.parent.glob("*.tmp"))


def test_other_splits_under_the_same_name_are_made_anew(tokenizer):
    token_streams({"test": SPLITS["test"]}, tokenizer, "eos", CONTENT)
    assert list(token_streams(SPLITS, tokenizer, "eos", CONTENT)) == ["train", "test"]


def test_a_cache_that_cannot_be_written_costs_a_warning(tokenizer, cache):
    cache.parent.mkdir()
    cache.write_text("in the way")
    with pytest.warns(UserWarning, match="the tokens are not kept: '.*' cannot be written"):
        streams = token_streams(SPLITS, tokenizer, "eos", CONTENT)
    assert same(streams["train"], encode(SPLITS["train"], tokenizer))
    assert stat.S_ISREG(cache.stat().st_mode) and cache.read_text() == "in the way"
