import subprocess
import sys
from pydoc_data.topics import topics

import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from hf_seqmodels.data import (
    build_character_tokenizer,
    load_pydoc_topics,
    load_text_files,
    out_of_vocabulary_share,
    token_stream,
    window_dataset,
)
from hf_seqmodels.data.text import _groups_sharing_text, _split_topics

LOAD_ELSEWHERE = """
import sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
assert not any(name.startswith("hf_seqmodels") for name in sys.modules)
sys.stdout.write(tokenizer.decode(tokenizer(sys.argv[2])["input_ids"]))
"""


@pytest.fixture(scope="module")
def corpus():
    return load_pydoc_topics()


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return build_character_tokenizer(corpus["train"]["text"])


def test_every_topic_is_in_exactly_one_split_with_its_whole_text(corpus):
    assert list(corpus) == ["train", "validation", "test"]
    rows = [(row["topic"], row["text"]) for split in corpus.values() for row in split]
    assert len(rows) == len(topics) > 50
    assert dict(rows) == topics


def test_split_sizes_are_about_80_10_10_in_characters(corpus):
    total = sum(len(text) for text in topics.values())
    share = {name: sum(map(len, split["text"])) / total for name, split in corpus.items()}
    assert 0.09 < share["test"] <= 0.1
    assert 0.09 < share["validation"] <= 0.1


def test_held_out_topics_share_no_paragraph_with_training(corpus):
    def paragraphs(split):
        blocks = (" ".join(block.split()) for text in corpus[split]["text"] for block in text.split("\n\n"))
        return {block for block in blocks if len(block) >= 80}

    assert len(paragraphs("train")) > 500
    assert not paragraphs("train") & (paragraphs("validation") | paragraphs("test"))
    assert not paragraphs("validation") & paragraphs("test")


def test_topics_are_grouped_through_others():
    first, second = "a" * 80, "b" * 80
    texts = {"w": "short", "x": first, "y": f"{first}\n\n{second}", "z": f"title\n\n{second}", "v": "short"}
    assert sorted(_groups_sharing_text(texts)) == [["v"], ["w"], ["x", "y", "z"]]


def test_split_does_not_depend_on_the_order_of_the_topics():
    shuffled = dict(sorted(topics.items(), key=lambda item: item[0][::-1]))
    assert _split_topics(shuffled) == _split_topics(dict(topics))


def test_tokenizer_layout(tokenizer, corpus):
    characters = sorted(set("".join(corpus["train"]["text"])))
    assert tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))) == ["<pad>", "<unk>", "</s>", *characters]
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.model_max_length > 10**20  # unset: no limit, no warning
    assert tokenizer(["ab", "abcd"], padding=True)["attention_mask"] == [[0, 0, 1, 1], [1, 1, 1, 1]]


