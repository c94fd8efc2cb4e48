"""What strangers find in repositories of the loopback Hub."""

from __future__ import annotations

import json
from pathlib import Path

from loopback_hub.hub_process import READER, LoopbackHub, run_client

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
Job = tuple[str, str | None, Path]  # repository, revision, folder with what was pushed


def load_as_stranger(hub: LoopbackHub, jobs: list[Job]) -> dict[str, dict]:
    """Load all in one fresh process with a fresh cache and a token that may only read; see client_stranger.py."""
    file = hub.root / "jobs.json"
    rows = [{"repo": repo, "revision": revision, "folder": str(folder)} for repo, revision, folder in jobs]
    file.write_text(json.dumps(rows))
    done = run_client(Path(__file__).with_name("client_stranger.py"), hub, file, token=READER)
    return json.loads(done.stdout.splitlines()[-1])


def assert_same(found: dict) -> None:
    """It loaded from the repository's own code, and every tensor and output is the same."""
    assert "error" not in found, found["error"]
    assert found["module"] == "transformers_modules", "the package's own class was loaded"
    assert found["different"] == []
    assert found.get("largest error", 0.0) <= 1e-6
    assert found.get("tokens", [5, 6]) == [5, 6]


def pickles_in(names) -> list[str]:
    return sorted(name for name in names if name.endswith(PICKLES))
