"""Patience with the Hub: calls that meet a busy server, a server error or a dropped connection are made again."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import get_session, parse_ratelimit_headers

SILENCE = 300.0  # seconds without a byte after which a connection counts as dropped
LONGEST_ASKED = 600.0  # seconds; a server that asks for more gets its wish: the push stops and can be resumed
COMMIT = re.compile(r"/api/models/[^/]+/[^/]+/commit/")


class HubUnavailable(RuntimeError):
    """The Hub did not answer after all tries."""


@dataclass(frozen=True)
class Patience:
    """How often and how long.

    Attributes:
        retries: tries after the first one.
        first: the first wait in seconds; each further one is twice as long.
        longest: no wait is longer, unless the server asks for it by Retry-After.
        say: receives one line for each wait.
    """

    retries: int = 6
    first: float = 0.5
    longest: float = 60.0
    say: Callable[[str], None] = print

    def wait(self, tried: int, reason: str, asked: float | None = None) -> None:
        """Sleep before the next try.

        Args:
            tried: how many tries failed so far.
            reason: what happened, for the line that is shown.
            asked: seconds that the server asked for; otherwise the wait grows with `tried`, and is cut at random
                to between a half and the whole, so that many clients do not come back at one moment.

        Raises:
            HubUnavailable: it was the last try, or the server asks for more than ten minutes.
        """
        if asked is not None and asked > LONGEST_ASKED:
            raise HubUnavailable(f"{reason}; the server asks to wait {asked:,.0f} s")
        if tried > self.retries:
            raise HubUnavailable(f"{reason}; gave up after {tried} {'try' if tried == 1 else 'tries'}")
        seconds = min(self.longest, self.first * 2 ** (tried - 1)) * random.uniform(0.5, 1.0)
        if asked is not None:
            seconds = asked + random.uniform(0.0, 0.5)
        self.say(f"{reason}; retry {tried} of {self.retries} in {seconds:.1f} s")
        time.sleep(seconds)


@contextmanager
def patient_session(patience: Patience) -> Iterator[None]:
    """All calls of `huggingface_hub` in this process are made with patience, while the context is open.

    The shared session's `request` and `stream` are wrapped: one rule for every call, where the client itself retries
    some calls, without jitter, and others not at all. A commit is the exception: when its answer is lost it may have
    been made, so only 429 is tried again here, and the caller looks before it tries again. (Xet transfers are made by
    the Rust client, which has its own patience.)
    """
    session = get_session()
    request, stream = session.request, session.stream

    def patient_request(method: str, url: Any, **options: Any) -> Any:
        body: Any = options.get("data")
        start = body.tell() if hasattr(body, "seek") else None

        def call() -> Any:
            if start is not None:
                body.seek(start)  # an uploaded file was read by the try before
            return request(method, url, **options)

        return _until_answered(patience, method, str(url), call)

    @contextmanager
    def patient_stream(method: str, url: Any, **options: Any) -> Iterator[Any]:
        with ExitStack() as stack:

            def call() -> Any:
                stack.close()  # the answer of the try before
                return stack.enter_context(stream(method, url, **options))

            yield _until_answered(patience, method, str(url), call)

    wrapped: Any = session
    wrapped.request, wrapped.stream = patient_request, patient_stream
    timeout = session.timeout
    if timeout.read is None:  # the client's default is to wait for ever
        session.timeout = SILENCE
    try:
        yield
    finally:
        session.timeout = timeout
        del wrapped.request, wrapped.stream


def _until_answered(patience: Patience, method: str, url: str, call: Callable[[], Any]) -> Any:
    """The first answer that another try would not change; other errors are for the client to raise."""
    is_commit = method == "POST" and COMMIT.search(url) is not None
    what = f"{method} {urlsplit(url).path}"  # never the query: upload addresses are signed there
    tried = 0
    while True:
        tried += 1
        try:
            answer = call()
        except HTTPError as error:
            if is_commit:
                raise
            patience.wait(tried, f"{what}: {reason_of(error)}")
            continue
        if not _is_transient(answer.status_code) or (is_commit and answer.status_code != 429):
            return answer
        patience.wait(tried, f"{what}: the Hub answers {answer.status_code}", seconds_asked(answer))


def _is_transient(status: int) -> bool:
    """Too slow, too many calls, or the server's own trouble."""
    return status in (408, 429) or status >= 500


def may_have_happened(error: BaseException) -> bool:
    """Whether a commit that raised this may have been made all the same: its answer was lost, or the server failed."""
    if isinstance(error, HfHubHTTPError):
        return _is_transient(error.response.status_code)
    return isinstance(error, HTTPError)


def reason_of(error: BaseException) -> str:
    """A dropped connection or a server error in a few words, without addresses."""
    if isinstance(error, HfHubHTTPError):
        return f"the Hub answers {error.response.status_code}"
    return f"the connection failed ({type(error).__name__})"


def seconds_asked(answer: Any) -> float | None:
    """What `Retry-After` (seconds or a date), or the Hub's own `ratelimit` header, asks for; None if neither does."""
    limit = parse_ratelimit_headers(answer.headers)
    if answer.status_code == 429 and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    asked = answer.headers.get("Retry-After", "").strip()
    if asked.isdigit():
        return float(asked)
    try:
        moment = parsedate_to_datetime(asked)
    except ValueError:
        return None
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
