"""A folder that every user can enter, for tests that run a function as another user."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def open_folder() -> Iterator[Path]:
    """Make a folder beside those of pytest, which are closed to other users, and remove it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="finetune-"))
    folder.chmod(0o777)
    try:
        yield folder
    finally:
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o777)
        shutil.rmtree(folder)
