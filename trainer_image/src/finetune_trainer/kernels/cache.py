"""The cache of compiled kernels, which an image ships.

Numba compiles at first use and keeps the machine code in NUMBA_CACHE_DIR, which must be writable. In a new pod this
folder is empty, and compiling all kernels of PREPARE takes ten seconds. So an image ships a folder of compiled
kernels (`python -m finetune_trainer compile FOLDER` fills it), and each process starts from a copy. Numba itself
rejects code for another processor or from other sources.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import MutableMapping

_CACHE = "NUMBA_CACHE_DIR"
_SHIPPED = "FINETUNE_KERNELS"
_DEFAULT = "/tmp/numba"  # noqa: S108 -- an image's root is read-only


def use_shipped_kernels(environment: MutableMapping[str, str]) -> None:
    """Choose the cache folder, and fill a new one from the folder that FINETUNE_KERNELS names, if it is set.

    Must be called before numba is imported. Raises OSError if the copy cannot be written.
    """
    cache = Path(environment.setdefault(_CACHE, _DEFAULT))
    shipped = environment.get(_SHIPPED)
    if shipped is None or cache.exists() or not Path(shipped).is_dir():
        return
    partial = cache.with_name(f"{cache.name}.{os.getpid()}.partial")
    shutil.copytree(shipped, partial)
    try:
        partial.rename(cache)
    except FileExistsError:  # another process of this pod was first
        shutil.rmtree(partial)


def compile_kernels(folder: Path) -> None:
    """Fill the new folder `folder`: use every kernel once, on inputs of the types that PREPARE has."""
    os.environ[_CACHE] = str(folder)
    # Not earlier: numba reads the variable when it is imported.
    from finetune_trainer.kernels.warm_up import use_every_kernel  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as scratch:
        use_every_kernel(Path(scratch))
