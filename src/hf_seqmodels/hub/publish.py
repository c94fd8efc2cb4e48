"""`hf-seqmodels push`: a checked folder becomes one commit on the Hub, and is compared with what arrived there."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_token, is_offline_mode

from ..config import one_line
from ..writing import write_whole
from .publish_errors import PushFailed, PushLost, step
from .publish_plan import OF_THE_DATA, Options, Plan, PushRefused, make_plan, require_token
from .publish_remote import Head, Made, Remote
from .retry import Patience, patient_session

DESCRIPTION = """\
Publish an exported folder on the Hub. Everything is checked before a repository is created: the folder (whole
safetensors, no pickles, SHA256SUMS, no secrets), the card and its licence, names, the token. Then all files that
differ go in ONE commit; afterwards every file is downloaded into an empty cache and its sha256 compared.

A new repository is private unless you say --public. Only *.safetensors, json, py, txt, md, png, yaml, jinja,
tokenizer .model, SHA256SUMS, LICENSE and .gitattributes leave, and .onnx with --onnx. A second push of the same
folder makes no commit.

The commit also deletes, and says so: what an earlier push put there and the folder no longer has, and other weights
that would be loaded (model.safetensors, its index, model-00001-of-00002.safetensors). Other files there stay.

The token comes from HF_TOKEN or `hf auth login`; it has to have write access. The folder is only read.
"""
EPILOG = """\
examples:
  hf-seqmodels push exported/lstm user/lstm-pydoc --dry_run          what would go; nothing is sent
  hf-seqmodels push exported/lstm user/lstm-pydoc                    private, one commit on main
  hf-seqmodels push exported/lstm user/lstm-pydoc --public --tag v1  readable by everybody, and named
  hf-seqmodels push exported/lstm user/lstm-pydoc --create_pr        propose it instead
  hf-seqmodels push exported/lstm user/lstm-pydoc --collection       beside the other models of its data set
  hf-seqmodels push exported/lstm user/lstm-pydoc --resume           go on after a push that stopped

then, anywhere:
  AutoModelForCausalLM.from_pretrained("user/lstm-pydoc", revision="v1", trust_remote_code=True)

