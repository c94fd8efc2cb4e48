import json
import math
import os
import subprocess
import sys

import pytest

from hf_seqmodels.metrics import METRICS, load_metric

OFFLINE = """
import json, socket
def refuse(*args, **kwargs):
    raise AssertionError("a metric opened a connection")
socket.socket.connect = refuse
from hf_seqmodels.metrics import METRICS, load_metric
rows = {"accuracy": [1, 2], "f1": [1, 2], "bits_per_token": [0, 1]}
rows |= {"token_accuracy": [[1, 2]], "exact_match": [[1, 2]]}
rows |= {"bits_per_character": [1, 2], "mse": [1, 2], "nll_per_step": [1, 2]}
for name in METRICS:
    print(json.dumps(load_metric(name).compute(predictions=rows[name], references=rows[name])))
"""


def test_shipped_metrics():
    assert METRICS[:5] == ("accuracy", "bits_per_character", "bits_per_token", "exact_match", "f1")
    assert METRICS[5:] == ("mse", "nll_per_step", "token_accuracy")


def test_bits_per_token_weights_by_count():
    result = load_metric("bits_per_token").compute(predictions=[2 * math.log(2), 12 * math.log(2)], references=[2, 3])
    assert result == pytest.approx({"bits_per_token": 14 / 5, "perplexity": 2 ** (14 / 5)})


def test_bits_per_token_in_batches_is_the_same():
    metric = load_metric("bits_per_token")
    for nats, count in ((1.5, 2), (0.0, 0), (7.25, 9)):
        metric.add_batch(predictions=[nats], references=[count])
    assert metric.compute()["perplexity"] == pytest.approx(math.exp(8.75 / 11))


def test_perplexity_beyond_floats_is_infinite():
    assert load_metric("bits_per_token").compute(predictions=[1e6], references=[1])["perplexity"] == math.inf


def test_bits_per_character_weights_by_count():
    rows = {"predictions": [2 * math.log(2), 12 * math.log(2)], "references": [4, 24]}
    assert load_metric("bits_per_character").compute(**rows) == pytest.approx({"bits_per_character": 0.5})
    with pytest.raises(ValueError, match=r"character counts \[0\] must be"):
        load_metric("bits_per_character").compute(predictions=[1.0], references=[0])


@pytest.mark.parametrize("counts", [[0, 0], [3, -1]])
def test_bits_per_token_refuses_bad_counts(counts):
    with pytest.raises(ValueError, match="token counts"):
        load_metric("bits_per_token").compute(predictions=[1.0, 1.0], references=counts)


def test_accuracy_and_f1():
    predictions, labels = [0, 1, 1, 2], [0, 1, 2, 2]
    assert load_metric("accuracy").compute(predictions=predictions, references=labels) == {"accuracy": 0.75}
    macro = load_metric("f1").compute(predictions=predictions, references=labels)
    assert macro["f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    weighted = load_metric("f1").compute(predictions=predictions, references=labels, average="weighted")
    assert weighted["f1"] == pytest.approx((1 + 2 / 3 + 2 * 2 / 3) / 4)


def test_token_accuracy_leaves_out_unlabelled_tokens():
    result = load_metric("token_accuracy").compute(
        predictions=[[1, 2, 3], [1, 1]], references=[[-100, 2, 2], [1, -100]]
    )
    assert result == {"token_accuracy": 2 / 3}


@pytest.mark.parametrize(
    ("references", "message"),
    [([[1], [1, 2]], "differs in length"), ([[-100, -100], [-100]], "no label other than -100")],
)
def test_token_accuracy_refuses_bad_rows(references, message):
    with pytest.raises(ValueError, match=message):
        load_metric("token_accuracy").compute(predictions=[[1, 2], [1]], references=references)


def test_exact_match_wants_every_label_of_a_row():
    labels = [[1, 2, 3], [1, -100, 3], [4, 5, -100], [-100, -100, -100]]
    result = load_metric("exact_match").compute(
        predictions=[[1, 2, 0], [1, 9, 3], [4, 5, 9], [1, 2, 3]], references=labels
    )
    assert result == {"exact_match": 2 / 3}  # the first has one wrong, the last has no label


@pytest.mark.parametrize(
    ("references", "message"),
    [([[1], [1, 2]], "differs in length"), ([[-100, -100], [-100]], "no label other than -100")],
)
def test_exact_match_refuses_bad_rows(references, message):
    with pytest.raises(ValueError, match=message):
        load_metric("exact_match").compute(predictions=[[1, 2], [1]], references=references)


def test_unknown_metric_names_the_nearest():
    with pytest.raises(ValueError, match=r"no metric 'acuracy': .* did you mean 'accuracy'"):
        load_metric("acuracy")


def test_metrics_need_no_network_and_no_cache(tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    done = subprocess.run([sys.executable, "-c", OFFLINE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"accuracy": 1.0},
        {"bits_per_character": 1 / math.log(2)},
        {"bits_per_token": 1 / math.log(2), "perplexity": math.e},
        {"exact_match": 1.0},
        {"f1": 1.0},
        {"mse": 0.0},
        {"nll": 1.0},
        {"token_accuracy": 1.0},
    ]
