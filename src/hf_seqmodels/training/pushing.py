"""Pushing to the Hub while and after a model is trained: no pickles, nothing unfinished, no failure unheard."""

from __future__ import annotations

import shutil
import tempfile
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from ..arguments import ConfigError, SeqTrainingArguments, check_pushing

logger = logging.get_logger(__name__)

# What may leave; and what a checkpoint holds for a resume alone: pickles of the optimizer and others, and counts.
PUSHED = ["*.safetensors", "*.json", "*.py", "*.txt", "*.md", "*.png", "*.yaml", "*.jinja", "*.model"]
PUSHED += ["SHA256SUMS", "LICENSE", ".gitattributes"]
ONLY_HERE = ["*.pt", "*.pth", "*.bin", "*.pkl", "trainer_state.json", "batch_order*"]
WAY_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write; or leave --push_to_hub out"
TRIES, FIRST_WAIT = 4, 1.0  # of a push; seconds, doubled after each try


class PushFailed(RuntimeError):
    """The Hub did not take a push: one line that says which, why, and where the files are."""


class Pushing(Trainer):
    """`transformers.Trainer` with another way to the Hub, for the same options.

    - What is sent is saved for that purpose into a folder of its own, so that nothing else in `output_dir` can leave,
      and of that only the kinds of files in `PUSHED`. Modelling files are among them.
    - The repository is opened when the trainer has been built and checked, so that a token that may not write is
      refused before the training, not after it. It is private unless `hub_private_repo` says otherwise, and a public
      one is not pushed to unless it does.
    - Calls that the Hub refuses for the moment (429, 5xx) or that break off are made again.
    - `hub_strategy="every_save"` sends each checkpoint's model in the background. A failure there is logged at once,
      does not stop the training, and is raised by `train` when that is done.
    - The strategies `checkpoint` and `all_checkpoints` are refused (`check_pushing` says why).
    """

    args: SeqTrainingArguments
    model: PreTrainedModel

    def __init__(self, model: PreTrainedModel, args: SeqTrainingArguments, **kwargs: Any):
        check_pushing(args)
        pushes, args.push_to_hub = args.push_to_hub, False  # or the stock constructor opens the repository first
        self._api = HfApi()
        self._pushes: list[Future] = []
        self._failed_pushes: list[str] = []
        try:
            super().__init__(model=model, args=args, **kwargs)
        finally:
            args.push_to_hub = pushes

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Creates the repository, and the branch `hub_revision`, unless they exist.

        Raises:
            ConfigError: the Hub refuses: it knows no such token, or one that may not write there. Or the repository
                is there and public, and nobody asked for that.
        """
        token, private = token or self.args.hub_token, self.args.hub_private_repo if private is None else private
        try:
            super().init_hf_repo(token, private)
            if not self.is_world_process_zero():
                return
            name, branch = str(self.hub_model_id), self.args.hub_revision
            if branch and not branch.startswith("refs/"):
                self._api.create_branch(name, branch=branch, token=token, exist_ok=True)
            public = not self._api.model_info(name, token=token).private
        except (OSError, ValueError, HTTPError) as error:
            name = self.args.hub_model_id or str(self.args.output_dir)
            raise ConfigError(f"push_to_hub: '{name}' cannot be opened: {in_short(error)}; {WAY_IN}") from None
        if private and public:
            raise ConfigError(
                f"push_to_hub: '{name}' is public already; --hub_private_repo false pushes where everybody can read"
            )

    # ---- saving and sending ---------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Model and tokenizer, by the first process, without the stock trainer's pickle of the arguments."""
        super().save_model(output_dir, _internal_call=True)
        if self.args.should_save:  # it holds hub_token
            Path(output_dir or str(self.args.output_dir), "training_args.bin").unlink(missing_ok=True)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub("Model save")

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes nothing: the card is made from the run's result, not from the Trainer's template."""

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Send the model as it is now and its tokenizer, in one commit; arguments as in `transformers.Trainer`.

        Returns:
            The commit (of a push in the background its future); None on all processes but the first.

        Raises:
            PushFailed: the Hub did not take it; local files are as they were.
            TrainingDiverged: a weight is not finite; nothing was sent.
        """
        staging = new_staging()
        try:
            self.save_model(str(staging), _internal_call=True)
        except BaseException:
            shutil.rmtree(staging)
            raise
        return self.push_folder(staging, str(commit_message), blocking, token, revision, private)

    def push_folder(
        self,
        folder: Path,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> Any:
        """Send a finished folder instead, which is deleted when it has left; all else as in `push_to_hub`."""
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        if not self.is_world_process_zero():
            shutil.rmtree(folder)
            return None
        job = self._start_push(folder, commit_message, token or self.args.hub_token, revision)
        if not blocking:
            self._pushes.append(job)
            job.add_done_callback(self._log_failure)
            return job
        try:
            return job.result()
        except Exception as error:
            raise PushFailed(self.what_failed(commit_message, error)) from error

    def _start_push(self, folder: Path, message: str, token: str | None, revision: str | None) -> Future:
        """Send a folder from a thread, after the pushes that wait already, and delete it."""
        repository, branch = str(self.hub_model_id), revision or self.args.hub_revision

        def send() -> CommitInfo:
            try:
                return send_folder(self._api, repository, folder, message, token, branch)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

        return self._api.run_as_future(send)

    # ---- in the background ----------------------------------------------------------------------------------------

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Send a checkpoint's model, unless the push before it still runs (and not `hub_always_push`)."""
        self._hear_of_pushes()
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if self._pushes and not self.args.hub_always_push:
            return
        message = f"Training in progress, step {self.state.global_step}"
        try:
            staging = copy_of(Path(checkpoint_folder))  # training may delete the checkpoint before it has left
        except OSError as error:  # a full disk, say; the training goes on
            self._failed_pushes.append(self.what_failed(message, error))
            logger.error(self._failed_pushes[-1])
            return
        self.push_folder(staging, message, blocking=False)

    def _log_failure(self, job: Future) -> None:
        """At once, from the thread that sent it: also when training has been broken off and nobody asks any more."""
        error = job.exception()
        if error is not None:
            logger.error(self.what_failed("in the background", error))

    def _hear_of_pushes(self, wait: bool = False) -> None:
        """Collect the failures of pushes that have ended; `wait` lets all of them end first."""
        for job in [job for job in self._pushes if wait or job.done()]:
            error = job.exception()
            self._pushes.remove(job)
            if error is not None:
                self._failed_pushes.append(self.what_failed("in the background", error))

    def _finish_current_push(self) -> None:
        """Called by the stock trainer at the end of training."""
        self._hear_of_pushes(wait=True)

    def raise_failed_pushes(self) -> None:
        """Raise PushFailed if a push in the background failed since the last call; waits for those that still run."""
        self._hear_of_pushes(wait=True)
        failed, self._failed_pushes = self._failed_pushes, []
        if failed:
            raise PushFailed(failed[0] + (f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""))

    def what_failed(self, what: str, error: BaseException) -> str:
        """The line of a PushFailed."""
        return (
            f"pushing to '{self.hub_model_id}' failed ({what}): {in_short(error)}; what was saved in "
            f"'{self.args.output_dir}' is complete, `hf-seqmodels export` and `push` send it again"
        )


def new_staging() -> Path:
    """A new folder, outside `output_dir`, that only this user can read."""
    return Path(tempfile.mkdtemp(prefix="hf-seqmodels-push-"))


def copy_of(checkpoint: Path) -> Path:
    """What of a checkpoint may leave, in a new folder; after an error there is none."""
    staging = new_staging()
    try:
        shutil.copytree(checkpoint, staging, ignore=shutil.ignore_patterns(*ONLY_HERE), dirs_exist_ok=True)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return staging


def send_folder(
    api: HfApi, repo_id: str, folder: Path, message: str, token: str | None = None, revision: str | None = None
) -> CommitInfo:
    """`upload_folder` of what may leave, tried again on 429, 5xx and broken connections.

    A second try sends nothing twice: files that arrived are the same there, and a commit without changes is not made.
    """
    for tried in range(1, TRIES + 1):
        try:
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=message,
                token=token,
                revision=revision,
                allow_patterns=PUSHED,
            )
        except (OSError, RuntimeError, HTTPError) as error:
            if tried == TRIES or not is_passing(error):
                raise
            logger.warning(f"push to {repo_id}: {in_short(error)}; try {tried + 1} of {TRIES}")
            time.sleep(wait_of(error, FIRST_WAIT * 2 ** (tried - 1)))
    raise AssertionError("unreachable")


def is_passing(error: BaseException | None) -> bool:
    """Whether the same call may succeed a moment later. An upload's error hides the reason in its cause."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    if isinstance(error, RuntimeError):
        return is_passing(error.__cause__)
    return isinstance(error, HTTPError | ConnectionError)


def wait_of(error: BaseException, otherwise: float) -> float:
    """Seconds until the next try: what the Hub asks for, up to a minute."""
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return min(float(asked), 60.0) if asked.isdigit() else otherwise


def in_short(error: BaseException) -> str:
    """An error of the client in one line, without the address list that some carry."""
    return " ".join(str(error).split())[:300] or type(error).__name__
