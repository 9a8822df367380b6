from __future__ import annotations

import pytest
from finetune_trainer.contract.destinations import RegistryDestination
from finetune_trainer.destinations import http_client
from finetune_trainer.destinations.http_client import HttpClient
from finetune_trainer.destinations.registry_client import RegistryClient
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.fetch_target import destination_target
from finetune_trainer.sources.network import Network
from finetune_trainer.sources.retry import Outage, RetryPolicy
from finetune_trainer.sources.url import Location

from tests.support.hub_destinations import Pauses
from tests.support.servers.loopback import Script, http_server, status


class Client(HttpClient):
    """The least that a client of a destination is."""

    server = "server"


def client() -> Client:
    return Client(destination_target("place"), Network(retry=RetryPolicy(0)), allow_private=True)


def test_an_answer_has_status_fields_in_small_letters_and_the_whole_body() -> None:
    script = Script([status(418, b"tea", X_Pot="green")])
    with http_server(script) as origin, client() as ours:
        found = ours.answer("PUT", Location.parse(f"{origin}/pot"), {"content-length": "2"}, b"hi")
        ours.answer("GET", Location.parse(f"{origin}/pot"), {}, authorization=b"Bearer x")
    assert (found.status, found.fields["x-pot"], found.body) == (418, "green", b"tea")
    assert [seen.get("authorization") for seen in script.seen] == [None, "Bearer x"]


def test_a_body_beyond_the_bound_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "LARGEST_DOCUMENT", 1 << 20)
    with (
        http_server(status(200, b"x" * (1 << 21))) as origin,
        client() as ours,
        pytest.raises(Outage, match="more than 1 MiB"),
    ):
        ours.answer("GET", Location.parse(f"{origin}/"), {})


def test_an_outage_that_does_not_pass_names_the_server_and_the_remedy() -> None:
    def fail() -> None:
        raise Outage("HTTP status 503")

    with client() as ours, pytest.raises(StageError) as caught:
        ours.retried(fail)
    assert caught.value.reason is Reason.DESTINATION_UNAVAILABLE
    assert "HTTP status 503" in caught.value.message
    assert "check that the server is up" in caught.value.message


def test_a_registry_is_asked_again_after_the_pause_that_it_names() -> None:
    pauses = Pauses(600)
    with http_server(Script([status(429, Retry_After="37"), status(404)])) as origin:
        place = RegistryDestination(
            kind="Oci",
            name="place",
            reference=f"{origin.removeprefix('http://')}/a/b:1",
            credentials_prefix=None,
        )
        network = Network(retry=pauses.policy)
        with RegistryClient(place, destination_target("place"), {}, network, allow_private=True) as registry:
            assert registry.manifest("1") is None
    assert pauses.taken == [37]
