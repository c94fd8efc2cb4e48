"""Recipes and the command line: who wins, what is refused, and what the refusal says."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hf_seqmodels import ARCHITECTURES, cli, tasks
from hf_seqmodels.arguments import DATASETS, TASKS, ConfigError
from hf_seqmodels.config import parse
from hf_seqmodels.models import HEADS
from hf_seqmodels.recipes import find_config, list_configs

RECIPE = """
task: causal-lm
model_type: seq_lstm
model: {hidden_size: 12, peephole: true}
data: {block_size: 16}
training: {learning_rate: 1e-3, eval_strategy: no, save_strategy: no, load_best_model_at_end: false}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text: str = RECIPE) -> list[str]:
        Path("recipe.yaml").write_text(text)
        return ["--config", "recipe.yaml"]

    return write


def test_yaml_values_arrive_with_their_types(recipe):
    config = parse(recipe())
    assert config.model["hidden_size"] == 12 and config.model["peephole"] is True
    assert config.training.learning_rate == 1e-3  # PyYAML reads 1e-3 as a string
    assert config.training.eval_strategy == "no"  # and a bare no as false
    assert config.data.block_size == 16
    assert config.training.output_dir == "runs/recipe"


def test_command_line_wins(recipe):
    argv = ["--learning_rate", "0.5", "--hidden-size", "24", "--peephole", "false", "--block_size=32"]
    config = parse([*recipe(), *argv])
    assert config.training.learning_rate == 0.5 and config.data.block_size == 32
    assert config.model["hidden_size"] == 24 and config.model["peephole"] is False


def test_another_architecture_drops_the_recipes_model_options(recipe):
    config = parse([*recipe(), "--model_type", "seq_gru", "--hidden_size", "8"])
    assert config.run.model_type == "seq_gru" and config.model["hidden_size"] == 8 and "peephole" not in config.model


def test_any_model_of_transformers(recipe):
    recipe()
    config = parse(["--model_type", "gpt2", "--n_embd", "8", "--n_head", "2", "--n_layer", "1"])
    built = config.model_config(vocab_size=11, pad_token_id=0, bos_token_id=None, eos_token_id=2)
    assert (built.model_type, built.n_embd, built.vocab_size) == ("gpt2", 8, 11)


