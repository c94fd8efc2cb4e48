"""A loopback Hub for tests, and clients in processes of their own that can reach nothing else.

    with LoopbackHub(tmp_path, mode="lfs") as hub:
        hub.put("user/model", {"config.json": b"{}"})
        hub.fail("GET", "resolve/main/config.json", status=503)
        found = run_client("from huggingface_hub import hf_hub_download; …", hub)
        assert hub.commits("user/model") == [...]

By hand: `PYTHONPATH=tests python -m loopback_hub.hub_process FOLDER` prints the variables that a client needs and
serves until it is interrupted.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from .protocol import Request, User
from .server import FAULTS, Fault, Hub, Server
from .storage import Commit, Repository, regular_file

# Tokens as the Hub's look, in two parts so that no scanner takes them for real ones.
WRITER = "hf_" + "LoopbackMayWriteCanaryXqZvJkWpYt01"
READER = "hf_" + "LoopbackMayReadCanaryQwXzKvPjYtR02"
OTHER = "hf_" + "LoopbackSomebodyElseCanaryZxVqKj03"
UNKNOWN = "hf_" + "LoopbackNobodyKnowsCanaryWvXzQkJ04"
USERS = {
    WRITER: User("user", ("org",)),
    READER: User("user", ("org",), role="read"),
    OTHER: User("other"),
}
GUARD = Path(__file__).with_name("guard")
TESTS = Path(__file__).parent.parent  # clients may import the helpers of the tests
_DROPPED = re.compile(
    r"HF_|HUGGING|TRANSFORMERS_|DATASETS_|LOOPBACK_|PYTHON|PYTEST_|XDG_|.*(TOKEN|SECRET|PASSWORD|API_KEY)|.*_PROXY$",
    re.I,
)


class LoopbackHub:
    """A Hub that serves from a thread of this process while the context lasts.

    Args:
        root: a folder of its own; the homes of clients and the Xet store lie in it.
        mode: "lfs", where clients send large files by LFS, or "xet", where their Rust code stores them in `root`.
        port: 0 takes a free one.
    """

    def __init__(self, root: Path, mode: Literal["lfs", "xet"] = "lfs", port: int = 0):
        self.root, self.mode = Path(root).resolve(), mode
        self.root.mkdir(parents=True, exist_ok=True)
        self.hub = Hub(dict(USERS), self.root / "xet-store" if mode == "xet" else None)
        self._server = Server(self.hub, port)
        self._homes = 0

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        if kind is None and self.hub.mistakes:
            raise AssertionError("the loopback hub is broken: " + "\n".join(self.hub.mistakes))

    @property
    def endpoint(self) -> str:
        return self.hub.endpoint

    def environment(self, token: str | None = WRITER, home: str | None = None) -> dict[str, str]:
        """The variables of a client's process: this Hub, this token, nothing of the caller's accounts or caches.

        Args:
            token: None leaves the client anonymous.
            home: the name of a cache to share between clients; None makes a fresh one.
        """
        if home is None:
            self._homes += 1
            home = f"home-{self._homes}"
        folder = self.root / "clients" / home
        folder.mkdir(parents=True, exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not _DROPPED.match(name)}
        paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        return kept | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(folder / "huggingface"),
            "HOME": str(folder),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "LOOPBACK_GUARD_LOG": str(self.guard_log),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "PYTHONPATH": os.pathsep.join([str(GUARD), str(TESTS), *filter(None, paths)]),
            **({"HF_TOKEN": token} if token else {}),
            **({"HF_HUB_DISABLE_XET": "1"} if self.mode == "lfs" else {}),
        }

    # ---- what the Hub holds -------------------------------------------------------------------------------------

    def repository(self, repo: str, kind: str = "model") -> Repository:
        """Its `private`, `gated`, `references`, `discussions` and commits; KeyError if it was never created."""
        return self.hub.repositories[kind, repo]

    def repositories(self) -> list[str]:
        """The ids of all models."""
        return [name for kind, name in self.hub.repositories if kind == "model"]

    def files(self, repo: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """Path → bytes at a branch, tag, commit or refs/pr/N, without the `.gitattributes` of the first commit."""
        commit = self.repository(repo, kind).commit(revision)
        if commit is None:
            raise KeyError(f"{repo} has no revision {revision}")
        return {path: file.content() for path, file in commit.files.items() if path != ".gitattributes"}

    def commits(self, repo: str, revision: str = "main", kind: str = "model") -> list[Commit]:
        """The newest first; the last one is the "initial commit" that creating makes."""
        return self.repository(repo, kind).history(revision)

    def collections(self) -> dict[str, dict[str, Any]]:
        """Slug → title, description, private, items (each with type and id)."""
        return self.hub.collections

    def put(
        self,
        repo: str,
        files: Mapping[str, bytes],
        private: bool = False,
        kind: str = "model",
        revision: str = "main",
    ) -> Commit:
        """A commit made by somebody else: these files added to a repository, which is created if it is not there."""
        with self.hub.lock:
            found = self.hub.repositories.get((kind, repo))
            if found is None:
                found = self.hub.repositories[kind, repo] = Repository(repo, kind, repo.partition("/")[0], private)
            reference = found.reference(revision) or f"refs/heads/{revision}"
            found.references.setdefault(reference, found.references["refs/heads/main"])
            before = found.commits[found.references[reference]].files
            added = {path: regular_file(data) for path, data in files.items()}
            return found.add_commit(reference, {**before, **added}, "files put by the test", "", found.owner)

    # ---- what was asked of it -----------------------------------------------------------------------------------

    def requests(self, method: str = "*", path: str = "") -> list[Request]:
        """The calls so far, oldest first, with this method and a path in which the pattern is found."""
        log = list(self.hub.log)
        return [call for call in log if method in ("*", call.method) and re.search(path, call.path)]

    def forget_requests(self) -> None:
        self.hub.log.clear()

    def carriers_of(self, text: str) -> list[str]:
        """The calls that held a text anywhere but in their Authorization header (for canaries).

        Also where it was sent as base64 inside JSON, as the files of a commit and the samples of a preupload are.
        """
        found = []
        for call in self.requests():
            headers = " ".join(value for name, value in call.headers.items() if name != "authorization")
            if text in unquote(call.path) or text in headers or any(text.encode() in part for part in call.parts()):
                found.append(f"{call.method} {call.path}")
        return found

    def fail(
        self,
        method: str,
        path_regex: str,
        status: int | str,
        times: int = 1,
        headers: Mapping[str, str] | None = None,
        after: int = 0,
        seconds: float = 2.0,
    ) -> Fault:
        """Let calls fail from now on; see [`Fault`] for what a status or a word does.

        Args:
            method: GET, HEAD, POST, PUT, DELETE, PATCH, or "*".
            path_regex: searched for in the unquoted path with its query.
            times: how many calls; -1 for all.
            after: how many that fit are let through first.
        """
        if isinstance(status, str) and status not in FAULTS:
            raise ValueError(f"status={status!r} is no fault; use a number or one of {', '.join(FAULTS)}")
        fault = Fault(method, re.compile(path_regex), status, times, after, seconds, dict(headers or {}))
        self.hub.faults.append(fault)
        return fault

    def heal(self) -> None:
        """No more faults."""
        self.hub.faults.clear()

    # ---- the guard ----------------------------------------------------------------------------------------------

    @property
    def guard_log(self) -> Path:
        return self.root / "beyond-loopback.log"

    def left_loopback(self) -> list[str]:
        """Every attempt of a client to reach another machine, also those that the client hid."""
        return self.guard_log.read_text().splitlines() if self.guard_log.exists() else []


@dataclass(frozen=True)
class Finished:
    """A client that has ended."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float


