"""Read a YAML file like kubectl, and find the objects to which its FineTuneJob refers."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from finetune_cli.errors import UsageError

_Value = TypeVar("_Value", str, bytes)


class _Loader(yaml.SafeLoader):
    """A loader that reads numbers like YAML 1.2 and kubectl. PyYAML alone reads `2e-4` as a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$"),
    list("-+0123456789."),
)


@dataclass(frozen=True)
class Manifests:
    """One FineTuneJob, and the ConfigMaps and Secrets in the same file."""

    namespace: str
    name: str
    spec: Mapping[str, Any]
    config_maps: Mapping[str, Mapping[str, bytes]]
    secrets: Mapping[str, Mapping[str, str]]
    job: Mapping[str, Any] = field(default_factory=dict)
    """The FineTuneJob as the file has it."""

    def config_map_value(self, name: str, key: str) -> bytes:
        """The bytes of a ConfigMap's key. Raises UsageError if it is not in the file."""
        return _value("ConfigMap", self.config_maps, name, key)

    def secret_value(self, name: str, key: str) -> str:
        """The decoded value of a Secret's key. Raises UsageError if it is not in the file."""
        return _value("Secret", self.secrets, name, key)


def read_documents(path: Path) -> list[Any]:
    """Read every document of a YAML or JSON file, with numbers like in kubectl.

    Raises UsageError if the file cannot be read or is not YAML.
    """
    try:
        # _Loader derives from SafeLoader.
        return list(yaml.load_all(path.read_text(encoding="utf-8"), Loader=_Loader))
    except OSError as error:
        raise UsageError(f"{path} must be a readable file: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} must be YAML: {error}") from error


def read_scalar(text: str) -> Any:
    """The value of one YAML scalar or flow collection, such as `2e-4` or `[Adapter]`. Raises UsageError."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 -- derives from SafeLoader
    except yaml.YAMLError as error:
        raise UsageError(f"a value must be YAML, found {text!r}: {error}") from error


def read_manifests(path: Path, name: str | None = None) -> Manifests:
    """Read the FineTuneJob called `name` (or the only one) from a YAML file.

    Raises UsageError if the file cannot be read, is not YAML, or does not have exactly one such job.
    """
    documents = [document for document in read_documents(path) if isinstance(document, dict)]
    jobs = [document for document in documents if document.get("kind") == "FineTuneJob"]
    if name is not None:
        jobs = [job for job in jobs if _name(job) == name]
    if len(jobs) != 1:
        found = ", ".join(_name(job) for job in jobs) or "none"
        raise UsageError(f"{path} must have exactly one FineTuneJob (choose one with --name), found {found}")
    job = jobs[0]
    if job.get("apiVersion") != "finetune.dev/v1alpha1":
        raise UsageError(f"apiVersion must be finetune.dev/v1alpha1, found {job.get('apiVersion')!r}")
    if not isinstance(job.get("spec"), dict):
        raise UsageError("the FineTuneJob must have a `spec`")
    return Manifests(
        namespace=str((job.get("metadata") or {}).get("namespace") or "default"),
        name=_name(job),
        spec=job["spec"],
        config_maps={_name(d): _plain(d) for d in documents if d.get("kind") == "ConfigMap"},
        secrets={_name(d): _decoded(d) for d in documents if d.get("kind") == "Secret"},
        job=job,
    )


def _name(document: Mapping[str, Any]) -> str:
    name = (document.get("metadata") or {}).get("name")
    if not isinstance(name, str) or not name:
        raise UsageError(f"a {document.get('kind')} must have metadata.name")
    return name


def _plain(config_map: Mapping[str, Any]) -> dict[str, bytes]:
    values = {str(key): str(value).encode() for key, value in (config_map.get("data") or {}).items()}
    for key, value in (config_map.get("binaryData") or {}).items():
        try:
            values[str(key)] = base64.b64decode("".join(str(value).split()), validate=True)
        except binascii.Error as error:
            raise UsageError(f"ConfigMap {_name(config_map)}: binaryData.{key} must be base64") from error
    return values


def _decoded(secret: Mapping[str, Any]) -> dict[str, str]:
    values: dict[str, str] = {}
    for key, value in (secret.get("data") or {}).items():
        try:
            # Encoders break long lines, and the API server accepts that too.
            values[str(key)] = base64.b64decode("".join(str(value).split()), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise UsageError(f"Secret {_name(secret)}: data.{key} must be base64 of UTF-8 text") from error
    for key, value in (secret.get("stringData") or {}).items():
        values[str(key)] = str(value)
    return values


def _value(kind: str, objects: Mapping[str, Mapping[str, _Value]], name: str, key: str) -> _Value:
    if name not in objects:
        raise UsageError(f"{kind} {name!r} must be in the same file, found {sorted(objects) or 'none'}")
    if key not in objects[name]:
        raise UsageError(f"{kind} {name!r} must have the key {key!r}, found {sorted(objects[name])}")
    return objects[name][key]
