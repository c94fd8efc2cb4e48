"""Text from disk as a run's data: options that do not fit, streams, counts, and the scores of words and BPE."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset

from hf_seqmodels.config import ConfigError, parse
from hf_seqmodels.data import load_pydoc_topics, token_stream, window_dataset
from hf_seqmodels.loading import counts_in_words, load_data
from hf_seqmodels.run import run
from hf_seqmodels.scores import text_scores

LSTM = ["--model_type", "seq_lstm", "--hidden_size", "8"]
TEXT = [*LSTM, "--dataset", "text", "--path", "songs"]
WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "dogs", "and", "birds", "sang", "loud", "of", "old", "days"]
rng = np.random.default_rng(0)
ROWS = {
    split: [" ".join(rng.choice(WORDS, length)) for length in lengths]
    for split, lengths in {"train": [9, 5, 0, 7] * 20, "validation": [6, 4] * 6, "test": [8, 3, 5] * 5}.items()
}


@pytest.fixture(scope="module", autouse=True)
def songs(tmp_path_factory):
    """A data set `songs`, an own cache, and a working directory beside neither."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "songs").mkdir()
    for split, rows in ROWS.items():
        pyarrow.parquet.write_table(pyarrow.table({"text": rows}), folder / f"songs/{split}.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_SEQMODELS_DATA", str(folder))
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(folder / "cache"))
        yield folder


