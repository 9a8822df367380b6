"""A hub on loopback that takes files: repositories, branches, preupload, Git LFS storage and commits.

It follows the public hub's protocol as huggingface_hub 2.4 speaks it (`_commit_api.py`, `lfs.py`, `hf_api.py`), and is as
strict: the storage has an origin of its own and takes no token, signed addresses end, an object must have the SHA-256 that
its name says, a commit needs its parent as the branch's head and all its large files in the storage. Each repository has
objects of its own there.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote

from tests.support.servers.loopback import http_server, status

TOKEN = "hf_test_token_that_may_write"
USER, ORGANIZATION = "someone", "team"
_LARGE = (".safetensors", ".bin")
_MAKES_LARGE_BYTES = 10 << 20


@dataclass(frozen=True)
class Entry:
    """A file of a commit: its bytes, and whether they are in the storage."""

    content: bytes = field(repr=False)
    large: bool


Tree = dict[str, Entry]
Interference = Callable[[BaseHTTPRequestHandler], bool]


@dataclass
class Repository:
    """Commits by id, and the head of each branch."""

    private: bool
    commits: dict[str, Tree] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)

    def add(self, branch: str, tree: Tree) -> str:
        """Make a commit with exactly this tree."""
        described = [
            (name, hashlib.sha256(entry.content).hexdigest()) for name, entry in sorted(tree.items())
        ]
        text = json.dumps([self.heads.get(branch), len(self.commits), described])
        commit = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.commits[commit] = tree
        self.heads[branch] = commit
        return commit

    def tree(self, revision: str) -> Tree | None:
        """Return the files at a branch or commit."""
        return self.commits.get(self.heads.get(revision, revision))


class WritableHub:
    """The hub's state. `interfere` may answer in its place: it returns whether it did.

    `role` is the token's, and `organizations` are those that exist, with the user's role or None. `part_bytes` turns the
    transfer `multipart` on for larger files. The key of an object is REPOSITORY/SHA-256.
    With `forgets` the storage keeps nothing and says that it did. `lost_commits` counts down the commits without an answer.
    """

    def __init__(self, *, part_bytes: int | None = None) -> None:
        self.repositories: dict[str, Repository] = {}
        self.organizations: dict[str, str | None] = {ORGANIZATION: "write", "others": None, "readers": "read"}
        self.tokens: dict[str, dict[str, Any]] = {TOKEN: {"role": "write"}}
        self.part_bytes = part_bytes
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.requests: list[str] = []
        self.received = 0
        self.leaked = False
        self.interfere: Interference = lambda _: False
        self.forgets = False
        self.lost_commits = 0
        self.storage = ""
        self.lock = threading.RLock()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer a request to the hub itself."""
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        path, _, query = handler.path.partition("?")
        path = unquote(path)
        with self.lock:
            self.requests.append(f"{handler.command} {path}")
            if self.interfere(handler):
                return
            token = self.tokens.get(handler.headers.get("Authorization", "").removeprefix("Bearer "))
            if "/complete-multipart/" in path:
                self._complete(
                    handler, path.partition("/complete-multipart/")[2], json.loads(body), parse_qs(query)
                )
            elif token is None:
                status(401, b"{}", X_Error_Message="Invalid credentials in Authorization header")(handler)
            else:
                self._route(handler, path, body, token)

    def _route(self, handler: BaseHTTPRequestHandler, path: str, body: bytes, token: dict[str, Any]) -> None:
        steps = path.strip("/").split("/")
        if path == "/api/whoami-v2":
            organizations = [
                {"type": "org", "name": name, "roleInOrg": role}
                for name, role in self.organizations.items()
                if role is not None
            ]
            account = {"type": "user", "name": USER, "orgs": organizations, "auth": {"accessToken": token}}
            send_json(handler, account)
        elif steps[:2] == ["api", "organizations"]:
            known = steps[2] in self.organizations
            send_json(handler, {"name": steps[2]}) if known else status(404)(handler)
        elif path == "/api/repos/create":
            self._create(handler, json.loads(body), token)
        elif steps[:2] == ["api", "models"]:
            self._model(handler, "/".join(steps[2:4]), steps[4:], body, token)
        elif steps[1].endswith(".git"):
            self._batch(handler, f"{steps[0]}/{steps[1].removesuffix('.git')}", json.loads(body), token)
        else:
            self._resolve(handler, "/".join(steps[:2]), steps[3], "/".join(steps[4:]))

    def may_write(self, name: str, token: dict[str, Any]) -> bool:
        namespace = name.partition("/")[0]
        member = namespace == USER or self.organizations.get(namespace) in {"write", "admin"}
        return member and token["role"] != "read"

    def _create(self, handler: BaseHTTPRequestHandler, wanted: dict[str, Any], token: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if not self.may_write(name, token):
            status(403)(handler)
        elif name in self.repositories:
            status(409)(handler)
        else:
            # Earlier libraries send `private`, later ones `visibility`. Without either, a repository is public.
            self.make(name, private=wanted.get("private") is True or wanted.get("visibility") == "private")
            send_json(handler, {"url": f"/{name}"})

    def make(self, name: str, *, private: bool = True) -> Repository:
        """Create a repository as the hub does: with one file of its own."""
        made = self.repositories[name] = Repository(private)
        made.add("main", {".gitattributes": Entry(b"*.safetensors filter=lfs\n", large=False)})
        return made

    def _model(
        self, handler: BaseHTTPRequestHandler, name: str, steps: list[str], body: bytes, token: dict[str, Any]
    ) -> None:
        found = self.repositories.get(name)
        action, revision = "".join(steps[:1]), "/".join(steps[1:])
        if found is None:
            status(404, b"{}", X_Error_Code="RepoNotFound")(handler)
        elif not action or action == "revision":
            describe(handler, name, found, revision or "main")
        elif not self.may_write(name, token):
            status(403)(handler)
        elif action == "branch":
            if revision in found.heads:
                status(409)(handler)
            else:
                found.heads[revision] = json.loads(body)["startingPoint"]
                send_json(handler, {})
        elif revision not in found.heads:
            status(404, b"{}", X_Error_Code="RevisionNotFound")(handler)
        elif action == "preupload":
            files = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs"
                    if each["path"].endswith(_LARGE) or each["size"] > _MAKES_LARGE_BYTES
                    else "regular",
                    "shouldIgnore": False,
                }
                for each in json.loads(body)["files"]
            ]
            send_json(handler, {"files": files})
        else:
            assert action == "commit"
            assert handler.headers["Content-Type"] == "application/x-ndjson"
            self._commit(handler, name, revision, [json.loads(line) for line in body.splitlines()])

    def _commit(
        self, handler: BaseHTTPRequestHandler, name: str, branch: str, lines: list[dict[str, Any]]
    ) -> None:
        assert lines[0]["key"] == "header"
        found = self.repositories[name]
        if lines[0]["value"].get("parentCommit", found.heads[branch]) != found.heads[branch]:
            status(412)(handler)
            return
        tree = dict(found.commits[found.heads[branch]])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "deletedFile":
                del tree[value["path"]]
            elif line["key"] == "file":
                tree[value["path"]] = Entry(base64.b64decode(value["content"]), large=False)
            elif len(self.objects.get(f"{name}/{value['oid']}", b"")) == value["size"]:
                tree[value["path"]] = Entry(self.objects[f"{name}/{value['oid']}"], large=True)
            else:
                status(400, b'{"error": "LFS pointer to a missing object"}')(handler)
                return
        commit = found.add(branch, tree)
        if self.lost_commits:
            self.lost_commits -= 1
            return
        address = f"http://{handler.headers['Host']}/{name}/commit/{commit}"
        send_json(handler, {"success": True, "commitOid": commit, "commitUrl": address})

    def _batch(
        self, handler: BaseHTTPRequestHandler, name: str, wanted: dict[str, Any], token: dict[str, Any]
    ) -> None:
        assert handler.headers["Content-Type"] == handler.headers["Accept"] == "application/vnd.git-lfs+json"
        if name not in self.repositories or not self.may_write(name, token):
            status(403)(handler)
            return
        objects = []
        for each in wanted["objects"]:
            entry: dict[str, Any] = {"oid": each["oid"], "size": each["size"]}
            key = f"{name}/{each['oid']}"
            if key not in self.objects:
                entry["actions"] = self._actions(f"http://{handler.headers['Host']}", key, each["size"])
            objects.append(entry)
        multipart = any("chunk_size" in str(entry) for entry in objects)
        send_json(handler, {"transfer": "multipart" if multipart else "basic", "objects": objects})

    def _actions(self, origin: str, key: str, size: int) -> dict[str, Any]:
        verify = {"href": f"{origin}/api/complete-multipart/verify/{key}?signature=s"}
        if self.part_bytes is None or size <= self.part_bytes:
            return {"upload": {"href": f"{self.storage}/objects/{key}?signature=s"}, "verify": verify}
        count = -(-size // self.part_bytes)
        header = {"chunk_size": str(self.part_bytes)} | {
            str(number): f"{self.storage}/parts/{key}?signature=s&partNumber={number}"
            for number in range(1, count + 1)
        }
        complete = f"{origin}/api/complete-multipart/{key}?signature=s"
        return {"upload": {"href": complete, "header": header}, "verify": verify}

    def _complete(
        self, handler: BaseHTTPRequestHandler, key: str, wanted: dict[str, Any], query: dict[str, list[str]]
    ) -> None:
        assert query["signature"] == ["s"]
        if "/verify/" in handler.path:
            status(200 if len(self.objects.get(key.removeprefix("verify/"), b"")) == wanted["size"] else 404)(
                handler
            )
            return
        parts = self.parts.get(key, {})
        named = [(each["partNumber"], each["etag"].strip('"')) for each in wanted["parts"]]
        if named != [(number, etag_of(parts[number])) for number in sorted(parts)]:
            status(400)(handler)
            return
        self._store(handler, key, b"".join(parts[number] for number in sorted(parts)))

    def _store(self, handler: BaseHTTPRequestHandler, key: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != key.rpartition("/")[2]:
            status(400)(handler)
            return
        if not self.forgets:
            self.objects[key] = content
        status(200, ETag=f'"{etag_of(content)}"')(handler)

    def answer_storage(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer a request to the storage, which has another origin."""
        size = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(size)
        path, _, query = handler.path.partition("?")
        kind, _, key = path.strip("/").partition("/")
        with self.lock:
            self.requests.append(f"{handler.command} {path}")
            self.received += len(body)
            self.leaked |= "Authorization" in handler.headers
            if len(body) < size or self.interfere(handler):
                return
            if kind == "objects" and handler.command == "GET":
                status(200, self.objects[key])(handler)
            elif kind == "objects":
                self._store(handler, key, body)
            else:
                self.parts.setdefault(key, {})[int(parse_qs(query)["partNumber"][0])] = body
                status(200, ETag=f'"{etag_of(body)}"')(handler)

    def _resolve(self, handler: BaseHTTPRequestHandler, name: str, revision: str, path: str) -> None:
        found = self.repositories.get(name)
        tree = None if found is None else found.tree(revision)
        if tree is None or path not in tree:
            status(404, b"{}", X_Error_Code="EntryNotFound")(handler)
        elif tree[path].large:
            oid = hashlib.sha256(tree[path].content).hexdigest()
            status(302, Location=f"{self.storage}/objects/{name}/{oid}")(handler)
        else:
            status(200, tree[path].content)(handler)

    def visible(self, name: str, branch: str = "main") -> dict[str, bytes]:
        """Return what a reader of the branch sees at one moment."""
        with self.lock:
            found = self.repositories.get(name)
            tree = None if found is None else found.tree(branch)
            return {path: entry.content for path, entry in (tree or {}).items()}


def describe(handler: BaseHTTPRequestHandler, name: str, found: Repository, revision: str) -> None:
    """Answer with the repository's description and its files with `blobs=true`."""
    tree = found.tree(revision)
    if tree is None:
        status(404, b"{}", X_Error_Code="RevisionNotFound")(handler)
        return
    siblings = []
    for path, entry in sorted(tree.items()):
        item: dict[str, Any] = {"rfilename": path, "size": len(entry.content)}
        blob = b"blob %d\0" % len(entry.content) + entry.content
        item["blobId"] = hashlib.sha1(blob, usedforsecurity=False).hexdigest()
        if entry.large:
            oid, size = hashlib.sha256(entry.content).hexdigest(), len(entry.content)
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n"
            item["lfs"] = {"sha256": oid, "size": size, "pointerSize": len(pointer)}
        siblings.append(item)
    commit = found.heads.get(revision, revision)
    send_json(handler, {"id": name, "sha": commit, "private": found.private, "siblings": siblings})


def send_json(handler: BaseHTTPRequestHandler, document: dict[str, Any]) -> None:
    """Answer with a document."""
    status(200, json.dumps(document).encode(), Content_Type="application/json")(handler)


def etag_of(content: bytes) -> str:
    """Return the ETag that the storage gives to a part."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@contextmanager
def writable_hub(hub: WritableHub) -> Iterator[dict[str, str]]:
    """Serve the hub and its storage; yields the environment of a client with a token that may write."""
    with http_server(hub.answer) as origin, http_server(hub.answer_storage) as storage:
        hub.storage = storage
        yield {"HF_ENDPOINT": origin, "TEAM_TOKEN": TOKEN}
