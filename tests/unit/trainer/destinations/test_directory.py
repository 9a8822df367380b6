from __future__ import annotations

import json
import resource
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


def test_a_disk_that_fills_in_the_middle_shows_nothing_and_costs_no_second_copy(tmp_path: Path) -> None:
    """The volume is a real tmpfs with room for everything at the start; then another writer takes the rest."""
    artifact = make_artifact(tmp_path / "artifact", megabytes=20)
    (tmp_path / "volume").mkdir()
    fill_after = sum(
        file.bytes for file in artifact.files if file.name.startswith(("adapter", "merged/model-00001"))
    )
    script = (
        'mount -t tmpfs -o size=60m tmpfs "$1" && mkdir "$1/claim" && '
        '"$2" -m tests.support.fill_while_publishing "$3" "$1/claim" "$4"'
    )
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    ended = subprocess.run(
        [*command, str(tmp_path / "volume"), sys.executable, str(tmp_path / "artifact"), str(fill_after)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    reason, message = found["failed"]
    assert reason == "DestinationUnwritable"
    assert "No space left on device" in message
    assert "free space on the claim or enlarge it" in message
    assert found["seen"] == []
    assert found["published"] == sorted([*digests(artifact), "manifest.json"])
    assert found["kept"] >= 2, "the files that were whole must not be copied again"


def test_a_file_system_that_takes_no_files_of_this_size_has_its_remedy(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact", megabytes=2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(StageError) as caught:
            publisher(tmp_path / "claim").publish(artifact, ignore)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.reason is Reason.DESTINATION_UNWRITABLE
    assert "use a claim whose file system takes files of this size" in caught.value.message
    assert not (tmp_path / "claim" / "manifest.json").exists()