def config(*argv: str, output: str = "unused"):
    return parse([*argv, "--output_dir", output])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([*LSTM, "--dataset", "text"], "dataset=text is read from a path and none is given; --path takes a folder"),
        ([*LSTM, "--path", "songs"], "path=songs does not apply to dataset=pydoc_topics; leave path out, or choose"),
        ([*LSTM, "--column", "line"], "column=line does not apply to dataset=pydoc_topics; leave column out, or"),
        ([*LSTM, "--row_end", "nothing"], "row_end=nothing does not apply to dataset=pydoc_topics"),
        ([*LSTM, "--test_split", "dev"], "test_split=dev does not apply to dataset=pydoc_topics"),
        ([*LSTM, "--streaming"], "streaming=True does not apply to dataset=pydoc_topics; leave streaming out, or"),
        (
            [*LSTM, "--dataset", "next_token", "--windows", "streams"],
            "windows=streams does not apply to dataset=nex",
        ),
        ([*LSTM, "--dataset", "next_token", "--tokenizer", "bpe"], "tokenizer=bpe does not apply to dataset=next_tok"),
        ([*TEXT, "--length", "5"], "length does not apply: dataset=text is text as it is; leave length out"),
        (
            [*TEXT, "--vocabulary_size", "50"],
            "vocabulary_size=50 does not apply to tokenizer=characters; leave it",
        ),
        (
            [*TEXT, "--tokenizer", "bpe", "--vocabulary_size", "50"],
            "vocabulary_size=50 is out of range for token",
        ),
        (
            [*TEXT, "--random_lengths"],
            "random_lengths does not apply to windows=shuffled; leave random_lengths o",
        ),
        ([*TEXT, "--reset_at_documents"], "reset_at_documents does not apply to windows=shuffled; leave"),
        (
            [*TEXT, "--carry_state"],
            "carry_state does not apply to windows=shuffled; leave carry_state out, or add",
        ),
        ([*TEXT, "--windows", "streams", "--random_lengths", "--reset_at_documents"], "cannot go together; leave one"),
        ([*TEXT, "--windows", "streams", "--streaming"], "streaming never has the text as a whole, which windows"),
    ],
)
def test_options_that_do_not_apply_are_refused_before_anything_is_read(argv, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        config(*argv)
    assert "\n" not in str(error.value)


def test_files_and_path_exclude_each_other(songs):
    file = str(songs / "songs/train.parquet")
    files = ["--train_file", file, "--validation_file", file, "--test_file", file]
    with pytest.raises(ConfigError, match=r"path=songs and train_file both say what to read; leave one of them out"):
        config(*TEXT, *files)
    with pytest.raises(ConfigError, match=r"train_file does not apply to dataset=text, which is read from path"):
        config(*LSTM, "--dataset", "text", *files)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--path", "absent"], "there is no data set 'absent' in "),
        (["--column", "line"], "train.parquet: there is no column 'line' among text; "),
        (["--test_split", "dev"], "has no split 'dev' (dev.parquet or dev.txt); put it there, or say which split"),
        (["--tokenizer", "./absent"], "tokenizer './absent' cannot be loaded: it must be one of characters, bytes, "),
    ],
)
def test_what_is_missing_is_one_line(options, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        load_data(config(*TEXT, *options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (["seq_transformer_decoder"], "carry_state needs the recurrent state of our models, which Transformer"),
        (["seq_attention_rnn"], "carry_state with window=None would remember every token of an epoch; set"),
        (["gpt2", "--n_embd", "8", "--n_head", "2"], "carry_state needs the recurrent state of our models, which"),
    ],
)
def test_a_state_that_cannot_be_carried_is_refused_before_the_data_are_read(model, message):
    streams = ["--dataset", "text", "--path", "absent", "--windows", "streams", "--carry_state"]
    with pytest.raises(ConfigError, match=re.escape(message)):
        run(config("--model_type", *model, *streams))


def test_words_of_a_text_from_disk():
    data = load_data(config(*TEXT, "--tokenizer", "words", "--block_size", "16"))
    words = sum(len(row.split()) for row in ROWS["train"])
    assert data.counts["train"]["tokens"] == len(data.streams["train"]) == words + len(ROWS["train"])
    assert data.counts["train"]["blank_rows"] == 20 and data.counts["train"]["rows"] == 80
    assert data.tokenizer.decode(data.streams["test"]) == " ".join(f"{row} </s>".strip() for row in ROWS["test"])
    starts = data.documents["test"]
    assert [data.tokenizer.decode(data.streams["test"][start]) for start in starts] == [
        row.split()[0] for row in ROWS["test"]
    ]
    assert data.windows["train"].to_dict() == window_dataset(data.streams["train"], 16).to_dict()
    line = "train 500 tokens in 80 rows, 20 blank rows; validation 72 tokens in 12 rows; test 95 tokens in 15 rows"
    assert counts_in_words(data.counts) == line


def test_streams_leave_the_windows_to_be_cut(songs):
    shuffled = load_data(config(*TEXT))
    data = load_data(config(*TEXT, "--windows", "streams"))
    assert data.windows == {} and data.hash == shuffled.hash
    assert all(np.array_equal(data.streams[split], shuffled.streams[split]) for split in ROWS)


def test_the_split_for_the_final_score_can_be_another():
    data = load_data(config(*TEXT, "--test_split", "validation"))
    assert list(data.texts["test"]["text"]) == ROWS["validation"]
    assert np.array_equal(data.streams["test"], data.streams["validation"])


def test_rows_that_are_lines_are_joined_as_they_are(songs):
    (songs / "lines").mkdir()
    for split, rows in ROWS.items():
        (songs / f"lines/{split}.txt").write_text("\n".join(rows))
    data = load_data(config(*LSTM, "--dataset", "text", "--path", "lines", "--row_end", "nothing"))
    assert data.tokenizer.decode(data.streams["train"]) == "\n".join(ROWS["train"])
    assert data.tokenizer.eos_token_id not in data.streams["train"]


def test_pydoc_topics_have_streams_documents_and_counts_too():
    data = load_data(config(*LSTM))
    topics = load_pydoc_topics()
    for split, rows in topics.items():
        assert np.array_equal(data.streams[split], token_stream(rows, data.tokenizer))
        assert len(data.documents[split]) == data.counts[split]["rows"] == len(rows)
        assert data.counts[split]["tokens"] == data.counts[split]["characters"]


def test_a_text_of_one_token_has_nothing_to_predict(songs):
    (songs / "short").mkdir()
    for split in ROWS:
        pyarrow.parquet.write_table(pyarrow.table({"text": [""]}), songs / f"short/{split}.parquet")
    with pytest.raises(ConfigError, match="train has 1 tokens and nothing to predict: it needs two; add text"):
        load_data(config(*LSTM, "--dataset", "text", "--path", "short", "--tokenizer", "bytes"))


def test_scores_of_tokens_that_are_no_characters():
    found = {"loss": 2.0, "tokens": 99}
    counts = {"tokens": 100, "characters": 400, "exact": True}
    scores = text_scores(found, counts)
    assert scores == pytest.approx({"perplexity": math.exp(2), "bits_per_character": 2 / math.log(2) / 4})
    assert list(text_scores(found, counts | {"exact": False})) == ["perplexity"]
    assert text_scores(found, counts | {"characters": 100}) == {}
    assert text_scores({"loss": 1e4, "tokens": 9}, counts | {"exact": False}) == {}


def test_a_run_records_counts_and_scores_and_shows_no_text(songs, capsys):
    tokens = ["--tokenizer", "bpe", "--vocabulary_size", "270", "--block_size", "16"]
    record = run(config(*TEXT, *tokens, "--max_steps", "2", "--save_strategy", "no", "--eval_strategy", "no",
                        "--load_best_model_at_end", "false", output="run"))  # fmt: skip
    said = capsys.readouterr().out
    counts = record["data"]["counts"]["test"]
    assert counts["rows"] == 15 and counts["exact"] is True and counts["tokens"] < counts["characters"]
    assert said.startswith(f"data: train {record['data']['counts']['train']['tokens']:,} tokens in 80 rows, 20 blank")
    test = record["metrics"]["test"]
    assert test["perplexity"] == pytest.approx(math.exp(test["loss"]))
    assert test["bits_per_character"] == pytest.approx(
        test["bits_per_token"] * counts["tokens"] / counts["characters"]
    )
    assert "example" not in record["data"] and record["data"]["out_of_vocabulary"] == 0
    written = Path("run/result.json").read_text()
    assert json.loads(written) == json.loads(json.dumps(record))
    assert not any(row in written for row in ROWS["test"])


def test_a_vocabulary_of_the_training_text_alone():
    rows = {"train": ["a b c"], "validation": ["a d"], "test": ["d d a"]}
    Path("few").mkdir()
    for split, texts in rows.items():
        Dataset.from_dict({"text": texts}).to_parquet(f"few/{split}.parquet")
    data = load_data(config(*LSTM, "--dataset", "text", "--path", "few", "--tokenizer", "words"))
    assert len(data.tokenizer) == 6
    assert data.counts["test"]["unknown_tokens"] == 2 and data.counts["validation"]["unknown_tokens"] == 1
    told = counts_in_words(data.counts)
    assert "test 4 tokens in 1 rows, 2 unknown tokens, shorter than a window of 128 predictions: kept as one" in told
    exact = load_data(config(*LSTM, "--dataset", "text", "--path", "few", "--tokenizer", "words", "--block_size", "3"))
    short = {split: found.get("shorter_than_window") for split, found in exact.counts.items()}
    assert short == {"train": None, "validation": 3, "test": None}  # four tokens fill a window of three predictions
