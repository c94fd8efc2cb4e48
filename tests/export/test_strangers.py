"""What is saved is enough for people without the package: they load it, use it, save it, and others load that."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from datasets import Dataset
from exporting import PLAIN, assert_ships_source, build_word_tokenizer, run_apart
from safetensors.torch import save_file
from transformers import Trainer, TrainingArguments

from model_table import CASES, Case, build, make_inputs, make_labels, make_mask, make_masks, output_of

TOLERANCE = 1e-6


def fine_tune(case: Case, folder: Path) -> None:
    """Two steps of the stock Trainer, and its final save."""
    model = build(case, case.main_head, pad_token_id=0, eos_token_id=2)
    rows = Dataset.from_dict({"input_ids": [[3, 4, 5, 6]] * 4, "labels": [[3, 4, 5, 6]] * 4})
    options = {"max_steps": 2, "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    trainer = Trainer(model, TrainingArguments(str(folder), **options), train_dataset=rows)
    trainer.train()
    trainer.save_model(folder)
    with torch.no_grad():
        leave_probe(model.eval(), case, folder)


@torch.no_grad()
def export(case: Case, folder: Path) -> None:
    """Save a model as anybody would, and the numbers it gives."""
    head = case.main_head if case.main_head != "time-series-prediction" else "backbone"
    model = build(case, head, **({"pad_token_id": 0, "eos_token_id": 2} if head != "backbone" else {}))
    model.save_pretrained(folder)
    leave_probe(model, case, folder)


def leave_probe(model: torch.nn.Module, case: Case, folder: Path) -> None:
    """Inputs, and what the model makes of them; a tokenizer beside plain models."""
    mask = make_mask("left")
    inputs = make_inputs(case, case.main_head, *mask.shape)
    inputs |= make_masks(inputs, mask)
    probe = {f"input.{name}": value for name, value in inputs.items()} | {"output": output_of(model(**inputs))}
    if case.main_head in ("causal-lm", "seq2seq-lm"):
        prompt = {name: value for name, value in inputs.items() if not name.startswith("decoder_")}
        options = {**prompt, "max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True}
        probe["scores"] = torch.stack(model.generate(**options, output_scores=True).scores, 1)
        probe["beam_scores"] = model.generate(**options, output_scores=True, num_beams=3).sequences_scores
    save_file({name: tensor.contiguous() for name, tensor in probe.items()}, folder / "probe.safetensors")
    if case.variant == "plain":
        build_word_tokenizer().save_pretrained(folder)


class Chain(NamedTuple):
    """A maker's folder, what a first stranger found there and saved again, and what a second one found in that."""

    made: Path
    saved_again: Path
    first: dict
    second: dict


def pass_on(cases: list[Case], folder: Path, made_by: Callable[[Case, Path], None]) -> Chain:
    """Save every case, load all in one fresh process, save again there, and load that in another fresh process."""
    made, saved_again, received = (folder / name for name in ("made", "saved_again", "received"))
    for case in cases:
        made_by(case, made / str(case))
    first = json.loads(run_apart("run_stranger.py", made, saved_again, cwd=folder))
    for case in cases:
        shutil.copytree(saved_again / str(case), received / str(case))
        shutil.copy(made / str(case) / "probe.safetensors", received / str(case))
    second = json.loads(run_apart("run_stranger.py", received, folder / "saved_thrice", cwd=folder))
    return Chain(made, saved_again, first, second)


def check(found: dict, case: Case) -> None:
    assert found["module"].startswith("transformers_modules."), "the package's own class was loaded"
    assert found["output_error"] <= TOLERANCE
    if case.main_head in ("causal-lm", "seq2seq-lm"):
        assert found["score_error"] <= TOLERANCE
        assert found["beam_error"] <= TOLERANCE
    for auto, head in (
        ("AutoModelForSequenceClassification", "sequence"),
        ("AutoModelForTokenClassification", "token"),
    ):
        if f"{head}-classification" not in case.heads:
            assert auto not in found
            continue
        had = head == "token" and case.main_head == "token-classification"
        missing = set() if had else {"score.bias", "score.weight"} | new_pooling(case, head)
        assert found[auto] == {"missing": sorted(missing), "labels": 4}


def new_pooling(case: Case, head: str) -> set[str]:
    """What a classifier of sequences has between its backbone and its scores."""
    if head == "token":
        return set()
    if case.architecture == "seq_transformer_encoder":
        pooling = case.options.get("pooling", "first")
        return {"first": {"pooler.weight", "pooler.bias"}, "attention": {"pooler.weight"}, "mean": set()}[pooling]
    return {"pooling.weight"} if case.architecture == "seq_attention_rnn" else set()


def check_chain(chain: Chain, cases: list[Case]) -> None:
    assert set(chain.first) == set(chain.second) == {str(case) for case in cases}
    for case in cases:
        check(chain.first[str(case)], case)
        check(chain.second[str(case)], case)
        made, saved_again = chain.made / str(case), chain.saved_again / str(case)
        assert_ships_source(saved_again, case)
        for name in ("config.json", "model.safetensors"):
            assert (saved_again / name).read_bytes() == (made / name).read_bytes(), name


def test_strangers_load_use_and_pass_on_what_trainer_saved(tmp_path):
    cases = [case for case in PLAIN if "labels" in make_labels(case, case.main_head, make_mask("none"))]
    chain = pass_on(cases, tmp_path, fine_tune)
    check_chain(chain, cases)
    for case in cases:
        if case.main_head != "causal-lm":
            continue
        text = chain.first[str(case)]["text"]
        assert text.startswith("w5 w6 w7") and len(text) > len("w5 w6 w7")


@pytest.mark.slow
def test_strangers_load_use_and_pass_on_every_variant(tmp_path):
    check_chain(pass_on(CASES, tmp_path, export), CASES)


def test_package_and_two_copies_in_one_process(tmp_path):
    cases = [case for case in PLAIN if case.main_head == "causal-lm"]
    for case in cases:
        export(case, tmp_path / "models" / str(case))
    found = json.loads(run_apart("run_three_copies.py", tmp_path / "models", cwd=tmp_path, hide_package=False))
    assert found.keys() == {str(case) for case in cases}
    for name, errors in found.items():
        assert errors.keys() == {"package", "first copy", "second copy"}
        for whose, values in errors.items():
            assert max(values) <= 1e-5, (name, whose, values)
