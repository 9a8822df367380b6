"""A small Kubeflow model registry on loopback: the part of its REST API that the trainer uses.

The fields and statuses are those of the published OpenAPI document. `make test-full` reads its content with the registry's
own Python client.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support.repository import ROOT
from tests.support.servers.loopback import http_server, status

CLIENT_PYTHON = ROOT / ".cache" / "servers" / "trackers" / "bin" / "python"
"""Has the registry's own client; `make model-servers` installs it."""
API = "/api/model_registry/"
# The members that may be written, as the OpenAPI document names them.
_COMMON = {"name", "description", "externalId", "customProperties"}
_MODEL = {
    *_COMMON,
    "owner",
    "state",
    "readme",
    "maturity",
    "language",
    "tasks",
    "provider",
    "logo",
    "license",
}
_VERSION = {*_COMMON, "registeredModelId", "author", "state"}
_ARTIFACT = {
    *_COMMON,
    "artifactType",
    "uri",
    "state",
    "modelFormatName",
    "modelFormatVersion",
    "storageKey",
    "storagePath",
}
_PROPERTY = {"metadataType", "string_value"}


class SmallRegistry:
    """The registry's objects by id. It serves `versions` of the API.

    `interfere` may answer in its place: it returns whether it did.
    """

    def __init__(self, versions: Collection[str] = ("v1", "v1alpha3")) -> None:
        self.roots = tuple(f"{API}{version}/" for version in versions)
        self.models: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, Any]] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.authorizations: set[str | None] = set()
        self.interfere: Callable[[BaseHTTPRequestHandler], bool] = lambda _handler: False
        self._last = 0
        self._lock = threading.Lock()

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        self.authorizations.add(handler.headers.get("Authorization"))
        if self.interfere(handler):
            return
        with self._lock:
            code, document = self._handle(handler, json.loads(body) if body else {})
        status(code, json.dumps(document).encode(), Content_Type="application/json")(handler)

    def _handle(self, handler: BaseHTTPRequestHandler, given: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        split = urlsplit(handler.path)
        query = {name: values[0] for name, values in parse_qs(split.query).items()}
        root = next((each for each in self.roots if split.path.startswith(each)), None)
        if root is None:
            return 404, {"code": "", "message": "no such path"}
        path = f"/{split.path.removeprefix(root)}"
        if path in {"/registered_model", "/model_version"}:
            return self._find(self.models if path == "/registered_model" else self.versions, query)
        if path == "/registered_models" and handler.command == "GET":
            return 200, {"items": [], "nextPageToken": "", "pageSize": 1, "size": 0}
        if path == "/registered_models":
            return self._make(self.models, given, _MODEL, {})
        if match := re.fullmatch(r"/registered_models/(\d+)/versions", path):
            return self._make(self.versions, given, _VERSION, {"registeredModelId": match[1]})
        return self._artifact(handler.command, path, given)

    def _artifact(self, method: str, path: str, given: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if match := re.fullmatch(r"/model_versions/(\d+)/artifacts", path):
            if method == "POST":
                return self._make(self.artifacts, given, _ARTIFACT, {"parent": match[1]})
            items = [each for each in self.artifacts.values() if each["parent"] == match[1]]
            return 200, {"items": items, "nextPageToken": "", "pageSize": 100, "size": len(items)}
        match = re.fullmatch(r"/model_artifacts/(\d+)", path)
        if method != "PATCH" or match is None or set(given) - _ARTIFACT:
            return 404, {"code": "", "message": "no such path or member"}
        self.artifacts[match[1]].update(given)
        return 200, self.artifacts[match[1]]

    def _find(self, kept: dict[str, dict[str, Any]], query: dict[str, str]) -> tuple[int, dict[str, Any]]:
        for each in kept.values():
            parent = query.get("parentResourceId")
            if each["name"] == query["name"] and parent in {None, each.get("registeredModelId")}:
                return 200, each
        return 404, {"code": "", "message": "no registered model found"}

    def _make(
        self,
        kept: dict[str, dict[str, Any]],
        given: dict[str, Any],
        allowed: set[str],
        parent: dict[str, str],
    ) -> tuple[int, dict[str, Any]]:
        properties = given.get("customProperties", {}).values()
        if set(given) - allowed or any(set(each) != _PROPERTY for each in properties):
            return 400, {"code": "", "message": "a member that the API does not have"}
        key = next(iter(parent), "")
        if any(each["name"] == given["name"] and each.get(key) == parent.get(key) for each in kept.values()):
            return 409, {"code": "", "message": "it exists already"}
        self._last += 1
        times = {"createTimeSinceEpoch": "1769850000000", "lastUpdateTimeSinceEpoch": "1769850000000"}
        kept[str(self._last)] = made = {**given, **parent, **times, "id": str(self._last)}
        return 201, made


@contextmanager
def small_registry(state: SmallRegistry | None = None) -> Iterator[str]:
    """Run the registry; yields its address."""
    with http_server(SmallRegistry() if state is None else state, host="127.0.0.1") as address:
        yield address
