"""A repository on a hub: its commit, its files and the failures that may pass."""

from __future__ import annotations

import hashlib
import json
import ssl
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import trustme
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.fetch_target import MODEL
from finetune_trainer.sources.hub import HubRepository
from finetune_trainer.sources.network import Network

from tests.support.servers.forward_proxy import ForwardProxy, proxying
from tests.support.servers.loopback import COMMIT, TOKEN, Hub, Script, http_server, ranged, status
from tests.support.servers.wire import send


@pytest.fixture
def hub(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub.of_folder(tiny_model)
    with http_server(hub, host="127.0.0.1") as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        yield hub


def test_files_lie_below_the_folder_of_the_commit(hub: Hub, tmp_path: Path) -> None:
    repository = HubRepository(MODEL, "org/model", "main", None, tmp_path)
    assert repository.commit == COMMIT
    assert repository.sizes.keys() == hub.files.keys()
    path = repository.download("config.json", lambda _done, _total: None)
    assert path == tmp_path / COMMIT / "config.json"
    assert path.read_bytes() == hub.files["config.json"]


def test_a_broken_note_of_the_commit_is_ignored(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / ".commit.json").write_text("{broken")
    assert HubRepository(MODEL, "org/model", "main", None, tmp_path).commit == COMMIT
    assert "/api/models/org/model/revision/main" in hub.paths


@pytest.mark.usefixtures("hub")
def test_an_invalid_name_is_not_found_without_a_retry(tmp_path: Path) -> None:
    pauses: list[float] = []
    with pytest.raises(StageError, match="ORGANIZATION/NAME") as caught:
        HubRepository(MODEL, "a/b/c", "main", None, tmp_path, sleep=pauses.append)
    assert caught.value.reason is Reason.MODEL_NOT_FOUND
    assert pauses == []


def test_a_response_outside_the_api_is_tried_again(hub: Hub, tmp_path: Path) -> None:
    hub.information = b"<html>"
    pauses: list[float] = []
    with pytest.raises(StageError, match="a web page instead of the hub's response") as caught:
        HubRepository(MODEL, "org/model", "main", None, tmp_path, sleep=pauses.append)
    assert caught.value.reason is Reason.MODEL_UNAVAILABLE
    assert sum(pauses) == pytest.approx(600, abs=1)


def digests(hub: Hub) -> list[dict[str, Any]]:
    """Return the listing of the hub's files with their digests, as the public hub gives it."""
    return [
        {
            "rfilename": name,
            "size": len(content),
            "lfs": {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)},
        }
        for name, content in hub.files.items()
    ]


def open_quickly(folder: Path, **options: Any) -> HubRepository:
    return HubRepository(MODEL, "org/model", "main", None, folder, sleep=lambda _seconds: None, **options)


def ignore(_done: int, _total: int | None) -> None:
    """Other tests cover progress."""


def test_a_token_with_white_space_works_and_one_that_is_no_header_is_refused(
    hub: Hub, tmp_path: Path
) -> None:
    hub.gated = True
    repository = HubRepository(MODEL, "org/model", "main", f"\ufeff {TOKEN}\r\n", tmp_path)
    assert repository.download("config.json", ignore).is_file()
    with pytest.raises(StageError, match="line break") as caught:
        HubRepository(MODEL, "org/model", "main", f"{TOKEN}\nAnother: header", tmp_path)
    assert caught.value.reason is Reason.MODEL_ACCESS_DENIED
    assert TOKEN not in caught.value.message


