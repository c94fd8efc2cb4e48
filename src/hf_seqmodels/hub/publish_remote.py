"""The calls of a push: what the Hub has, what changes, one commit, and whether it arrived whole."""

from __future__ import annotations

import hashlib
import itertools
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    RepoFile,
    constants,
    hf_hub_download,
)
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from ..config import one_line
from .files import CHECKSUMS, UnsafeFolder, may_leave, read_checksums, sha256
from .publish_errors import PushFailed, PushLost, explain
from .publish_plan import COLLECTION_SLUG, Plan, PlannedFile, PushRefused
from .retry import Patience, may_have_happened, reason_of

DOWNLOAD_BARS = ("huggingface_hub.http_get", "huggingface_hub.xet_get")
LARGE = (".safetensors", ".onnx")  # sent from the disk; all else is read once, and held until it is committed
# What from_pretrained loads, and would load beside or instead of ours. Other names (model.fp16.safetensors) are
# loaded only by who asks for them.
WEIGHTS = re.compile(r"model\.safetensors(\.index\.json)?|model-\d{5}-of-\d{5}\.safetensors")


@dataclass(frozen=True)
class Head:
    """What a push starts from: a commit, and the pull requests that were there."""

    commit: str
    pull_requests: tuple[str, ...] = ()


@dataclass(frozen=True)
class Made:
    """A commit that has what the plan wants; `new` is false when nothing had to be done, `deleted` what it deleted."""

    commit: str
    new: bool
    pr_url: str | None = None
    deleted: tuple[str, ...] = ()


