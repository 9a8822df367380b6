"""Compiled kernels that come with an image.

numba compiles on first use and keeps the machine code in NUMBA_CACHE_DIR, which must be writable. A pod's is new and
empty, and compiling everything that PREPARE uses takes ten seconds. An image therefore carries a folder of
compiled kernels (`python -m finetune_trainer compile FOLDER` fills it), and a process starts from a copy of it. numba
itself sees to it that code for another processor or other sources is not used.
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
    """Settle where compiled code is kept, and begin with what the folder FINETUNE_KERNELS holds, if it is set.

    Must be called before numba is imported. Raises OSError when the copy cannot be written.
    """
    cache = Path(environment.setdefault(_CACHE, _DEFAULT))
    shipped = environment.get(_SHIPPED)
    if shipped is None or cache.exists() or not Path(shipped).is_dir():
        return
    partial = cache.with_name(f"{cache.name}.{os.getpid()}.partial")
    shutil.copytree(shipped, partial)
    try:
        partial.rename(cache)
    except FileExistsError:  # another process of this pod was faster
        shutil.rmtree(partial)


def compile_kernels(folder: Path) -> None:
    """Fill `folder` by using every kernel once, on inputs of the types that PREPARE has. The folder must be new."""
    os.environ[_CACHE] = str(folder)
    # Only now: numba reads the variable when it is imported.
    from finetune_trainer.kernels.warm_up import use_every_kernel  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as scratch:
        use_every_kernel(Path(scratch))
