"""What a user can get wrong: one line on stderr, exit status 2, nothing written, before anything is trained."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hf_seqmodels.arguments import ConfigError
from hf_seqmodels.config import parse
from hf_seqmodels.run import main

TEXT = "the cat sat on the mat. " * 20
LSTM = ["--model_type", "seq_lstm", "--hidden_size", "8", "--block_size", "16"]
DECODER = ["--model_type", "seq_transformer_decoder", "--hidden_size", "30", "--num_attention_heads"]
GPT2 = ["--model_type", "gpt2", "--n_embd", "8", "--n_head", "2", "--n_layer", "1"]
BERT = ["--model_type", "bert", "--hidden_size", "8", "--num_attention_heads", "2", "--num_hidden_layers", "1"]
NOT_EVALUATED = ["--eval_strategy", "no", "--load_best_model_at_end", "false"]

CASES = [
    ([*LSTM, "--learnin_rate", "1"], "unknown option 'learnin_rate': did you mean 'learning_rate'?"),
    ([*LSTM, "--hiden_size", "8"], "unknown option 'hiden_size': did you mean 'hidden_size'?"),
    ([*LSTM, "--learning_rate", "nan"], "learning_rate=nan is not a finite number"),
    ([*LSTM, "--learning_rate", "0"], "learning_rate=0.0 is out of range"),
    ([*LSTM, "--max_grad_norm", "inf"], "max_grad_norm=inf is not a finite number"),
    ([*LSTM, "--dropout", "1.5"], "dropout=1.5"),
    ([*LSTM, "--dropout", "nan"], "dropout=nan is not a finite number"),
    ([*LSTM, "--hidden_size", "0"], "hidden_size=0 is out of range"),
    ([*LSTM, "--hidden_size", "wide"], "hidden_size='wide' is not a whole number"),
    ([*LSTM, "--bidirectional"], "bidirectional=True"),
    ([*LSTM, "--per_device_train_batch_size", "0"], "per_device_train_batch_size=0 is out of range"),
    ([*LSTM, "--warmup_steps", "-1"], "warmup_steps=-1.0 is out of range"),
    ([*LSTM, "--num_train_epochs", "0"], "num_train_epochs=0.0 is out of range"),
    ([*LSTM, "--max_steps", "0"], "max_steps=0 is out of range"),
    ([*LSTM, "--block_size", "1"], "block_size=1 is out of range"),
    ([*LSTM, "--lr_scheduler_type", "cosin"], "lr_scheduler_type='cosin' is not a choice"),
    ([*LSTM, "--optim", "adagrad"], "optim='adagrad' is not a choice"),
    ([*LSTM, "--momentum", "0.9"], "momentum=0.9 does not apply to optim=adamw_torch_fused; leave momentum out, or"),
    ([*LSTM, "--optim", "nt_asgd", "--momentum", "0.9"], "momentum=0.9 does not apply to optim=nt_asgd"),
    ([*LSTM, "--optim", "sgd", "--rmsprop_alpha", "0.9"], "rmsprop_alpha=0.9 does not apply to optim=sgd"),
    ([*LSTM, "--optim", "sgd", "--non_monotone_interval", "3"], "or choose optim nt_asgd"),
    ([*LSTM, "--optim", "rmsprop", "--adam_beta1", "0.5"], "adam_beta1=0.5 does not apply to optim=rmsprop"),
    ([*LSTM, "--decay_factor", "0.8"], "decay_factor=0.8 does not apply to lr_scheduler_type=cosine; leave"),
    ([*LSTM, "--lr_scheduler_type", "plateau", "--decay_after", "2"], "or choose lr_scheduler_type epoch_decay"),
    ([*LSTM, "--decay_patience", "2"], "decay_patience=2 does not apply to lr_scheduler_type=cosine"),
    ([*LSTM, "--decay_factor", "1"], "decay_factor=1.0 is out of range"),
    ([*LSTM, "--max_minutes", "0"], "max_minutes=0.0 is out of range"),
    ([*LSTM, "--optim", "nt_asgd", *NOT_EVALUATED], "optim=nt_asgd follows the evaluations, and eval_strategy=no"),
    ([*LSTM, "--lr_scheduler_type", "plateau", *NOT_EVALUATED], "lr_scheduler_type=plateau follows the evaluations"),
    ([*LSTM, "--bf16", "maybe"], "bf16: "),
    ([*LSTM, "--label_smoothing_factor", "0.1"], "label_smoothing_factor=0.1 is out of range"),
    ([*LSTM, "--eval_strategy", "no"], "eval_strategy=no and save_strategy=epoch differ"),
    ([*LSTM, "--metric_for_best_model", "bits_per_token"], "metric_for_best_model=bits_per_token is not supported"),
    ([*LSTM, "--dataloader_drop_last"], "dataloader_drop_last=True is not supported"),
    ([*LSTM, "--average_tokens_across_devices", "false"], "average_tokens_across_devices=False is not supported"),
    ([*LSTM, "--lr_scheduler_kwargs", '{"cycles": 1}'], "lr_scheduler_kwargs={'cycles': 1} is not supported"),
    ([*LSTM, "--lr_scheduler_kwargs", "fast"], "lr_scheduler_kwargs=fast is not supported"),
    ([*LSTM, "--seed", "99999999999"], "seed=99999999999 is out of range"),
    ([*LSTM, "--report_to", "paper"], "paper is not supported, only"),
    ([*LSTM, "--accelerator_config", "absent.json"], "absent.json"),
    ([*LSTM, "--resume_from_checkpoint", "absent"], "resume_from_checkpoint 'absent' is not a checkpoint"),
    ([*LSTM, "--output_dir", "empty.txt/out"], "empty.txt' is not a directory open to you"),
    ([*LSTM, "more"], "'more' stands alone"),
    ([*LSTM, "--train_file", "absent.txt"], "train_file 'absent.txt' does not exist"),
    ([*LSTM, "--test_file", "empty.txt"], "empty.txt' is empty"),
    ([*LSTM, "--tokenizer", "./absent"], "tokenizer './absent' cannot be loaded"),
    ([*LSTM, "--expect_processes", "2"], "2 processes were asked for and training would run on 1"),
    ([*LSTM, "--resume"], "no checkpoint to resume from"),
    ([*LSTM, "--resume", "--overwrite"], "--overwrite deletes what --resume goes on from"),
    ([*DECODER, "4"], "num_attention_heads=4"),
    ([*DECODER, "2", "--max_position_embeddings", "16"], "the model has 16 positions"),
    (["--model_type", "seq_lstn"], "there is no architecture 'seq_lstn': did you mean 'seq_lstm'?"),
    (["--model_type", "lstm"], "there is no architecture 'lstm': did you mean 'seq_lstm'?"),
    (["--model_type", "GPT2"], "there is no architecture 'GPT2': did you mean 'gpt2'?"),
    ([*GPT2, "--n_positions", "16"], "the model has 16 positions; lower block_size or raise n_positions"),
    ([*GPT2, "--activation_function", "gelo"], "'gelo' is not a known value"),
    ([*BERT], "model_type=bert sees the token that it should predict; use --is_decoder true"),
    (["--model_type", "vit"], "architecture 'vit' has no causal language model"),
    (["--config", "lm/lstn"], "there is no recipe 'lm/lstn': did you mean 'lm/lstm'?"),
    (["--config", "absent.yaml"], "config file 'absent.yaml' does not exist"),
    ([], "no model is named"),
]


@pytest.fixture
def texts(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").touch()
    argv = ["--output_dir", "out"]
    for split in ("train", "validation", "test"):
        Path(f"{split}.txt").write_text(TEXT + split)
        argv += [f"--{split}_file", f"{split}.txt"]
    return argv


@pytest.mark.parametrize(("argv", "message"), CASES, ids=[" ".join(argv[-2:]) or "nothing" for argv, _ in CASES])
def test_refused_in_one_line(texts, capsys, argv, message):
    assert main([*texts, *argv]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("[transformers]")]
    assert len(lines) == 1 and lines[0].startswith("train.py: error: ") and message in lines[0]
    assert out == "" and not list(Path("out").glob("*"))


def test_files_must_be_complete(texts, capsys):
    assert main([*LSTM, *texts[:4]]) == 2
    assert "validation_file and test_file missing" in capsys.readouterr().err


@pytest.mark.parametrize("left", ["result.json", "log.jsonl", "model.safetensors", "checkpoint-3"])
def test_results_are_not_overwritten(texts, capsys, left):
    Path("out").mkdir()
    Path("out", left).write_text("precious")
    assert main([*texts, *LSTM]) == 2
    error = capsys.readouterr().err
    assert left in error and "--overwrite" in error and "--resume" in error
    assert Path("out", left).read_text() == "precious"


def test_resume_wants_the_same_model(texts, capsys):
    Path("out/checkpoint-3").mkdir(parents=True)
    Path("out/config.yaml").write_text("model_type: seq_gru\nmodel: {hidden_size: 8}\n")
    assert main([*texts, *LSTM, "--resume"]) == 2
    assert "the run in 'out' has model_type=seq_gru and not seq_lstm" in capsys.readouterr().err


def test_resume_wants_the_same_data_wherever_it_lies(texts):
    argv = [*texts, *LSTM, "--resume"]
    Path("out/checkpoint-3").mkdir(parents=True)
    Path("out/config.yaml").write_text(parse([*argv, "--output_dir", "new", "--resume", "false"]).to_yaml())
    copy = Path(shutil.copy(argv[argv.index("--train_file") + 1], "copy.txt"))
    assert parse([*argv, "--train_file", str(copy)]).data.train_file == "copy.txt"
    for option, value, was in (("block_size", "9", "16"), ("windows", "streams", "shuffled")):
        with pytest.raises(ConfigError, match=f"the run in 'out' has {option}={was} and not {value}; resume"):
            parse([*argv, f"--{option}", value])


def test_resume_wants_the_same_order(texts):
    streams = [*texts, *LSTM, "--resume", "--windows", "streams", "--per_device_train_batch_size", "4"]
    Path("out/checkpoint-3").mkdir(parents=True)
    Path("out/config.yaml").write_text(parse([*streams, "--output_dir", "new", "--resume", "false"]).to_yaml())
    with pytest.raises(ConfigError, match="the run in 'out' has data_seed=0 and not 5"):
        parse([*streams, "--data_seed", "5"])
    with pytest.raises(ConfigError, match=r"the run in 'out' reads its streams in 4 rows .* and not 8; resume"):
        parse([*streams, "--per_device_train_batch_size", "8"])
    smaller = ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"]
    assert parse([*streams, *smaller]).training.per_device_train_batch_size == 2


def test_the_program_exits_with_2(texts):
    """The same through a real process."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(root / "train.py"), *texts, *LSTM, "--train_file", "empty.txt"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "'empty.txt' is empty" in done.stderr and "Traceback" not in done.stderr and done.stdout == ""
