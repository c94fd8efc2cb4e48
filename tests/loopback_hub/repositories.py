"""Calls about repositories: who am I, create, delete, settings, references, pull requests, history, cards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from .protocol import HubError, Reply, Request, Route, User, json_reply, revision_missing
from .storage import Repository, now

if TYPE_CHECKING:
    from .server import Hub

PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}


def whoami(hub: Hub, request: Request) -> Reply:
    user = hub.signed_in(request)
    return json_reply(
        {
            "type": "user",
            "name": user.name,
            "fullname": user.name.title(),
            "orgs": [{"name": name, "roleInOrg": "write"} for name in user.organisations],
            "auth": {"type": "access_token", "accessToken": {"displayName": "loopback", "role": user.role}},
        }
    )


def full_name(user: User, named: dict[str, Any]) -> str:
    """`{"name", "organization"}` as a repository's id; refused if the namespace is somebody else's."""
    namespace = named.get("organization") or user.name
    if not user.owns(namespace):
        raise HubError(403, message=f"You don't have the rights to create a model under the namespace '{namespace}'")
    return f"{namespace}/{named['name'].rpartition('/')[2]}"


def create(hub: Hub, request: Request) -> Reply:
    user, wanted = hub.writer(request), request.json()
    kind = wanted.get("type") or "model"
    name = full_name(user, wanted)
    url = {"url": f"{hub.endpoint}/{PREFIXES[kind]}{name}"}
    if (kind, name) in hub.repositories:
        return json_reply(url | {"error": "You already created this model repo"}, 409)
    private = wanted.get("private") is True or wanted.get("visibility") == "private"
    hub.repositories[kind, name] = Repository(name, kind, user.name, private)
    return json_reply(url)


def delete(hub: Hub, request: Request) -> Reply:
    user, wanted = hub.writer(request), request.json()
    kind = wanted.get("type") or "model"
    repository = hub.find(request, kind, full_name(user, wanted), write=True)
    del hub.repositories[kind, repository.name]
    return json_reply({})


def settings(hub: Hub, request: Request, kind: str, repo: str) -> Reply:
    repository, wanted = hub.find(request, kind, repo, write=True), request.json()
    if "private" in wanted or "visibility" in wanted:
        repository.private = wanted.get("private") is True or wanted.get("visibility") == "private"
    repository.gated = wanted.get("gated", repository.gated)
    return json_reply({"private": repository.private, "gated": repository.gated})


def card_data(text: str) -> dict[str, Any]:
    """The metadata at the top of a README; {} without any.

    Raises:
        ValueError: it is no YAML, or no mapping.
    """
    if not text.startswith("---"):
        return {}
    head = text.removeprefix("---").partition("\n---")[0]
    try:
        data = yaml.safe_load(head)
    except yaml.YAMLError as error:
        raise ValueError(f"invalid YAML: {error}") from None
    if data is not None and not isinstance(data, dict):
        raise ValueError("metadata must be a mapping")
    return data or {}


def validate_yaml(hub: Hub, request: Request) -> Reply:
    """The part of the Hub's checks that is plain: YAML, a mapping, a licence and tags of the right kind."""
    problems = []
    try:
        data = card_data(request.json()["content"])
        if not isinstance(data.get("license", ""), str | list):
            problems.append('"license" must be a string')
        if not isinstance(data.get("tags", []), list):
            problems.append('"tags" must be an array')
        for entry in data.get("model-index") or []:
            if not isinstance(entry, dict) or not isinstance(entry.get("results"), list):
                problems.append('"model-index[].results" must be an array')
    except ValueError as error:
        problems.append(str(error).replace("\n", " "))
    body = {"errors": [{"message": problem} for problem in problems], "warnings": []}
    return json_reply(body, 400 if problems else 200)


def info(hub: Hub, request: Request, kind: str, repo: str, rev: str = "main") -> Reply:
    repository = hub.find(request, kind, repo)
    commit = repository.commit(rev)
    if commit is None:
        raise revision_missing(rev)
    card = commit.files.get("README.md")
    try:
        data = card_data(card.content().decode(errors="replace")) if card else {}
    except ValueError:
        data = {}
    return json_reply(
        {
            "_id": commit.sha[:24],
            "id": repository.name,
            "modelId": repository.name,
            "author": repository.owner,
            "sha": commit.sha,
            "private": repository.private,
            "gated": repository.gated,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": data.get("tags") or [],
            "pipeline_tag": data.get("pipeline_tag"),
            "library_name": data.get("library_name"),
            "cardData": data,
            "createdAt": repository.created,
            "lastModified": commit.date,
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
            "spaces": [],
        }
    )


