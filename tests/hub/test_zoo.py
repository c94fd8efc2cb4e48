"""The zoo that is committed: whole, small, and as good as its cards say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import hf_seqmodels
from hf_seqmodels import listing
from hf_seqmodels.arguments import ConfigError
from hf_seqmodels.config import parse
from hf_seqmodels.data import CausalLMCollator, PianoRollCollator
from hf_seqmodels.data.midi import read_midi
from hf_seqmodels.generate import main as generate
from hf_seqmodels.hub.card import check_card
from hf_seqmodels.hub.doctor import diagnose
from hf_seqmodels.hub.files import check_checksums, check_folder, find_secrets, list_files, weights_hash
from hf_seqmodels.hub.golden import read_golden, scores
from hf_seqmodels.hub.saved import load_strict
from hf_seqmodels.loading import load_data
from hf_seqmodels.zoo import MOST_BYTES, ZOO

FOLDER = Path(__file__).parent.parent.parent / "zoo"
WRITERS = [name for name in ZOO if name.endswith("-pydoc")]
MUSICIANS = [name for name in ZOO if name.endswith("-jsb")]
each_model = pytest.mark.parametrize("name", ZOO)
each_writer = pytest.mark.parametrize("name", WRITERS)
each_musician = pytest.mark.parametrize("name", MUSICIANS)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The text that the zoo was trained on; another Python carries another text."""
    return load_data(parse(["--config", "lm/lstm", "--output_dir", str(tmp_path_factory.mktemp("runs") / "x")]))


@pytest.fixture(scope="module")
def chorales(tmp_path_factory):
    """The pieces that the zoo was trained on, which do not come with the checkout; None where they are not at hand."""
    argv = ["--config", "jsb_chorales/gru", "--output_dir", str(tmp_path_factory.mktemp("runs") / "x")]
    try:
        return load_data(parse(argv))
    except ConfigError:
        return None


def test_every_entry_is_there_and_small():
    assert {path.name for path in FOLDER.iterdir()} == set(ZOO) == {*WRITERS, *MUSICIANS} and len(ZOO) >= 8
    sizes = {name: sum((FOLDER / name / file).stat().st_size for file in list_files(FOLDER / name)) for name in ZOO}
    assert max(sizes.values()) <= MOST_BYTES and sum(sizes.values()) <= 10 * MOST_BYTES


@each_model
def test_files_are_whole_and_say_nothing_they_should_not(name):
    folder = FOLDER / name
    check_folder(folder)
    assert check_checksums(folder) == [] and find_secrets(folder) == []
    assert not [file for file in list_files(folder) if file.endswith(".py")], (
        "the package in this checkout has the code"
    )
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert check_card(card) == [] and weights_hash(folder) in card
    others = set(re.findall(r"^\| ([a-z-]+-(?:pydoc|jsb)) \|", card, flags=re.MULTILINE))
    beside = WRITERS if name in WRITERS else MUSICIANS
    assert others == set(beside) - {name}, "beside the other architectures"


@each_model
def test_it_computes_its_golden_scores(name):
    model = load_strict(FOLDER / name)
    inputs, expected = read_golden(FOLDER / name)
    torch.testing.assert_close(scores(model, inputs), expected, rtol=0, atol=1e-4)


@each_writer
def test_it_is_as_good_as_its_card_says(name, data):
    record = json.loads((FOLDER / name / "result.json").read_text(encoding="utf-8"))
    if record["data"]["sha256"] != data.hash:
        pytest.skip("this Python's help topics are not those of the Python that trained the zoo")
    model = AutoModelForCausalLM.from_pretrained(FOLDER / name).eval()
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / name)
    collate, summed, targets = CausalLMCollator(tokenizer.pad_token_id, len(tokenizer)), 0.0, 0
    rows = list(data.windows["test"])
    with torch.no_grad():
        for start in range(0, len(rows), 64):
            batch = collate(rows[start : start + 64])
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
            labels = batch["labels"][:, 1:]
            summed += torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="sum").item()
            targets += int(labels.ne(-100).sum())
    bits = summed / targets / torch.log(torch.tensor(2.0)).item()
    assert targets == record["metrics"]["test"]["tokens"]
    assert bits == pytest.approx(record["metrics"]["test"]["bits_per_token"], abs=1e-4)
    card = ModelCard.load(FOLDER / name / "README.md")
    told = {result.dataset_split: result.metric_value for result in card.data.eval_results}
    assert told["test"] == pytest.approx(bits, abs=1e-4)


