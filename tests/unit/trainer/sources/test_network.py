"""The network settings of a process."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme
from finetune_trainer.errors import StageError
from finetune_trainer.sources.network import Network
from finetune_trainer.sources.retry import RetryPolicy


def test_proxies_bundle_and_policy_come_together(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    environment = {"HTTPS_PROXY": "http://proxy:1", "FINETUNE_CA_BUNDLE": str(tmp_path / "ca.pem")}
    network = Network.from_environment(environment, RetryPolicy(5.0))
    assert network.proxies
    assert network.retry.seconds == 5.0
    assert len(network.tls_context().get_ca_certs()) == len(Network().tls_context().get_ca_certs()) + 1


def test_without_settings_connections_are_direct_and_an_outage_may_last_ten_minutes() -> None:
    network = Network.from_environment({})
    assert not network.proxies
    assert network.bundle is None
    assert network.retry.seconds == 600.0


def test_a_setting_that_cannot_be_used_is_found_at_once() -> None:
    with pytest.raises(StageError):
        Network.from_environment({"HTTP_PROXY": "ftp://proxy"})
