"""Calls about files: preupload, commit, list, resolve."""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from .protocol import HubError, Reply, Request, Route, entry_missing, json_reply, revision_missing
from .repositories import API, PREFIXES, open_pull_request
from .storage import Commit, File, Repository, large_file, regular_file

if TYPE_CHECKING:
    from .server import Hub

LARGE = 10 * 2**20  # bytes from which the Hub keeps a file out of git, as it does what is no text


def preupload(hub: Hub, request: Request, kind: str, repo: str, rev: str) -> Reply:
    """How each file is to be sent, and what the repository has in its place, so that nothing is sent twice."""
    commit = revision_of(hub.find(request, kind, repo, write="create_pr" not in request.query), rev)
    answers = []
    for wanted in request.json()["files"]:
        sample, present = base64.b64decode(wanted["sample"]), commit.files.get(wanted["path"])
        large = wanted["path"].endswith(".safetensors") or wanted["size"] > LARGE or not is_text(sample)
        answer = {"path": wanted["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        answers.append(answer | ({"oid": present.etag} if present else {}))
    return json_reply({"files": answers})


def is_text(sample: bytes) -> bool:
    return b"\0" not in sample


def revision_of(repository: Repository, rev: str) -> Commit:
    commit = repository.commit(rev)
    if commit is None:
        raise revision_missing(rev)
    return commit


def commit(hub: Hub, request: Request, kind: str, repo: str, rev: str) -> Reply:
    """Header and operations, one JSON per line; all of them happen or none."""
    pull_request = request.query.get("create_pr") == "1"
    repository, user = hub.find(request, kind, repo, write=not pull_request), hub.writer(request)
    reference = repository.reference(rev)
    if reference is None or reference.startswith("refs/tags/"):
        raise revision_missing(rev)
    lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    header = next((line["value"] for line in lines if line["key"] == "header"), None)
    if not header or not header.get("summary"):
        raise HubError(400, message="a commit needs a header with a summary")
    stale = header.get("parentCommit")
    if stale and stale != repository.references[reference]:
        raise HubError(412, message=f"A commit has happened since. Please refresh and try again ({stale})")
    files = dict(repository.commits[repository.references[reference]].files)
    for line in lines:
        change(hub, repository, files, line["key"], line["value"])
    opened = {}
    if pull_request:
        number = open_pull_request(repository, user, header["summary"])
        reference = f"refs/pr/{number}"
        opened = {"pullRequestUrl": f"{hub.endpoint}/{PREFIXES[repository.kind]}{repo}/discussions/{number}"}
    added = repository.add_commit(reference, files, header["summary"], header.get("description", ""), user.name)
    url = f"{hub.endpoint}/{PREFIXES[repository.kind]}{repo}/commit/{added.sha}"
    return json_reply({"success": True, "commitOid": added.sha, "commitUrl": url, **opened})


def change(hub: Hub, repository: Repository, files: dict[str, File], key: str, value: dict[str, Any]) -> None:
    """One operation of a commit on its files."""
    if key == "file":
        data = value["content"]
        files[value["path"]] = regular_file(
            base64.b64decode(data) if value.get("encoding") == "base64" else data.encode()
        )
    elif key == "lfsFile":
        files[value["path"]] = uploaded(hub, value["oid"], value["path"])
    elif key == "deletedFile":
        if value["path"] not in files:
            raise HubError(400, message=f"{value['path']} cannot be deleted: it is not there")
        del files[value["path"]]
    elif key == "deletedFolder":
        inside = [path for path in files if path.startswith(value["path"].rstrip("/") + "/")]
        for path in inside:
            del files[path]
    elif key != "header":
        raise HubError(400, message=f"unknown operation {key}")


def uploaded(hub: Hub, sha256: str, path: str) -> File:
    """A large file of which the bytes came before the commit, by LFS or into the Xet store."""
    if sha256 in hub.large:
        data = hub.large[sha256]
        return large_file(sha256, len(data), lambda: data)
    found = hub.xet.find(sha256) if hub.xet else None
    if found is None:
        raise HubError(400, message=f"{path} was never uploaded ({sha256})")
    return large_file(sha256, found.size, lambda: hub.xet.read(found), found.hash)


def listed(path: str, file: File) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": file.size, "oid": file.blob}
    if file.lfs:
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
    return entry | ({"xetHash": file.xet} if file.xet else {})


def folders(commit: Commit) -> dict[str, dict[str, Any]]:
    parents = {"/".join(path.split("/")[:depth]) for path in commit.files for depth in range(1, path.count("/") + 1)}
    return {path: {"type": "directory", "path": path, "oid": commit.sha, "size": 0} for path in parents}


def tree(hub: Hub, request: Request, kind: str, repo: str, rev: str, path: str = "") -> Reply:
    state = revision_of(hub.find(request, kind, repo), rev)
    path = path.strip("/")
    entries = {name: listed(name, file) for name, file in state.files.items()} | folders(state)
    if path and path not in folders(state):
        raise entry_missing(path, state.sha)
    below = {name: entry for name, entry in entries.items() if not path or name.startswith(path + "/")}
    if request.query.get("recursive") != "true":
        depth = path.count("/") + 1 if path else 0
        below = {name: entry for name, entry in below.items() if name.count("/") == depth}
    return json_reply([entry for _, entry in sorted(below.items())])


def paths_info(hub: Hub, request: Request, kind: str, repo: str, rev: str) -> Reply:
    """Form-encoded, unlike all other calls; paths that are not there are left out."""
    state = revision_of(hub.find(request, kind, repo), rev)
    wanted = parse_qs(request.body.decode()).get("paths", [])
    entries = {name: listed(name, file) for name, file in state.files.items()} | folders(state)
    return json_reply([entries[path] for path in wanted if path in entries])


def resolve(hub: Hub, request: Request, repo: str, rev: str, path: str, kind: str = "") -> Reply:
    """A file's bytes, whole or a range of them; to HEAD everything but the bytes."""
    repository = hub.find(request, kind.strip("/") or "models", repo, read=True)
    state = revision_of(repository, rev)
    if path not in state.files:
        raise entry_missing(path, state.sha)
    file = state.files[path]
    headers = {
        "X-Repo-Commit": state.sha,
        "ETag": f'"{file.etag}"',
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
    }
    if file.lfs:
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
    if file.xet:
        token = f"{hub.endpoint}/api/{repository.kind}s/{repo}/xet-read-token/{state.sha}"
        headers |= {"X-Xet-Hash": file.xet, "Link": f'<{token}>; rel="xet-auth"'}
    if request.method == "HEAD":
        return Reply(200, b"", headers | {"Content-Length": str(file.size)})
    return part_of(file, request.headers.get("range"), headers)


def part_of(file: File, wanted: str | None, headers: dict[str, str]) -> Reply:
    if wanted is None:
        return Reply(200, file.content(), headers)
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted)
    if found is None or found.groups() == ("", ""):
        raise HubError(400, message=f"unknown range {wanted}")
    first, last = found.groups()
    start = int(first) if first else max(0, file.size - int(last))
    end = min(int(last) if first and last else file.size - 1, file.size - 1)
    if start > end:
        raise HubError(416, message="out of range", Content_Range=f"bytes */{file.size}")
    span = {"Content-Range": f"bytes {start}-{end}/{file.size}"}
    return Reply(206, file.content()[start : end + 1], headers | span)


REPOSITORY = r"/(?P<kind>(?:datasets|spaces)/)?(?P<repo>[^/]+(?:/[^/]+)?)"
ROUTES: list[Route] = [
    ("POST", API + r"/preupload/(?P<rev>[^/]+)", preupload),
    ("POST", API + r"/commit/(?P<rev>[^/]+)", commit),
    ("GET", API + r"/tree/(?P<rev>[^/]+)(?P<path>/.*)?", tree),
    ("POST", API + r"/paths-info/(?P<rev>[^/]+)", paths_info),
    ("GET|HEAD", REPOSITORY + r"/resolve/(?P<rev>[^/]+)/(?P<path>.+)", resolve),
]