def test_a_hub_that_resets_connections_at_first_is_waited_for(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a sidecar that is still starting."""
    faults = iter([send(b"", reset=True)] * 4 + [status(503, b"upstream connect error")] * 4)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        next(faults, hub)(handler)

    with http_server(answer, host="127.0.0.1") as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        assert open_quickly(tmp_path).commit == COMMIT


def test_a_file_that_breaks_off_is_resumed_where_it_broke(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(range(256)) * 400
    hub.files["weights"] = content
    ranges: list[str | None] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if not handler.path.endswith("/weights"):
            hub(handler)
            return
        ranges.append(handler.headers.get("Range"))
        cut_at = 40_000 if len(ranges) < 3 else None
        ranged('"v1"', content, cut_at=cut_at)(handler)

    with http_server(answer, host="127.0.0.1") as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        path = open_quickly(tmp_path).download("weights", ignore)
    assert path.read_bytes() == content
    assert ranges == [None, "bytes=40000-", "bytes=80000-"]


def test_a_later_process_continues_a_file_that_an_earlier_one_left(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(range(256)) * 400
    hub.files["data/weights äöü"] = content
    answers = Script([ranged('"v1"', content, cut_at=40_000), status(404), ranged('"v1"', content)])

    def answer(handler: BaseHTTPRequestHandler) -> None:
        (answers if "/resolve/" in handler.path else hub)(handler)

    with http_server(answer, host="127.0.0.1") as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        with pytest.raises(StageError):
            open_quickly(tmp_path).download("data/weights äöü", ignore)
        path = open_quickly(tmp_path).download("data/weights äöü", ignore)
        assert path.read_bytes() == content
        assert answers.seen[-1]["range"] == "bytes=40000-"
        assert open_quickly(tmp_path).download("data/weights äöü", ignore) == path
    assert len(answers.seen) == 3


def test_an_empty_file_is_a_file(hub: Hub, tmp_path: Path) -> None:
    hub.files["empty.txt"] = b""
    repository = open_quickly(tmp_path)
    assert repository.download("empty.txt", ignore).read_bytes() == b""
    assert repository.download("empty.txt", ignore).stat().st_size == 0


def test_a_rate_limit_is_waited_for_as_long_as_the_hub_asks(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    faults = iter([status(429, Retry_After="45"), status(429, RateLimit='"api";r=0;t=50')])

    def answer(handler: BaseHTTPRequestHandler) -> None:
        next(faults, hub)(handler)

    with http_server(answer, host="127.0.0.1") as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        HubRepository(MODEL, "org/model", "main", None, tmp_path, sleep=pauses.append)
    assert [45 <= pauses[0] <= 49.5, 50 <= pauses[1] <= 55] == [True, True]


def test_other_content_than_the_hubs_digest_is_never_used(hub: Hub, tmp_path: Path) -> None:
    siblings = digests(hub)
    siblings[0]["lfs"]["sha256"] = "0" * 64
    hub.information = json.dumps({"id": "org/model", "sha": COMMIT, "siblings": siblings}).encode()
    repository = open_quickly(tmp_path)
    names = [item["rfilename"] for item in siblings]
    with pytest.raises(StageError, match="other content than the hub's digest") as caught:
        repository.download(names[0], ignore)
    assert caught.value.reason is Reason.MODEL_UNAVAILABLE
    assert repository.download(names[1], ignore).read_bytes() == hub.files[names[1]]


def test_a_file_of_another_size_than_listed_is_never_used(hub: Hub, tmp_path: Path) -> None:
    siblings = [{"rfilename": "config.json", "size": 1}]
    hub.information = json.dumps({"sha": COMMIT, "siblings": siblings}).encode()
    with pytest.raises(StageError, match="instead of 1 "):
        open_quickly(tmp_path).download("config.json", ignore)


def test_a_mirror_without_digests_and_etags_is_named_once_and_works(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        name = handler.path.rpartition("/")[2]
        if "/resolve/" in handler.path:
            status(200, hub.files[name])(handler)
        else:
            hub(handler)

    with http_server(answer, host="127.0.0.1") as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        repository = open_quickly(tmp_path)
        for name in ("config.json", "tokenizer.json"):
            assert repository.download(name, ignore).read_bytes() == hub.files[name]
    assert caplog.text.count("does not name a digest, so only sizes are checked and an ETag") == 1


def test_a_mirror_without_commits_is_named_and_its_digests_identify_the_files(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listing = {"id": "org/model", "siblings": digests(hub)}
    hub.information = json.dumps(listing).encode()
    hub.commit = "main"
    repository = open_quickly(tmp_path)
    assert repository.commit is None
    assert "names no commit" in caplog.text
    assert repository.download("config.json", ignore).read_bytes() == hub.files["config.json"]
    hub.files["config.json"] = b"{}"
    with pytest.raises(StageError, match=r"digest|instead of"):
        open_quickly(tmp_path / "other").download("config.json", ignore)


def test_a_commit_that_the_job_names_needs_no_confirmation(hub: Hub, tmp_path: Path) -> None:
    hub.information = json.dumps({"siblings": [{"rfilename": "config.json"}]}).encode()
    repository = HubRepository(MODEL, "org/model", COMMIT, None, tmp_path)
    assert repository.commit == COMMIT


def test_the_hub_is_reached_through_a_proxy_with_an_authority_of_its_own(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("hub.example").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with http_server(hub, context=context) as origin:
        proxy = ForwardProxy({"hub.example": int(origin.rpartition(":")[2])})
        with proxying(proxy) as url:
            monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
            monkeypatch.setenv("HTTPS_PROXY", url)
            monkeypatch.setenv("FINETUNE_CA_BUNDLE", str(tmp_path / "ca.pem"))
            path = open_quickly(tmp_path / "model").download("config.json", ignore)
    assert path.read_bytes() == hub.files["config.json"]
    assert set(proxy.lines) == {"CONNECT hub.example:443 HTTP/1.1"}


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("allow", [False, True])
def test_a_private_proxy_of_the_job_is_used_only_where_private_addresses_are(
    tmp_path: Path, *, allow: bool
) -> None:
    """The hub itself may have any address, because the administrator names it."""
    proxy = ForwardProxy()
    with proxying(proxy) as url:
        environment = {"HTTP_PROXY": url, "FINETUNE_JOB_PROXIES": "HTTP_PROXY"}
        network = Network.from_environment(environment, allow_private=allow)
        if allow:
            assert open_quickly(tmp_path, network=network).commit == COMMIT
        else:
            with pytest.raises(StageError, match="proxy") as caught:
                open_quickly(tmp_path, network=network)
            assert caught.value.reason is Reason.MODEL_ADDRESS_FORBIDDEN
    assert bool(proxy.lines) == allow


def test_a_token_stays_with_the_hub_when_files_lie_elsewhere(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Script([status(200, b"{}")])
    seen: list[str | None] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if "/resolve/" in handler.path:
            seen.append(handler.headers.get("Authorization"))
            status(302, Location=f"{elsewhere}/file?sig=1")(handler)
        else:
            hub(handler)

    hub.files["config.json"] = b"{}"
    with (
        http_server(storage, host="127.0.0.1") as elsewhere,
        http_server(answer, host="127.0.0.1") as endpoint,
    ):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        HubRepository(MODEL, "org/model", "main", TOKEN, tmp_path).download("config.json", ignore)
    assert seen == [f"Bearer {TOKEN}"]
    assert "authorization" not in storage.seen[0]


def test_waiting_for_a_hub_is_reported(hub: Hub, tmp_path: Path) -> None:
    hub.failures = 3
    waits: list[None] = []
    open_quickly(tmp_path, waiting=lambda: waits.append(None))
    assert len(waits) >= 3
