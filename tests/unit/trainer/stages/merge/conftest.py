"""Trained tiny workspaces. They are made once, and each test gets a copy."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from finetune_trainer.stages.train.stage import train
from finetune_trainer.telemetry.reporter import NullReporter

from tests.support import workspaces

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def trained_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `base/` and a trained `workspace/` of a tiny Llama in several weight files."""
    root = tmp_path_factory.mktemp("trained")
    workspaces.write_base(root / "base", "llama", shard="60KB")
    workspaces.prepare(root / "workspace", root / "base")
    train(workspaces.run_spec(root / "workspace", root / "unused", maximumSteps=10), NullReporter())
    return root


@pytest.fixture
def workspace(trained_llama: Path, tmp_path: Path) -> Path:
    """Return a fresh copy of the trained workspace."""
    copy = tmp_path / "workspace"
    shutil.copytree(trained_llama / "workspace", copy)
    return copy
