from __future__ import annotations

from pathlib import Path

from finetune_operator.cluster.credentials import READ_SECONDS, ServiceAccountToken, replaced_token
from kubernetes.aio.client import Configuration

from tests.support.clock import Clock


def loaded(path: Path, clock: Clock) -> tuple[Configuration, ServiceAccountToken]:
    configuration = Configuration()
    hook = ServiceAccountToken(path, clock)
    hook.read(configuration)
    hook.attach(configuration)
    return configuration, hook


async def test_a_replaced_token_is_used_after_a_while(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "token"
    path.write_text("first\n")
    configuration, _ = loaded(path, clock)
    path.write_text("second\n")
    assert await configuration.get_api_key_with_prefix("BearerToken") == "bearer first"
    clock.now += READ_SECONDS
    assert await configuration.get_api_key_with_prefix("BearerToken") == "bearer second"


def test_a_refused_token_is_replaced_at_once_if_there_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first")
    configuration, _ = loaded(path, Clock())
    assert not replaced_token(configuration, "bearer first")
    path.write_text("second")
    assert replaced_token(configuration, "bearer first")
    assert configuration.api_key["BearerToken"] == "bearer second"


def test_a_token_stays_while_its_file_is_missing_or_empty(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first")
    configuration, hook = loaded(path, Clock())
    path.write_text("")
    hook.read(configuration)
    path.unlink()
    hook.read(configuration)
    assert configuration.api_key["BearerToken"] == "bearer first"


def test_the_credentials_of_a_kubeconfig_have_no_other_token() -> None:
    assert not replaced_token(Configuration(), "bearer first")
