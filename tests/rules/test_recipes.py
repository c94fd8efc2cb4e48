"""Every YAML under configs/ builds its model, as it will be built, and takes two steps on tiny data made in code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hf_seqmodels.arguments import DATASETS
from hf_seqmodels.config import auto_class, parse
from hf_seqmodels.data import SYNTHETIC, make_synthetic
from hf_seqmodels.loading import RunData
from hf_seqmodels.models import ARCHITECTURES
from hf_seqmodels.recipes import recipe_files
from hf_seqmodels.run import decided_by_data
from hf_seqmodels.tasks import task_of
from music_cases import make_pieces

CONFIGS = Path(__file__).parent.parent.parent / "configs"
RECIPES = recipe_files(CONFIGS)
each_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(CONFIGS)))

# Widths only: the architecture and its options stay as the recipe has them.
REDUCED = {"hidden_size": 16, "embedding_size": 12, "intermediate_size": 24}
TOKENS = {"vocab_size": 20, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2}


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def tiny_data(run: Any) -> RunData:
    """A few examples of the recipe's own data set; for text, tokens drawn at random."""
    if run.data.dataset in ("pydoc_topics", "text"):
        length = min(run.data.block_size, 24)
        ids = torch.randint(3, 20, (min(run.training.per_device_train_batch_size, 4), length)).tolist()
        return RunData({"train": [{"input_ids": row, "labels": row} for row in ids]}, None, "", options=TOKENS)
    if run.data.dataset == "piano_rolls":
        return RunData({"train": make_pieces(4)}, None, "")  # type: ignore[dict-item]
    splits, tokenizer = make_synthetic(run.data.dataset, 10, length=run.data.length)
    labels = splits["train"].features.get("labels")
    classes = {"num_labels": 10} if "classification" in run.run.task and labels is not None else {}
    return RunData(
        {"train": list(splits["train"].select(range(4)))},
        tokenizer,
        "",
        options=dict(SYNTHETIC[run.data.dataset].options) or classes,
    )


def test_recipes_were_found():
    assert len(RECIPES) >= 30
    assert {read(path)["model_type"] for path in RECIPES} >= set(ARCHITECTURES)
    assert {read(path)["data"]["dataset"] for path in RECIPES} == set(DATASETS)


@each_recipe
def test_recipe_says_how_to_run_it_and_what_to_expect(path):
    header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any(f"--config {path.relative_to(CONFIGS.parent)}" in line for line in header), "the command"
    assert any("minutes on 2 cores" in line for line in header), "the time it takes"
    assert any(line.startswith("# Expected:") for line in header), "the score to expect"


@each_recipe
def test_recipe_builds_and_takes_two_steps(path, tmp_path):
    run = parse(["--config", str(path), "--output_dir", str(tmp_path / "run")])
    torch.manual_seed(0)
    data = tiny_data(run)
    decided = decided_by_data(data)
    whole = run.model_config(**decided)
    with torch.device("meta"):
        auto_class(run.run.task).from_config(whole)
    reduced = {name: value for name, value in REDUCED.items() if getattr(whole, name, None) is not None}
    if getattr(whole, "num_features", None) is not None:  # features go into the first cell as wide as they are
        reduced.pop("embedding_size", None)
    config = type(whole)(**run.model | reduced, **decided)
    kept = {name: value for name, value in whole.to_dict().items() if name not in REDUCED}
    assert {name: config.to_dict()[name] for name in kept} == kept

    torch.manual_seed(0)
    model = auto_class(run.run.task).from_config(config).train()
    training = run.training
    if training.optim.startswith("adamw"):
        rates = {"lr": training.learning_rate, "weight_decay": training.weight_decay}
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), **rates)
    else:  # whose learning rates suit the whole model and not the reduced one
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    batch = collate(run, data, model)
    before = loss_of(model, batch)
    for _ in range(2):
        model.train()(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm, error_if_nonfinite=True)
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    after = loss_of(model, batch)
    assert after < before, (before, after)


@torch.no_grad()
def loss_of(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> float:
    """Without dropout, so that two small steps are seen."""
    return model.eval()(**batch).loss.item()


def collate(run: Any, data: RunData, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The rows as the run's own collator batches them."""
    if data.tokenizer is None and run.data.dataset in ("pydoc_topics", "text"):
        ids = torch.tensor([row["input_ids"] for row in data.windows["train"]])
        return {"input_ids": ids, "labels": ids}
    return task_of(run).collator(data.tokenizer, model)(data.windows["train"])
