from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.workspace.kept import MAXIMUM_BYTES, print_kept


def kept(folder: Path, wanted: str, attempt: int | None = None) -> tuple[dict[str, Any], bytes | None]:
    """Return the frame and, if there is one, the content that agrees with it."""
    output = io.BytesIO()
    found = print_kept(folder, wanted, attempt, output)
    head, _, content = output.getvalue().partition(b"\n")
    frame = json.loads(head)
    if not found:
        assert content == b""
        return frame, None
    content = content[: frame["bytes"]]
    assert hashlib.sha256(content).hexdigest() == frame["sha256"]
    return frame, content


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    for name in (
        "report/index.html",
        "report/job.json",
        "logs/prepare-0.log",
        "logs/train-0.log",
        "logs/train-1.log",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{name}\nwithout an end")
    return tmp_path


def test_the_newest_log_of_a_stage_is_printed_or_that_of_an_attempt(workspace: Path) -> None:
    assert kept(workspace, "train")[1] == b"logs/train-1.log\nwithout an end"
    frame, content = kept(workspace, "train", 0)
    assert content == b"logs/train-0.log\nwithout an end"
    assert frame["logs"] == ["prepare-0", "train-0", "train-1"]


def test_a_stage_has_the_logs_of_its_steps_in_their_order(workspace: Path) -> None:
    (workspace / "logs" / "probe-0.log").write_text("tried the destinations\n")
    assert kept(workspace, "prepare")[1] == b"tried the destinations\nlogs/prepare-0.log\nwithout an end"


def test_the_report_is_printed_in_both_forms(workspace: Path) -> None:
    assert kept(workspace, "html")[1] == b"report/index.html\nwithout an end"
    assert kept(workspace, "json")[1] == b"report/job.json\nwithout an end"


def test_a_published_folder_has_its_logs_in_the_report(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "merge-0.log").write_text("merged")
    assert kept(tmp_path, "merge")[1] == b"merged"


def test_what_is_not_there_is_said_with_what_is(workspace: Path) -> None:
    frame, content = kept(workspace, "merge")
    assert content is None
    assert frame["logs"] == ["prepare-0", "train-0", "train-1"]
    assert kept(workspace / "missing", "html")[0]["error"] == "No such file or directory"


def test_links_and_pipes_are_not_followed(workspace: Path) -> None:
    for name in ("index.html", "job.json"):
        (workspace / "report" / name).unlink()
    (workspace / "report" / "index.html").symlink_to("/etc/hostname")
    os.mkfifo(workspace / "report" / "job.json")
    assert kept(workspace, "html")[1] is None
    assert kept(workspace, "json")[0]["error"] == "it is no file"


def test_a_page_that_the_kubelet_would_cut_is_refused(workspace: Path) -> None:
    with (workspace / "report" / "index.html").open("wb") as file:
        file.truncate(MAXIMUM_BYTES + 1)
    assert kept(workspace, "html")[0]["error"] == "it must have at most 8 MiB"


def test_the_command_needs_no_run_spec_and_no_library(workspace: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "finetune_trainer", "kept", str(workspace), "train"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0
    assert done.stdout.endswith(b"logs/train-1.log\nwithout an end\n")
    imported = {line.rpartition(b"|")[2].strip() for line in done.stderr.splitlines()}
    assert not {b"torch", b"transformers", b"numpy", b"numba"} & imported
    assert subprocess.run([*command[:-1], "merge"], capture_output=True, check=False).returncode == 65
