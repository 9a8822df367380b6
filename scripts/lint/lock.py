"""Check that requirements/ locks every requirement of pyproject.toml: a suitable version, with hashes and no index address."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
# Each lock, with the extras and the groups of pyproject.toml that it covers; the same as in scripts/lock.sh.
LOCKS = {
    "dev": (("operator", "trainer", "cli", "client"), ("dev",)),
    "operator": (("operator",), ()),
    "trainer": (("trainer",), ()),
    "cli": (("cli",), ()),
    "client": (("client",), ()),
    "archive": ((), ("archive",)),
    "build": ((), ("build",)),
    "data": ((), ("data",)),
    "binaries": ((), ("binaries",)),
    "installer": ((), ("installer",)),
    "transformers4": ((), ("transformers4",)),
    "checkers": ((), ("checkers",)),
    "llama-cpp": ((), ("llama-cpp",)),
    "trackers": ((), ("trackers",)),
    "vllm": ((), ("vllm",)),
}
PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==(\S+)(.*?)(?=^[A-Za-z0-9]|\Z)", re.MULTILINE | re.DOTALL)


def pins(text: str) -> dict[str, list[Version]]:
    """Return the locked versions of each package: one, or one for each range of Python versions."""
    found: dict[str, list[Version]] = {}
    for name, version, _rest in PIN.findall(text):
        found.setdefault(canonicalize_name(name), []).append(Version(version))
    return found


def faults(name: str, text: str, wanted: list[str]) -> Iterator[str]:
    """Return the faults of the lock `name` with the content `text`, compared with the requirements `wanted`."""
    if re.search(r"^\s*(--index-url|--extra-index-url|--find-links|-i |-f )|://", text, re.MULTILINE):
        yield f"requirements/{name}.txt must name no address, found one"
    for package, version, rest in PIN.findall(text):
        if "--hash=sha256:" not in rest:
            yield f"requirements/{name}.txt must hold hashes of {package}=={version}, found none"
    locked = pins(text)
    for requirement in map(Requirement, wanted):
        versions = locked.get(canonicalize_name(requirement.name), [])
        if not versions or not all(requirement.specifier.contains(version) for version in versions):
            found = ", ".join(map(str, versions)) or "none"
            yield f"requirements/{name}.txt must lock a version that fits {requirement}, found {found}"


def main() -> int:
    """Print every fault; return 1 if there is one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras, groups = project["project"]["optional-dependencies"], project["dependency-groups"]
    found: list[str] = []
    for name, (of_extras, of_groups) in LOCKS.items():
        wanted = [line for extra in of_extras for line in extras[extra]]
        wanted += [line for group in of_groups for line in groups[group]]
        found += faults(name, (ROOT / "requirements" / f"{name}.txt").read_text(), wanted)
    for fault in found:
        print(f"{fault}; run `make lock`", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
