"""Troubles of a real S3 server while artifacts are copied: typed reasons, nothing half-published, no byte sent twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from finetune_trainer.contract.destinations import ObjectStoreDestination
from finetune_trainer.destinations.object_store import ObjectStorePublisher
from finetune_trainer.destinations.parted_upload import PART_BYTES
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.network import Network
from finetune_trainer.sources.retry import RetryPolicy

from tests.support.publishing import BUCKET, S3_ENVIRONMENT, SPEC, make_artifact, s3_client
from tests.support.servers.loopback import s3_server
from tests.support.servers.troubled import EXPIRED, response, troubled

pytestmark = pytest.mark.object_stores
OUTAGE = 12


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "s3" / BUCKET).mkdir(parents=True)
    with s3_server(tmp_path / "s3") as endpoint:
        yield endpoint


def publisher(endpoint: str, tmp_path: Path, seconds: float) -> ObjectStorePublisher:
    """Return a publisher that waits `seconds` for an outage; its pauses take no time, but each counts half a second."""
    destination = ObjectStoreDestination(
        kind="ObjectStore",
        name="bucket",
        uri=f"s3://{BUCKET}/bot",
        endpoint=endpoint,
        credentials_prefix="TEAM_",
    )
    network = Network(retry=RetryPolicy(seconds, sleep=lambda _: None, chance=lambda: 1.0))
    journal = tmp_path / "journal.json"
    return ObjectStorePublisher(destination, SPEC, journal, S3_ENVIRONMENT, network, allow_private=True)


def is_published(endpoint: str) -> bool:
    try:
        obstore.head(s3_client(endpoint), "bot/manifest.json")
    except FileNotFoundError:
        return False
    return True


def ignore(_done: int) -> None:
    pass


@pytest.mark.parametrize(
    ("megabytes", "busy_after"), [(4, 3 << 20), (80, 60 << 20)], ids=["small", "five parts"]
)
def test_a_store_that_is_busy_for_a_while_costs_only_what_was_on_its_way(
    endpoint: str, tmp_path: Path, megabytes: int, busy_after: int
) -> None:
    artifact = make_artifact(tmp_path / "artifact", megabytes=megabytes)
    left = [OUTAGE]

    def busy_in_the_middle(received: int) -> bytes | None:
        if received < busy_after or not left[0]:
            return None
        left[0] -= 1
        return response("503 Slow Down")

    with troubled(endpoint, busy_in_the_middle) as (relay, trouble):
        publisher(relay, tmp_path, 600).publish(artifact, ignore)
    assert trouble.answered == OUTAGE
    assert trouble.received < artifact.bytes + OUTAGE * PART_BYTES
    assert is_published(endpoint)
    assert publisher(endpoint, tmp_path, 0).published() is not None


def test_an_outage_that_lasts_too_long_ends_with_its_reason(endpoint: str, tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact")
    with (
        troubled(endpoint, lambda _: response("503 Slow Down")) as (relay, _),
        pytest.raises(StageError) as caught,
    ):
        publisher(relay, tmp_path, 20).publish(artifact, ignore)
    assert caught.value.reason is Reason.DESTINATION_UNAVAILABLE
    assert not is_published(endpoint)


def test_a_token_that_expires_in_the_middle_costs_no_second_upload(endpoint: str, tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact", megabytes=4)
    limit = 5 << 20  # the first weight file has arrived by then

    def expired(received: int) -> bytes | None:
        return response("403 Forbidden", EXPIRED) if received > limit else None

    with troubled(endpoint, expired) as (relay, _), pytest.raises(StageError) as caught:
        publisher(relay, tmp_path, 600).publish(artifact, ignore)
    assert caught.value.reason is Reason.DESTINATION_ACCESS_DENIED
    assert not is_published(endpoint)
    with troubled(endpoint, lambda _: None) as (relay, renewed):
        publisher(relay, tmp_path, 600).publish(artifact, ignore)
        assert renewed.received < artifact.bytes - (4 << 20) + (1 << 20), (
            "a file that had arrived was sent again"
        )
    assert is_published(endpoint)


def test_a_token_that_expires_in_a_large_file_costs_only_the_parts_on_their_way(
    endpoint: str, tmp_path: Path
) -> None:
    artifact = make_artifact(tmp_path / "artifact", megabytes=112)  # the largest file needs seven parts
    limit = 110 << 20
    renewed = False

    def expired(received: int) -> bytes | None:
        return response("403 Forbidden", EXPIRED) if received > limit and not renewed else None

    with troubled(endpoint, expired) as (relay, trouble):
        with pytest.raises(StageError) as caught:
            publisher(relay, tmp_path, 600).publish(artifact, ignore)
        assert caught.value.reason is Reason.DESTINATION_ACCESS_DENIED
        assert not is_published(endpoint)
        renewed, before = True, trouble.received
        publisher(relay, tmp_path, 600).publish(artifact, ignore)
    assert trouble.received - before < artifact.bytes - limit + 5 * PART_BYTES
    assert is_published(endpoint)
