"""Large files by git-lfs: the batch call, the upload, and the check that it came whole."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from .contents import REPOSITORY
from .protocol import HubError, Reply, Request, Route, json_reply

if TYPE_CHECKING:
    from .server import Hub


def batch(hub: Hub, request: Request, repo: str, kind: str = "") -> Reply:
    """Where to put the objects that are not there yet."""
    wanted = request.json()
    write = wanted.get("operation") == "upload" and "refs/pr/" not in str(wanted.get("ref"))
    hub.find(request, kind.strip("/") or "models", repo, write=write)
    answers = []
    for wished in wanted["objects"]:
        answer = {"oid": wished["oid"], "size": wished["size"]}
        if wished["oid"] not in hub.large:
            upload = {"href": f"{hub.endpoint}/lfs/{wished['oid']}"}
            verify = {"href": f"{hub.endpoint}/lfs-verify"}
            answer["actions"] = {"upload": upload, "verify": verify}
        answers.append(answer)
    return json_reply({"transfer": "basic", "objects": answers})


def put(hub: Hub, request: Request, oid: str) -> Reply:
    """The address is the permission; no token may come with it, the real storage is another company's."""
    if "authorization" in request.headers:
        raise HubError(400, message="a token was sent to the storage")
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise HubError(422, message="the bytes are not those that were promised")
    hub.large[oid] = request.body
    return Reply(200)


def verify(hub: Hub, request: Request) -> Reply:
    named = request.json()
    data = hub.large.get(named["oid"])
    if data is None or len(data) != named["size"]:
        raise HubError(404, message=f"{named['oid']} did not arrive")
    return json_reply({})


ROUTES: list[Route] = [
    ("POST", REPOSITORY + r"\.git/info/lfs/objects/batch", batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", put),
    ("POST", r"/lfs-verify", verify),
]