def run_client(
    script: str | Path | list[str],
    hub: LoopbackHub,
    *arguments: str | Path,
    token: str | None = WRITER,
    home: str | None = None,
    check: bool = True,
    timeout: float = 300,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Finished:
    """Run Python in a process that knows this Hub and no other machine.

    Args:
        script: a file, code, or a list as `["-m", "hf_seqmodels.cli", "push"]`; `arguments` follow.
        check: AssertionError with the output if it ends with another status than 0.
        env: variables on top.

    Raises:
        AssertionError: the process tried to leave loopback, whether or not it noticed.
    """
    start = script if isinstance(script, list) else [str(script)] if isinstance(script, Path) else ["-c", script]
    noted = len(hub.left_loopback())
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *start, *map(str, arguments)],
        env=hub.environment(token, home) | dict(env or {}),
        cwd=cwd or hub.root,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )
    left = hub.left_loopback()[noted:]
    assert not left, f"the client left loopback: {left}\n{done.stderr[-2000:]}"
    finished = Finished(done.returncode, done.stdout, done.stderr, time.perf_counter() - began)
    assert not check or done.returncode == 0, f"status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return finished


def main() -> int:
    parser = argparse.ArgumentParser(prog="loopback_hub", description="Serve a Hub on 127.0.0.1 until Ctrl-C.")
    parser.add_argument("root", type=Path, help="a folder for the homes of clients and the Xet store")
    parser.add_argument("--mode", choices=["lfs", "xet"], default="lfs")
    parser.add_argument("--port", type=int, default=0)
    asked = parser.parse_args()
    with LoopbackHub(asked.root, asked.mode, asked.port) as hub:
        for name, value in hub.environment(home="shell").items():
            if name.startswith("HF_"):
                print(f"export {name}={value}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