@each_musician
def test_music_is_as_good_as_its_card_says(name, chorales):
    record = json.loads((FOLDER / name / "result.json").read_text(encoding="utf-8"))
    told = {r.dataset_split: r.metric_value for r in ModelCard.load(FOLDER / name / "README.md").data.eval_results}
    assert told["test"] == record["metrics"]["test"]["nll"]
    if chorales is None:
        pytest.skip("the chorales are not at hand: only what the card repeats of the record was compared")
    assert chorales.hash == record["data"]["sha256"], "these are not the chorales that the zoo was trained on"
    model, summed, steps = load_strict(FOLDER / name), 0.0, 0
    for piece in chorales.windows["test"]:
        batch = PianoRollCollator()([piece])
        with torch.no_grad():
            (logits,) = model(past_values=torch.cat([batch["past_values"], batch["future_values"]], 1)).params
        wrong = torch.nn.functional.binary_cross_entropy_with_logits
        summed += wrong(logits[:, 1:], batch["future_values"], reduction="sum").item()
        steps += len(piece["pitches"]) - 1
    assert steps == record["metrics"]["test"]["predicted_steps"]
    assert summed / steps == pytest.approx(told["test"], abs=1e-4)


@each_musician
def test_it_writes_music(name, tmp_path, capsys):
    """Chords of a few keys, none at the ends of the keyboard."""
    assert generate([str(FOLDER / name), "--output", str(tmp_path / "a.mid"), "--steps", "40"]) == 0
    roll = read_midi(tmp_path / "a.mid")
    assert roll.shape == (41, 88) and 2 < roll[1:].sum(1).mean() < 5 and not roll[:, :12].any()


@each_writer
def test_it_writes_through_the_pipeline_by_path(name):
    write = pipeline("text-generation", model=str(FOLDER / name))
    answer = write("The import statement ", max_new_tokens=40, do_sample=False)[0]["generated_text"]
    assert answer.startswith("The import statement ") and len(answer) == len("The import statement ") + 40
    assert re.search(r"\b(the|is|of|a|and)\b", answer[21:]), "trained models write words"


@each_writer
def test_a_session_goes_on_to_the_bit(name, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(FOLDER / name).eval()
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / name)
    session = hf_seqmodels.StreamingSession(model)
    session.feed(tokenizer("The import statement ").input_ids)
    session.save(tmp_path / "stream.safetensors")
    again = hf_seqmodels.StreamingSession.restore(model, tmp_path / "stream.safetensors")
    assert torch.equal(session.generate(30), again.generate(30))


@pytest.mark.parametrize(
    "name", [name if name in ("lstm-pydoc", "gru-jsb") else pytest.param(name, marks=pytest.mark.slow) for name in ZOO]
)
def test_the_doctor_finds_nothing(name):
    findings = diagnose(FOLDER / name)
    failed = [finding for finding in findings if finding.ok is False]
    least = 20 if name in WRITERS else 16  # series have no tokenizer, and no labels to accumulate over
    assert not failed and sum(finding.ok is True for finding in findings) >= least, failed


def test_list_shows_every_model_with_its_numbers(capsys):
    folders = [FOLDER / name for name in ZOO]
    assert listing.main(["--zoo", str(FOLDER)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.split()[0] in map(str, folders)]
    assert len(lines) == len(ZOO)
    writers = [line for line in lines if "-pydoc" in line]
    assert all("parameters, test bits per token" in line and "generation" in line for line in writers)
    assert all("parameters, test nll 8." in line for line in lines if line not in writers)
