"""The CRD as a JSON Schema, and a walk over its fields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from tests.support.repository import ROOT

Schema = dict[str, Any]


def crd() -> dict[str, Any]:
    """Return the CRD as it is written."""
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "crds/finetunejobs.yaml").read_text())
    return parsed


def root_schema() -> Schema:
    """Return the OpenAPI schema of v1alpha1."""
    (version,) = crd()["spec"]["versions"]
    schema: Schema = version["schema"]["openAPIV3Schema"]
    return schema


def walk(schema: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """Yield every field of `schema` with its path, itself first."""
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from walk(field, f"{path}.{name}")
    if "items" in schema:
        yield from walk(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from walk(schema["additionalProperties"], f"{path}{{}}")


def strict_json_schema(schema: Schema) -> Schema:
    """Return `schema` as JSON Schema that refuses unknown fields, as `kubectl apply` does by strict validation.

    OpenAPI 3.0 writes exclusiveMinimum as a flag of minimum; JSON Schema writes the bound itself.
    """
    converted = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if converted.pop("exclusiveMinimum", False):
        converted["exclusiveMinimum"] = converted.pop("minimum")
    if "properties" in schema:
        converted["properties"] = {
            name: strict_json_schema(field) for name, field in schema["properties"].items()
        }
        converted["additionalProperties"] = False
    if "additionalProperties" in schema:
        converted["additionalProperties"] = strict_json_schema(schema["additionalProperties"])
    if "items" in schema:
        converted["items"] = strict_json_schema(schema["items"])
    return converted