class Remote:
    """One repository on the Hub, as one push sees it."""

    def __init__(self, plan: Plan, token: str, patience: Patience):
        self.plan, self.patience = plan, patience
        self.options, self.repo_id = plan.options, plan.repo_id
        self.api = HfApi(token=token, library_name="hf_seqmodels")
        self.token = token

    @property
    def url(self) -> str:
        return f"{self.api.endpoint}/{self.repo_id}"

    # ---- before anything is written ----

    def check_account(self) -> None:
        """Raise PushRefused unless the token may write to this namespace."""
        try:
            me = self.api.whoami()
        except HfHubHTTPError as error:
            raise PushRefused(explain(error)) from error
        token = me.get("auth", {}).get("accessToken", {})
        name, namespace = me.get("name"), self.plan.namespace
        if token.get("role") == "read":
            raise PushRefused(f"the token of '{name}' may only read; use one with write access (`hf auth login`)")
        if self.options.create_pr:  # anybody may propose a change
            return
        may_write = {str(name).casefold()}
        may_write |= {str(org["name"]).casefold() for org in me.get("orgs", []) if org.get("roleInOrg") != "read"}
        if namespace.casefold() not in may_write:
            raise PushRefused(f"'{namespace}' is neither you ('{name}') nor an organisation you may write to")
        self._check_fine_grained(token)

    def _check_fine_grained(self, token: dict[str, Any]) -> None:
        scopes = token.get("fineGrained", {}).get("scoped") if token.get("role") == "fineGrained" else None
        if scopes is None:
            return
        wanted = {self.plan.namespace.casefold(), self.repo_id.casefold()}
        for scope in scopes:
            named = str(scope.get("entity", {}).get("name")).casefold()
            if named in wanted and "repo.write" in scope.get("permissions", []):
                return
        raise PushRefused(f"the fine-grained token may not write to '{self.repo_id}'; give it repo.write there")

    def check_card(self) -> None:
        """Let the Hub check the card's metadata, which needs no repository."""
        text = (self.plan.folder / "README.md").read_text(encoding="utf-8")
        try:
            ModelCard(text).validate()
        except ValueError as error:
            raise PushRefused(f"the Hub does not accept README.md: {one_line(error)}") from error

    def look(self) -> str | None:
        """The repository's last commit on `main`, None when it does not exist.

        Raises:
            PushRefused: a public repository and no `public`, a pull request to nothing, a tag that names another
                commit, a collection that is not there.
        """
        self._check_collection()
        try:
            info = self.api.model_info(self.repo_id)
        except RepositoryNotFoundError:
            if self.options.create_pr:
                raise PushRefused(f"'{self.repo_id}' does not exist, so there is nothing to propose to") from None
            return None
        if not info.private and not (self.options.public or self.options.create_pr):
            raise PushRefused(f"'{self.repo_id}' is public already; say --public to push where everybody can read")
        if info.private and self.options.public:
            self.patience.say(f"'{self.repo_id}' is private and stays so; its settings on the Hub change that")
        return info.sha

    def check_tag(self) -> None:
        """Raise PushRefused when the tag is there already, unless it names just what would be pushed."""
        tagged = self._tagged()
        if tagged is None:
            return
        try:
            commit = self.api.model_info(self.repo_id, revision=self.options.branch).sha
        except RevisionNotFoundError:
            commit = None
        if tagged != commit or self.differs(tagged):
            raise PushRefused(f"tag '{self.options.tag}' names {tagged} already; tags do not move, choose another")

    def _tagged(self) -> str | None:
        tags = self.api.list_repo_refs(self.repo_id).tags if self.options.tag else []
        return next((tag.target_commit for tag in tags if tag.name == self.options.tag), None)

    # ---- writing ----

    def create(self) -> None:
        """Make the repository; private unless asked otherwise."""
        self.api.create_repo(self.repo_id, private=not self.options.public, exist_ok=True)

    def head(self) -> Head:
        """Where the branch stands; a branch that is not there is created from `main`."""
        branch = self.options.branch
        try:
            commit = self.api.model_info(self.repo_id, revision=branch).sha
        except RevisionNotFoundError:
            if self.options.create_pr:
                raise PushRefused(
                    f"'{self.repo_id}' has no branch '{branch}' to open a pull request against"
                ) from None
            self.api.create_branch(self.repo_id, branch=branch, exist_ok=True)
            commit = self.api.model_info(self.repo_id, revision=branch).sha
        return Head(str(commit), self._pull_requests() if self.options.create_pr else ())

    def _pull_requests(self) -> tuple[str, ...]:
        refs = self.api.list_repo_refs(self.repo_id, include_pull_requests=True)
        return tuple(ref.ref for ref in refs.pull_requests or ())

    def commit(self, head: Head) -> Made:
        """One commit with all that differs, if anything differs.

        When the answer to a commit is lost, or somebody else was faster, the repository is read again: if it holds
        what was to be pushed, the push is done; otherwise it is tried again, or (after somebody else's commit) not.
        """
        add, delete = self._changes(head.commit)
        if not add and not delete:
            return Made(head.commit, new=False)
        for name in delete:
            self.patience.say(f"deletes {name} there: {_why_deleted(name)}")
        operations = [CommitOperationAdd(file.name, _content(file)) for file in add]
        self._upload(operations, add)
        for tried in itertools.count(1):
            if tried > 1 and (made := self.made_already(head)):
                return made
            try:
                info = self.api.create_commit(
                    self.repo_id,
                    [*operations, *(CommitOperationDelete(name) for name in delete)],
                    commit_message=self.plan.message,
                    revision=self.options.branch,
                    create_pr=self.options.create_pr,
                    parent_commit=head.commit,
                )
                return Made(info.oid, True, info.pr_url, tuple(delete))
            except HTTPError as error:
                if isinstance(error, HfHubHTTPError) and error.response.status_code == 412:
                    if made := self.made_already(head):
                        return made
                    raise PushLost(
                        f"somebody else committed to {self.options.branch} of {self.repo_id} after {head.commit}; "
                        "nothing of yours was committed: look at what changed, then push again"
                    ) from error
                if not may_have_happened(error):
                    raise
                self.patience.wait(tried, f"commit: {reason_of(error)}")
        raise AssertionError("unreachable: the last wait raises")

    def would_delete(self) -> dict[str, str]:
        """Name → why of what the commit would delete, from the repository as it is now; nothing if there is none."""
        try:
            info = self.api.model_info(self.repo_id, revision=self.options.branch)
        except RevisionNotFoundError:
            info = self.api.model_info(self.repo_id)  # where the branch would start
        except RepositoryNotFoundError:
            return {}
        return {name: _why_deleted(name) for name in self._changes(str(info.sha))[1]}

    def differs(self, commit: str) -> bool:
        """Whether a commit lacks, or has too much of, what the plan wants."""
        return self._changes(commit) != ([], [])

    def _upload(self, operations: list[CommitOperationAdd], files: list[PlannedFile]) -> None:
        """Send what is large, then see that no file has changed since it was checked."""
        try:
            self.api.preupload_lfs_files(
                self.repo_id,
                operations,
                revision=self.options.branch,
                create_pr=self.options.create_pr,
                free_memory=False,
            )
        except Exception:  # the client has errors of several kinds for what did not arrive
            _check_unchanged(operations, files)  # what changed on its way cannot arrive as what was announced
            raise
        _check_unchanged(operations, files)

    def _changes(self, commit: str) -> tuple[list[PlannedFile], list[str]]:
        """What to add and what to delete so that `commit` becomes the plan.

        Deleted is what an earlier push put there and this one no longer has (the SHA256SUMS there lists it), and
        other `WEIGHTS` beside ours, which would be loaded with them or instead. Whatever else lies there stays.
        """
        there = self._tree(commit)
        add = [file for file in self.plan.files.values() if not _same(there.get(file.name), file)]
        other = CHECKSUMS in there and not _same(there[CHECKSUMS], self.plan.files[CHECKSUMS])
        listed = self._listed(commit) if other else set()
        extra = [name for name in there if name not in self.plan.files and may_leave(name, onnx=True)]
        return add, sorted(name for name in extra if name in listed or WEIGHTS.fullmatch(name))

    def _listed(self, commit: str) -> set[str]:
        """What the SHA256SUMS there names; nothing if it is none."""
        with tempfile.TemporaryDirectory() as scratch, _quiet_downloads():
            try:
                return set(read_checksums(self._download(CHECKSUMS, commit, Path(scratch)).parent))
            except UnsafeFolder:
                return set()

    def _tree(self, commit: str) -> dict[str, RepoFile]:
        entries = self.api.list_repo_tree(self.repo_id, recursive=True, revision=commit)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def made_already(self, head: Head) -> Made | None:
        """A commit after `head` that has all of the plan."""
        if not self.options.create_pr:
            commit = self.api.model_info(self.repo_id, revision=self.options.branch).sha
            done = commit is not None and commit != head.commit and not self.differs(commit)
            return Made(str(commit), True, None, self._deleted_after(head)) if done else None
        for ref in set(self._pull_requests()) - set(head.pull_requests):
            commit = str(self.api.model_info(self.repo_id, revision=ref).sha)
            if not self.differs(commit):
                url = f"{self.url}/discussions/{ref.rpartition('/')[2]}"
                return Made(commit, True, url, self._deleted_after(head))
        return None

    def _deleted_after(self, head: Head) -> tuple[str, ...]:
        return tuple(self._changes(head.commit)[1])

    def tag(self, commit: str) -> None:
        """Name the commit; a tag that is there already has to name this one."""
        name = str(self.options.tag)
        self.api.create_tag(self.repo_id, tag=name, revision=commit, exist_ok=True)
        if (found := self._tagged()) != commit:
            raise PushFailed(f"tag '{name}' names {found}, not {commit}; tags do not move, choose another")

    # ---- afterwards ----

    def verify(self, commit: str) -> None:
        """Download everything that was pushed into an empty cache, and compare sha256.

        Raises:
            PushFailed: a file differs, or is not there.
        """
        with tempfile.TemporaryDirectory(prefix="hf-seqmodels-verify-") as scratch, _quiet_downloads():
            for file in self.plan.files.values():
                try:
                    arrived = sha256(self._download(file.name, commit, Path(scratch)))
                except HfHubHTTPError as error:
                    if error.response.status_code == 404:
                        raise PushLost(f"'{file.name}' did not arrive in {self.repo_id} at {commit}") from error
                    raise
                if arrived != file.sha256:
                    raise PushLost(
                        f"'{file.name}' came back from {self.repo_id} at {commit[:12]} with sha256 {arrived}, but "
                        f"{file.sha256} was pushed: do not use this commit; delete it on the Hub and push again"
                    )

    def _download(self, name: str, commit: str, cache: Path) -> Path:
        return Path(hf_hub_download(self.repo_id, name, revision=commit, cache_dir=cache, token=self.token))

    def _check_collection(self) -> None:
        slug = self.plan.collection
        if slug and COLLECTION_SLUG.fullmatch(slug):
            try:
                self.api.get_collection(slug)
            except HfHubHTTPError as error:
                if error.response.status_code == 404:
                    raise PushRefused(f"there is no collection '{slug}'; give a title to make one") from None
                raise

    def join_collection(self) -> str:
        """Put the repository into the collection, which is created (private unless `public`) if it is not there."""
        wanted = str(self.plan.collection)
        if COLLECTION_SLUG.fullmatch(wanted):
            slug = wanted
        else:
            owned = self.api.list_collections(owner=self.plan.namespace)
            same = (each.slug for each in owned if each.title.casefold() == wanted.casefold())
            slug = (
                next(same, None)
                or self.api.create_collection(
                    wanted, namespace=self.plan.namespace, private=not self.options.public, exists_ok=True
                ).slug
            )
        if self.repo_id not in [item.item_id for item in self.api.get_collection(slug).items]:
            self.api.add_collection_item(slug, item_id=self.repo_id, item_type="model", exists_ok=True)
        return slug


