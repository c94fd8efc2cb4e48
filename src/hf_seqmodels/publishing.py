"""A finished run goes to the Hub the way an exported folder does."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from .config import one_line
from .training import PushFailed, SeqTrainer

LAST_PUSH = "End of training"


def publish(trainer: SeqTrainer) -> None:
    """Push the finished run as `hf-seqmodels export` makes it, the way `hf-seqmodels push` does it.

    That is: with card and checksums, loaded by a stranger first, one commit on top of the one that was the last, with
    patience, and every file compared with what arrived.

    Raises:
        PushFailed: it did not hold up, and nothing was sent; or the Hub did not take it, or has something else.
    """
    if not trainer.is_world_process_zero():
        return
    from .hub.export import export
    from .hub.publish import forget, push
    from .hub.publish_errors import PushFailed as HubFailed
    from .hub.verify import VerificationError

    args, run, name = trainer.args, Path(str(trainer.args.output_dir)), str(trainer.hub_model_id)
    branch = args.hub_revision or "main"
    with TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch, name.rpartition("/")[2])
        try:
            export(run, folder)
        except (ValueError, OSError, VerificationError) as error:
            raise PushFailed(f"nothing was pushed: '{run}' cannot be exported: {one_line(error)}") from None
        if branch.startswith("refs/"):  # of a pull request, which `push` does not write to
            trainer.push_folder(folder, LAST_PUSH)
            return
        trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
        try:
            push(
                folder,
                name,
                public=args.hub_private_repo is not True,
                branch=branch,
                message=LAST_PUSH,
                token=args.hub_token,
                say=lambda line: print(f"push: {line}", file=sys.stderr),
            )
        except (HubFailed, ValueError, OSError) as error:
            forget(name)  # the folder to go on with is gone; `export` and `push` make a new one
            raise PushFailed(trainer.what_failed(LAST_PUSH, error)) from None
