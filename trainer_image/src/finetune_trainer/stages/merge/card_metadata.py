"""The YAML at the head of a model card, as the Hugging Face Hub reads it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import yaml

from finetune_trainer.contract.naming import base_model_name
from finetune_trainer.contract.run_spec import HubDatasetSource, ValidationSource

if TYPE_CHECKING:
    from pathlib import Path

    from finetune_trainer.contract.result import PrepareResult
    from finetune_trainer.contract.run_spec import ArtifactKind, RunSpec

BASE_CARD = "README.md"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
_LICENSE_NAME = re.compile(r"[A-Za-z0-9][\w .-]{0,95}", re.ASCII)
_LINK = re.compile(r"(https://[^\s\"<>]{1,500}|[A-Za-z0-9][\w.-]{0,95})", re.ASCII)
_LANGUAGE = re.compile(r"[a-z]{2,3}")
_LEAST_SHARE = 0.05
"""Share of the rows from which a language is named."""
_MAXIMUM_BASE_CARD = 256 * 1024
_RELATIONS = {"Adapter": "adapter", "Merged": "finetune"}
_TAGS = {"Adapter": ["lora", "qlora", "sft"], "Merged": ["qlora", "sft"], "BaseAsTrained": []}


def front_matter(
    run: RunSpec, kind: ArtifactKind, prepared: PrepareResult, base_license: dict[str, str]
) -> list[str]:
    """Return the lines of the card's YAML, with its fences. Values are JSON, which is YAML too.

    The hub refuses a card with a value that it does not know, so anything of another form is left out. The card of the base
    as trained says nothing of the job.
    """
    members: dict[str, Any] = {}
    base = base_model_name(run)
    if _REPOSITORY.fullmatch(base):
        members["base_model"] = base
        if kind in _RELATIONS:
            members["base_model_relation"] = _RELATIONS[kind]
    members |= base_license
    members["library_name"] = "peft" if kind == "Adapter" else "transformers"
    members["pipeline_tag"] = "text-generation"
    if kind != "BaseAsTrained":
        optional = {"datasets": _datasets(run), "language": _languages(prepared), "tags": _TAGS[kind]}
        members |= {name: values for name, values in optional.items() if values}
    plain = {"library_name", "pipeline_tag"}
    return [
        "---",
        *(f"{name}: {value if name in plain else json.dumps(value)}" for name, value in members.items()),
        "---",
    ]


def base_license(folder: Path) -> dict[str, str]:
    """Return the license members of the base's own card, `folder`/README.md; empty if it has none in a known form."""
    try:
        with (folder / BASE_CARD).open(encoding="utf-8", errors="replace") as file:
            text = file.read(_MAXIMUM_BASE_CARD)
    except OSError:
        return {}
    parts = re.split(r"^---[ \t]*$", text, maxsplit=2, flags=re.MULTILINE)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        found = yaml.safe_load(parts[1])
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    forms = {"license": _LICENSE, "license_name": _LICENSE_NAME, "license_link": _LINK}
    members = found if isinstance(found, dict) else {}
    known = {
        name: members[name]
        for name, form in forms.items()
        if isinstance(members.get(name), str) and form.fullmatch(members[name])
    }
    return known if "license" in known else {}


def _datasets(run: RunSpec) -> list[str]:
    sources = [run.dataset.source]
    if isinstance(run.dataset.validation, ValidationSource):
        sources.append(run.dataset.validation.source)
    names = [source.repository for source in sources if isinstance(source, HubDatasetSource)]
    return [name for name in dict.fromkeys(names) if _REPOSITORY.fullmatch(name)]


def _languages(prepared: PrepareResult) -> list[str]:
    return [
        share.code
        for share in prepared.dataset.languages
        if share.fraction >= _LEAST_SHARE and _LANGUAGE.fullmatch(share.code)
    ]
