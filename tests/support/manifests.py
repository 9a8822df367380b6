"""The schema of manifest.json, with that of the results inside."""

from __future__ import annotations

import json
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from tests.support.repository import ROOT


def manifest_schema() -> dict[str, Any]:
    """Return contract/manifest.schema.json."""
    return _schema("manifest")


def require_schema(manifest: dict[str, Any]) -> None:
    """Raise ValidationError if a manifest breaks its schema."""
    result = _schema("result")
    registry: Registry[Any] = Registry().with_resource(str(result["$id"]), Resource.from_contents(result))
    Draft202012Validator(manifest_schema(), registry=registry).validate(manifest)


def _schema(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(
        (ROOT / "contract" / f"{name}.schema.json").read_text(encoding="utf-8")
    )
    return document
