"""What a run shows: a bar, and one line for each evaluation with the recorded number."""

from hf_seqmodels.config import parse
from hf_seqmodels.run import run


def test_an_evaluation_leaves_one_line_with_the_recorded_loss(tmp_path, capsys):
    options = ["--hidden_size", "8", "--max_steps", "2", "--per_device_train_batch_size", "2"]
    options += ["--eval_strategy", "steps", "--save_strategy", "steps", "--eval_steps", "2", "--save_steps", "2"]
    record = run(parse(["--config", "lm/gru", "--output_dir", str(tmp_path / "run"), *options]))
    shown = capsys.readouterr()
    ((step, loss),) = record["curve"]["validation"]
    assert step == 2
    assert shown.out.count("step 2: validation loss") == 1
    assert f"step 2: validation loss {loss:.3f}, " in shown.out
    assert "'loss'" not in shown.out + shown.err, "no raw dictionaries"
    assert "2/2" in shown.err and "loss " in shown.err
