"""`hf-seqmodels evaluate`: runs get the scores that they recorded, other models the same code, misfits one line."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from transformers import BertConfig, BertLMHeadModel, GPT2Config, GPT2LMHeadModel

from hf_seqmodels.config import parse
from hf_seqmodels.data import build_tokenizer
from hf_seqmodels.evaluating import evaluate, main
from hf_seqmodels.run import run
from music_cases import music_argv, write_music

QUICK = ["--max_steps", "3", "--learning_rate", "1e-2", "--eval_strategy", "no", "--save_strategy", "no"]
QUICK += ["--load_best_model_at_end", "false", "--per_device_train_batch_size", "4"]
WORDS = ["sun", "moon", "star", "comet", "dust", "ring"]
rng = np.random.default_rng(0)
ROWS = {
    split: [" ".join(rng.choice(WORDS, 6)) for _ in range(count)]
    for split, count in {"train": 60, "validation": 15, "test": 20}.items()
}


@pytest.fixture(scope="module", autouse=True)
def sky(tmp_path_factory):
    """A data set `sky` and an own cache; the working directory is beside neither."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "sky").mkdir()
    for split, rows in ROWS.items():
        pyarrow.parquet.write_table(pyarrow.table({"line": rows}), folder / f"sky/{split}.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_SEQMODELS_DATA", str(folder))
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def trained(sky) -> dict[str, Path]:
    """A run with shuffled windows of BPE, and one with streams of words and carried state."""
    lstm = ["--model_type", "seq_lstm", "--hidden_size", "8", "--dataset", "text", "--path", "sky", "--column", "line"]
    shuffled = ["--tokenizer", "bpe", "--vocabulary_size", "262", "--block_size", "16"]
    streams = ["--tokenizer", "words", "--windows", "streams", "--block_size", "7", "--carry_state"]
    streams += ["--per_device_eval_batch_size", "3", "--random_lengths"]
    for name, options in {"shuffled": shuffled, "streams": streams}.items():
        run(parse([*lstm, *options, *QUICK, "--output_dir", name]), quiet=True)
    return {"shuffled": Path("shuffled"), "streams": Path("streams")}


@pytest.fixture(scope="module")
def gpt2(sky) -> Path:
    torch.manual_seed(0)
    tokenizer = build_tokenizer("words", ROWS["train"])
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16, "vocab_size": len(tokenizer)}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=2, eos_token_id=2)).save_pretrained("gpt2")
    tokenizer.save_pretrained("gpt2")
    return Path("gpt2")


def recorded(folder: Path, split: str) -> dict[str, float]:
    return json.loads((folder / "result.json").read_text())["metrics"][split]


@pytest.mark.parametrize("name", ["shuffled", "streams"])
@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_run_gets_the_scores_that_it_recorded(trained, name, split):
    record = evaluate(str(trained[name]), split=split)
    assert record["scores"] == pytest.approx(recorded(trained[name], split), abs=1e-6)
    assert "perplexity" in record["scores"]
    assert record["data"]["counts"]["rows"] == len(ROWS[split]) and record["data"]["name"] == "sky"
    assert record["options"]["windows"] == name


def test_the_command_prints_a_line_per_score_and_writes_the_record(trained, capsys, sky):
    assert main([str(trained["shuffled"]), "--output", "scores.json"]) == 0
    said = dict(line.split() for line in capsys.readouterr().out.splitlines())
    record = json.loads(Path("scores.json").read_text())
    assert said.keys() == record["scores"].keys() == recorded(trained["shuffled"], "test").keys()
    assert float(said["loss"]) == pytest.approx(record["scores"]["loss"], abs=1e-6)
    assert len(record["data"]["sha256"]) == 64 and record["versions"]["torch"] == torch.__version__
    assert record["hardware"]["cores"] and record["seconds"] > 0 and record["task"] == "causal-lm"
    assert main([str(trained["shuffled"]), "--output", "scores.json"]) == 2
    assert "'scores.json' is there already; give another --output" in capsys.readouterr().err


def test_windows_of_streams_with_carried_state_score_the_same_at_any_length(trained):
    """One row, so that the text is read from left to right in each case."""
    short, long = (
        evaluate(str(trained["streams"]), block_size=size, batch_size=1)["scores"]["loss"] for size in (3, 1000)
    )
    assert short == pytest.approx(long, abs=1e-6)
    without = evaluate(str(trained["streams"]), block_size=3, batch_size=1, carry_state=False)["scores"]["loss"]
    assert abs(without - long) > 1e-4


def test_shuffled_windows_of_a_run_of_streams_begin_with_nothing(trained):
    """What the run carried from window to window is not asked for then."""
    shuffled = evaluate(str(trained["streams"]), windows="shuffled", block_size=3)
    assert not shuffled["options"]["carry_state"]
    carried = evaluate(str(trained["streams"]), block_size=3)["scores"]["loss"]
    assert abs(shuffled["scores"]["loss"] - carried) > 1e-4


def test_a_run_of_several_processes_is_read_in_as_many_rows(trained):
    record = json.loads((trained["streams"] / "result.json").read_text())
    (trained["streams"] / "result.json").write_text(json.dumps(record | {"world_size": 2}))
    try:
        assert evaluate(str(trained["streams"]))["options"]["per_device_eval_batch_size"] == 6
        assert evaluate(str(trained["streams"]), batch_size=3)["options"]["per_device_eval_batch_size"] == 3
    finally:
        (trained["streams"] / "result.json").write_text(json.dumps(record))


