"""Public and forbidden addresses."""

from __future__ import annotations

import socket
import time

import httpcore
import pytest
from finetune_trainer.sources.addresses import GuardedNetwork, allowed_addresses, is_public, may_ask_proxy_for


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("64:ff9b::808:808", True),
        ("64:ff9b::a00:1", False),
        ("2002:7f00:1::", False),
        ("100.64.0.1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("224.0.0.1", False),
        ("0.0.0.0", False),  # noqa: S104 -- an address to reject
    ],
)
def test_only_public_addresses_are_public(address: str, *, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(
    "address",
    [
        "168.63.129.16",
        "192.0.0.192",
        "169.254.169.254",
        "fd00:ec2::254",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "2002:a9fe:a9fe::1",
        "fec0::1",
        "ff02::1",
        "::",
        "::1",
        "::7f00:1",
        "2001:db8::1",
        "2001::1",
        "255.255.255.255",
        "198.18.0.1",
    ],
)
def test_metadata_and_special_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


def test_private_addresses_of_a_host_are_dropped_unless_allowed() -> None:
    assert allowed_addresses("127.0.0.1", 80, allow_private=False) == []
    assert allowed_addresses("127.0.0.1", 80, allow_private=True) == ["127.0.0.1"]


class NotAllowedError(Exception):
    """The error of the network under test."""


def network(deadline: float) -> GuardedNetwork:
    return GuardedNetwork(
        allow_private=deadline > 0, deadline=deadline, forbidden=NotAllowedError, late=TimeoutError
    )


def test_a_host_without_an_allowed_address_gets_no_connection() -> None:
    with pytest.raises(NotAllowedError):
        network(deadline=0.0).connect_tcp("127.0.0.1", 80)


def test_every_operation_ends_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        guarded = network(deadline=time.monotonic() + 0.05)
        stream = guarded.connect_tcp("127.0.0.1", server.getsockname()[1], timeout=5)
        with pytest.raises(httpcore.ReadTimeout):
            stream.read(1, timeout=5)
        with pytest.raises(TimeoutError):
            stream.read(1, timeout=5)
        stream.close()


@pytest.mark.parametrize("host", ["files.unresolvable.example", "a.b-c.org.", "xn--bcher-kva.example"])
def test_a_proxy_may_be_asked_for_a_name_that_only_the_internet_has(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_place: object, **_options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert may_ask_proxy_for(host, 443, allow_private=False)


@pytest.mark.parametrize("host", ["single", "a.internal", "a.SVC", "a..org", "", "1.2.3.4.5", "a.0x7f"])
def test_a_proxy_may_not_be_asked_for_names_of_private_networks(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_place: object, **_options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert not may_ask_proxy_for(host, 443, allow_private=False)
    assert may_ask_proxy_for(host, 443, allow_private=True)
