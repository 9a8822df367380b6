"""A new process resumes a download with the bytes that an earlier process left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from finetune_trainer.contract.run_spec import Limits as RunLimits
from finetune_trainer.contract.run_spec import UrlSource
from finetune_trainer.sources.dataset import Fetched, fetch_dataset
from finetune_trainer.sources.http import Limits, download

from tests.support.servers.loopback import Script, http_server, ranged, status

BODY = os.urandom(1 << 20)
LIMITS = RunLimits(dataset_bytes=10**7, download_seconds=60, allow_private_addresses=True)
PROGRAM = """
import sys
from pathlib import Path
from finetune_trainer.contract.run_spec import Limits, UrlSource
from finetune_trainer.sources.dataset import fetch_dataset
limits = Limits(dataset_bytes=10**7, download_seconds=60, allow_private_addresses=True)
fetch_dataset(UrlSource(kind="Url", url_variable="URL"), "dataset", limits, Path(sys.argv[1]), lambda done, total: None)
"""


def fetch(url: str, folder: Path) -> Fetched:
    source = UrlSource(kind="Url", url_variable="URL")
    return fetch_dataset(source, "dataset", LIMITS, folder, lambda _done, _total: None, {"URL": url})


def kill_in_the_middle(url: str, folder: Path) -> int:
    """Start a download in a separate process, kill it, and return the number of bytes that it left."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder)], env={**os.environ, "URL": url})
    part = folder / ".dataset.part"
    before = part.stat().st_size if part.is_file() else 0
    deadline = time.monotonic() + 60
    while not part.is_file() or part.stat().st_size < before + len(BODY) // 8:
        assert process.poll() is None, "the download must still run"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return part.stat().st_size


def test_a_killed_download_is_resumed_under_a_newly_signed_url(tmp_path: Path) -> None:
    """After each of two kills, the next request asks for the rest of the version. No file contains the URL."""
    script = Script([ranged('"v1"', BODY, pause_seconds=0.05)])
    with http_server(script) as origin:
        first = kill_in_the_middle(f"{origin}/very/secret/path?sig=firstsignature", tmp_path)
        notes = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.suffix == ".json")
        kill_in_the_middle(f"{origin}/very/secret/path?sig=secondsignature", tmp_path)
        script.answers = [ranged('"v1"', BODY)]
        fetched = fetch(f"{origin}/very/secret/path?sig=thirdsignature", tmp_path)
    assert fetched.paths[0].read_bytes() == BODY
    assert fetched.identity == {"kind": "Url", "etag": '"v1"', "bytes": len(BODY)}
    ranges = [seen.get("range") for seen in script.seen]
    assert ranges[0] is None
    assert int(str(ranges[1]).removeprefix("bytes=").rstrip("-")) >= first
    assert len(ranges) == 3
    assert {seen["if-range"] for seen in script.seen[1:]} == {'"v1"'}
    assert b"secret" not in notes
    assert b"signature" not in notes


def test_a_finished_download_needs_no_server(tmp_path: Path) -> None:
    with http_server(Script([ranged('"v1"', BODY)])) as origin:
        before = fetch(f"{origin}/file?sig=1", tmp_path)
    assert fetch(f"{origin}/file?sig=2", tmp_path) == before


def leave_part(folder: Path, url: str, script: Script) -> None:
    """Write the beginning of a file, like a killed process."""
    script.answers = [ranged('"v1"', BODY, cut_at=300_000), status(404)]
    with pytest.raises(Exception, match="404"):
        fetch(url, folder)
    script.seen.clear()


def test_another_version_restarts_the_file(tmp_path: Path) -> None:
    script = Script([])
    with http_server(script) as origin:
        leave_part(tmp_path, f"{origin}/file", script)
        script.answers = [ranged('"v2"', BODY[::-1])]
        assert fetch(f"{origin}/file", tmp_path).paths[0].read_bytes() == BODY[::-1]
    assert script.seen[0]["if-range"] == '"v1"'


def test_bytes_of_another_object_are_not_resumed(tmp_path: Path) -> None:
    """Later the Secret may name another file, and another file may have the same ETag."""
    script = Script([])
    with http_server(script) as origin:
        leave_part(tmp_path, f"{origin}/file", script)
        script.answers = [ranged('"v1"', BODY)]
        fetch(f"{origin}/other", tmp_path)
    assert "range" not in script.seen[0]


def test_a_complete_file_is_verified_by_its_last_byte(tmp_path: Path) -> None:
    """The process died after the last byte and before the rename."""
    script = Script([])
    with http_server(script) as origin:
        leave_part(tmp_path, f"{origin}/file", script)
        (tmp_path / ".dataset.part").write_bytes(BODY)
        script.answers = [ranged('"v1"', BODY)]
        assert fetch(f"{origin}/file", tmp_path).paths[0].read_bytes() == BODY
    assert script.seen[0]["range"] == f"bytes={len(BODY) - 1}-"


@pytest.mark.parametrize("note", ["", "[]", "{", '{"etag": 1}', json.dumps({"key": "k", "object": "o"})])
def test_a_broken_note_only_restarts_the_download(tmp_path: Path, note: str) -> None:
    script = Script([])
    with http_server(script) as origin:
        leave_part(tmp_path, f"{origin}/file", script)
        (tmp_path / ".dataset.json").write_text(note)
        script.answers = [ranged('"v1"', BODY)]
        assert fetch(f"{origin}/file", tmp_path).paths[0].read_bytes() == BODY
    assert "range" not in script.seen[0]


def test_a_plain_download_always_contacts_the_server(tmp_path: Path) -> None:
    script = Script([status(200, b"one"), status(200, b"two")])
    with http_server(script) as origin:
        for expected in (b"one", b"two"):
            download(f"{origin}/x", tmp_path / "x", Limits(10, 60, True), lambda _d, _t: None)
            assert (tmp_path / "x").read_bytes() == expected
