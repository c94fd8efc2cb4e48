"""Cards: metadata that the Hub reads, numbers from the record, a snippet that runs, nothing that was not measured."""

import copy
import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from card_snippets import run_snippets
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_seqmodels
from hf_seqmodels.arguments import ConfigError
from hf_seqmodels.config import parse
from hf_seqmodels.hub.card import build_card, check_card, write_plots
from hf_seqmodels.hub.card_text import escape
from hf_seqmodels.hub.cards import main, skeleton
from hf_seqmodels.hub.golden import GOLDEN, write_golden
from hf_seqmodels.hub.verify import VerificationError, verify_as_stranger
from hf_seqmodels.loading import load_data
from hf_seqmodels.run import run
from hf_seqmodels.training.provenance import git_state

PROMPT = "The "
QUICK = "--max_steps 2 --per_device_train_batch_size 2 --eval_strategy no --save_strategy no --use_cpu true"
QUICK += " --load_best_model_at_end false --report_to none"


def train(recipe, folder, *options):
    config = parse(["--config", recipe, "--output_dir", str(folder), *QUICK.split(), *options])
    data = load_data(config)
    return run(config, data, quiet=True), data


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A real run of two steps: folder, record, model, data."""
    folder = tmp_path_factory.mktemp("runs") / "gru"
    record, data = train("lm/gru", folder, "--hidden_size", "8")
    return folder, record, AutoModelForCausalLM.from_pretrained(folder).eval(), data


def test_metadata_is_read_back_and_the_numbers_are_the_records(finished, tmp_path):
    _, record, model, _ = finished
    build_card("tiny 'gru'", record, model, prompt=PROMPT).save(tmp_path / "README.md")
    card = ModelCard.load(tmp_path / "README.md")
    assert check_card(card.content) == []
    assert (card.data.library_name, card.data.license, card.data.language) == ("transformers", "apache-2.0", "en")
    assert card.data.pipeline_tag == "text-generation" and "hf_seqmodels" in card.data.tags
    values = {result.dataset_split: result.metric_value for result in card.data.eval_results}
    assert values == {split: found["bits_per_token"] for split, found in record["metrics"].items()}
    bits = " | ".join(f"{record['metrics'][split]['bits_per_token']:.3f}" for split in ("validation", "test"))
    row = rf"| **tiny 'gru'** (this one) | seq\_gru | {model.num_parameters():,} | 2 | {bits} |"
    assert row in card.text
    assert str(model) in card.text
    changed = card.text.partition("## Training")[2].partition("<details>")[0]
    assert "hidden_size: 8" in changed and "weight_init" not in changed, "only options that differ from defaults"
    whole = card.text.partition("<details>")[2].partition("</details>")[0]
    assert "weight_init: orthogonal" in whole and "adam_beta1: 0.9" in whole
    for word in ("More information needed", "NaN", "numpy", "None", str(tmp_path)):
        assert word not in card.content


def test_provenance_data_and_limits_come_from_the_record(finished):
    folder, record, model, data = finished
    text = build_card("x", record, model, weights_sha256="ab" * 32).text
    for told in (
        f"sha256 of the contents: `{record['data']['sha256']}`",
        "seeds: seed 42, data\\_seed 0",
        f"weights: sha256 `{'ab' * 32}`",
        f"digest of all batches in their order: `{record['batch_order']['digest']}`",
        f"hf\\_seqmodels {record['versions']['hf_seqmodels']}, torch",
        "licence: PSF-2.0",
        "Longest context tried, in tokens or frames: 129 in train, 129 in validation, 129 in test.",
        "Out of vocabulary: 0.00%",
        "@inproceedings{cho2014learning,",
        "@software{hf_seqmodels,",
    ):
        assert told in text, told
    git = record["git"]
    assert git == git_state(), "nothing was committed in between"
    if git is not None:
        assert f"`{git['commit']}`, {'with changes' if git['dirty'] else 'clean'}" in text
    if sys.platform == "linux":
        named = re.search("model name.*: (.+)", Path("/proc/cpuinfo").read_text())
        assert named is None or f"threads of torch, {escape(named[1])}, " in text
    assert str(folder.parent) not in text, "no places of this machine"
    assert record["data"]["example"] == data.tokenizer.decode(data.windows["test"][0]["input_ids"][:64])
    assert repr(record["data"]["example"])[1:-1] in text, "the snippet starts from the record's example"


def test_what_is_not_recorded_is_left_out(finished):
    _, record, model, _ = finished
    old = copy.deepcopy(record)
    for name in ("git", "model_config", "chance", "versions", "hardware", "seeds", "batch_order", "measured"):
        old.pop(name, None)
    del old["data"]["longest"], old["data"]["out_of_vocabulary"], old["data"]["example"]
    for card in (build_card("x", old, model), build_card("x", old, None), build_card("x", {}, model)):
        assert check_card(card.content) == []
        for word in ("git commit", "Out of vocabulary", "hardware", "None", "CO₂", "versions:", "seeds:"):
            assert word not in card.text, word
    assert "windows of 128 predictions" in build_card("x", old, model).text
    bare = build_card("x", None, model)
    assert check_card(bare.content) == [] and "eval_results" not in bare.data.to_dict()
    for section in ("## Results", "## Data", "## Training", "## Provenance"):
        assert section not in bare.text
    assert "is not recorded here" in bare.text and f"{model.num_parameters():,} parameters" in bare.text


def test_a_number_that_was_not_measured_is_refused(finished):
    _, record, model, _ = finished
    for value in (float("nan"), float("inf"), np.float32("nan")):
        broken = copy.deepcopy(record)
        broken["metrics"]["test"]["bits_per_token"] = value
        with pytest.raises(ValueError, match=r"record\.metrics\.test\.bits_per_token=(nan|inf) is no measured number"):
            build_card("x", broken, model)
        with pytest.raises(ValueError, match="others"):
            build_card("x", record, model, others=[broken])


def test_numbers_of_numpy_are_written_as_numbers(finished):
    _, record, model, _ = finished
    other = copy.deepcopy(record)
    other["metrics"]["test"]["bits_per_token"] = np.float64(record["metrics"]["test"]["bits_per_token"])
    other["seconds"], other["steps"] = np.float32(3.0), np.int64(2)
    assert "!!python" not in build_card("x", other, model).content
    expected = build_card("x", record | {"seconds": 3.0}, model)
    assert build_card("x", other, model).content == expected.content


@pytest.mark.parametrize(
    ("name", "value"),
    [("metrics", 3), ("metrics", {"test": {"loss": "low"}}), ("data", []), ("seeds", "42"), ("config", {"data": 1})],
)
def test_a_record_that_is_none_is_named(finished, name, value):
    _, record, model, _ = finished
    with pytest.raises(ValueError, match=rf"record\.{name}.* is not what a run writes"):
        build_card("x", record | {name: value}, model)


def test_a_model_of_somebodys_own_text_does_not_name_ours(tmp_path):
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.txt").write_text(f"confidential {split} letters " * 20)
    files = [f"--{split}_file={tmp_path / split}.txt" for split in ("train", "validation", "test")]
    record, _ = train("lm/gru", tmp_path / "run", "--hidden_size", "8", "--block_size", "16", *files)
    assert "example" not in record["data"], "text of a user stays where it is"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    card = build_card("x", record, model)
    assert {(result.dataset_type, result.dataset_name) for result in card.data.eval_results} == {("train.txt",) * 2}
    assert card.data.language is None and "licence: unknown" in card.text
    for word in ("confidential", "letters", "pydoc", str(tmp_path)):
        assert word not in card.content.partition("## Citation")[0]


def test_others_of_the_same_data_and_task_stand_beside(finished):
    _, record, model, _ = finished
    better = copy.deepcopy(record) | {"name": "better", "model_type": "seq_lstm"}
    better["metrics"]["test"]["bits_per_token"] = 0.5
    worse = copy.deepcopy(better) | {"name": "worse"}
    worse["metrics"]["test"]["bits_per_token"] = 99.0
    unlike = copy.deepcopy(better) | {"name": "unlike"}
    unlike["data"]["sha256"] = "0" * 64
    text = build_card("x", record, model, others=[worse, unlike, better, record | {"name": "itself"}]).text
    names = re.findall(r"^\| (\S+) \|", text.partition("## Results")[2], flags=re.MULTILINE)
    assert names[2:] == ["better", "worse"], "the best first, without other data and without itself"
    assert "All others were trained on the same batches" in text
    better["batch_order"] |= {"digest": "1" * 64, "at": dict.fromkeys(better["batch_order"]["at"], "1" * 16)}
    assert "1 of the 2 others were trained on the same" in build_card("x", record, model, others=[worse, better]).text


def test_a_licence_that_the_hub_does_not_know_is_refused(finished):
    _, record, model, _ = finished
    with pytest.raises(ValueError, match=r"license='apache2' .*did you mean 'apache-2.0'"):
        build_card("x", record, model, license="apache2")
    assert build_card("x", record, model, license="mit").data.license == "mit"


def test_the_snippet_runs_where_the_card_lies_and_pictures_are_small(finished):
    folder, record, model, _ = finished
    tokenizer = AutoTokenizer.from_pretrained(folder)
    names = write_plots(folder, record, model, tokenizer)
    assert names == ["loss_curve.png", "gradient_flow.png"], "no attention in a GRU"
    bytes_before = [(folder / name).read_bytes() for name in names]
    assert names == write_plots(folder, record, model, tokenizer)
    assert bytes_before == [(folder / name).read_bytes() for name in names], "the same picture, the same bytes"
    for name in names:
        assert (folder / name).stat().st_size <= 25_000
        assert min(Image.open(folder / name).size) > 200
    card = build_card("x", record, model, prompt=PROMPT, plots=names)
    assert re.findall(r"!\[.*?\]\((.*?)\)", card.text) == names
    (output,) = run_snippets([(folder, card.text)], package=True)
    assert output.startswith(PROMPT)


def test_the_command_writes_a_card_beside_the_model(finished, tmp_path, capsys):
    folder, record, _, _ = finished
    assert main([str(folder), str(tmp_path / "card"), "--name", "tiny"]) == 0
    text = (tmp_path / "card" / "README.md").read_text(encoding="utf-8")
    assert check_card(text) == [] and text.endswith("```\n") and "# tiny" in text
    assert sorted(path.name for path in (tmp_path / "card").iterdir()) == [
        "README.md",
        "gradient_flow.png",
        "loss_curve.png",
    ]
    assert main([str(folder), str(tmp_path / "card"), "--name", "tiny"]) == 0
    assert (tmp_path / "card" / "README.md").read_text(encoding="utf-8") == text
    assert main([str(folder), str(tmp_path / "no"), "--license", "mine"]) == 2
    assert main([str(tmp_path)]) == 2 and not (tmp_path / "no").exists()
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and "license='mine'" in errors[0] and "neither a model's folder" in errors[1]
    again = skeleton(record)
    assert str(again) == str(AutoModelForCausalLM.from_pretrained(folder)) and again.device.type == "meta"


def test_the_commit_is_known_in_a_checkout_and_nowhere_else(tmp_path):
    assert git_state(tmp_path) is None
    git = ["git", "-c", "user.name=x", "-c", "user.email=x", "-C", str(tmp_path)]
    (tmp_path / "code.py").write_text("1")
    for command in (["init", "-q"], ["add", "code.py"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    (tmp_path / "notes.txt").write_text("not tracked")
    assert git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "code.py").write_text("2")
    assert git_state(tmp_path) == {"commit": commit, "dirty": True}
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "more.py").write_text("1")
    for command in (["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    (tmp_path / "code.py").write_text("3")
    assert git_state(tmp_path)["dirty"] and not git_state(tmp_path / "code")["dirty"], "what differs is not in there"
    (tmp_path / "site-packages").mkdir()
    assert git_state(tmp_path / "site-packages") is None, "inside a checkout, and not of it"


def test_co2_is_estimated_without_a_network_and_shown(tmp_path, connections):
    pytest.importorskip("codecarbon")
    record, _ = train("lm/gru", tmp_path / "run", "--hidden_size", "8", "--emissions_country", "DEU")
    found = record["emissions"]
    assert found["co2_kg"] > 0 and found["energy_kwh"] > 0 and found["country"] == "DEU"
    assert connections == [] and sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    card = build_card("x", record, AutoModelForCausalLM.from_pretrained(tmp_path / "run"))
    metadata = yaml.safe_load(card.content.split("---\n")[1])["co2_eq_emissions"]
    assert metadata["emissions"] == pytest.approx(found["co2_kg"] * 1000)
    assert "with the electricity of DEU" in card.text and check_card(card.content) == []


def test_a_look_up_of_a_name_is_noticed(connections):
    socket.getaddrinfo("127.0.0.1", 80), socket.getaddrinfo("localhost", 80)
    assert connections == []
    with pytest.raises(OSError):
        socket.getaddrinfo("api.example.invalid", 443)
    assert connections == ["api.example.invalid"]


def test_a_resumed_run_says_what_its_numbers_count(tmp_path):
    folder, size = tmp_path / "run", ["--hidden_size", "8"]
    first, _ = train("lm/gru", folder, *size, "--save_strategy", "steps", "--save_steps", "2")
    (folder / "result.json").unlink()  # as if the run had been killed behind its checkpoint
    record, _ = train("lm/gru", folder, *size, "--max_steps", "3", "--resume", "true")
    assert "resumed_at_step" not in first and record["resumed_at_step"] == 2 and record["steps"] == 3
    assert 0 < record["targets"] < first["targets"], "of one step, not of three"
    record["emissions"] = {"co2_kg": 1e-6, "energy_kwh": 1e-5, "country": "DEU", "codecarbon": "3"}
    model, since = AutoModelForCausalLM.from_pretrained(folder), "since step 2, where the run was resumed"
    card = build_card("x", record, model)
    assert f"{record['targets']:,} training targets ({since})" in card.text
    assert f"process, {since}\n" in card.text and f"without a network, {since}" in card.text
    assert card.data.to_dict()["co2_eq_emissions"]["source"] == f"codecarbon 3, {since}"
    assert "resumed" not in build_card("x", first, model).content


def test_the_options_told_are_those_that_somebody_set(finished):
    _, record, model, _ = finished
    changed = re.findall(r"```yaml\n(.*?)```", build_card("x", record, model).text, flags=re.DOTALL)[0]
    told = yaml.safe_load(changed)
    recipe = {"learning_rate": 0.01, "per_device_train_batch_size": 2, "num_train_epochs": 5.0, "max_steps": 2}
    quick = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "use_cpu": True}
    assert told["training"] == recipe | quick and told["model"] == {"hidden_size": 8}
    other = copy.deepcopy(record)
    other["config"]["training"] |= {"warmup_steps": 0, "ddp_find_unused_parameters": True}
    text = build_card("x", other, model).text
    assert "  warmup_steps: 0\n" in text and "  ddp_find_unused_parameters: true\n" in text


@pytest.mark.parametrize("country", ["XXX", "de", ""])
def test_a_country_that_does_not_exist_is_refused_before_work_starts(tmp_path, country):
    pytest.importorskip("codecarbon")
    with pytest.raises(ConfigError, match=f"emissions_country={country} is no country"):
        train("lm/gru", tmp_path / "run", "--emissions_country", country)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def connections():
    """Addresses of the connections and names of the look-ups from here on, but for those inside the machine.

    Without a network a look-up fails before anything connects.
    """
    found, listening = [], [True]
    local = (None, "", "localhost", "::1", socket.gethostname())

    def hook(event, arguments):
        if listening and event == "socket.connect" and not str(arguments[1]).startswith(("('127.", "/", "b'")):
            found.append(arguments[1])
        if listening and event in ("socket.getaddrinfo", "socket.gethostbyname"):
            host = arguments[0].decode() if isinstance(arguments[0], bytes) else arguments[0]
            if host not in local and not host.startswith("127."):
                found.append(host)

    sys.addaudithook(hook)
    yield found
    listening.clear()


def test_a_stranger_is_answered_and_a_changed_weight_is_noticed(finished, tmp_path):
    folder, _, model, _ = finished
    write_golden(model, folder)
    answer = verify_as_stranger(folder, PROMPT)
    assert answer["max_difference"] <= 1e-5 and answer["generated"].startswith(PROMPT)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    changed = {name: tensor + 0.01 if "lm_head" in name else tensor for name, tensor in weights.items()}
    save_file(changed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VerificationError, match="differ"):
        verify_as_stranger(tmp_path)


def test_a_folder_that_does_not_load_is_named(finished, tmp_path):
    _, _, model, _ = finished
    model.save_pretrained(tmp_path, save_code=False)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(VerificationError, match=GOLDEN):
        verify_as_stranger(tmp_path)
    write_golden(model, tmp_path)
    with pytest.raises(VerificationError, match=re.escape(str(tmp_path))):
        verify_as_stranger(tmp_path)


def test_the_package_ships_what_cards_need():
    names = {path.name for path in (Path(hf_seqmodels.__file__).parent / "hub").iterdir()}
    assert {"card_template.md", "card_lists.json", "citations.bib"} <= names
    pattern = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f'"hub/*.{ending}"' in pattern for ending in ("md", "json", "bib"))
