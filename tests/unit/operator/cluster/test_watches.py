from __future__ import annotations

import json
from pathlib import Path

import kopf
from finetune_operator.cluster.client import load_configuration
from finetune_operator.cluster.watches import build_settings, connection_info


def test_kopf_writes_nothing_and_watches_labeled_objects_only() -> None:
    settings = build_settings()
    assert settings.scanning.disabled
    assert settings.peering.standalone
    assert not settings.posting.enabled
    assert len(settings.watching.label_selectors) == 3
    assert set(settings.watching.label_selectors.values()) == {"finetune.dev/job"}


async def test_kopf_logs_in_with_the_clients_credentials(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
                "clusters": [{"name": "k", "cluster": {"server": "https://localhost:6443"}}],
                "users": [{"name": "u", "user": {"token": "secret"}}],
            }
        )
    )
    configuration = await load_configuration({"KUBECONFIG": str(kubeconfig)})
    info = await connection_info(configuration)
    assert isinstance(info, kopf.ConnectionInfo)
    assert (info.server, info.scheme, info.token) == ("https://localhost:6443", "Bearer", "secret")
    assert not info.insecure