def _content(file: PlannedFile) -> str | bytes:
    """What the client sends: bytes are those of the plan, however the file changes from now on.

    Raises:
        PushLost: it has changed already.
    """
    if isinstance(file.content, bytes):
        return file.content
    if file.name.endswith(LARGE):
        return str(file.content)
    data = file.content.read_bytes()
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise _changed(file.name)
    return data


def _check_unchanged(operations: list[CommitOperationAdd], files: list[PlannedFile]) -> None:
    for operation, file in zip(operations, files, strict=True):
        on_disk = file.sha256 if isinstance(file.content, bytes) else sha256(file.content)
        if not operation.upload_info.sha256.hex() == on_disk == file.sha256:
            raise _changed(file.name)


def _changed(name: str) -> PushLost:
    return PushLost(f"'{name}' changed while it was pushed; nothing was committed, push again")


def _why_deleted(name: str) -> str:
    if WEIGHTS.fullmatch(name):
        return "weights that would be loaded beside or instead of these"
    return "an earlier push put it there, and this one does not have it"


def _same(entry: RepoFile | None, file: PlannedFile) -> bool:
    if entry is None:
        return False
    return entry.lfs.sha256 == file.sha256 if entry.lfs else entry.blob_id == file.git_hash()


@contextmanager
def _quiet_downloads() -> Iterator[None]:
    """Progress bars are for uploads; one for each verified file would say nothing."""
    chosen = constants.HF_HUB_DISABLE_PROGRESS_BARS is not None  # by the user's environment, which stands above
    shown = [name for name in DOWNLOAD_BARS if not (chosen or are_progress_bars_disabled(name))]
    for name in shown:
        disable_progress_bars(name)
    try:
        yield
    finally:
        for name in shown:
            enable_progress_bars(name)
