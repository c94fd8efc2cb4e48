"""Tokenizers of characters, bytes, words and BPE: their vocabularies, exact round trips, and the ids they give."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from datasets import Dataset
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from hf_seqmodels.data import BUILT, build_tokenizer
from hf_seqmodels.data.encoding import _by_tokenizer, _shortcut, encode

TEXTS = ["the cat sat on the mat", "the <unk> dog sat ; N cats", "", "  two  spaces\n\n and\tmore\n"]
ODD = ["é漢😀\x00\x1f\x85 \u200b", "</s> <pad> <unk>", "a\x1fb\u3000c\xa0d\u2028e", "", " ", "\n", "x" * 2000]
NEW = "a\x0b text <unk> with </s> inside,  spaces\n"

LOAD_ELSEWHERE = """
import sys
from transformers import AutoTokenizer
for folder in sys.argv[2:]:
    print(AutoTokenizer.from_pretrained(folder)(sys.argv[1])["input_ids"])
assert not any(name.startswith("hf_seqmodels") for name in sys.modules)
"""
BUILD = """
import sys
from hf_seqmodels.data import build_tokenizer
for name, size in (("words", None), ("bpe", 300)):
    print(build_tokenizer(name, sys.argv[1:], size).backend_tokenizer.to_str())
"""


def said(code: str, *arguments: str) -> list[str]:
    """What another process prints, line by line."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]


def build(name, texts=TEXTS):
    return build_tokenizer(name, texts, 300 if name == "bpe" else None)


def spell(tokenizer):
    return tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))


def test_words_stand_in_order_of_frequency_then_text():
    tokens = ["<pad>", "<unk>", "</s>", "the", "sat", ";", "N", "and", "cat", "cats", "dog", "mat", "more", "on"]
    assert spell(build("words")) == [*tokens, "spaces", "two"]
    assert spell(build_tokenizer("words", TEXTS, 10)) == tokens[:10]


def test_words_read_unknown_ones_and_join_with_spaces():
    tokenizer = build_tokenizer("words", TEXTS, 10)
    ids = tokenizer("the dog  sat\n<unk>")["input_ids"]
    assert ids == [3, 1, 4, 1] and tokenizer.unk_token_id == 1
    assert tokenizer.decode(ids) == "the <unk> sat <unk>"


def test_the_penn_treebank_has_an_unknown_word_of_its_own():
    tokenizer = build("words", ["<unk> said N", "said <unk>"])
    assert spell(tokenizer) == ["<pad>", "<unk>", "</s>", "said", "N"]
    assert tokenizer("<unk> said")["input_ids"] == [1, 3]


def test_bytes_are_their_number_and_two():
    tokenizer = build("bytes")
    assert len(tokenizer) == 258
    assert tokenizer("Aé")["input_ids"] == [65 + 2, 0xC3 + 2, 0xA9 + 2]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token) == (0, 1, None)


def test_bpe_merges_what_is_frequent_up_to_its_size():
    tokenizer = build("bpe", ["the cat and the hat"] * 3)
    assert tokenizer.tokenize("the cat") == ["the", "Ġcat"]
    assert len(build_tokenizer("bpe", TEXTS, 258)) == 258
    assert build_tokenizer("bpe", TEXTS, 258).tokenize("the") == ["t", "h", "e"]
    assert len(build_tokenizer("bpe", TEXTS, 262)) == 262
    with pytest.raises(ValueError, match=r"vocabulary_size=257 is too small for bpe: .* need 258"):
        build_tokenizer("bpe", TEXTS, 257)


@pytest.mark.parametrize("name", ["bytes", "bpe"])
@pytest.mark.parametrize("text", [*TEXTS, *ODD, NEW])
def test_any_text_comes_back(name, text):
    tokenizer = build(name)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_saved_tokenizers_give_the_same_ids_elsewhere(tmp_path):
    rows = Dataset.from_dict({"text": [NEW, *ODD]})
    expected = []
    for name in BUILT:
        tokenizer = build(name)
        tokenizer.save_pretrained(tmp_path / name)
        expected.append(str(tokenizer(NEW)["input_ids"]))
        loaded = AutoTokenizer.from_pretrained(tmp_path / name)
        assert spell(loaded) == spell(tokenizer)
        assert (loaded.padding_side, loaded.pad_token, loaded.eos_token) == ("left", "<pad>", "</s>")
        assert (encode(rows, loaded).ids == encode(rows, tokenizer).ids).all()
        ids = tokenizer(NEW)["input_ids"]
        assert loaded.decode(ids) == tokenizer.decode(ids)
    assert said(LOAD_ELSEWHERE, NEW, *(str(tmp_path / name) for name in BUILT)) == expected


