"""Recipes: YAML files under configs/, found by name and read."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from .arguments import ConfigError

SECTIONS = ("model", "data", "training")
ACCELERATE = "accelerate"  # the folder beside the recipes that holds configurations of `accelerate launch`


def config_folders() -> list[Path]:
    """Where recipes are looked up by name: the working directory, the checkout, the installed package."""
    package = Path(str(resources.files("hf_seqmodels")))
    folders = [Path("configs"), package.parents[1] / "configs", package / "configs"]
    return [folder for folder in folders if folder.is_dir()]


def recipe_files(folder: Path) -> list[Path]:
    """All recipes in a folder of recipes, sorted."""
    return sorted(path for path in folder.rglob("*.yaml") if path.relative_to(folder).parts[0] != ACCELERATE)


def list_configs() -> dict[str, Path]:
    """All recipes by name (`lm/lstm`); a name that stands in several folders means the first."""
    found: dict[str, Path] = {}
    for folder in config_folders():
        for path in recipe_files(folder):
            found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    return dict(sorted(found.items()))


def find_config(name: str) -> Path:
    """The YAML file that `name` means: a path, or a recipe's name."""
    if Path(name).is_file():
        return Path(name)
    configs = list_configs()
    if name.removesuffix(".yaml") in configs:
        return configs[name.removesuffix(".yaml")]
    if name.endswith((".yaml", ".yml")):
        raise ConfigError(f"config file '{name}' does not exist; `hf-seqmodels list` shows the recipes")
    raise ConfigError(f"there is no recipe '{name}'{did_you_mean(name, configs)}; `hf-seqmodels list` shows all")


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key stands once: plain PyYAML lets the last one win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"'{key}' stands twice in one section; keep one of them")
        return super().construct_mapping(node, deep)


def read_recipe(path: Path) -> dict[str, Any]:
    """What a YAML file holds, as it stands there.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or says something twice.
    """
    try:
        recipe = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except OSError as error:
        raise ConfigError(f"config file '{path}' cannot be read: {one_line(error)}; check its rights") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {one_line(error)}") from None
    if not isinstance(recipe, dict):
        raise ConfigError(f"{path} must hold `key: value` lines with the sections {', '.join(SECTIONS)}")
    return recipe


def did_you_mean(name: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    """ ": did you mean '…'?" where a known name is near, else nothing."""
    near = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    return f": did you mean '{near[0]}'?" if near else ""


def one_line(error: Exception) -> str:
    """The message of an error without line breaks."""
    if isinstance(error, KeyError):  # whose text is the key alone
        return f"{error} is not a known value"
    return " ".join(str(error).split()) or type(error).__name__
