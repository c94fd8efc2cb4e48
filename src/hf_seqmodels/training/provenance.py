"""Where a run came from, and what it cost: commit, versions, hardware, and optionally an estimate of its CO₂."""

from __future__ import annotations

import logging
import os
import platform
import re
import subprocess
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..arguments import ConfigError


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """The commit that the code was checked out at, and whether tracked files of the code differ from it.

    Others may: results, tables and the headers of recipes are written by the very runs whose records say this, and
    what a recipe says is in the record.

    Args:
        folder: where the code lies in the checkout; None means this package.

    Returns:
        `commit` (40 hex digits) and `dirty`; None outside a checkout, without git, or where `folder` lies in a
        checkout that does not track it (a virtual environment in somebody's project).
    """
    folder = Path(__file__).parents[1] if folder is None else folder

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(folder), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "--verify", "HEAD")
    if not commit or not git("ls-files", "."):
        return None
    changes = git("status", "--porcelain", "--untracked-files=no", "--", ".")
    return None if changes is None else {"commit": commit, "dirty": bool(changes)}


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    packages = ("hf_seqmodels", "torch", "transformers", "accelerate", "datasets")
    return {name: version(name) for name in packages} | {"python": platform.python_version()}


def hardware() -> dict[str, Any]:
    """Machine, processor, cores, threads and GPU (None without one)."""
    return {
        "machine": platform.machine(),
        "processor": processor(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def processor() -> str | None:
    """The processor's name as the system has it (Linux: `/proc/cpuinfo`); None where it has none."""
    try:
        said = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        said = ""
    found = re.search(r"^model name\s*: *(.*\S)", said, re.MULTILINE)
    return found[1] if found else platform.processor() or None


class Emissions:
    """An estimate of the CO₂ of what happens inside `with`, by codecarbon, without a network and without files.

    Energy is what codecarbon measures or, where the machine has no meters, estimates from its tables of hardware;
    CO₂ is that times the country's electricity. It counts the machine, not this process alone.

    Args:
        country: ISO 3166-1 code of three letters (DEU, USA, …); None estimates nothing.

    Raises:
        ConfigError: codecarbon is not installed, or does not know the country.
    """

    def __init__(self, country: str | None):
        self.record: dict[str, Any] | None = None
        self._tracker: Any = None
        if country is None:
            return
        if find_spec("codecarbon") is None:
            raise ConfigError(
                f"emissions_country={country} needs the package codecarbon; pip install 'hf_seqmodels[co2]', "
                "or leave emissions_country out"
            )
        logging.getLogger("codecarbon").setLevel(logging.CRITICAL)  # before it is imported: it talks as it starts
        from codecarbon import OfflineEmissionsTracker
        from codecarbon.input import DataSource

        if country not in DataSource().get_global_energy_mix_data():
            raise ConfigError(
                f"emissions_country={country} is no country that codecarbon knows; "
                "write its ISO 3166-1 code of three capital letters, as DEU"
            )
        self._tracker = OfflineEmissionsTracker(
            country_iso_code=country,
            log_level="critical",
            save_to_file=False,
            save_to_api=False,
            save_to_logger=False,
            emissions_endpoint=None,
            allow_multiple_runs=True,
        )

    def __enter__(self) -> Emissions:
        if self._tracker is not None:
            self._tracker.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._tracker is None:
            return
        self._tracker.stop()
        found = self._tracker.final_emissions_data
        self.record = {
            "co2_kg": float(found.emissions),
            "energy_kwh": float(found.energy_consumed),
            "country": found.country_iso_code,
            "codecarbon": found.codecarbon_version,
        }
