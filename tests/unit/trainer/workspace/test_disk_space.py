"""A full volume has a separate reason at every point of a stage. The volumes are real tmpfs of a few KiB."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from finetune_trainer.stages.train.stage import train
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.disk_space import is_full, says_disk_full

from tests.support import workspaces
from tests.support.repository import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from finetune_trainer.contract.run_spec import RunSpec


def ends(stage: str, run: RunSpec, mount: Path, sizes: list[int], folder: Path) -> list[tuple[int, int, Any]]:
    """Return (KiB, exit code, reason) of the stage for each number of free KiB on the volume `mount`."""
    path = folder / "run.json"
    path.write_text(run.model_dump_json(by_alias=True, exclude_none=True))
    command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-m"]
    ended = subprocess.run(
        [*command, "tests.support.processes.small_volume", stage, path, mount, json.dumps(sizes)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'trainer_image' / 'src'}:{ROOT}"},
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [tuple(end) for end in json.loads(ended.stdout.splitlines()[-1])]


def assert_named(found: list[tuple[int, int, Any]], reason: str) -> None:
    """Assert that every volume that is too small is named, and that the largest is large enough."""
    assert found[-1][1:] == (0, None), found
    assert {end[1:] for end in found[:-1]} <= {(65, reason), (0, None)}, found
    assert sum(end[1] == 65 for end in found) >= 2, found


@pytest.mark.slow
def test_prepare_on_a_volume_that_is_too_small(make_run: Callable[..., RunSpec], tmp_path: Path) -> None:
    run = make_run()
    run.workspace.path.mkdir(parents=True)
    sizes = [8, 48, 96, 160, 224, 320, 8192]
    assert_named(ends("prepare", run, run.workspace.path, sizes, tmp_path), "WorkspaceFull")


@pytest.mark.slow
def test_prepare_for_a_destination_that_is_too_small(
    make_run: Callable[..., RunSpec], tmp_path: Path
) -> None:
    """The smallest volume takes not even the trial, the next one not the merged weights."""
    run = make_run()
    destination = run.output.destination.path
    destination.mkdir()
    assert_named(ends("prepare", run, destination, [8, 128, 8192], tmp_path), "DestinationUnwritable")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    workspaces.write_base(folder, "llama")
    return folder


@pytest.mark.slow
def test_train_on_a_volume_that_is_too_small(base: Path, tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    workspaces.prepare(root, base)
    run = workspaces.run_spec(root, tmp_path / "output", maximumSteps=3, checkpoint={"intervalSteps": 1})
    sizes = [8, 40, 96, 160, 8192]
    assert_named(ends("train", run, root, sizes, tmp_path), "WorkspaceFull")


@pytest.mark.slow
def test_merge_to_a_destination_that_is_too_small(base: Path, tmp_path: Path) -> None:
    root, output = tmp_path / "workspace", tmp_path / "output"
    workspaces.prepare(root, base)
    run = workspaces.run_spec(root, output, maximumSteps=3)
    train(run, NullReporter())
    output.mkdir()
    assert_named(ends("merge", run, output, [8, 32, 96, 160, 8192], tmp_path), "DestinationUnwritable")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_the_error_of_the_system_is_found_as_the_cause_of_others(number: int) -> None:
    cause = OSError(number, os.strerror(number))
    outer = RuntimeError("cannot write")
    outer.__cause__ = cause
    for error in (cause, outer, RuntimeError(f"I/O error: {os.strerror(number)} (os error {number})")):
        assert says_disk_full(error)
    assert not says_disk_full(OSError(errno.EIO, os.strerror(errno.EIO)))


def test_a_volume_with_space_or_without_a_folder_is_not_full(tmp_path: Path) -> None:
    assert not is_full(tmp_path)
    assert not is_full(tmp_path / "missing")
