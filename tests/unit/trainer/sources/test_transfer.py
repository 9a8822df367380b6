"""One file's download, judged by the caller's rules."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.errors import StageError
from finetune_trainer.sources.connections import Connections
from finetune_trainer.sources.fetch_target import MODEL
from finetune_trainer.sources.network import Network
from finetune_trainer.sources.partial_download import PartialFile
from finetune_trainer.sources.responses import Action, Verdict, interpret
from finetune_trainer.sources.retry import Outage
from finetune_trainer.sources.transfer import Rules, Transfer
from finetune_trainer.sources.url import Location

from tests.support.servers.loopback import BODY, Script, http_server, ranged, status


def error(text: str) -> Callable[..., StageError]:
    return lambda *_: StageError(MODEL.unavailable, text)


def rules(**changes: Any) -> Rules:
    members: dict[str, Any] = {
        "target": MODEL,
        "judge": interpret,
        "error": _error,
        "require_size": lambda _size: None,
        "late": error("late"),
        "redirects": error("redirects"),
        "invalid": error("invalid"),
    }
    return Rules(**members | changes)


def _error(verdict: Verdict) -> Exception:
    return (
        Outage(verdict.found)
        if verdict.action is Action.RETRY
        else StageError(MODEL.not_found, verdict.found)
    )


class Download:
    """A transfer to a file of a folder, with the progress that it reported."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.partial = PartialFile(folder / "file", "name")
        self.heard: list[tuple[int, int | None]] = []
        self.transfer = Transfer(
            self.partial, rules(**changes), math.inf, lambda done, total: self.heard.append((done, total))
        )

    def attempt(self, url: str) -> bytes:
        with Connections(
            Network(),
            MODEL,
            allow_private=True,
            deadline=math.inf,
            forbidden=MODEL.forbidden_address,
            late=self.transfer.late,
        ) as connections:
            self.transfer.attempt(connections, Location.parse(url))
        return self.partial.path.read_bytes()


def test_an_interrupted_file_is_continued(tmp_path: Path) -> None:
    download = Download(tmp_path)
    with http_server(Script([ranged('"v1"', cut_at=50_000), ranged('"v1"')])) as origin:
        with pytest.raises(Outage):
            download.attempt(origin)
        assert download.transfer.done == 50_000
        assert download.attempt(origin) == BODY
    assert download.transfer.finish() == '"v1"'


def test_waiting_repeats_the_progress(tmp_path: Path) -> None:
    download = Download(tmp_path)
    with http_server(ranged('"v1"', cut_at=50_000)) as origin, pytest.raises(Outage):
        download.attempt(origin)
    download.transfer.waiting()
    assert download.heard[-1] == download.heard[-2] == (50_000, len(BODY))


def test_secret_headers_go_to_the_first_origin_only_and_others_everywhere(tmp_path: Path) -> None:
    final = Script([status(200, BODY)])
    observed: list[str | None] = []
    download = Download(
        tmp_path,
        headers=((b"X-Plain", b"1"),),
        secret_headers=((b"X-Secret", b"2"),),
        observe=lambda fields: observed.append(fields.get("x-linked")),
    )
    with http_server(final) as elsewhere:
        first = Script(
            [status(302, Location="/again"), status(302, Location=f"{elsewhere}/x", X_Linked="digest")]
        )
        with http_server(first) as origin:
            assert download.attempt(origin) == BODY
    assert [seen.get("x-secret") for seen in [*first.seen, *final.seen]] == ["2", "2", None]
    assert [seen.get("x-plain") for seen in [*first.seen, *final.seen]] == ["1", "1", "1"]
    assert observed == [None, "digest", None]
    assert "s3cret" not in repr(rules(secret_headers=((b"X-Secret", b"s3cret"),)))


def test_a_coding_is_removed_unless_the_file_has_its_size_already(tmp_path: Path) -> None:
    packed = gzip.compress(BODY)
    with http_server(status(200, packed, Content_Encoding="gzip")) as origin:
        labeled = Download(tmp_path / "a")
        labeled.attempt(origin)
        labeled.transfer.finish(len(packed))
        coded = Download(tmp_path / "b")
        coded.attempt(origin)
        coded.transfer.finish(len(BODY))
    assert labeled.partial.path.read_bytes() == packed
    assert coded.partial.path.read_bytes() == BODY


def test_restarting_leaves_nothing(tmp_path: Path) -> None:
    download = Download(tmp_path)
    with http_server(ranged('"v1"')) as origin:
        download.attempt(origin)
    download.transfer.restart()
    assert download.transfer.done == 0
    assert not download.partial.path.exists()


def test_redirects_are_bounded_and_checked(tmp_path: Path) -> None:
    with http_server(status(302, Location="/again")) as origin, pytest.raises(StageError, match="redirects"):
        Download(tmp_path).attempt(origin)
    with http_server(status(302, Location="ftp://x")) as origin, pytest.raises(StageError, match="invalid"):
        Download(tmp_path).attempt(origin)
