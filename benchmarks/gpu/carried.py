"""Makes the folder of packages that a machine without a network needs besides its own: `python -m benchmarks.gpu.carried`.

The machine is x86-64 Linux with Python 3.12, torch with CUDA 13.0, accelerate, numba, numpy, pyarrow and what belongs to
them. The folder has wheels. That of bitsandbytes keeps one of its libraries of CUDA, because all of them take 40 MiB.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LARGEST = 64 << 20
"""Bytes that the folder may have."""
PYTHON = "3.12"
CUDA = "130"
"""CUDA of the machine's torch, as bitsandbytes writes it in the names of its libraries."""
LOCKED = (
    "annotated-types",
    "anyio",
    "bitsandbytes",
    "datasets",
    "dill",
    "h11",
    "httpcore2",
    "httpx2",
    "huggingface-hub",
    "idna",
    "multiprocess",
    "peft",
    "prometheus-client",
    "pydantic",
    "pydantic-core",
    "regex",
    "safetensors",
    "tokenizers",
    "transformers",
    "trl",
    "truststore",
    "typing-extensions",
    "typing-inspection",
    "xxhash",
)
"""Packages at the versions that requirements/trainer.txt locks."""
OTHERS = {"liger-kernel": "0.8.5"}
"""Packages that only this benchmark uses, with their versions."""
_PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in (34, 31, 28, 27, 24, 17)),
    "manylinux2014_x86_64",
)
_LIBRARY = re.compile(r"bitsandbytes/libbitsandbytes_(cuda|rocm|xpu)\w*\.so")


def locked_versions(lock: str, names: Iterable[str]) -> dict[str, str]:
    """Return the version of each package in the text of a lock. Raises ValueError for one that it does not have."""
    found = dict(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", lock, re.MULTILINE))
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(
            f"the lock must have {', '.join(missing)}, found {len(found)} other packages; run make lock"
        )
    return {name: found[name] for name in names}


def download(versions: Mapping[str, str], folder: Path) -> None:
    """Download the wheels with pip, and nothing that they depend on."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--implementation", "cp", "--python-version", PYTHON]
    command += [part for platform in _PLATFORMS for part in ("--platform", platform)]
    wanted = [f"{name}=={version}" for name, version in versions.items()]
    subprocess.run([*command, "--dest", str(folder), *wanted], check=True)


def trim(wheel: Path, cuda: str = CUDA) -> int:
    """Remove all GPU libraries from a wheel of bitsandbytes but the one for `cuda`; return the wheel's new bytes.

    Raises ValueError if the wheel has no such library. The wheel stays valid: its record names what is left.
    """
    wanted = f"bitsandbytes/libbitsandbytes_cuda{cuda}.so"
    partial = wheel.with_suffix(".partial")
    with zipfile.ZipFile(wheel) as source:
        names = source.namelist()
        if wanted not in names:
            raise ValueError(
                f"{wheel.name} must have {wanted}, found {', '.join(filter(_LIBRARY.fullmatch, names))}"
            )
        kept = [name for name in names if name == wanted or not _LIBRARY.fullmatch(name)]
        record = next(name for name in names if name.endswith(".dist-info/RECORD"))
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target:
            lines = []
            for name in kept:
                if name == record or name.endswith("/"):
                    continue
                data = source.read(name)
                target.writestr(name, data)
                digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
                lines.append(f"{name},sha256={digest},{len(data)}")
            target.writestr(record, "\n".join([*lines, f"{record},,", ""]))
    partial.replace(wheel)
    return wheel.stat().st_size


def require_size(folder: Path, largest: int = LARGEST) -> int:
    """Return the bytes of the folder's files. Raises ValueError if they exceed `largest`, and names the largest files."""
    sizes = {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    total = sum(sizes.values())
    if total > largest:
        biggest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        raise ValueError(
            f"the carried folder must have at most {largest} bytes, found {total}; the largest files are "
            + ", ".join(f"{name} with {sizes[name]}" for name in biggest)
        )
    return total


def unpack(folder: Path, target: Path) -> Path:
    """Unpack all wheels of the folder into `target`, which is then a path of modules. Needs the standard library only."""
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise FileNotFoundError(
            f"{folder} must have wheels, found none; make it with python -m benchmarks.gpu.carried"
        )
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as source:
            source.extractall(target)
    return target


def main() -> int:
    """Make the folder anew and print its size."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.carried")
    parser.add_argument("folder", type=Path, help="a new or empty folder")
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        print(f"{folder} must be empty, found files; name another folder", file=sys.stderr)
        return 2
    lock = (ROOT / "requirements" / "trainer.txt").read_text(encoding="utf-8")
    versions = locked_versions(lock, LOCKED) | OTHERS
    download(versions, folder)
    trim(next(folder.glob("bitsandbytes-*.whl")))
    total = require_size(folder)
    count = len(list(folder.glob("*.whl")))
    print(f"{folder}: {count} packages, {total / (1 << 20):.1f} MiB of {LARGEST >> 20} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
