"""Signed URLs reach the server byte for byte, with any form of query."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.http import Limits, download
from finetune_trainer.sources.url import InvalidLocationError, Location

from tests.support.servers.loopback import Script, http_server, status

TARGETS = [
    "/data.jsonl?X-Amz-Signature=ab%2Fcd%2B%3d&X-Amz-Date=20260101T000000Z",
    "/a%2Fb/%7Euser/~user?sig=a+b%20c",
    "/x?a=1;b=2;c",
    "/x?a=1&a=2&a=1",
    "/x?a=&b&=c&&",
    "/x?",
    "/x??a=?b",
    "/x?q='quoted'(1)*!$,@:[]{}|^`\\\"<>",
    "/a/../b/./c//d?sig=1",
    "/%zz%?%",
    "?sig=without-a-path",
    "",
]


@pytest.mark.parametrize("target", TARGETS)
def test_path_and_query_arrive_unchanged(tmp_path: Path, target: str) -> None:
    script = Script([status(200, b"rows")])
    with http_server(script) as origin:
        fetch(f"{origin}{target}", tmp_path)
    sent = script.lines[0].removeprefix("GET ").rpartition(" ")[0]
    assert sent == (target if target.startswith("/") else f"/{target}")


@pytest.mark.parametrize(
    ("target", "sent"),
    [
        ("/dätä?n=ü", "/d%C3%A4t%C3%A4?n=%C3%BC"),
        ("/a b?c d", "/a%20b?c%20d"),
        ("/x?a=1#fragment", "/x?a=1"),
        ("/x?\udcff=1", "/x?%FF=1"),
    ],
)
def test_only_characters_that_are_invalid_in_a_request_line_are_encoded(
    tmp_path: Path, target: str, sent: str
) -> None:
    script = Script([status(200, b"rows")])
    with http_server(script) as origin:
        fetch(f"{origin}{target}", tmp_path)
    assert script.lines[0].split(" ")[1] == sent


@pytest.mark.parametrize(
    ("reference", "sent"),
    [
        ("/moved?sig=a%2Bb+c;d", "/moved?sig=a%2Bb+c;d"),
        ("sibling?sig=%2F", "/folder/sibling?sig=%2F"),
        ("../up", "/up"),
        ("?sig=other", "/folder/file?sig=other"),
        ("", "/folder/file"),
    ],
)
def test_the_targets_of_redirects_are_used_unchanged(reference: str, sent: str) -> None:
    location = Location.parse("https://example.com/folder/file?sig=1")
    assert location.follow(reference).target.decode() == sent


def test_user_and_password_are_sent_to_their_own_host_only(tmp_path: Path) -> None:
    """Basic authorization is percent-decoded. A redirect to the same origin keeps it, but another port does not."""
    first = Script([status(302, Location="/again"), status(302, Location="/onwards")])
    other = Script([status(200, b"rows")])
    with http_server(other) as elsewhere:
        first.answers[1] = status(302, Location=f"{elsewhere}/file")
        with http_server(first) as origin:
            fetch(origin.replace("http://", "http://us%65r:p%40ss@") + "/file", tmp_path)
    assert [seen["authorization"] for seen in first.seen] == ["Basic dXNlcjpwQHNz"] * 2
    assert "authorization" not in other.seen[0]
    assert not {"cookie", "referer"} & set(other.seen[0])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://",
        "https:///path",
        "https://host:port/",
        "https://host:0/",
        "https://host:99999/",
        "https://ho st/",
        "https://good.example\\@evil.example/",
        "https://host/a\r\nX-Injected: 1",
        "https://[::1/",
        "https://[not-an-address]/",
        "https://%31%32%37.0.0.1/",
        "ftp://host/file",
        "//host/file",
        "https:host/file",
    ],
)
def test_an_invalid_url_is_rejected_and_never_shown(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidLocationError):
        Location.parse(text)
    with pytest.raises(StageError) as caught:
        fetch(text, tmp_path)
    assert caught.value.reason is Reason.DATASET_ADDRESS_FORBIDDEN
    assert text == "" or text not in caught.value.message


def test_secrets_stay_out_of_a_locations_repr() -> None:
    assert "secret" not in repr(Location.parse("https://user:secret@host/secret?sig=secret"))


def fetch(url: str, folder: Path) -> None:
    download(
        url, folder / "dataset", Limits(10**6, 60, True), lambda _done, _total: None, sleep=lambda _s: None
    )