def test_another_data_set_is_read_with_the_tokenizer_of_the_run(trained, sky):
    (sky / "other").mkdir()
    rows = ["sun moon", "ring ring sky star"]
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), sky / "other/test.parquet")
    record = evaluate(str(trained["streams"]), data="other", column="text", batch_size=1)
    assert record["data"]["counts"]["unknown_tokens"] == 1 and record["data"]["counts"]["tokens"] == 8
    assert record["scores"]["tokens"] == 7
    with pytest.raises(ValueError, match="has no split 'validation'"):
        evaluate(str(trained["streams"]), data="other", column="text", split="validation")


def test_the_split_it_learned_from_is_read_in_as_many_rows_as_others(trained):
    record = evaluate(str(trained["streams"]), split="train")
    assert record["scores"]["tokens"] == record["data"]["counts"]["tokens"] - 1 == 60 * 7 - 1


def test_what_was_read_and_left_out_is_said_beside_the_scores(trained, sky, capsys):
    (sky / "far").mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"line": ["sun", "", "sky ring"]}), sky / "far/test.parquet")
    assert main([str(trained["streams"]), "--data", "far", "--batch_size", "1"]) == 0
    said = capsys.readouterr().err
    assert said == "data: test 6 tokens in 3 rows, 1 blank rows, 1 unknown tokens\n"


def test_a_model_of_transformers_gets_what_its_own_loss_says(gpt2):
    record = evaluate(str(gpt2), data="sky", column="line", block_size=15, batch_size=4)
    model, tokenizer = GPT2LMHeadModel.from_pretrained(gpt2).eval(), build_tokenizer("words", ROWS["train"])
    ids = torch.tensor(tokenizer(" </s> ".join(ROWS["test"]) + " </s>")["input_ids"])
    nats = 0.0
    for start in range(0, len(ids) - 1, 15):
        window = ids[start : start + 16][None]
        with torch.no_grad():
            nats += model(window, labels=window).loss.item() * (window.shape[1] - 1)
    assert record["scores"]["tokens"] == len(ids) - 1 == 20 * 7 - 1
    assert record["scores"]["loss"] == pytest.approx(nats / (len(ids) - 1), abs=1e-6)
    assert record["scores"]["perplexity"] == pytest.approx(math.exp(nats / (len(ids) - 1)), rel=1e-5)
    assert record["model_type"] == "gpt2"


def test_runs_of_other_tasks_are_scored_on_their_own_data(sky):
    argv = [
        "--model_type",
        "seq_gru",
        "--hidden_size",
        "8",
        "--task",
        "sequence-classification",
        "--dataset",
        "parity",
    ]
    made = run(parse([*argv, "--num_examples", "40", *QUICK, "--output_dir", "parity"]), quiet=True)
    scores = evaluate("parity")["scores"]
    assert scores == pytest.approx(made["metrics"]["test"], abs=1e-6) and "accuracy" in scores


def test_music_is_scored_in_nats_per_step(sky, capsys):
    made = run(parse(music_argv(write_music(sky / "music"), sky / "band", "--num_train_epochs", "1")), quiet=True)
    assert evaluate("band")["scores"] == pytest.approx(made["metrics"]["test"], abs=1e-6)
    for file in ("config.yaml", "result.json"):
        (sky / "band" / file).unlink()
    record = evaluate("band", data=str(sky / "music"))
    assert record["scores"]["nll"] == pytest.approx(made["metrics"]["test"]["nll"], abs=1e-6)
    assert record["task"] == "time-series-prediction"


def test_misfits_are_one_line(trained, gpt2, sky, capsys):
    shutil.copytree("gpt2", "few")
    build_tokenizer("bytes", []).save_pretrained("few")
    shutil.copytree("gpt2", "mute")
    for file in Path("mute").glob("tokenizer*"):
        file.unlink()
    BertLMHeadModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                               intermediate_size=8)).save_pretrained("bert")  # fmt: skip
    shutil.copy("gpt2/tokenizer.json", "bert")
    shutil.copy("gpt2/tokenizer_config.json", "bert")
    column = ["--column", "line"]
    wrong = {
        ("gpt2",): "no run says what to score the model on; --data takes",
        ("shuffled", "--split", "dev"): "(dev.parquet or dev.txt); put it there, or name another split",
        ("absent",): "'absent' is no folder here and cannot be had from the Hub; check the name (",
        ("gpt2", "--data", "sky", "--block_size", "8"): "test.parquet: there is no column 'text' among line",
        ("gpt2", "--data", "night", "--block_size", "8"): "there is no data set 'night' in",
        ("gpt2", "--data", "sky", *column): "block_size=128 makes windows of 129 tokens; the model has 16 positions; "
        "--block_size 15 is the most",
        ("few", "--data", "sky"): "the tokenizer has 258 tokens and the model 9; save the tokenizer that the model",
        ("mute", "--data", "sky"): "the model has no tokenizer to read text with; save one beside it",
        ("bert", "--data", "sky", "--block_size", "8"): "BertLMHeadModel sees the token that it should predict",
        ("gpt2", "--data", "sky", "--carry_state"): "carry_state does not apply to windows=shuffled",
        ("gpt2", "--data", "sky", "--batch_size", "0"): "per_device_eval_batch_size=0 is out of range",
        ("gpt2", "--data", "sky", "--output", "no/where.json"): "the folder of --output 'no/where.json' does not",
        ("streams", "--windows", "shuffled", "--carry_state"): "carry_state does not apply to windows=shuffled",
    }
    capsys.readouterr()
    for argv, message in wrong.items():
        assert main(list(argv)) == 2, argv
        said = capsys.readouterr()
        assert message in said.err, (argv, said.err)
        assert said.out == "" and said.err.startswith("hf-seqmodels evaluate: error: ") and said.err.count("\n") == 1
