"""What a push would do, decided and checked on this machine alone, before anything is sent."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import get_token, is_offline_mode
from huggingface_hub.utils import HFValidationError, validate_repo_id

from .files import (
    CHECKSUMS,
    check_checksums,
    check_folder,
    find_secrets,
    list_files,
    may_leave,
    read_checksums,
    sha256,
)

REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")
COLLECTION_SLUG = re.compile(r"[^/\s]+/[^/\s]+-[0-9a-f]{24}")
LONGEST_TITLE = 60  # of a collection, on the Hub
OF_THE_DATA = "the data set's own"  # stands for the title that `collection_title` makes


class PushRefused(ValueError):
    """Something to mend before a push may start: one line with the value, the rule and the way out."""


@dataclass(frozen=True)
class Options:
    """How a folder is pushed.

    Attributes:
        public: whether everybody may read a repository that this push creates.
        branch: the branch that the commit goes to, created from `main` if it is not there.
        tag: a name for the commit.
        create_pr: open a pull request against `branch` instead of committing to it.
        message: of the commit.
        onnx: `.onnx` files go too.
        collection: title or slug of a collection that the repository joins.
    """

    public: bool = False
    branch: str = "main"
    tag: str | None = None
    create_pr: bool = False
    message: str | None = None
    onnx: bool = False
    collection: str | None = None


@dataclass(frozen=True)
class PlannedFile:
    """A file that goes; `content` is its path, or the bytes where they differ from what lies in the folder."""

    name: str
    size: int
    sha256: str
    content: Path | bytes

    def git_hash(self) -> str:
        """What git calls the content (sha1), which is how the Hub names files that are not large."""
        content = self.content if isinstance(self.content, bytes) else self.content.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Plan:
    """A push that passed every check that needs no network."""

    folder: Path
    repo_id: str
    options: Options
    message: str
    collection: str | None  # title or slug; where the options leave it to the data set, its title
    files: dict[str, PlannedFile]
    left_out: dict[str, str]  # name → why

    @property
    def namespace(self) -> str:
        return self.repo_id.partition("/")[0]

    @property
    def digest(self) -> str:
        """sha256 over names and contents of all that goes."""
        lines = "".join(f"{file.sha256}  {file.name}\n" for file in self.files.values())
        return hashlib.sha256(lines.encode()).hexdigest()

    def describe(self) -> str:
        """What would go and what would stay, in lines."""
        options = self.options
        visibility = "public" if options.public else "private"
        where = f"a pull request against {options.branch}" if options.create_pr else f"branch {options.branch}"
        lines = [
            f"repository  {self.repo_id} ({visibility} if it has to be created)",
            f"target      {where}, one commit: {self.message}",
        ]
        lines += [f"tag         {options.tag}"] if options.tag else []
        lines += [f"collection  {self.collection}"] if self.collection else []
        lines += ["goes:"]
        lines += [f"  {file.sha256}  {file.size:>13,}  {file.name}" for file in self.files.values()]
        lines += ["stays:"] if self.left_out else []
        lines += [f"  {name}: {why}" for name, why in self.left_out.items()]
        total = sum(file.size for file in self.files.values())
        return "\n".join([*lines, f"{len(self.files)} files, {total:,} bytes"])


def make_plan(folder: Path | str, repo_id: str, options: Options) -> Plan:
    """Read the folder, check everything that can be checked here, and decide what goes.

    Raises:
        PushRefused, UnsafeFolder: the repository's name, a revision, the folder, a file in it or the card breaks a
            rule; the line says which.
    """
    folder = Path(folder)
    check_names(repo_id, options)
    check_folder(folder)
    names = list_files(folder)
    _check_contents(folder, names)
    left_out = {name: _why(name) for name in names if not may_leave(name, options.onnx)}
    listed = read_checksums(folder)
    files = {name: _planned(folder, name, listed, left_out) for name in names if name not in left_out}
    collection = collection_title(folder) if options.collection == OF_THE_DATA else options.collection
    message = options.message or f"Push {repo_id.partition('/')[2]} with hf-seqmodels"
    return Plan(folder, repo_id, options, message, collection, files, left_out)


def check_names(repo_id: str, options: Options) -> None:
    """Raise PushRefused unless the repository, the branch, the tag and the collection may be called that."""
    _check_for_token(repo_id, options)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PushRefused(f"'{repo_id}' is no name of a repository: {error}") from None
    if "/" not in repo_id:
        raise PushRefused(f"'{repo_id}' does not say whose repository it is; write user/{repo_id}")
    for kind, value in (("branch", options.branch), ("tag", options.tag)):
        if value is not None and not _is_revision(value):
            raise PushRefused(f"{kind} '{value}' cannot be a revision: letters, digits, '.', '_', '-' and single '/'")
    if options.create_pr and options.tag:
        raise PushRefused(f"tag '{options.tag}' cannot name a pull request; merge it, then push again with --tag")
    title = options.collection
    if title is not None and not (title.strip() and (len(title) <= LONGEST_TITLE or COLLECTION_SLUG.fullmatch(title))):
        raise PushRefused(f"collection '{title}' has {len(title)} letters; a title has 1 to {LONGEST_TITLE}")


def _check_for_token(repo_id: str, options: Options) -> None:
    token = get_token()
    told = {"user/name": repo_id} | {f"--{field.name}": str(getattr(options, field.name)) for field in fields(options)}
    for name, value in told.items():
        if token and token in value:
            raise PushRefused(f"{name} holds your Hugging Face token, which must not be sent; take it out")


def _is_revision(name: str) -> bool:
    forbidden = ("..", "//", "/.", "refs/")
    fine = REVISION.fullmatch(name) and not any(part in name for part in forbidden)
    return bool(fine) and not name.endswith(("/", ".", ".lock"))


def require_token(token: str | None = None) -> str:
    """The token to push with: this one, or the user's from HF_TOKEN or `hf auth login`.

    Raises:
        PushRefused: there is none, or calls to the Hub are switched off.
    """
    if is_offline_mode():
        raise PushRefused("HF_HUB_OFFLINE is set, which forbids all calls to the Hub; unset it to push")
    token = token or get_token()
    if not token:
        raise PushRefused(
            "no token: a push needs one that may write; make it at https://huggingface.co/settings/tokens, then "
            "`hf auth login`, or set HF_TOKEN"
        )
    return token


def _check_contents(folder: Path, names: list[str]) -> None:
    """Checksums, secrets, card."""
    from .card_check import check_card

    if CHECKSUMS not in names:
        raise PushRefused(f"'{folder}' has no {CHECKSUMS}; `hf-seqmodels export` makes a folder that can be pushed")
    different = check_checksums(folder)
    if different:
        more = f" ({len(different) - 1} more)" if len(different) > 1 else ""
        raise PushRefused(f"{CHECKSUMS} does not hold: {different[0]}{more}; export again, or mend the folder")
    secrets = find_secrets(folder)
    if secrets:
        raise PushRefused(f"'{secrets[0][0]}' holds what looks like a secret ({secrets[0][1]}); take it out")
    if "README.md" not in names:
        raise PushRefused(f"'{folder}' has no README.md; `hf-seqmodels export` writes the card")
    problems = check_card((folder / "README.md").read_text(encoding="utf-8"))
    if problems:
        raise PushRefused(f"README.md: {problems[0]}")


def _why(name: str) -> str:
    if may_leave(name, onnx=True):
        return "ONNX goes only with --onnx"
    return f"'{PurePosixPath(name).suffix or name}' is not among the kinds of files that are published"


def _planned(folder: Path, name: str, listed: Mapping[str, str], left_out: Mapping[str, str]) -> PlannedFile:
    path = folder / name
    if name == CHECKSUMS and listed.keys() & left_out.keys():  # what goes must hold where it arrives
        lines = [f"{digest}  {listed_name}\n" for listed_name, digest in listed.items() if listed_name not in left_out]
        content = "".join(lines).encode()
        return PlannedFile(name, len(content), hashlib.sha256(content).hexdigest(), content)
    digest = sha256(path)
    if digest != listed.get(name, digest):
        raise PushRefused(f"'{name}' changed while it was checked; push again when nothing writes to '{folder}'")
    return PlannedFile(name, path.stat().st_size, digest, path)


def collection_title(folder: Path) -> str:
    """The title of the collection of all architectures that learned one data set, from `result.json`.

    Raises:
        PushRefused: no run's record tells the data set.
    """
    record: Any = {}
    if (folder / "result.json").is_file():
        record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    data = record.get("config", {}).get("data", {}) if isinstance(record, dict) else {}
    name = data.get("train_file") or data.get("dataset")
    if not isinstance(name, str) or not name:
        raise PushRefused(f"'{folder}' has no result.json that names its data set; give a title: --collection TITLE")
    return f"{PurePosixPath(name).name}: sequence models"[:LONGEST_TITLE]
