"""Calls about collections: named lists of repositories."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

from .protocol import HubError, Reply, Request, Route, User, json_reply
from .storage import now

if TYPE_CHECKING:
    from .server import Hub


def visible(hub: Hub, request: Request, slug: str) -> dict[str, Any]:
    user, found = hub.user(request), hub.collections.get(slug)
    if found is None or (found["private"] and not (user and user.owns(found["owner"]["name"]))):
        raise HubError(404, message=f"there is no collection {slug}")
    return found


def owned(hub: Hub, request: Request, slug: str) -> dict[str, Any]:
    found, user = visible(hub, request, slug), hub.writer(request)
    if not user.owns(found["owner"]["name"]):
        raise HubError(403, message="You don't have the rights to change this collection")
    return found


def create(hub: Hub, request: Request) -> Reply:
    user, wanted = hub.writer(request), request.json()
    owner, title = wanted["namespace"], wanted["title"]
    if not user.owns(owner):
        raise HubError(403, message=f"You don't have the rights to create a collection for '{owner}'")
    if len(title) > 60:  # the Hub's limit
        raise HubError(400, message='"title" length must be less than or equal to 60 characters long')
    if len(wanted.get("description") or "") > 150:
        raise HubError(400, message='"description" length must be less than or equal to 150 characters long')
    for slug, other in hub.collections.items():
        if (other["owner"]["name"], other["title"]) == (owner, title):
            return json_reply({"error": "a collection with this title exists", "slug": slug}, 409)
    short = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    slug = f"{owner}/{short}-{hashlib.sha1(f'{owner}/{title}'.encode()).hexdigest()[:24]}"
    hub.collections[slug] = {
        "slug": slug,
        "title": title,
        "description": wanted.get("description"),
        "owner": {"name": owner, "type": "user"},
        "items": [],
        "lastUpdated": now(),
        "position": 0,
        "private": bool(wanted.get("private")),
        "theme": "green",
        "upvotes": 0,
    }
    return json_reply(hub.collections[slug])


def collections(hub: Hub, request: Request) -> Reply:
    """All that the caller may see, of one owner if asked."""
    user, owner = hub.user(request), request.query.get("owner")
    found = [each for each in hub.collections.values() if owner in (None, each["owner"]["name"])]
    seen = [each for each in found if not each["private"] or sees(user, each["owner"]["name"])]
    # the client counts positions itself; only the first four items are told
    return json_reply(
        [
            {name: value for name, value in each.items() if name != "position"} | {"items": each["items"][:4]}
            for each in seen
        ]
    )


def sees(user: User | None, owner: str) -> bool:
    return user is not None and user.owns(owner)


def collection(hub: Hub, request: Request, slug: str) -> Reply:
    return json_reply(visible(hub, request, slug))


def change(hub: Hub, request: Request, slug: str) -> Reply:
    found = owned(hub, request, slug)
    if request.method == "DELETE":
        del hub.collections[slug]
        return json_reply({})
    found.update({name: value for name, value in request.json().items() if name in found})
    return json_reply({"data": found})


def add_item(hub: Hub, request: Request, slug: str) -> Reply:
    found, wanted = owned(hub, request, slug), request.json()
    named = wanted["item"]
    if (named["type"], named["id"]) in [(item["type"], item["id"]) for item in found["items"]]:
        raise HubError(409, message="the item is already in the collection")
    hub.find(request, named["type"], named["id"])
    note = {"note": {"text": wanted["note"], "html": wanted["note"]}} if wanted.get("note") else {}
    position = len(found["items"])
    identity = hashlib.sha1(f"{slug} {named}".encode()).hexdigest()[:24]
    found["items"].append({"_id": identity, "position": position, **named, **note})
    found["lastUpdated"] = now()
    return json_reply(found)


def change_item(hub: Hub, request: Request, slug: str, identity: str) -> Reply:
    found = owned(hub, request, slug)
    item = next((item for item in found["items"] if item["_id"] == identity), None)
    if item is None:
        raise HubError(404, message="there is no such item")
    if request.method == "DELETE":
        found["items"].remove(item)
    elif request.json().get("note"):
        item["note"] = {"text": request.json()["note"]}
    return json_reply({})


ONE = r"/api/collections/(?P<slug>[^/]+/[^/]+)"
ROUTES: list[Route] = [
    ("POST", r"/api/collections", create),
    ("GET", r"/api/collections", collections),
    ("GET", ONE, collection),
    ("PATCH|DELETE", ONE, change),
    ("POST", ONE + r"/items?", add_item),
    ("PATCH|DELETE", ONE + r"/items/(?P<identity>[^/]+)", change_item),
]
