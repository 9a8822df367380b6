"""Every field of the CRD is described, bounded and structural, and the examples fit it.

tests/e2e/test_crd.py tests CEL rules and their cost, which need an API server.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.support.crd_schema import Schema, crd, root_schema, strict_json_schema, walk
from tests.support.repository import ROOT

# The API server allows only the type here.
OWNED_BY_THE_API_SERVER = {"job.metadata"}
FIELDS = dict(walk(root_schema(), "job"))
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
DESCRIBED = {path: field for path, field in FIELDS.items() if path not in OWNED_BY_THE_API_SERVER}


def is_scalar(schema: Schema) -> bool:
    """Return True for an untyped value, which is allowed in chatTemplateArguments only."""
    return "type" not in schema and schema.get("x-kubernetes-preserve-unknown-fields", False)


def is_bounded(path: str, schema: Schema) -> bool:
    """Return True if the size of the field's values is limited. Numbers in the status are counts of the operator."""
    kind = schema.get("type")
    if kind == "string":
        return "enum" in schema or "maxLength" in schema or path in {"job.apiVersion", "job.kind"}
    if kind == "array":
        return {"maxItems", "x-kubernetes-list-type"} <= schema.keys()
    if kind in {"integer", "number"}:
        return path.startswith("job.status") or {"minimum", "maximum"} <= schema.keys()
    if "additionalProperties" in schema:
        return "maxProperties" in schema
    return kind in {"object", "boolean"} or "maxLength" in schema


def is_structural(schema: Schema) -> bool:
    """Return True if the field has one type, and no anyOf, allOf, oneOf or not except in a quantity."""
    quantity = schema.get("x-kubernetes-int-or-string", False)
    one_type = ("type" in schema) != (quantity or is_scalar(schema))
    combinators = {"oneOf", "anyOf", "allOf", "not", "$ref"} & schema.keys()
    one_shape = not {"properties", "additionalProperties"} <= schema.keys()
    return one_type and one_shape and combinators == ({"anyOf"} if quantity else set())


def test_every_field_is_described_in_sentences() -> None:
    assert not [
        path for path, field in DESCRIBED.items() if not re.match(r".{10,}[.]$", field.get("description", ""))
    ]


def test_every_field_is_bounded() -> None:
    assert not [path for path, field in DESCRIBED.items() if not is_bounded(path, field)]


def test_every_field_is_structural() -> None:
    assert not [path for path, field in DESCRIBED.items() if not is_structural(field)]


def test_names_are_camel_case_and_enum_values_begin_with_a_capital() -> None:
    names = {path.rpartition(".")[2].rstrip("[]{}") for path in FIELDS}
    values = {value for field in FIELDS.values() for value in field.get("enum", [])}
    assert not [name for name in names if not re.fullmatch(r"[a-z][A-Za-z0-9]*", name)]
    assert not [value for value in values if not re.fullmatch(r"[A-Z][A-Za-z0-9]*", value)]


def test_every_rule_has_a_message_with_the_requirement() -> None:
    messages = [
        rule["message"] for field in FIELDS.values() for rule in field.get("x-kubernetes-validations", [])
    ]
    assert messages
    assert not [message for message in messages if " must " not in f" {message} "]


def test_defaults_are_valid() -> None:
    defaulted = [field for field in FIELDS.values() if "default" in field]
    assert defaulted
    for field in defaulted:
        jsonschema.validate(field["default"], strict_json_schema(field))


def test_no_required_field_has_a_default() -> None:
    assert not [
        f"{path}.{name}"
        for path, field in FIELDS.items()
        for name in field.get("required", [])
        if "default" in field["properties"][name]
    ]


def test_every_spec_field_but_suspend_and_lifecycle_is_immutable() -> None:
    """A field without `required` and `default` could bypass its rule if it is added or removed."""
    spec = FIELDS["job.spec"]
    guards = " ".join(rule["rule"] for rule in spec["x-kubernetes-validations"])
    for name, field in spec["properties"].items():
        immutable = any(
            rule["rule"] == "self == oldSelf" for rule in field.get("x-kubernetes-validations", [])
        )
        assert immutable == (name not in {"suspend", "lifecycle"})
        if immutable and name not in spec["required"] and "default" not in field:
            assert f"has(self.{name}) == has(oldSelf.{name})" in guards


def test_document_is_a_valid_custom_resource_definition() -> None:
    kubernetes_validate.validate(crd(), "1.36", strict=True)


def test_status_is_a_subresource_and_conditions_are_a_map_by_type() -> None:
    (version,) = crd()["spec"]["versions"]
    assert version["subresources"] == {"status": {}}
    assert FIELDS["job.status.conditions"]["x-kubernetes-list-map-keys"] == ["type"]


def test_printer_columns_are_the_documented_ones() -> None:
    (version,) = crd()["spec"]["versions"]
    columns = [
        (column["name"].upper(), column.get("priority", 0)) for column in version["additionalPrinterColumns"]
    ]
    narrow = ["PHASE", "STAGE", "PROGRESS", "MODEL", "GPUS", "VERDICT", "AGE"]
    assert columns == [*((name, 0) for name in narrow), ("REASON", 1), ("LOSS", 1), ("NODE", 1), ("QUEUE", 1)]


def test_the_crd_is_small_enough_for_client_side_apply() -> None:
    """kubectl keeps the last applied resource as JSON in an annotation; annotations take at most 256 KiB together."""
    applied = yaml.safe_load((ROOT / "crds/finetunejobs.yaml").read_bytes())
    assert len(json.dumps(applied, separators=(",", ":"))) < 192 * 1024


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_fits_the_schema(example: Path) -> None:
    schema = strict_json_schema(root_schema())
    schema["properties"]["metadata"] = {"type": "object"}
    documents: list[dict[str, Any]] = [item for item in yaml.safe_load_all(example.read_text()) if item]
    jobs = [item for item in documents if item["kind"] == "FineTuneJob"]
    assert jobs
    for job in jobs:
        jsonschema.validate(job, schema)


def test_examples_exist() -> None:
    assert EXAMPLES
