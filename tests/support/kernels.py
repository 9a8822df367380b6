"""One cache of compiled kernels for all processes of a test run, so that none is compiled twice."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import MutableMapping
from pathlib import Path

from devcluster.images import PRODUCT_ROOT

from tests.support.repository import ROOT

CACHE_VARIABLE = "NUMBA_CACHE_DIR"
_CACHE = ROOT / ".cache" / "numba"
_FOR_PODS = ROOT / ".cache" / "kernels"
_SOURCES = ROOT / "trainer_image" / "src" / "finetune_trainer"


def share_kernels(environment: MutableMapping[str, str]) -> None:
    """Let this process and its children keep machine code in .cache/numba, and begin with that of `make kernels`.

    A cache folder that the environment names already is left as it is. Must be called before numba is imported.
    Raises OSError if the cache cannot be written.
    """
    if CACHE_VARIABLE in environment:
        return
    environment[CACHE_VARIABLE] = str(_CACHE)
    for sources in (_SOURCES, *_SOURCES.rglob("*/")):
        cache = _CACHE / _folder_name(sources)
        compiled = _FOR_PODS / _folder_name(Path(PRODUCT_ROOT) / sources.relative_to(ROOT))
        if compiled.is_dir() and not cache.exists():
            _copy(compiled, cache)
        for index in cache.glob("*.nbi"):
            if not _is_of(index, sources):
                index.unlink(missing_ok=True)


def _folder_name(sources: Path) -> str:
    """Return numba's name for the cache of the modules in a folder."""
    return f"{sources.name}_{hashlib.sha1(str(sources).encode(), usedforsecurity=False).hexdigest()}"


def _copy(compiled: Path, cache: Path) -> None:
    partial = cache.with_name(f"{cache.name}.{os.getpid()}.partial")
    shutil.copytree(compiled, partial)
    try:
        partial.rename(cache)
    except OSError:  # another test run was first
        shutil.rmtree(partial)


def _is_of(index: Path, sources: Path) -> bool:
    """Return whether an index is of its module's present text, whose digest it contains.

    Numba compares them too, but only after it has unpickled the index. That fails if a class of a signature is gone.
    """
    module = sources / f"{index.name.partition('.')[0]}.py"
    return module.is_file() and hashlib.sha256(module.read_bytes()).digest() in index.read_bytes()
