"""Large files by Xet: the client's own Rust code stores chunks in a folder; the server reads its index.

`hf_xet` takes an address as `local:///folder` for a store of its own tests, so the whole path of chunks, deduplication
and reconstruction runs without a network. The folder serves one process at a time.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .protocol import Reply, Request, Route, json_reply
from .repositories import API

if TYPE_CHECKING:
    from .server import Hub

HEADER, RECORD = 48, 48  # bytes
END = b"\xff" * 32
WITH_VERIFICATION, WITH_METADATA = 0x8000_0000, 0x4000_0000


@dataclass(frozen=True)
class Stored:
    """A file of the Xet store."""

    hash: str
    sha256: str
    size: int


def in_hex(raw: bytes) -> str:
    """Xet prints a hash as four little-endian numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))


def read_shard(data: bytes) -> Iterator[Stored]:
    """The files that a shard lists: per file a header, its segments, their verification, and the sha256."""
    at = HEADER
    while data[at : at + 32] != END:
        file_hash, (flags, segments) = data[at : at + 32], struct.unpack_from("<II", data, at + 32)
        at += RECORD
        # A segment: 32 bytes of the hash of what holds it, then flags, its bytes unpacked, first and last chunk.
        size = sum(struct.unpack_from("<I", data, at + RECORD * index + 36)[0] for index in range(segments))
        at += RECORD * segments * (2 if flags & WITH_VERIFICATION else 1)
        if flags & WITH_METADATA:
            yield Stored(in_hex(file_hash), in_hex(data[at : at + 32]), size)
            at += RECORD


_READ = """
import sys, hf_xet
store, file_hash, size, out = sys.argv[1:]
with hf_xet.XetSession().new_file_download_group(endpoint=store) as group:
    group.start_download_file(hf_xet.XetFileInfo(file_hash, int(size)), out)
"""


class XetStore:
    """A folder that the client's local store uses, as the server sees it."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.address = folder, f"local://{folder}"
        self.known: dict[str, bytes] = {}

    def find(self, sha256: str) -> Stored | None:
        """The stored file with these contents, if a client has put it there."""
        for shard in self.folder.rglob("*.mdb"):
            for stored in read_shard(shard.read_bytes()):
                if stored.sha256 == sha256:
                    return stored
        return None

    def read(self, stored: Stored) -> bytes:
        """The bytes, for callers that do not speak Xet; in a process of its own, which leaves the folder free."""
        if stored.hash not in self.known:
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder, "file")
                command = [sys.executable, "-c", _READ, self.address, stored.hash, str(stored.size), str(out)]
                subprocess.run(command, check=True, capture_output=True, timeout=60)
                self.known[stored.hash] = out.read_bytes()
        return self.known[stored.hash]


def token(hub: Hub, request: Request, kind: str, repo: str, access: str, rev: str) -> Reply:
    """Where the store is; `rev` may be None for a pull request that is to be opened."""
    hub.find(request, kind, repo, write=access == "write" and "create_pr" not in request.query)
    assert hub.xet is not None
    expires = int(time.time()) + 3600
    body = {"casUrl": hub.xet.address, "accessToken": "loopback", "exp": expires}
    headers = {
        "X-Xet-Cas-Url": hub.xet.address,
        "X-Xet-Access-Token": "loopback",
        "X-Xet-Token-Expiration": str(expires),
    }
    return json_reply(body, 200, headers)


ROUTES: list[Route] = [("GET", API + r"/xet-(?P<access>read|write)-token/(?P<rev>[^/]+)", token)]
