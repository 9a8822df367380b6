"""Proxies and exceptions from the environment."""

from __future__ import annotations

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.proxy import Proxies

PROXY = {"HTTPS_PROXY": "http://proxy.example:3128"}


def reached_directly(exceptions: str, host: str, port: int = 443) -> bool:
    found = Proxies.from_environment({**PROXY, "NO_PROXY": exceptions})
    return found.route("https", host, port) is None


@pytest.mark.parametrize(
    ("exceptions", "host"),
    [
        ("example.com", "example.com"),
        ("example.com", "data.example.com"),
        (".example.com", "example.com"),
        (".example.com", "a.b.example.com"),
        ("*.example.com", "data.example.com"),
        ("EXAMPLE.com", "Data.Example.COM"),
        ("example.com", "example.com."),
        ("other.org, example.com", "example.com"),
        ("other.org example.com", "example.com"),
        ("example.com:443", "example.com"),
        ("*", "anything.org"),
        ("other.org,*", "anything.org"),
        ("10.0.0.7", "10.0.0.7"),
        ("10.0.0.0/8", "10.200.3.4"),
        ("10.0.0.0/8:443", "10.200.3.4"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("[::1]:443", "::1"),
        ("fd00::/8", "fd12::1"),
        ("::1", "[::1]"),
    ],
)
def test_an_excepted_server_is_reached_directly(exceptions: str, host: str) -> None:
    assert reached_directly(exceptions, host)


@pytest.mark.parametrize(
    ("exceptions", "host"),
    [
        ("", "example.com"),
        ("example.com", "notexample.com"),
        ("example.com", "example.com.org"),
        ("data.example.com", "example.com"),
        ("example.com:8443", "example.com"),
        ("example.*", "example.com"),
        (",, ,", "example.com"),
        (".", "example.com"),
        ("10.0.0.0/8", "11.0.0.1"),
        ("10.0.0.0/8", "ten.example.com"),
        ("10.0.0.0/99", "10.0.0.1"),
        ("0.0.0.1", "10.0.0.1"),
        ("::1", "::2"),
        ("10.0.0.1", "::ffff:10.0.0.2"),
    ],
)
def test_any_other_server_is_reached_through_the_proxy(exceptions: str, host: str) -> None:
    assert not reached_directly(exceptions, host)


def test_each_scheme_has_its_proxy_and_all_is_for_the_rest() -> None:
    found = Proxies.from_environment(
        {
            "https_proxy": "http://lower.example:1",
            "HTTPS_PROXY": "http://upper.example:2",
            "ALL_PROXY": "all.example",
        }
    )
    secure, plain = found.route("https", "a.org", 443), found.route("http", "a.org", 80)
    assert secure is not None
    assert plain is not None
    assert (secure.scheme, secure.host, secure.port) == ("http", "lower.example", 1)
    assert (plain.scheme, plain.host, plain.port) == ("http", "all.example", 80)


def test_without_variables_every_server_is_reached_directly() -> None:
    found = Proxies.from_environment({"HTTPS_PROXY": " ", "NO_PROXY": "a.org"})
    assert not found
    assert found.route("https", "b.org", 443) is None


def test_a_password_is_sent_but_never_shown() -> None:
    found = Proxies.from_environment({"HTTPS_PROXY": " https://user:s%40cret@proxy.example:8443/\n"})
    proxy = found.route("https", "a.org", 443)
    assert proxy is not None
    assert proxy.authorization == b"Basic dXNlcjpzQGNyZXQ="
    assert "c3" not in repr(proxy)
    assert "cret" not in repr(found)


def test_a_proxy_that_the_job_names_is_marked() -> None:
    found = Proxies.from_environment(
        {**PROXY, "HTTP_PROXY": "http://own:1", "FINETUNE_JOB_PROXIES": "HTTP_PROXY"}
    )
    marks = {scheme: proxy.from_job for scheme, proxy in found.by_scheme.items()}
    assert marks == {"https": False, "http": True}


@pytest.mark.parametrize(
    "value", ["socks5://user:s3cret@proxy:1080", "http://s3cret@:80", "http://proxy:99999", "a b"]
)
def test_a_value_that_is_no_proxy_has_its_own_reason_and_is_not_repeated(value: str) -> None:
    with pytest.raises(StageError, match="HTTPS_PROXY must be http://") as caught:
        Proxies.from_environment({"HTTPS_PROXY": value})
    assert caught.value.reason is Reason.INVALID_NETWORK_SETTINGS
    assert "s3cret" not in caught.value.message