def test_the_same_text_gives_the_same_tokenizer_in_another_process():
    texts = ["zeta beta alpha beta", "gamma  delta zeta", "thermal thermos therapy"]
    assert said(BUILD, *texts) == [build(name, texts).backend_tokenizer.to_str() for name in ("words", "bpe")]


@pytest.mark.parametrize("name", ["characters", "bytes", "words"])
def test_shortcuts_give_what_the_tokenizer_gives(name):
    """White space and spelt-out special tokens are where the two could differ."""
    tokenizer = build(name)
    every = [chr(code) for code in range(0x3100) if not 0xD800 <= code < 0xE000]
    rows = [*TEXTS, *ODD, NEW, "a".join(every), *(f"cat{character}sat" for character in every[:300])]
    shortcut = _shortcut(tokenizer)
    assert shortcut is not None
    (ids, lengths), (true_ids, true_lengths) = shortcut(rows), _by_tokenizer(tokenizer)(rows)
    assert np.array_equal(lengths, true_lengths) and np.array_equal(ids, true_ids)
    assert len(set(ids.tolist())) > 10


@pytest.mark.parametrize("name", ["characters", "bytes", "words"])
def test_a_tokenizer_that_was_added_to_takes_no_shortcut(name):
    tokenizer = build(name)
    tokenizer.add_tokens(["he c"])
    assert _shortcut(tokenizer) is None
    ids = encode(Dataset.from_dict({"text": ["the cat"]}), tokenizer).ids
    assert len(tokenizer) - 1 in ids
    special = build(name)
    special.split_special_tokens = False
    assert _shortcut(special) is None


def test_bytes_that_begin_with_a_space_take_no_shortcut():
    tokenizer = build("bytes")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    assert _shortcut(tokenizer) is None
    assert len(encode(Dataset.from_dict({"text": ["cat"]}), tokenizer, "nothing").ids) == 4


def test_streams_hold_every_row_and_count_it():
    rows = ["ab", "", " ", "héb"]
    stream = encode(Dataset.from_dict({"text": rows}), build("characters", ["ab h"]))
    ids = {"<unk>": 1, "</s>": 2, " ": 3, "a": 4, "b": 5, "h": 6}
    assert stream.ids.tolist() == [ids[t] for t in ["a", "b", "</s>", "</s>", " ", "</s>", "h", "<unk>", "b", "</s>"]]
    assert stream.starts.tolist() == [0, 3, 4, 6]
    counts = {"rows": 4, "blank_rows": 2, "characters": 10, "tokens": 10, "unknown_tokens": 1, "exact": False}
    assert stream.counts == counts
    joined = encode(Dataset.from_dict({"text": rows}), build("bytes"), row_end="nothing")
    assert build("bytes").decode(joined.ids.tolist()) == "ab héb"
    assert joined.starts.tolist() == [0, 2, 2, 3]
    counts = {"rows": 4, "blank_rows": 2, "characters": 6, "tokens": 7, "unknown_tokens": 0, "exact": True}
    assert joined.counts == counts


def test_words_are_exact_only_where_they_say_the_spaces():
    texts = ["one two", "three two"]
    assert encode(Dataset.from_dict({"text": texts}), build("words", texts)).counts["exact"] is True
    assert encode(Dataset.from_dict({"text": ["one  two"]}), build("words", texts)).counts["exact"] is False
    assert encode(Dataset.from_dict({"text": ["one four"]}), build("words", texts)).counts["exact"] is False


def test_more_rows_than_a_batch_are_one_stream():
    rows = [f"row {number}" for number in range(2503)]
    tokenizer = build("bytes")
    stream = encode(Dataset.from_dict({"text": rows}), tokenizer, row_end="nothing")
    assert tokenizer.decode(stream.ids.tolist()) == "".join(rows)
    assert stream.ids.dtype == np.int32 and stream.starts.dtype == np.int64
    assert tokenizer.decode(stream.ids[stream.starts[2500] : stream.starts[2501]].tolist()) == "row 2500"


def test_refusals():
    with pytest.raises(ValueError, match="tokenizer 'letters' cannot be built: it must be one of characters, bytes"):
        build_tokenizer("letters", TEXTS)
    with pytest.raises(ValueError, match="no words in the texts"):
        build_tokenizer("words", ["  ", "<unk>"])
    with pytest.raises(ValueError, match="row_end='newline' is not a choice; use one of eos, nothing"):
        encode(Dataset.from_dict({"text": ["a"]}), build("bytes"), row_end="newline")
    without_end = build("bytes")
    without_end.eos_token = None
    with pytest.raises(ValueError, match="no eos_token"):
        encode(Dataset.from_dict({"text": ["a"]}), without_end)
    assert len(encode(Dataset.from_dict({"text": ["a"]}), without_end, row_end="nothing").ids) == 1
