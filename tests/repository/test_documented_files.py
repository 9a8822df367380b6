"""The YAML and the commands in the documents: jobs fit the CRD, values fit the chart, and targets of make exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from itertools import takewhile
from textwrap import dedent
from typing import Any

import jsonschema
import pytest
import yaml

from tests.support.crd_schema import Schema, root_schema, strict_json_schema
from tests.support.repository import ROOT

CHART = ROOT / "helm" / "finetune-operator"
PAGES = [
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md", "SECURITY.md", "tests/README.md")
    ),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
]
BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def blocks(*languages: str) -> Iterator[tuple[str, str]]:
    """The page and the text of each fenced block in one of the languages."""
    for page in PAGES:
        for language, text in BLOCK.findall(page.read_text("utf-8")):
            if language in languages:
                yield page.relative_to(ROOT).as_posix(), dedent(text)


def documents() -> list[tuple[str, dict[str, Any]]]:
    """The page and the content of each YAML document that is an object."""
    found = [(page, item) for page, text in blocks("yaml") for item in yaml.safe_load_all(text)]
    return [(page, item) for page, item in found if isinstance(item, dict)]


def partial(schema: Any) -> Any:
    """Return a JSON Schema in which nothing is required: an extract of a document fits it."""
    if isinstance(schema, dict):
        return {
            name: partial(value)
            for name, value in schema.items()
            if name not in {"required", "oneOf", "minProperties"}
        }
    return [partial(item) for item in schema] if isinstance(schema, list) else schema


@cache
def job_schema() -> Schema:
    schema = strict_json_schema(root_schema())
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


@cache
def chart_values() -> tuple[Schema, dict[str, Any]]:
    """The schema and the defaults of the chart."""
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    return schema, yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))


def merged(below: Any, above: Any) -> Any:
    """Return `below` changed by `above`, as helm merges values: objects name by name, all else as a whole."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return {**below, **{name: merged(below.get(name), value) for name, value in above.items()}}


def require_fit(document: dict[str, Any]) -> None:
    """Raise ValidationError if a document, or an extract, does not fit. Objects of somebody else's kind always fit."""
    job = job_schema()
    if "kind" in document:
        if document["kind"] == "FineTuneJob":
            jsonschema.validate(document, job)
    elif set(document) <= {"metadata", "spec"}:
        jsonschema.validate(document, partial(job))
    elif set(document) <= set(job["properties"]["spec"]["properties"]):
        jsonschema.validate(document, partial(job["properties"]["spec"]))
    else:
        schema, defaults = chart_values()
        jsonschema.validate(merged(defaults, document), schema)


@pytest.mark.parametrize(
    ("page", "document"), documents(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_yaml_in_the_documents_fits_the_crd_or_the_chart(page: str, document: dict[str, Any]) -> None:
    try:
        require_fit(document)
    except jsonschema.ValidationError as error:
        pytest.fail(f"{page}: {error.json_path}: {error.message}")


def test_an_unknown_field_in_a_document_is_found() -> None:
    wrongs: list[dict[str, Any]] = [
        {"spec": {"trainning": {}}},
        {"output": {"destinaton": {}}},
        {"replica": 2},
        {"trainer": {"limit": {}}},
    ]
    for wrong in wrongs:
        with pytest.raises(jsonschema.ValidationError):
            require_fit(wrong)


def commands() -> list[tuple[str, str]]:
    """The page and the text of each line of a shell, with its continuations."""
    return [
        (page, line.removeprefix("$ ").strip())
        for page, text in blocks("console", "sh", "bash")
        for line in text.replace("\\\n", " ").splitlines()
    ]


def targets(line: str) -> list[str]:
    """The targets of a call of make."""
    words = line.partition("#")[0].split()
    if words[:1] != ["make"]:
        return []
    return list(takewhile(lambda word: re.fullmatch(r"[a-z0-9-]+", word), words[1:]))


def test_targets_of_make_in_the_documents_exist() -> None:
    known = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    inline = [
        (page.relative_to(ROOT).as_posix(), code)
        for page in PAGES
        for code in re.findall(r"`(make [a-z][^`]*)`", page.read_text("utf-8"))
    ]
    named = [(page, target) for page, line in [*commands(), *inline] for target in targets(line)]
    assert len(named) > 20
    assert [(page, target) for page, target in named if target not in known] == []


def is_value(key: str) -> bool:
    """Return True if the chart has the value, or lets users name what is below its parent."""
    found: Any = chart_values()[1]
    for part in key.split("."):
        if not isinstance(found, dict) or (found and part not in found):
            return False
        found = found.get(part, {})
    return True


def test_values_that_commands_set_exist_in_the_chart() -> None:
    named = [
        (page, key)
        for page, line in commands()
        if line.startswith("helm ")
        for key in re.findall(r"--set(?:-string|-json)?[ =]'?([\w.]+)", line)
    ]
    assert len(named) > 5
    assert [(page, key) for page, key in named if not is_value(key)] == []
