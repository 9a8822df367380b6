"""The destinations are real folders and real volumes: read-only, full, and closed to the user."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.workspace.destination import (
    MANIFEST,
    fault_behind,
    folder_bytes,
    is_transient,
    owner_of,
    publishing_alone,
    require_space,
    try_destination,
    writing_to,
)

from tests.support.processes.user import message_as_user
from tests.support.repository import ROOT

SPEC, OTHER = "sha256:" + "0" * 64, "sha256:" + "1" * 64


def refusal(destination: Path) -> str:
    with pytest.raises(StageError) as caught:
        try_destination(destination, SPEC)
    assert caught.value.reason is Reason.DESTINATION_UNWRITABLE
    return caught.value.message


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("path", [".", "new", "new/deep/er", "mine", "link", "ünï cödé 模型"])
def test_a_destination_that_can_be_written_is_left_without_a_trace(tmp_path: Path, path: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    (tmp_path / "link").symlink_to("mine")
    before = everything(tmp_path)
    try_destination(tmp_path / path, SPEC)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("path", ["file", "file/deeper", "broken/deeper", "loop/deeper"])
def test_a_path_through_something_else_than_a_folder_is_named(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    message = refusal(tmp_path / path)
    assert f"something else than a folder at {tmp_path / Path(path).parts[0]}" in message
    assert not (tmp_path / "nowhere").exists()


def test_a_name_that_the_file_system_does_not_allow_is_named_and_leaves_no_folder(tmp_path: Path) -> None:
    assert "File name too long" in refusal(tmp_path / "made" / ("x" * 300))
    assert everything(tmp_path) == []


@pytest.mark.parametrize("manifest", [json.dumps({"specHash": OTHER}), "{", "[]", ""])
def test_a_destination_with_the_manifest_of_another_spec_is_taken(tmp_path: Path, manifest: str) -> None:
    (tmp_path / MANIFEST).write_text(manifest)
    before = everything(tmp_path)
    assert "another job" in refusal(tmp_path)
    assert everything(tmp_path) == before


def test_a_folder_of_unknown_origin_is_taken_and_one_of_this_spec_is_not(tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    assert "a folder `merged` without" in refusal(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps({"specHash": SPEC}))
    try_destination(tmp_path, SPEC)


def test_a_manifest_that_is_a_folder_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).mkdir()
    assert "Is a directory" in refusal(tmp_path)


@pytest.mark.parametrize("place", ["parent", "destination", "leftover", "manifest"])
def test_a_user_without_access_is_named_with_its_groups(open_folder: Path, place: str) -> None:
    """Permissions are tried as the trainer's own user, because they do not bind root."""
    destination = open_folder / "output"
    destination.mkdir()
    (destination / "merged").mkdir()
    (destination / MANIFEST).write_text(json.dumps({"specHash": SPEC}))
    for path in (open_folder, destination, destination / "merged"):
        path.chmod(0o777)
    assert message_as_user(lambda: try_destination(destination, SPEC)) == ""
    closed = {
        "parent": open_folder,
        "destination": destination,
        "leftover": destination / "merged",
        "manifest": destination / MANIFEST,
    }[place]
    closed.chmod(0o555 if place == "destination" else 0o000)
    message = message_as_user(lambda: try_destination(destination, SPEC))
    assert "Permission denied at" in message
    assert "with the groups" in message
    assert "write access" in message


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Return a folder that every user can enter; the folders of pytest are closed."""
    folder = Path("/tmp") / f"finetune-{os.getpid()}-{os.urandom(4).hex()}"  # noqa: S108 -- see above
    folder.mkdir()
    folder.chmod(0o777)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o777)
    shutil.rmtree(folder)


def on_volume(options: str, code: str) -> str:
    """Run Python `code` with the destination `d`, a new tmpfs with these mount options; return its output."""
    script = (
        "import os, subprocess, sys, tempfile\n"
        "from pathlib import Path\n"
        "from finetune_trainer.errors import StageError\n"
        "from finetune_trainer.workspace.destination import *\n"
        "d = Path(tempfile.mkdtemp())\n"
        f"subprocess.run(['mount', '-t', 'tmpfs', '-o', {options!r}, 'none', d], check=True)\n"
        f"try:\n    {code}\n    print('passed')\n"
        "except StageError as error:\n    print(error.reason, error.message)\n"
        "finally:\n    print(sorted(os.listdir(d)))\n    subprocess.run(['umount', d], check=True)\n    d.rmdir()\n"
    )
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT / "trainer_image" / "src")},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("options", "finding", "remedy"),
    [
        ("size=1m,ro", "Read-only file system", "access mode"),
        ("size=16k", "No space left on device", "enlarge it"),
        ("size=1m,nr_inodes=3", "No space left on device", "enlarge it"),
    ],
)
def test_a_volume_that_takes_nothing_is_named_and_left_empty(options: str, finding: str, remedy: str) -> None:
    output = on_volume(options, f"try_destination(d / 'deep' / 'er', '{SPEC}')")
    assert output.startswith("DestinationUnwritable")
    for part in (finding, remedy, "\n[]\n"):
        assert part in output


def test_space_is_compared_with_the_volume_and_what_is_replaced_counts_as_free() -> None:
    output = on_volume("size=1m", "require_space(d / 'not' / 'yet', 1024 * 1024)")
    assert output.startswith("passed")
    output = on_volume("size=1m", "require_space(d / 'not' / 'yet', 1024 * 1024 + 1)")
    assert "must have 1024 KiB of free space for the artifacts, found 1024 KiB" in output
    write = "(d / '{0}').mkdir(); (d / '{0}' / 'weights').write_bytes(bytes(800 * 1024)); require_space(d, 900 * 1024)"
    assert "found 224 KiB" in on_volume("size=1m", write.format("foreign"))
    for name in ("merged", ".finetune-staging"):
        assert on_volume("size=1m", write.format(name)).startswith("passed")


def test_a_need_that_no_volume_has_is_shown_in_gibibytes(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"must have 1073741824\.00 GiB") as caught:
        require_space(tmp_path, 2**60)
    assert caught.value.reason is Reason.DESTINATION_UNWRITABLE


def test_only_errors_of_the_destination_are_blamed_on_it(tmp_path: Path) -> None:
    output, workspace = tmp_path / "output", tmp_path / "workspace"
    with pytest.raises(FileNotFoundError), writing_to(output):
        (workspace / "model" / "weights").read_bytes()
    workspace.mkdir()
    (workspace / "file").write_text("x")
    for blamed in (
        lambda: (output / "file").write_text("x"),
        lambda: shutil.copyfile(workspace / "file", output / "file"),
        lambda: shutil.copytree(workspace, output / "a" / "file"),
        lambda: (output / "deep").mkdir(parents=True, exist_ok=True),
        lambda: os.write(os.open("/dev/full", os.O_WRONLY), b"x"),
    ):
        output.write_text("no folder")
        with pytest.raises(StageError), writing_to(output):
            blamed()


def test_only_a_storage_that_does_not_answer_is_a_transient_cause(tmp_path: Path) -> None:
    transient = set()
    for number in (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENOSPC, errno.EACCES, errno.EROFS):
        with pytest.raises(StageError) as caught, writing_to(tmp_path):
            raise OSError(number, os.strerror(number))
        if is_transient(caught.value):
            transient.add(number)
    assert transient == {errno.EIO, errno.ESTALE, errno.ENOTCONN}
    assert not is_transient(StageError(Reason.DESTINATION_UNWRITABLE, "taken"))


def test_one_process_publishes_at_a_time(tmp_path: Path) -> None:
    destination = tmp_path / "deep" / "output"
    with publishing_alone(destination):
        with pytest.raises(StageError, match="publishes there now") as caught, publishing_alone(destination):
            pass
        assert caught.value.reason is Reason.DESTINATION_UNWRITABLE
    with publishing_alone(destination):
        assert everything(destination) == []


def caused_by(path: Path, reason: Reason) -> StageError:
    """Return the StageError of a reader that could not open a file."""
    error = StageError(reason, "must be readable")
    error.__cause__ = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return error


def test_an_unknown_error_is_blamed_on_a_destination_that_is_gone(tmp_path: Path) -> None:
    unknown = RuntimeError("unknown model")
    assert fault_behind(unknown, tmp_path) is None
    assert everything(tmp_path) == []
    gone = fault_behind(unknown, tmp_path / "gone")
    assert gone is not None
    assert "No such file or directory" in gone.message


def test_a_known_error_is_blamed_on_the_destination_only_if_its_cause_is_there(tmp_path: Path) -> None:
    here = fault_behind(caused_by(tmp_path / "merged" / "weights", Reason.INVALID_MODEL), tmp_path)
    assert here is not None
    assert here.reason is Reason.DESTINATION_UNWRITABLE
    elsewhere = caused_by(Path("/workspace/model/weights"), Reason.INVALID_MODEL)
    assert fault_behind(elsewhere, tmp_path / "gone") is None
    assert fault_behind(StageError(Reason.ADAPTER_UNTRAINED, "zero"), tmp_path / "gone") is None
    assert fault_behind(caused_by(tmp_path, Reason.DESTINATION_UNWRITABLE), tmp_path) is None


def test_the_owner_of_a_missing_file_is_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert owner_of(tmp_path / "absent") is None
    assert owner_of(tmp_path / "file" / MANIFEST) is None
    assert owner_of(tmp_path / "file") == "unknown"


def test_the_size_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(b"abc")
    (tmp_path / "file").write_bytes(b"de")
    assert folder_bytes(tmp_path) == 5
    assert folder_bytes(tmp_path / "absent") == 0
