"""What goes wrong in a push, in one line that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import HfHubHTTPError, HTTPError

from ..config import one_line
from .publish_plan import PushRefused
from .retry import HubUnavailable, reason_of

WAY_OUT = {
    401: "the Hub does not know the token (401); log in again with `hf auth login`, or set HF_TOKEN",
    402: "the Hub wants to be paid for that (402); see https://huggingface.co/settings/billing",
    403: "the token may not do that (403); use one with write access to this repository",
    404: "the Hub has no such thing (404); check the name, and that the token may read it",
    413: "that is too large for the Hub (413); save in shards: save_pretrained(..., max_shard_size='5GB')",
}


class PushFailed(RuntimeError):
    """The Hub did not do what was asked, or what arrived is not what was sent: one line, with what to do."""


class PushLost(PushFailed):
    """A failure that going on with the same push cannot mend."""


@contextmanager
def step(what: str) -> Iterator[None]:
    """Turn whatever a call raises into one line that names what was being done."""
    try:
        yield
    except (PushFailed, PushRefused):
        raise
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise PushFailed(f"could not {what}: {explain(error)}") from error


def explain(error: Exception) -> str:
    """What to do about an error of the client, in one line without addresses and headers."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:  # uploads in threads wrap what happened
        seen.append(cause)
        if isinstance(cause, HubUnavailable):
            return f"{cause}; try again later"
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            said = " ".join((cause.server_message or "").split())
            return WAY_OUT.get(status, f"the Hub answers {status}") + (f" [it says: {said}]" if said else "")
        if isinstance(cause, HTTPError):
            return f"{reason_of(cause)}; try again later"
        cause = cause.__cause__ or cause.__context__
    return one_line(error)