A busy or failing server (429, 5xx) and dropped connections are tried again with growing waits; each is printed.
Exit status: 0 done, 2 something for you to mend before anything was sent, 1 the push stopped or did not hold.
"""


@dataclass(frozen=True)
class PushReport:
    """What a push did.

    Attributes:
        url, commit: where it is. `made_commit` is false when nothing had changed.
        pr_url: of the pull request, with `create_pr`.
        files: sha256 of everything that was pushed or was there already; all of them were verified.
        left_out: name → why it stayed here.
        collection: the slug of the collection that the repository is in.
        deleted: what the commit deleted from the repository.
    """

    url: str
    commit: str
    made_commit: bool
    pr_url: str | None
    files: dict[str, str]
    left_out: dict[str, str]
    tag: str | None = None
    collection: str | None = None
    deleted: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"left out {name}: {why}" for name, why in self.left_out.items()]
        lines += [f"deleted {name}" for name in self.deleted]
        lines += [f"one commit, {self.commit}" if self.made_commit else f"nothing to do: {self.commit} has it all"]
        lines += [f"verified {len(self.files)} files from an empty cache: sha256 as pushed"]
        lines += [f"tag {self.tag}"] if self.tag else []
        lines += [f"in the collection {self.collection}"] if self.collection else []
        return "\n".join([*lines, self.pr_url or self.url])


def push(
    folder: Path | str,
    repo_id: str,
    *,
    public: bool = False,
    branch: str = "main",
    tag: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    onnx: bool = False,
    collection: str | None = None,
    token: str | None = None,
    retries: int = 6,
    say: Callable[[str], None] = print,
) -> PushReport:
    """Publish an exported folder as one commit, and verify what arrived.

    Args:
        folder: what `hf-seqmodels export` wrote; it is only read.
        repo_id: "user/name" on the Hub.
        public, branch, tag, create_pr, message, onnx, collection: see [`Options`].
        token: one that may write; None: the user's, from HF_TOKEN or `hf auth login`.
        retries: further tries of a call that meets 429, 5xx or a dropped connection.
        say: receives a line for each stage and each wait.

    Raises:
        PushRefused, UnsafeFolder: something has to be mended first; nothing was sent, no repository was created.
        PushFailed: the Hub refused, did not answer, or holds something else than was pushed. `resume` goes on.
    """
    options = Options(public, branch, tag, create_pr, message, onnx, collection)
    token = require_token(token)
    plan = make_plan(folder, repo_id, options)
    return _run(plan, token, Patience(retries, say=say), None)


def resume(
    folder: Path | str, repo_id: str, *, retries: int = 6, say: Callable[[str], None] = print, **options: Any
) -> PushReport:
    """Go on with the push of this folder that stopped: same options, same files, same commit to start from.

    What was uploaded is not uploaded again, a commit or pull request that was made is not made again. Because it
    starts from the same commit, somebody else's commit in between stops it.

    Args:
        folder, repo_id, retries, say: as for [`push`].
        options: those of the stopped push hold; one that is given has to be the same.

    Raises:
        PushRefused: no push of this folder to this repository stopped here, or folder or options have changed.
        PushFailed: as for [`push`].
    """
    token = require_token()
    state = _read_state(repo_id, Path(folder))
    if state is None:
        raise PushRefused(f"no push of '{folder}' to '{repo_id}' stopped here; push without --resume")
    for name, value in options.items():
        stopped = state["asked"][name]
        if value != stopped:
            raise PushRefused(f"--{name} is {value!r}, but the push that stopped had {stopped!r}; leave it out")
    plan = make_plan(folder, repo_id, Options(**state["asked"]))
    if plan.digest != state["digest"]:
        raise PushRefused(f"'{folder}' has changed since the push stopped; push without --resume")
    return _run(plan, token, Patience(retries, say=say), state)


def _run(plan: Plan, token: str, patience: Patience, state: dict[str, Any] | None) -> PushReport:
    """Check with the Hub, then write; from the first write on the state file tells `resume` how far it came."""
    remote, say = Remote(plan, token, patience), patience.say
    with patient_session(patience):
        with step("check the account"):
            remote.check_account()
        with step("check the card"):
            remote.check_card()
        with step(f"look at {plan.repo_id}"):
            last = remote.look()
            if last and not (state and state["commit"]):
                remote.check_tag()
        say(f"checked {len(plan.files)} files, the card and the account")
        state = state or _new_state(plan)
        _write_state(plan.repo_id, state)
        try:
            return _write(plan, remote, say, last is not None, state)
        except (PushLost, PushRefused):
            forget(plan.repo_id)
            raise


def _write(plan: Plan, remote: Remote, say: Callable[[str], None], exists: bool, state: dict[str, Any]) -> PushReport:
    if not exists:
        with step(f"create the repository {plan.repo_id}"):
            remote.create()
        say(f"created {plan.repo_id} ({'public' if plan.options.public else 'private'})")
    made = _commit(plan, remote, state)
    _write_state(plan.repo_id, state | asdict(made))
    say(f"{'committed' if made.new else 'nothing to commit:'} {made.commit}; verifying")
    with step(f"verify {plan.repo_id} at {made.commit}"):
        remote.verify(made.commit)
    if plan.options.tag:
        with step(f"make the tag {plan.options.tag}"):
            remote.tag(made.commit)
    slug = None
    if plan.collection:
        with step(f"add {plan.repo_id} to the collection {plan.collection}"):
            slug = remote.join_collection()
    forget(plan.repo_id)
    files = {file.name: file.sha256 for file in plan.files.values()}
    tag = plan.options.tag
    return PushReport(remote.url, made.commit, made.new, made.pr_url, files, plan.left_out, tag, slug, made.deleted)


def _commit(plan: Plan, remote: Remote, state: dict[str, Any]) -> Made:
    """The commit that was made before the push stopped, or a new one from the commit that was the last one then."""
    if state["commit"]:
        return Made(state["commit"], state["new"], state["pr_url"], tuple(state["deleted"]))
    with step(f"read {plan.options.branch} of {plan.repo_id}"):
        started = state["head"] is not None
        head = Head(state["head"], tuple(state["pull_requests"])) if started else remote.head()
        if started and (made := remote.made_already(head)):
            return made
    state |= {"head": head.commit, "pull_requests": list(head.pull_requests)}
    _write_state(plan.repo_id, state)
    with step(f"push to {plan.repo_id}"):
        return remote.commit(head)


# ---- what `resume` needs to know --------------------------------------------------------------------------------


def _state_file(repo_id: str) -> Path:
    """Outside of the folder, which is only read: beside the Hub's own files of this user."""
    return Path(constants.HF_HOME, "hf_seqmodels", "pushes", f"{repo_id.replace('/', '--')}.json")


