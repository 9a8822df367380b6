"""A request to the API server as a verb and a resource, in the words of the fault matrix and of RBAC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

REHEARSE = "DRY-RUN"
"""The verb of a POST that stores nothing."""
LIST, WATCH = "LIST", "WATCH"
_READS = frozenset({"GET", LIST, WATCH, REHEARSE})


@dataclass(frozen=True)
class Call:
    """One request. `resource` contains the subresource, as in `finetunejobs/status`."""

    verb: str
    resource: str
    namespace: str = ""
    name: str = ""

    @property
    def changes(self) -> bool:
        """True if it may change an object."""
        return self.verb not in _READS

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}"


def parse_call(method: str, path: str, query: Mapping[str, str]) -> Call:
    """The call of an HTTP request. A path that names no resource has an empty resource."""
    parts = [part for part in path.split("/") if part]
    # /api/VERSION/... and /apis/GROUP/VERSION/...
    rest = parts[2:] if parts[:1] == ["api"] else parts[3:]
    namespace = ""
    if len(rest) > 2 and rest[0] == "namespaces":
        namespace, rest = rest[1], rest[2:]
    resource, name, subresource = (*rest, "", "", "")[:3]
    verb = method.upper()
    if verb == "GET" and not name:
        verb = WATCH if query.get("watch") in {"1", "true"} else LIST
    elif verb == "POST" and "dryRun" in query:
        verb = REHEARSE
    return Call(verb, f"{resource}/{subresource}" if subresource else resource, namespace, name)
