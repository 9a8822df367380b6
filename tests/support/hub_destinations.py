"""Publishers to a hub on loopback, pauses without time, and a hub that refuses some requests."""

from __future__ import annotations

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from finetune_trainer.contract.destinations import HubDestination
from finetune_trainer.destinations.hub import HubPublisher
from finetune_trainer.errors import StageError
from finetune_trainer.sources.network import Network
from finetune_trainer.sources.retry import RetryPolicy

from tests.support.publishing import SPEC
from tests.support.servers.loopback import status
from tests.support.servers.writable_hub import TOKEN


class Pauses:
    """The pauses of a policy, which take no time."""

    def __init__(self, seconds: float) -> None:
        self.taken: list[float] = []
        self.policy = RetryPolicy(seconds, sleep=self.taken.append, chance=lambda: 0.0)


def hub_destination(repository: str) -> HubDestination:
    """Return the destination for a repository."""
    return HubDestination(kind="HuggingFace", name="hub", repository=repository, token_variable="TEAM_TOKEN")


def hub_publisher(
    environment: dict[str, str], tmp_path: Path, pauses: Pauses | None = None, repository: str = "team/bot"
) -> HubPublisher:
    """Return a publisher that waits as `pauses` say, by default not at all."""
    policy = RetryPolicy(0) if pauses is None else pauses.policy
    return HubPublisher(
        hub_destination(repository),
        SPEC,
        tmp_path / "hub.json",
        environment,
        Network(retry=policy),
        allow_private=True,
    )


def caught(action: Callable[[], object]) -> StageError:
    """Return the error of an action. It must not repeat the token."""
    with pytest.raises(StageError) as found:
        action()
    assert TOKEN not in found.value.message
    return found.value


def answers(
    code: int, part_of_path: str, times: int, skip: int = 0, **headers: str
) -> Callable[[BaseHTTPRequestHandler], bool]:
    """Answer `times` requests with a status, after `skip` that pass."""
    left = [skip, times]

    def interfere(handler: BaseHTTPRequestHandler) -> bool:
        if part_of_path not in handler.path or not left[1]:
            return False
        if left[0]:
            left[0] -= 1
            return False
        left[1] -= 1
        status(code, b"", **headers)(handler)
        return True

    return interfere