def test_written_config_repeats_the_run(recipe):
    first = parse([*recipe(), "--seed", "7", "--lr_scheduler_kwargs", '{"num_cycles": 1}', "--hub_token", "secret"])
    Path("again.yaml").write_text(first.to_yaml())
    again = parse(["--config", "again.yaml"])
    assert again.values == first.values and again.training.seed == 7
    assert again.training.lr_scheduler_kwargs == {"num_cycles": 1}
    assert "secret" not in first.to_yaml()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("learning_rate", "lerning_rate", "'lerning_rate' in section 'training': did you mean 'learning_rate'"),
        ("hidden_size", "hiden_size", "unknown key 'hiden_size' in section 'model': did you mean 'hidden_size'"),
        ("block_size: 16", "learning_rate: 1", "'learning_rate' does not belong in section 'data'; move"),
        ("training:", "trainng:", "unknown key 'trainng' in the top level: did you mean 'training'"),
        ("task: causal-lm", "block_size: 3", "'block_size' does not belong in the top level; move it"),
        ("hidden_size: 12", "vocab_size: 12", "unknown key 'vocab_size'"),
        ("1e-3", "fast", "learning_rate='fast' is not a number"),
        ("1e-3", ".nan", "learning_rate=nan is not a finite number"),
        ("1e-3", "-1", "learning_rate=-1.0 is out of range; learning_rate must be above 0"),
        ("1e-3", "", "learning_rate has no value"),
        ("1e-3", "[1, 2]", "learning_rate=[1, 2] is a list; write one value"),
        ("1e-3", "1e-3, learning_rate: 2", "'learning_rate' stands twice in one section"),
        ("task: causal-lm", "model_type: seq_gru", "'model_type' stands twice in one section"),
        ("model_type", "modle_type", "unknown key 'modle_type' in the top level: did you mean 'model_type'"),
        ("seq_lstm", "[seq_lstm]", "there is no architecture '['seq_lstm']'"),
        ("seq_lstm", "3", "there is no architecture '3'"),
        ("hidden_size: 12", "hidden_size: 12.5", "hidden_size='12.5' is not a whole number"),
        ("causal-lm", "causal", "task='causal' is not a choice"),
        ("seq_lstm", "seq_lstn", "there is no architecture 'seq_lstn': did you mean 'seq_lstm'"),
        ("model: {", "model: [", "recipe.yaml is not YAML"),
        ("data: {block_size: 16}", "data: 16", "section 'data' must hold"),
    ],
)
def test_a_wrong_recipe_is_refused(recipe, old, new, message):
    assert old in RECIPE
    with pytest.raises(ConfigError) as error:
        parse(recipe(RECIPE.replace(old, new, 1)))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_shipped_recipes_are_found_by_name_and_parse(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    configs = list_configs()
    assert len([name for name in configs if name.startswith("lm/")]) >= 8
    for name, path in configs.items():
        assert find_config(name) == path
        config = parse(["--config", name])
        assert config.run.model_type == yaml.safe_load(path.read_text())["model_type"]
        assert config.training.output_dir == f"runs/{name}"


def test_help_shows_what_one_needs_first(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # no line breaks inside the phrases looked for
    with pytest.raises(SystemExit) as stop:
        parse(["--model_type", "seq_lstm", "--help"])
    short = capsys.readouterr().out
    assert stop.value.code == 0
    assert "--peephole" in short and "--learning_rate" in short and "--block_size" in short
    assert "--data_seed INT" in short and "the same for every model. [0]" in short
    assert "--torch_compile_backend" not in short and "--help-all" in short
    with pytest.raises(SystemExit):
        parse(["--model_type", "seq_lstm", "--help-all"])
    assert "--torch_compile_backend" in capsys.readouterr().out


def test_help_fits_a_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        parse(["--help"])
    assert len(capsys.readouterr().out.splitlines()) <= 60


def test_list_shows_every_recipe_and_architecture(capsys):
    assert cli.main(["list"]) == 0
    first_words = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    zoo = {f"zoo/{path.parent.name}" for path in Path("zoo").glob("*/result.json")}
    assert first_words == {*list_configs(), *ARCHITECTURES, "heads:", *zoo}


TAGS = """
task: token-classification
model_type: seq_lstm
model: {hidden_size: 12, crf: true}
data: {dataset: bracketed_tags, num_examples: 50, length: 8, examples_seed: 3}
"""


def test_a_task_of_its_own(recipe):
    config = parse(recipe(TAGS))
    assert config.run.task == "token-classification" and config.model["crf"] is True
    assert (config.data.num_examples, config.data.length, config.data.examples_seed) == (50, 8, 3)
    Path("again.yaml").write_text(config.to_yaml())
    assert parse(["--config", "again.yaml"]).values == config.values


def test_the_table_of_tasks_is_the_same_in_every_layer():
    assert set(tasks.TASKS) == set(TASKS) == set(DATASETS.values())
    assert {task: HEADS[task] for task in TASKS} == TASKS


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("token-classification", "token-clasification", "is not a choice: did you mean 'token-classification'"),
        (
            "token-classification",
            "causal-lm",
            "dataset=bracketed_tags teaches token-classification and not task=causal",
        ),
        (
            "bracketed_tags",
            "parity",
            "teaches sequence-classification and not task=token-classification; use --task sequence-classification",
        ),
        ("bracketed_tags", "bracket_tags", "dataset='bracket_tags' is not a choice; use one of 'pydoc_topics', "),
        ("dataset: bracketed_tags, ", "", "dataset=pydoc_topics teaches causal-lm and not task=token-classification"),
        ("num_examples: 50", "num_examples: 9", "num_examples=9 is out of range; num_examples must be at least 10"),
        ("length: 8", "length: 0", "length=0 is out of range; length must be at least 1"),
        (
            "length: 8",
            "train_file: recipe.yaml, validation_file: recipe.yaml, test_file: recipe.yaml",
            "train_file does",
        ),
        ("token-classification", "seq2seq-lm", "architecture 'seq_lstm' has no model for seq2seq-lm"),
    ],
)
def test_a_wrong_task_is_refused(recipe, old, new, message):
    assert old in TAGS
    with pytest.raises(ConfigError) as error:
        parse(recipe(TAGS.replace(old, new, 1)))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_options_of_made_examples_do_not_apply_to_text(recipe):
    with pytest.raises(
        ConfigError, match=r"length does not apply: dataset=pydoc_topics is text as it is; leave length"
    ):
        parse([*recipe(), "--length", "5"])
