"""Cards: metadata that the Hub reads, numbers from the record, a snippet that runs, nothing that was not measured."""

import copy
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from hf_seqmodels.config import parse
from hf_seqmodels.hub.card import build_card
from hf_seqmodels.hub.verify import VerificationError, verify_as_stranger
from hf_seqmodels.run import run
from hf_seqmodels.tasks import load_data

PROMPT = "The "


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A real run of two steps: folder, record, model, data."""
    folder = tmp_path_factory.mktemp("runs") / "gru"
    options = ["--hidden_size", "8", "--max_steps", "2", "--per_device_train_batch_size", "2", "--eval_strategy", "no"]
    options += ["--save_strategy", "no", "--load_best_model_at_end", "false"]
    config = parse(["--config", "lm/gru", "--output_dir", str(folder), *options])
    data = load_data(config)
    record = run(config, data, quiet=True)
    return folder, record, AutoModelForCausalLM.from_pretrained(folder).eval(), data


def test_metadata_is_read_back_and_the_numbers_are_the_records(finished, tmp_path):
    _, record, model, _ = finished
    build_card("tiny 'gru'", record, model, PROMPT).save(tmp_path / "README.md")
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.library_name, card.data.license, card.data.language) == ("transformers", "apache-2.0", "en")
    assert card.data.pipeline_tag == "text-generation" and "hf_seqmodels" in card.data.tags
    values = {result.dataset_split: result.metric_value for result in card.data.eval_results}
    assert values == {split: found["bits_per_token"] for split, found in record["metrics"].items()}
    assert f"| parameters | {model.num_parameters():,} |" in card.text
    assert f"validation, bits per token | {record['metrics']['validation']['bits_per_token']:.3f} |" in card.text
    assert "hidden_size: 8" in card.text and "weight_init" not in card.text, "only options that differ from defaults"
    for word in ("More information needed", "NaN", "numpy", "None", str(tmp_path)):
        assert word not in card.content


def test_a_number_that_was_not_measured_is_refused(finished):
    _, record, model, _ = finished
    broken = copy.deepcopy(record)
    broken["metrics"]["test"]["bits_per_token"] = float("nan")
    with pytest.raises(ValueError, match="nan"):
        build_card("x", broken, model, PROMPT)


def test_a_model_of_somebodys_own_text_does_not_name_ours(finished):
    _, record, model, _ = finished
    own = copy.deepcopy(record)
    own["config"]["data"]["train_file"] = "texts/letters.txt"
    data = build_card("x", own, model, PROMPT).data
    assert {(result.dataset_type, result.dataset_name) for result in data.eval_results} == {("letters.txt",) * 2}
    assert data.language is None


def test_the_usage_snippet_runs_where_the_card_lies(finished):
    folder, record, model, _ = finished
    card = build_card("x", record, model, PROMPT)
    (snippet,) = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", snippet]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(PROMPT)


def test_a_stranger_is_answered_and_a_changed_weight_is_noticed(finished):
    folder, _, model, data = finished
    ids = torch.tensor(data.windows["test"][0]["input_ids"])[None]
    with torch.no_grad():
        logits = model(ids).logits
    answer = verify_as_stranger(folder, ids, logits, PROMPT)
    assert answer["max_difference"] <= 1e-5 and answer["generated"].startswith(PROMPT)
    with pytest.raises(VerificationError, match="differ"):
        verify_as_stranger(folder, ids, logits + 0.01, PROMPT)


def test_a_folder_that_does_not_load_is_named(finished, tmp_path):
    _, _, model, _ = finished
    model.save_pretrained(tmp_path, save_code=False)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "auto_map" not in config
    with pytest.raises(VerificationError, match=re.escape(str(tmp_path))):
        verify_as_stranger(tmp_path, torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2, 106), PROMPT)
