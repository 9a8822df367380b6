"""Prepared tiny workspaces. They are made once, and each test gets a copy."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.support import workspaces

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def prepared_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `base/` and a prepared `workspace/` of a tiny Llama in several weight files."""
    root = tmp_path_factory.mktemp("llama")
    workspaces.write_base(root / "base", "llama", shard="60KB")
    workspaces.prepare(root / "workspace", root / "base")
    return root


@pytest.fixture
def workspace(prepared_llama: Path, tmp_path: Path) -> Path:
    """Return a fresh copy of the prepared workspace."""
    copy = tmp_path / "workspace"
    shutil.copytree(prepared_llama / "workspace", copy)
    return copy
