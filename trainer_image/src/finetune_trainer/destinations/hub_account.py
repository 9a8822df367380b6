"""What a hub says about a token and its user (`/api/whoami-v2`), as answers to two questions.

Both doubt for the token: a member that is absent or has an unknown form forbids nothing, because the hub itself decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def only_reads(account: dict[str, Any]) -> bool:
    """Return whether the token certainly cannot write anywhere."""
    token = _object(_object(account.get("auth")).get("accessToken"))
    if token.get("role") != "fineGrained":
        return token.get("role") == "read"
    scopes = _object(token.get("fineGrained"))
    if not isinstance(scopes.get("scoped"), list):
        return False
    entries = [_object(entry).get("permissions") for entry in scopes["scoped"]]
    given = [name for names in (*entries, scopes.get("global")) if isinstance(names, list) for name in names]
    return not any(str(name).endswith("write") for name in given)


def role_in(account: dict[str, Any], namespace: str) -> str | None:
    """Return the user's role in a namespace: `admin` in the user's own, None in one without the user."""
    if _same(account.get("name"), namespace):
        return "admin"
    for organization in _organizations(account):
        if _same(organization.get("name"), namespace):
            return str(organization.get("roleInOrg") or "write")
    return None


def _organizations(account: dict[str, Any]) -> Iterator[dict[str, Any]]:
    found = account.get("orgs")
    return map(_object, found if isinstance(found, list) else ())


def _same(name: object, namespace: str) -> bool:
    return isinstance(name, str) and name.lower() == namespace.lower()


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