def references(hub: Hub, request: Request, kind: str, repo: str) -> Reply:
    repository = hub.find(request, kind, repo)

    def listed(prefix: str) -> list[dict[str, str]]:
        names = repository.names(prefix)
        return [{"name": name, "ref": prefix + name, "targetCommit": sha} for name, sha in names.items()]

    pulls = {"pullRequests": listed("refs/pr/")} if request.query.get("include_prs") == "1" else {}
    return json_reply({"branches": listed("refs/heads/"), "tags": listed("refs/tags/"), "converts": [], **pulls})


def start_reference(repository: Repository, reference: str, revision: str) -> Reply:
    commit = repository.commit(revision)
    if commit is None:
        raise revision_missing(revision)
    if reference in repository.references:
        raise HubError(409, message=f"Reference already exists: {reference}")
    repository.references[reference] = commit.sha
    return json_reply({})


def drop_reference(repository: Repository, reference: str) -> Reply:
    if reference not in repository.references:
        raise revision_missing(reference)
    if reference == "refs/heads/main":
        raise HubError(403, message="The main branch cannot be deleted")
    del repository.references[reference]
    return json_reply({})


def branch(hub: Hub, request: Request, kind: str, repo: str, name: str) -> Reply:
    repository = hub.find(request, kind, repo, write=True)
    if request.method == "DELETE":
        return drop_reference(repository, f"refs/heads/{name}")
    return start_reference(repository, f"refs/heads/{name}", request.json().get("startingPoint") or "main")


def tag(hub: Hub, request: Request, kind: str, repo: str, name: str) -> Reply:
    """POST names the revision that gets the tag, DELETE the tag."""
    repository = hub.find(request, kind, repo, write=True)
    if request.method == "DELETE":
        return drop_reference(repository, f"refs/tags/{name}")
    return start_reference(repository, f"refs/tags/{request.json()['tag']}", name)


def commits(hub: Hub, request: Request, kind: str, repo: str, rev: str) -> Reply:
    history = hub.find(request, kind, repo).history(rev)
    if not history:
        raise revision_missing(rev)
    return json_reply(
        [
            {
                "id": commit.sha,
                "title": commit.title,
                "message": commit.message,
                "authors": [{"user": commit.author}],
                "date": commit.date,
            }
            for commit in history
        ]
    )


def open_pull_request(repository: Repository, user: User, title: str) -> int:
    """A new draft and its reference refs/pr/N, which starts where main is."""
    number = len(repository.discussions) + 1
    repository.references[f"refs/pr/{number}"] = repository.references["refs/heads/main"]
    repository.discussions[number] = {
        "num": number,
        "title": title,
        "status": "draft",
        "author": {"name": user.name},
        "createdAt": now(),
        "isPullRequest": True,
        "events": [],
        "changes": {"base": "refs/heads/main"},
        "filesWithConflicts": [],
        "repo": {"name": repository.name, "type": repository.kind},
        "diff": "",
    }
    return number


def discuss(hub: Hub, request: Request, kind: str, repo: str) -> Reply:
    """Anybody who sees a repository may open a pull request."""
    repository, user = hub.find(request, kind, repo), hub.writer(request)
    return json_reply({"num": open_pull_request(repository, user, request.json()["title"])})


def discussion(hub: Hub, request: Request, kind: str, repo: str, number: str) -> Reply:
    repository = hub.find(request, kind, repo)
    if int(number) not in repository.discussions:
        raise HubError(404, message="there is no such discussion")
    return json_reply(repository.discussions[int(number)])


API = r"/api/(?P<kind>models|datasets|spaces)/(?P<repo>[^/]+/[^/]+)"
ROUTES: list[Route] = [
    ("GET", r"/api/whoami-v2", whoami),
    ("POST", r"/api/repos/create", create),
    ("DELETE", r"/api/repos/delete", delete),
    ("POST", r"/api/validate-yaml", validate_yaml),
    ("PUT", API + r"/settings", settings),
    ("GET", API, info),
    ("GET", API + r"/revision/(?P<rev>[^/]+)", info),
    ("GET", API + r"/refs", references),
    ("POST|DELETE", API + r"/branch/(?P<name>[^/]+)", branch),
    ("POST|DELETE", API + r"/tag/(?P<name>[^/]+)", tag),
    ("GET", API + r"/commits/(?P<rev>[^/]+)", commits),
    ("POST", API + r"/discussions", discuss),
    ("GET", API + r"/discussions/(?P<number>\d+)", discussion),
]
