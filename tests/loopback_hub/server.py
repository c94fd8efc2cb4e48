"""The server: finds the answer of a call, plays the faults that a test asked for, and keeps a log."""

from __future__ import annotations

import re
import time
import traceback
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import RLock
from typing import Any
from urllib.parse import unquote

from . import collection_routes, contents, lfs, repositories, xet
from .protocol import HubError, Reply, Request, Route, User, repository_missing
from .storage import Repository

KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
FAULTS = ("drop", "lose", "delay", "truncate", "flip")


@dataclass
class Fault:
    """What happens to the next calls that fit.

    A status answers with it and does nothing. "drop" closes the connection before anything is done, "lose" after it;
    "delay" answers `seconds` later; "truncate" closes it after half of the body; "flip" changes one bit of the body.
    """

    method: str
    path: re.Pattern[str]
    what: int | str
    times: int = 1
    after: int = 0  # calls that fit and are let through first
    seconds: float = 2.0
    headers: dict[str, str] = field(default_factory=dict)

    def fits(self, request: Request) -> bool:
        """Whether it is this call's turn; counts it."""
        named = self.method in ("*", request.method) and self.path.search(unquote(request.path))
        if not named or not self.times:
            return False
        if self.after:
            self.after -= 1
            return False
        self.times -= 1
        return True


class Hub:
    """Everything the server knows: who may come in, repositories, large files, collections, faults, the log."""

    def __init__(self, tokens: dict[str, User], store: Path | None = None):
        self.tokens, self.endpoint = tokens, ""
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large: dict[str, bytes] = {}  # sha256 → bytes that came by LFS
        self.xet = xet.XetStore(store) if store else None
        self.collections: dict[str, dict[str, Any]] = {}
        self.faults: list[Fault] = []
        self.log: list[Request] = []
        self.mistakes: list[str] = []
        self.lock = RLock()
        modules = [repositories, contents, lfs, collection_routes, *([xet] if store else [])]
        self.routes: list[Route] = [route for module in modules for route in module.ROUTES]

    # ---- who may do what ----------------------------------------------------------------------------------------

    def user(self, request: Request) -> User | None:
        """Whose token came with the call; None without one.

        Raises:
            HubError: 401, nobody has this token.
        """
        token = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if token and token not in self.tokens:
            raise HubError(401, message="Invalid credentials in Authorization header")
        return self.tokens.get(token)

    def signed_in(self, request: Request) -> User:
        user = self.user(request)
        if user is None:
            raise HubError(401, message="Invalid username or password.")
        return user

    def writer(self, request: Request) -> User:
        user = self.signed_in(request)
        if user.role != "write":
            raise HubError(403, message="you must use a write token: this one may only read")
        return user

    def find(self, request: Request, kind: str, name: str, *, write: bool = False, read: bool = False) -> Repository:
        """A repository that the caller may see; to `write`, or to `read` files of a gated one, takes more.

        Raises:
            HubError: it is not there or not for this caller.
        """
        user = self.user(request)
        repository = self.repositories.get((KINDS.get(kind, kind), name))
        owns = user is not None and user.owns(name.partition("/")[0])
        if repository is None or (repository.private and not owns):
            raise repository_missing(user)
        if read and repository.gated and not owns:
            raise HubError(403 if user else 401, "GatedRepo", f"Access to model {name} is restricted")
        if write and not self.writer(request).owns(repository.owner):
            raise HubError(403, message=f"you have no write access to {name}")
        return repository

    # ---- calls --------------------------------------------------------------------------------------------------

    def fault(self, request: Request) -> Fault | None:
        with self.lock:
            return next((fault for fault in self.faults if fault.fits(request)), None)

    def answer(self, request: Request) -> Reply:
        """The reply of the first route whose method and path fit; 404 without one."""
        with self.lock:
            try:
                request.user = self.user(request)
                for method, pattern, reply in self.routes:
                    found = re.fullmatch(pattern, request.route)
                    if found and request.method in method.split("|"):
                        named = {name: unquote(text) for name, text in found.groupdict().items() if text is not None}
                        return reply(self, request, **named)
                raise HubError(404, message=f"no such call: {request.method} {request.route}")
            except HubError as error:
                return error.reply
            except Exception:  # a mistake in the server must not look like a Hub that refuses
                self.mistakes.append(f"{request.method} {request.path}\n{traceback.format_exc()}")
                return HubError(500, message="the loopback hub is broken").reply


class Handler(BaseHTTPRequestHandler):
    """One connection. HTTP/1.1: it stays open between calls."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Server

    def log_message(self, *arguments):
        """Nothing is printed: the hub keeps its own log."""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (BrokenPipeError, ConnectionResetError):  # the client went away
            self.close_connection = True

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def take(self) -> None:
        hub, headers = self.server.hub, {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, self.read_body())
        hub.log.append(request)
        fault = hub.fault(request)
        what = fault.what if fault else None
        if what == "drop":
            request.status, self.close_connection = "drop", True
            return
        if fault is not None and isinstance(what, int):
            reply = HubError(what, message="a fault that the test asked for").reply
            reply.headers |= fault.headers
        else:
            reply = hub.answer(request)
        request.status = what if isinstance(what, str) else reply.status
        if what == "lose":
            self.close_connection = True
            return
        if fault is not None and what == "delay":
            time.sleep(fault.seconds)
        self.send(reply, what)

    def send(self, reply: Reply, fault: int | str | None) -> None:
        body = reply.body
        if fault == "flip" and body:
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.send_response(reply.status)
        for name, value in ({"Content-Length": str(len(body))} | reply.headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "truncate":
            body, self.close_connection = body[: len(body) // 2], True
        self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = take


class Server(ThreadingHTTPServer):
    """Listens on 127.0.0.1, at a port that was free."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: Hub, port: int = 0):
        super().__init__(("127.0.0.1", port), Handler)
        self.hub = hub
        hub.endpoint = f"http://127.0.0.1:{self.server_port}"
