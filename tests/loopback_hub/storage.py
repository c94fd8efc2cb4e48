"""Repositories in memory: commits that never change, references to them, and the files they hold."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime


def now() -> str:
    """The time as the Hub writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def git_blob(data: bytes) -> str:
    """The sha1 that git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class File:
    """A file of a commit: `content` reads its bytes; `lfs` says that it was uploaded beside the commit."""

    sha256: str
    size: int
    blob: str
    content: Callable[[], bytes] = field(compare=False, repr=False)
    lfs: bool = False
    xet: str | None = None

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.blob


def regular_file(data: bytes) -> File:
    """A file whose content lies in the commit itself."""
    return File(hashlib.sha256(data).hexdigest(), len(data), git_blob(data), lambda: data)


def large_file(sha256: str, size: int, content: Callable[[], bytes], xet: str | None = None) -> File:
    """A file of which git knows only a pointer."""
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    return File(sha256, size, git_blob(pointer), content, True, xet)


@dataclass(frozen=True)
class Commit:
    """One state of a repository; `parent` is None for the first."""

    sha: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: Mapping[str, File]


FIRST_FILES = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}


class Repository:
    """A model, data set or Space: commits, references (full names, as refs/heads/main) and pull requests."""

    def __init__(self, name: str, kind: str, author: str, private: bool = False):
        self.name, self.kind, self.private, self.gated = name, kind, private, False
        self.created = now()
        self.commits: dict[str, Commit] = {}
        self.references: dict[str, str] = {}
        self.discussions: dict[int, dict] = {}
        self.references["refs/heads/main"] = ""
        first = {path: regular_file(data) for path, data in FIRST_FILES.items()}
        self.add_commit("refs/heads/main", first, "initial commit", "", author)

    @property
    def owner(self) -> str:
        return self.name.partition("/")[0]

    def add_commit(self, reference: str, files: Mapping[str, File], title: str, message: str, author: str) -> Commit:
        """A commit with exactly these files, on top of a reference, which moves to it."""
        parent, date = self.references[reference] or None, now()
        state = "\n".join(f"{path} {file.blob}" for path, file in sorted(files.items()))
        text = f"{self.kind} {self.name} {parent} {len(self.commits)} {title} {message} {date}\n{state}"
        sha = hashlib.sha1(text.encode()).hexdigest()
        commit = Commit(sha, parent, title, message, author, date, dict(files))
        self.commits[sha] = commit
        self.references[reference] = sha
        return commit

    def reference(self, revision: str) -> str | None:
        """The full name of the branch, tag or pull request that a revision names, if it names one."""
        candidates = (f"refs/heads/{revision}", f"refs/tags/{revision}", revision)
        return next((name for name in candidates if name in self.references), None)

    def commit(self, revision: str) -> Commit | None:
        """The commit of a branch, tag, pull request, or (abbreviated) commit id; None if there is none."""
        reference = self.reference(revision)
        if reference is not None:
            return self.commits[self.references[reference]]
        found = [sha for sha in self.commits if len(revision) >= 7 and sha.startswith(revision)]
        return self.commits[found[0]] if len(found) == 1 else None

    def history(self, revision: str) -> list[Commit]:
        """A revision's commits, the newest first."""
        commit, commits = self.commit(revision), []
        while commit is not None:
            commits.append(commit)
            commit = self.commits[commit.parent] if commit.parent else None
        return commits

    def names(self, prefix: str) -> dict[str, str]:
        """References below a prefix as refs/tags/: short name → commit id."""
        return {name.removeprefix(prefix): sha for name, sha in self.references.items() if name.startswith(prefix)}
