"""Cards of benchmarks: seeds, ranges, published numbers, and data sets by their names and licences."""

from __future__ import annotations

import pytest

from hf_seqmodels.evaluation.recorded import as_record, merge
from hf_seqmodels.hub.card import build_card, check_card
from hf_seqmodels.hub.card_data import dataset_of

ROLLS = {"dataset": "piano_rolls", "path": "music_jsb_chorales", "tokenizer": "characters", "block_size": 128}
WORDS = {"dataset": "text", "path": "ptb_word", "tokenizer": "words", "block_size": 35, "windows": "streams"}


def run(seed: int, scores: dict, **more) -> dict:
    return {
        "model_type": "seq_gru",
        "task": "time-series-prediction",
        "parameters": 20_912,
        "metrics": {"validation": scores, "test": scores},
        "steps": 100 + seed,
        "best_step": 90,
        "curve": {"train": [[1, 9.0]], "validation": [[50, 8.5]]},
        "seconds": 90.0,
        "targets": 1000,
        "batch_order": {"digest": "ab" * 32, "steps": 100 + seed, "at": {"64": "c" * 16}},
        "data": {
            "sha256": "0123456789abcdef" * 4,
            "windows": {"train": 229, "test": 77},
            "skipped": {"train": 2, "test": 0},
        },
        "seeds": {"seed": seed, "data_seed": 0},
        "config": {"data": ROLLS, "model": {}, "training": {"seed": seed}},
        "versions": {"hf_seqmodels": "0.1.0", "torch": "2", "transformers": "5"},
        "hardware": {"cores": 2, "torch_threads": 1, "gpu": None},
    } | more


def card(recipe: str, *records: dict, **more) -> str:
    text = str(build_card("x", as_record(merge(recipe, records, **more)), None, has_tokenizer=False))
    assert check_card(text) == []
    return text


def test_several_seeds_are_shown_with_their_range_and_the_published_number():
    text = card(
        "jsb_chorales/gru", *(run(seed, {"loss": value, "nll": value}) for seed, value in enumerate((8.5, 8.6)))
    )
    assert "| 8.550 (8.500–8.600) | 8.550 (8.500–8.600) |" in text
    assert "Published: 8.54 (Chung 2014; test negative log-likelihood per step (nats)); **not" in text
    assert "The numbers are means over 2 seeds (lowest–highest)." in text
    assert "- seeds: seed 0, 1; data\\_seed 0" in text and "- optimizer steps by seed: 100; 101" in text
    assert "- 2 seeds were trained; the table has their mean and range" in text and "value: 8.55\n" in text
    assert "pieces: train 229, test 77" in text and "left out: 2 of train" in text and "**the JSB Chorales" in text
    assert "repository that they come from is MIT" in text and "may repeat those pieces note by note" in text
    assert "block_size: 128\n  windows" not in text.split("<details>")[0], "options of text say nothing of music"


def test_one_seed_says_why_and_what_failed():
    rule = "one seed, as a run takes 34 minutes (more than 10)"
    text = card("jsb_chorales/gru", run(0, {"nll": 8.5}), rule=rule, failed={1: "it diverged"})
    assert "; reached here with 8.500." in text and "| 8.500 | 8.500 |" in text
    assert (
        "- one seed, as a run takes 34 minutes \\(more than 10\\)" in text and "- seed 1 failed: it diverged" in text
    )
    assert "One seed (0) was trained" in text and "wall time: 90 s" in text


def test_numbers_that_cannot_be_compared_say_so():
    text = card("musedata/gru", run(0, {"nll": 7.6}))
    assert "Published: 5.99" in text and "It cannot be compared: the paper's figures" in text
    assert "Published" not in card("musedata/transformer_decoder", run(0, {"nll": 7.6}))


def test_a_language_model_shows_its_own_measure_first():
    scores = {"loss": 4.6, "bits_per_token": 6.64, "tokens": 100}
    config = {"data": WORDS, "model": {}, "training": {"carry_state": True}}
    words = run(0, scores, task="causal-lm", model_type="seq_lstm", config=config)
    text = card("ptb_word/lstm", words)
    assert "test, perplexity per token | test, bits per token |" in text and "| 99.48 | 6.640 |" in text
    assert "the text is read as one, with the state carried from window to window" in text
    words["data"]["longest"] = {"train": 35, "test": 35}
    longest = (
        "windows, in tokens: 35 in train, 35 in test. Each goes on from the state in which the one before it ended."
    )
    assert longest in (told := card("ptb_word/lstm", words)) and "Nothing longer" not in told
    words["config"]["training"]["per_device_eval_batch_size"] = 20
    assert "is read in 20 parts side by side, each as one, with the state carried" in card("ptb_word/lstm", words)
    assert "test split of its own" not in text
    words["config"]["data"] = {**WORDS, "test_split": "validation"}
    said = "The data set has no test split of its own: test is validation again, which also chose the weights."
    assert said in card("ptb_word/lstm", words)
    assert "for research, not to be handed on" in text and "language: en" in text and "; reached here" in text
    characters = card("ptb_char/lstm", {**words, "metrics": {"test": {"loss": 1.0, "bits_per_token": 1.4427}}})
    assert "test, bits per character |" in characters and "bits per token |" not in characters
    nats = card("tiny_shakespeare/lstm", {**words, "metrics": {"validation": {"loss": 1.6, "bits_per_token": 2.31}}})
    assert "validation, loss (nats) | validation, bits per token |" in nats


@pytest.mark.parametrize(
    ("data", "name", "licence"),
    [
        ({"dataset": "text", "path": "/somewhere/tinyshakespeare"}, "tiny Shakespeare", "public domain"),
        ({"dataset": "piano_rolls", "path": "../mine"}, "mine", "unknown"),
        ({"dataset": "text", "path": "user/poems"}, "user/poems", "unknown"),
        ({"dataset": "adding"}, "adding", "Apache-2.0"),
    ],
)
def test_data_sets_are_named_and_licensed(data, name, licence):
    found = dataset_of({"config": {"data": data}})
    assert found.name == name and found.license.startswith(licence)
