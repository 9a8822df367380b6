"""Tokens, permissions and outages of a hub that takes files."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.destinations.hub_client import HubClient
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.fetch_target import destination_target
from finetune_trainer.sources.network import Network
from finetune_trainer.sources.retry import RetryPolicy

from tests.support.hub_destinations import Pauses, answers, caught, hub_destination, hub_publisher
from tests.support.servers.writable_hub import TOKEN, WritableHub, writable_hub


@pytest.fixture
def hub() -> WritableHub:
    return WritableHub()


@pytest.fixture
def environment(hub: WritableHub) -> Iterator[dict[str, str]]:
    with writable_hub(hub) as environment:
        yield environment


@pytest.mark.parametrize("token", [None, "", "  "])
def test_a_missing_token_has_its_reason(
    hub: WritableHub, environment: dict[str, str], tmp_path: Path, token: str | None
) -> None:
    given = {key: value for key, value in environment.items() if key != "TEAM_TOKEN"}
    given |= {} if token is None else {"TEAM_TOKEN": token}
    error = caught(lambda: hub_publisher(given, tmp_path).probe())
    assert error.reason is Reason.DESTINATION_ACCESS_DENIED
    assert "must hold a token" in error.message
    assert hub.requests == []


@pytest.mark.parametrize("exists", [False, True])
def test_a_wrong_or_expired_token_has_its_reason(
    hub: WritableHub, environment: dict[str, str], tmp_path: Path, *, exists: bool
) -> None:
    if exists:
        hub.make("team/bot")
    wrong = hub_publisher({**environment, "TEAM_TOKEN": "hf_wrong_token"}, tmp_path)
    for action in (wrong.probe, wrong.published):
        error = caught(action)
        assert error.reason is Reason.DESTINATION_ACCESS_DENIED
        assert "wrong or expired" in error.message
        assert "hf_wrong_token" not in error.message


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize(
    "token",
    [
        {"role": "read"},
        {
            "role": "fineGrained",
            "fineGrained": {"global": [], "scoped": [{"permissions": ["repo.content.read"]}]},
        },
    ],
)
def test_a_token_that_may_only_read_is_found_before_the_training(
    hub: WritableHub, environment: dict[str, str], tmp_path: Path, token: dict[str, Any], *, exists: bool
) -> None:
    if exists:
        hub.make("team/bot")
    hub.tokens[TOKEN] = token
    error = caught(hub_publisher(environment, tmp_path).probe)
    assert error.reason is Reason.DESTINATION_ACCESS_DENIED
    assert "only read" in error.message


@pytest.mark.parametrize(
    ("repository", "reason"),
    [
        ("nowhere/bot", Reason.DESTINATION_NOT_FOUND),
        ("others/bot", Reason.DESTINATION_ACCESS_DENIED),
        ("readers/bot", Reason.DESTINATION_ACCESS_DENIED),
    ],
)
def test_an_organization_that_is_missing_or_of_others_is_found_before_the_training(
    environment: dict[str, str], tmp_path: Path, repository: str, reason: Reason
) -> None:
    assert caught(hub_publisher(environment, tmp_path, repository=repository).probe).reason is reason


def test_a_repository_of_others_that_all_can_read_is_found_before_the_training(
    hub: WritableHub, environment: dict[str, str], tmp_path: Path
) -> None:
    hub.make("others/bot")
    error = caught(hub_publisher(environment, tmp_path, repository="others/bot").probe)
    assert error.reason is Reason.DESTINATION_ACCESS_DENIED


def test_an_outage_that_lasts_too_long_ends_with_its_reason(
    hub: WritableHub, environment: dict[str, str], tmp_path: Path
) -> None:
    hub.make("team/bot")
    hub.interfere = answers(503, "", 10_000)
    error = caught(hub_publisher(environment, tmp_path, Pauses(20)).probe)
    assert error.reason is Reason.DESTINATION_UNAVAILABLE
    assert "HTTP status 503" in error.message


def test_the_pause_that_a_busy_hub_asks_for_is_kept(
    hub: WritableHub, environment: dict[str, str], tmp_path: Path
) -> None:
    pauses = Pauses(600)
    hub.interfere = answers(429, "whoami", 1, Retry_After="37")
    hub_publisher(environment, tmp_path, pauses).probe()
    assert pauses.taken == [37]


def test_a_repository_that_has_another_name_now_is_named(
    hub: WritableHub, environment: dict[str, str], tmp_path: Path
) -> None:
    hub.interfere = answers(307, "/api/models/team/bot", 10, Location="/api/models/team/robot")
    error = caught(hub_publisher(environment, tmp_path).probe)
    assert error.reason is Reason.DESTINATION_NOT_FOUND
    assert "renaming" in error.message


@pytest.mark.parametrize("repository", ["team/a--b", "team/bot.git", "team/" + "b" * 97])
def test_a_name_that_no_hub_takes_is_found_before_the_training(
    hub: WritableHub, environment: dict[str, str], tmp_path: Path, repository: str
) -> None:
    error = caught(hub_publisher(environment, tmp_path, repository=repository).probe)
    assert error.reason is Reason.DESTINATION_NOT_FOUND
    assert hub.requests == []


def client(environment: dict[str, str], *, allow_private: bool = False) -> HubClient:
    return HubClient(
        hub_destination("team/bot"),
        destination_target("hub"),
        environment,
        Network(retry=RetryPolicy(0)),
        allow_private=allow_private,
    )


def test_the_administrators_hub_may_have_a_private_address(environment: dict[str, str]) -> None:
    with client(environment) as opened:
        assert opened.whoami()["name"] == "someone"


def test_the_public_hub_is_the_default_and_its_storage_must_be_public() -> None:
    opened = client({"TEAM_TOKEN": "hf_a"})
    assert opened.endpoint == "https://huggingface.co"
    with opened, pytest.raises(StageError) as found:
        opened.send("GET", opened.follow(opened.at("/"), "https://127.0.0.1:1/objects/a"), {})
    assert found.value.reason is Reason.DESTINATION_ADDRESS_FORBIDDEN
    with pytest.raises(StageError) as found:
        opened.follow(opened.at("/"), "http://storage.example.com/objects/a")
    assert found.value.reason is Reason.DESTINATION_ADDRESS_FORBIDDEN


def test_a_mirror_that_names_the_public_hub_means_itself(environment: dict[str, str]) -> None:
    opened = client(environment)
    found = opened.follow(opened.at("/"), "https://huggingface.co/api/complete-multipart/a?s=1")
    assert opened.is_own(found)
    assert not opened.is_own(opened.follow(opened.at("/"), "https://huggingface.co.example.com/a"))


def test_an_endpoint_that_is_no_url_is_named() -> None:
    error = caught(partial(client, {"HF_ENDPOINT": "hub", "TEAM_TOKEN": "hf_a"}))
    assert "trainer.huggingFaceEndpoint" in error.message


def test_a_hub_that_is_away_is_unavailable() -> None:
    with client({"HF_ENDPOINT": "http://127.0.0.1:1", "TEAM_TOKEN": "hf_a"}) as opened:
        assert caught(opened.whoami).reason is Reason.DESTINATION_UNAVAILABLE
