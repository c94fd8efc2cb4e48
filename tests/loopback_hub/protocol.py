"""What a call to the Hub is, what it answers, and the errors that the client tells apart by their headers."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs


@dataclass(frozen=True)
class User:
    """Whoever a token belongs to."""

    name: str
    organisations: tuple[str, ...] = ()
    role: str = "write"

    def owns(self, namespace: str) -> bool:
        return namespace == self.name or namespace in self.organisations


@dataclass
class Request:
    """One call, kept in the hub's log: `path` as sent with its query, `body` complete."""

    method: str
    path: str
    headers: Mapping[str, str]  # names in lower case
    body: bytes = b""
    user: User | None = None
    status: int | str = 0  # what was answered, or the fault that was played

    @property
    def route(self) -> str:
        return self.path.partition("?")[0]

    @property
    def query(self) -> dict[str, str]:
        return {name: values[-1] for name, values in parse_qs(self.path.partition("?")[2]).items()}

    def parts(self) -> Iterator[bytes]:
        """The body, and all that stands in it as base64, in one JSON or one on each line."""
        yield self.body
        for line in self.body.splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                continue
            for text in strings_in(value):
                try:
                    yield base64.b64decode(text, validate=True)
                except ValueError:
                    continue

    def json(self) -> Any:
        try:
            return json.loads(self.body or b"{}")
        except ValueError:
            raise HubError(400, message="the body is not JSON") from None


def strings_in(value: Any) -> Iterator[str]:
    """All strings of a JSON value, names of fields aside."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from strings_in(each)


@dataclass
class Reply:
    """Status, body and headers; Content-Length and Date are added when it is sent."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def json_reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


class HubError(Exception):
    """Becomes a reply: `code` goes into X-Error-Code, which decides the client's exception class."""

    def __init__(self, status: int, code: str | None = None, message: str = "", **headers: str):
        super().__init__(message or code or str(status))
        named = {"X-Error-Code": code, "X-Error-Message": message or None}
        extra = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {name: value for name, value in named.items() if value} | extra
        self.reply = json_reply({"error": message or code or "refused"}, status, sent)


def repository_missing(user: User | None) -> HubError:
    """Also what a private repository says to strangers."""
    return HubError(404 if user else 401, "RepoNotFound", "Repository not found")


def revision_missing(revision: str) -> HubError:
    return HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")


def entry_missing(path: str, commit: str) -> HubError:
    """With the commit the client may remember that there is no such file."""
    return HubError(404, "EntryNotFound", f"{path} does not exist", X_Repo_Commit=commit)


Route = tuple[str, str, Callable[..., Reply]]  # method, pattern of the path with named groups, answer(hub, request, …)
