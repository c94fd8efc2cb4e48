"""Does the client's own Xet store work here? It is a facility of hf_xet's tests, and nobody has promised it."""

from __future__ import annotations

import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

from .hub_process import LoopbackHub, run_client

_ROUND_TRIP = """
import os
import hf_xet
from huggingface_hub import HfApi
data = os.urandom(100_000)
HfApi().create_repo("user/probe")
HfApi().upload_file(path_or_fileobj=data, path_in_repo="probe.safetensors", repo_id="user/probe")
path = HfApi().hf_hub_download("user/probe", "probe.safetensors")
assert open(path, "rb").read() == data, "other bytes came back"
"""


@cache
def why_no_xet() -> str | None:
    """None if a file goes up and comes back through `local://`; otherwise what went wrong, in a line."""
    with tempfile.TemporaryDirectory() as folder, LoopbackHub(Path(folder), "xet") as hub:
        try:
            done = run_client(_ROUND_TRIP, hub, check=False, timeout=60)
        except subprocess.TimeoutExpired:
            return "it did not answer in 60 s"
        if done.returncode:
            return done.stderr.strip().splitlines()[-1]
        stored = hub.hub.repositories["model", "user/probe"].commit("main").files["probe.safetensors"]
        return None if stored.xet else "the client sent the file another way"


def require(mode: str) -> str:
    """The mode; in mode "xet" the test is skipped, with the reason, where the client's local store does not work."""
    if mode == "xet" and (reason := why_no_xet()):
        pytest.skip(f"hf_xet's local store does not work here: {reason}")
    return mode
