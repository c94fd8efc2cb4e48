"""Questions to the loopback Hub: by the real client in a process of its own, or by bare calls."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

from loopback_hub.hub_process import LoopbackHub, run_client

PRELUDE = """
import json, os, sys, time
from pathlib import Path
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, hf_hub_download, snapshot_download
api, found = HfApi(), {}

def error_of(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except Exception as error:
        return [type(error).__name__, getattr(getattr(error, "response", None), "status_code", None)]
    return "no error"

def folder_of(**files):
    folder = Path(os.environ["HOME"], "model")
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "notes.txt").write_text("first")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 500)
    (folder / "README.md").write_text("---\\nlicense: mit\\n---\\n# A model\\n")
    return folder
"""


def ask(hub: LoopbackHub, code: str, *arguments: str, **options) -> dict:
    """Run client code that fills a dictionary `found`; return it. `api` and `error_of` are there."""
    script = f"{PRELUDE}\n{code}\nprint(json.dumps(found))"
    return json.loads(run_client(script, hub, *arguments, **options).stdout.splitlines()[-1])


def status_of(hub: LoopbackHub, path: str, token: str = "", method: str = "GET", data: bytes | None = None) -> int:
    """What the server answers to a call that the client would not make."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(hub.endpoint + path, data, headers, method=method)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