def _new_state(plan: Plan) -> dict[str, Any]:
    return {
        "folder": str(plan.folder.resolve()),
        "asked": asdict(plan.options),
        "digest": plan.digest,
        "head": None,
        "pull_requests": [],
        **asdict(Made("", new=False)),
    }


def _write_state(repo_id: str, state: dict[str, Any]) -> None:
    write_whole(_state_file(repo_id), json.dumps(state, indent=2) + "\n")


def forget(repo_id: str) -> None:
    """There is no push to this repository to go on with any more."""
    _state_file(repo_id).unlink(missing_ok=True)


def _read_state(repo_id: str, folder: Path) -> dict[str, Any] | None:
    """Where the push of this folder stopped; None if none did."""
    try:
        state = json.loads(_state_file(repo_id).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    made, asked = ({field.name for field in fields(kind)} for kind in (Made, Options))
    whole = isinstance(state, dict) and state.keys() >= {"folder", "asked", "digest", "head", "pull_requests", *made}
    if not whole or state["asked"].keys() != asked:  # of another version: as if there were none
        return None
    return state if state["folder"] == str(folder.resolve()) else None


# ---- command ----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit status 0, 2 with one line for what the user can mend first, 1 when the push stopped."""
    given = vars(_parser().parse_args(argv))
    folder, repo_id = given.pop("folder"), given.pop("repo_id")
    dry_run, go_on = given.pop("dry_run", False), given.pop("resume", False)
    try:
        if dry_run:
            given.pop("retries", None)
            _show_dry_run(make_plan(folder, repo_id, Options(**given)))
        else:
            print((resume if go_on else push)(folder, repo_id, say=_say, **given))
    except (ValueError, OSError) as error:
        return _fail(one_line(error), 2)
    except PushFailed as error:
        return _fail(f"{one_line(error)}{_way_on(folder, repo_id)}", 1)
    except KeyboardInterrupt:
        return _fail(f"interrupted{_way_on(folder, repo_id) or '; no push had begun'}", 130)
    return 0


def _show_dry_run(plan: Plan) -> None:
    """Print the plan and, where there is a token to look with, what the commit would delete."""
    print(plan.describe())
    token, unknown = get_token(), "HF_HUB_OFFLINE is set" if is_offline_mode() else ""
    if not token:
        unknown = "there is no token, which a push needs"
    elif not unknown:
        try:
            with step(f"look at {plan.repo_id}"):
                delete = Remote(plan, token, Patience(0)).would_delete()
            print("".join(f"deletes there: {name}, {why}\n" for name, why in delete.items()), end="")
        except PushFailed as error:
            unknown = one_line(error)
    print("dry run: nothing was sent" + (f"; {unknown}; what it would delete there is not known" if unknown else ""))


def _way_on(folder: Path, repo_id: str) -> str:
    if _read_state(repo_id, folder) is None:
        return ""
    return f". Your files are as they were; to go on: hf-seqmodels push {folder} {repo_id} --resume"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _fail(line: str, status: int) -> int:
    token = get_token()
    if token:
        line = line.replace(token, "hf_…")
    print(f"hf-seqmodels push: error: {line}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    """Options that are not given stay out of the result, so that defaults and the stopped push's own hold."""
    parser = argparse.ArgumentParser(
        prog="hf-seqmodels push",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="what `hf-seqmodels export` wrote")
    parser.add_argument("repo_id", metavar="user/name", help="the repository on the Hub; created if it is not there")
    one_of = parser.add_mutually_exclusive_group()
    one_of.add_argument(
        "--dry_run", action="store_true", help="print what would go, stay and be deleted there; send nothing"
    )
    parser.add_argument("--public", action="store_true", help="everybody may read a repository created now")
    parser.add_argument("--branch", help="where the commit goes, created if it is not there; default: main")
    parser.add_argument("--tag", help="a name for the commit, for from_pretrained(..., revision=TAG)")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--message", help="of the commit")
    parser.add_argument("--onnx", action="store_true", help=".onnx files go too")
    parser.add_argument(
        "--collection",
        nargs="?",
        const=OF_THE_DATA,
        metavar="TITLE",
        help="put the repository into this collection (title or slug), made if it is not there, private unless "
        "--public; without TITLE: one for all models of the same data set, which result.json names",
    )
    one_of.add_argument("--resume", action="store_true", help="go on with the push of DIR that stopped")
    parser.add_argument("--retries", type=_not_negative, help="further tries of a call that fails; default: 6")
    return parser


def _not_negative(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative; 0 tries each call once")
    return value


if __name__ == "__main__":
    sys.exit(main())
