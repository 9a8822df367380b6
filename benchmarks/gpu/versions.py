"""Versions of the packages that decide the numbers, and those that are older than the project supports."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

PACKAGES = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "liger-kernel",
    "numba",
    "peft",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "triton",
    "trl",
)


def installed_versions() -> dict[str, str]:
    """Return the version of each package that is there."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def minimum_versions(pyproject: Path) -> dict[str, str]:
    """Return the minimum of each package of the trainer, as pyproject.toml states it."""
    document = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    stated = (text.partition(">=") for text in document["project"]["optional-dependencies"]["trainer"])
    return {name: version for name, sign, version in stated if sign}


def below_minimum(minimums: Mapping[str, str], installed: Mapping[str, str]) -> tuple[str, ...]:
    """Return each package that is older than its minimum, such as "torch 2.11.0 (at least 2.13)"."""
    return tuple(
        f"{name} {version} (at least {minimums[name]})"
        for name, version in sorted(installed.items())
        if name in minimums and _numbers(version) < _numbers(minimums[name])
    )


def _numbers(version: str) -> tuple[int, ...]:
    """Return the release of a version; "2.11.0+cu130" gives (2, 11, 0)."""
    release = re.match(r"\d+(\.\d+)*", version)
    return () if release is None else tuple(int(part) for part in release[0].split("."))
