"""The rules of the code's layout: what may import what, how long a file may be, what a shipped file may contain."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from pathlib import Path

import pytest

import hf_seqmodels
from hf_seqmodels.models import ARCHITECTURES

ROOT = Path(__file__).parent.parent.parent
PACKAGE = Path(hf_seqmodels.__file__).parent
MODELS = PACKAGE / "models"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted(path for path in (ROOT / "tests").rglob("*.py"))

# Data flows from left to right, imports point left. Top-level modules stand where they belong in the flow.
LINE = [
    {"arguments", "recipes", "options", "data_checks", "config", "writing"},
    {"data"},
    {"models"},
    {"training", "metrics", "convert"},
    {"evaluation"},
    {"hub"},
    {"inference"},
    {
        "scores",
        "loading",
        "tasks",
        "publishing",
        "run",
        "evaluating",
        "generate",
        "learning",
        "results",
        "demo",
        "zoo",
        "exporting",
        "listing",
        "cli",
    },
]
SHIPPED_IMPORTS = {"torch", "transformers", "huggingface_hub"}


def imports(path: Path) -> list[tuple[int, str, list[str]]]:
    """Every import in a file: (dots in front, module, names)."""
    found: list[tuple[int, str, list[str]]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or "", [alias.name for alias in node.names]))
    return found


def imported_layers(path: Path) -> set[str]:
    """First parts of the modules of this package that a file imports: {"models", "config", …}."""
    inside = path.relative_to(PACKAGE).parts[:-1]
    layers = set()
    for dots, module, names in imports(path):
        if dots == 0 and module.split(".")[0] != "hf_seqmodels":
            continue
        base = list(inside[: len(inside) - dots + 1]) if dots else []
        parts = [*base, *(module.split(".") if dots else module.split(".")[1:])]
        layers |= {parts[0]} if [part for part in parts if part] else set(names)
    return layers - {""}


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_enough_files_were_found():
    assert len(SOURCES) >= 30 and len(TESTS) >= 20
    assert {layer_of(path) for path in SOURCES} >= {"models", "data", "training", "evaluation", "hub", "config"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_left(path):
    place = {name: position for position, names in enumerate(LINE) for name in names}
    own = layer_of(path)
    if own == "__init__":  # the public names
        assert imported_layers(path) <= {"models", "inference"}
        return
    assert own in place, f"{own} has no place in LINE yet"
    for other in imported_layers(path) & place.keys():
        assert place[other] <= place[own], f"{own} imports {other}, which comes after it"
    if own == "models":
        assert imported_layers(path) == ({"models"} if imported_layers(path) else set())


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.py")), ids=lambda path: path.name)
def test_models_import_torch_transformers_and_siblings_only(path):
    for dots, module, _ in imports(path):
        if dots:
            assert dots == 1, "models/ is one flat folder"
            if path.name != "__init__.py":
                assert module and "." not in module, "write `from ._x import y`: transformers finds only that"
                assert (MODELS / f"{module}.py").exists()
        else:
            assert module.split(".")[0] in SHIPPED_IMPORTS | sys.stdlib_module_names, module
            if module.startswith("huggingface_hub"):
                assert module == "huggingface_hub.dataclasses"
    assert not list(MODELS.glob("*/*.py")), "models/ is one flat folder"


def test_names_of_shipped_files_do_not_start_with_an_underscore():
    """The stock Trainer leaves such files out of what it pushes."""
    assert [path.name for path in MODELS.glob("_*.py")] == ["__init__.py"]


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.py")), ids=lambda path: path.name)
def test_annotations_are_not_postponed_in_shipped_files(path):
    """It would switch the strict checks of the configurations off, and turn `config_class` into a string."""
    assert not [names for _, module, names in imports(path) if module == "__future__"]


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_names_of_test_files_are_unique():
    """Without packages, pytest and the helpers' imports find a file by its name alone."""
    names = [path.name for path in TESTS if path.name != "conftest.py"]
    assert sorted(set(names)) == sorted(names)
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.mark.parametrize("path", [path for path in SOURCES if path.name != "__init__.py"], ids=lambda path: path.name)
def test_public_things_have_docstrings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "the module"
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            if isinstance(node, ast.ClassDef) and "evaluate.Metric" in map(ast.unparse, node.bases):
                continue  # its description is part of what `_info` returns
            assert ast.get_docstring(node), node.name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_option_is_documented(architecture):
    config = ARCHITECTURES[architecture].config
    text = "".join(inspect.getdoc(parent) or "" for parent in config.__mro__ if parent.__module__.startswith("hf_"))
    ours = {
        name
        for parent in config.__mro__
        if parent.__module__.startswith("hf_seqmodels")
        for name in inspect.get_annotations(parent)
    }
    assert len(ours) > 10
    tokens = {"pad_token_id", "bos_token_id", "eos_token_id"}  # as everywhere in transformers
    assert not [name for name in ours - tokens if name not in text]


def test_public_names_can_be_imported():
    for architecture in ARCHITECTURES.values():
        for cls in (architecture.config, *architecture.models.values()):
            assert getattr(importlib.import_module("hf_seqmodels"), cls.__name__) is cls
