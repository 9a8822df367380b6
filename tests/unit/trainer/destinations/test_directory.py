from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from finetune_trainer.contract.destinations import DirectoryDestination
from finetune_trainer.destinations.directory import DirectoryPublisher
from finetune_trainer.errors import Reason, StageError

from tests.support.publishing import OTHER, SPEC, digests, make_artifact


def publisher(folder: Path, *, spec: str = SPEC, overwrite: bool = False) -> DirectoryPublisher:
    destination = DirectoryDestination(
        kind="Directory", name="claim", path=folder, uri="pvc://team/claim/bot", overwrite=overwrite
    )
    return DirectoryPublisher(destination, spec)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def ignore(_done: int) -> None:
    pass


def test_the_copy_is_the_publication_and_nothing_else(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    sent: list[int] = []
    publisher(tmp_path / "claim").publish(artifact, sent.append)
    assert tree(tmp_path / "claim") == tree(tmp_path / "artifact")
    assert sent == sorted(sent)
    assert publisher(tmp_path / "claim").published() == json.loads(artifact.manifest)


def test_the_same_publication_is_not_written_again(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    publisher(tmp_path / "claim").publish(artifact, ignore)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "claim").rglob("*")}
    publisher(tmp_path / "claim").publish(artifact, ignore)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "claim").rglob("*")} == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_content_is_replaced_only_if_the_job_says_so(tmp_path: Path, *, overwrite: bool) -> None:
    theirs = make_artifact(tmp_path / "theirs", spec=OTHER, seed=2)
    publisher(tmp_path / "claim", spec=OTHER).publish(theirs, ignore)
    before = tree(tmp_path / "claim")
    ours = make_artifact(tmp_path / "ours")
    mine = publisher(tmp_path / "claim", overwrite=overwrite)
    if overwrite:
        mine.probe()
        mine.publish(ours, ignore)
        assert tree(tmp_path / "claim") == tree(tmp_path / "ours")
        return
    actions: tuple[Callable[[], object], ...] = (mine.probe, partial(mine.publish, ours, ignore))
    for action in actions:
        with pytest.raises(StageError) as caught:
            action()
        assert caught.value.reason is Reason.DESTINATION_UNWRITABLE
    assert tree(tmp_path / "claim") == before


@pytest.mark.parametrize("fault", ["missing", "changed"])
def test_a_damaged_copy_proves_nothing_and_is_mended(tmp_path: Path, fault: str) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    place = publisher(tmp_path / "claim")
    place.publish(artifact, ignore)
    path = tmp_path / "claim" / "merged" / "config.json"
    path.unlink() if fault == "missing" else path.write_text("{}")
    assert place.published() is None
    place.publish(artifact, ignore)
    assert tree(tmp_path / "claim") == tree(tmp_path / "artifact")
    assert set(digests(artifact)) < set(tree(tmp_path / "claim"))


@pytest.mark.parametrize("free", ["64k", "700k"])
def test_a_full_disk_has_its_reason_and_shows_nothing(tmp_path: Path, free: str) -> None:
    """The volume is a real tmpfs, and the artifacts have 1.6 MiB."""
    make_artifact(tmp_path / "artifact")
    (tmp_path / "claim").mkdir()
    place = {"kind": "Directory", "name": "claim", "path": str(tmp_path / "claim"), "uri": "pvc://a/b"}
    folders = {"folder": str(tmp_path / "artifact"), "journals": str(tmp_path / "journals")}
    task = json.dumps({"place": place, **folders, "calls": 0})
    script = f'mount -t tmpfs -o size={free} tmpfs "$1" && "$2" -m tests.support.publish_until_killed "$3"; find "$1" -type f'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    ended = subprocess.run(
        [*command, str(tmp_path / "claim"), sys.executable, task],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "must have" in ended.stderr, ended.stderr
    assert "of free space for the artifacts" in ended.stderr
    assert ended.stdout == "", "no file is left"
