"""Imports bitsandbytes without torch's compiler, which would take a third of the CPU time of a stage's start.

bitsandbytes wraps the kernels of its slowest backend with torch.compile, and the first call of torch.compile imports the
compiler. No stage uses that backend: CPUs and CUDA have their own kernels. If the compiler fails, bitsandbytes runs the
same functions uncompiled, so nothing else changes.
"""

from __future__ import annotations

import sys
from typing import Any

import torch


def import_eagerly() -> None:
    """Import bitsandbytes; nothing happens if it is imported already."""
    if "bitsandbytes" in sys.modules:
        return
    library: Any = torch
    compiler = library.compile
    library.compile = _uncompiled
    try:
        import bitsandbytes  # noqa: F401, PLC0415 -- the import itself is the purpose, while the compiler is replaced
    finally:
        library.compile = compiler


def _uncompiled(function: Any = None, **_settings: Any) -> Any:
    return function if function is not None else _uncompiled