@pytest.mark.parametrize(
    "text", ["a  b\n\n\n   c \n", " lead, trail . ! ?  n't 's ", "\n", "</s> <pad> <unk>", "x" * 3000]
)
def test_round_trip_is_exact(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_every_training_text_round_trips(tokenizer, corpus):
    for text in corpus["train"]["text"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_saved_tokenizer_loads_without_this_package(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    text = "two  spaces,\n\n  a </s> spelt out .\n"
    command = [sys.executable, "-c", LOAD_ELSEWHERE, str(tmp_path), text]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == text
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (loaded.padding_side, loaded.pad_token, loaded.eos_token) == ("left", "<pad>", "</s>")


def test_unknown_characters_become_unk_and_are_counted():
    tokenizer = build_character_tokenizer(["abc"])
    assert tokenizer("aéb€€")["input_ids"] == [3, 1, 4, 1, 1]
    assert out_of_vocabulary_share(Dataset.from_dict({"text": ["aéb", "cc"]}), tokenizer) == 1 / 7  # with two </s>


def test_token_stream_ends_each_text():
    tokenizer = build_character_tokenizer(["abc"])
    stream = token_stream(Dataset.from_dict({"text": ["ab", "", "c"]}), tokenizer)
    assert stream.dtype == np.int64
    assert stream.tolist() == [3, 4, 2, 2, 5, 2]


def test_windows_by_hand():
    rows = list(window_dataset(np.arange(10, 18), block_size=3))
    assert [row["input_ids"] for row in rows] == [[10, 11, 12, 13], [13, 14, 15, 16], [16, 17]]
    assert [row["labels"] for row in rows] == [[-100, 11, 12, 13], [-100, 14, 15, 16], [-100, 17]]
    rows = list(window_dataset(np.arange(10, 17), block_size=4, stride=2))
    assert [row["input_ids"] for row in rows] == [[10, 11, 12, 13, 14], [12, 13, 14, 15, 16]]
    assert [row["labels"] for row in rows] == [[-100, 11, 12, 13, 14], [-100, -100, -100, 15, 16]]


@pytest.mark.parametrize("length", [2, 3, 8, 9, 10, 17, 100])
@pytest.mark.parametrize(("block_size", "stride"), [(2, 1), (8, None), (8, 8), (8, 7), (8, 3), (8, 1), (200, 50)])
def test_every_token_after_the_first_is_a_target_once(length, block_size, stride):
    windows = window_dataset(np.arange(length), block_size, stride)
    targets = [label for row in windows for label in row["labels"] if label != -100]
    assert targets == list(range(1, length))
    assert all(row["labels"][0] == -100 and len(row["labels"]) == len(row["input_ids"]) for row in windows)
    assert all(any(label != -100 for label in row["labels"]) for row in windows)


@pytest.mark.parametrize(
    ("length", "block_size", "stride", "message"),
    [
        (10, 1, None, "block_size=1 .* at least 2"),
        (10, 4, 0, "stride=0 .* 1 to block_size"),
        (10, 4, 5, "stride=5 .* 1 to block_size"),
        (1, 4, None, r"shape \(1,\) .* T ≥ 2"),
    ],
)
def test_bad_windows_are_refused(length, block_size, stride, message):
    with pytest.raises(ValueError, match=message):
        window_dataset(np.arange(length), block_size, stride)


def test_empty_data_is_refused():
    tokenizer = build_character_tokenizer(["abc"])
    with pytest.raises(ValueError, match="data set is empty"):
        token_stream(Dataset.from_dict({"text": []}), tokenizer)
    with pytest.raises(ValueError, match=r"no column 'text' among \['sentence'\]"):
        token_stream(Dataset.from_dict({"sentence": ["a"]}), tokenizer)
    with pytest.raises(ValueError, match="no characters"):
        build_character_tokenizer(["", ""])


def test_text_files(tmp_path):
    for name, content in {"a.txt": b"\xef\xbb\xbfone\r\ntwo\n", "b.txt": "zwölf".encode(), "c.txt": b"three"}.items():
        (tmp_path / name).write_bytes(content)
    data = load_text_files(tmp_path / "a.txt", str(tmp_path / "b.txt"), tmp_path / "c.txt")
    assert {split: list(rows) for split, rows in data.items()} == {
        "train": [{"topic": "a.txt", "text": "one\ntwo\n"}],
        "validation": [{"topic": "b.txt", "text": "zwölf"}],
        "test": [{"topic": "c.txt", "text": "three"}],
    }


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, "no text file at .*bad.txt"),
        (b" \n", ValueError, "bad.txt' is empty"),
        (b"caf\xe9", ValueError, r"bad.txt' is not UTF-8 \(byte 3\)"),
        (b"good", ValueError, "train and validation hold the same text"),
    ],
)
def test_bad_text_files_are_refused_in_one_line(tmp_path, content, error, message):
    (tmp_path / "good.txt").write_bytes(b"good")
    (tmp_path / "other.txt").write_bytes(b"other")
    if content is not None:
        (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        load_text_files(tmp_path / "good.txt", tmp_path / "bad.txt", tmp_path / "other.txt")
    assert "\n" not in str(caught.value)
