"""The thin outer parts: web, Kopf's settings, logging, the start of the process."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import aiohttp
import kopf
import pytest
from finetune_operator.app import Operator
from finetune_operator.cluster.client import load_configuration
from finetune_operator.cluster.watches import build_settings, connection_info
from finetune_operator.errors import SettingsError
from finetune_operator.runtime.http_server import health_application, metrics_application
from finetune_operator.runtime.logs import JsonFormatter
from finetune_operator.settings import parse_settings
from prometheus_client import CollectorRegistry, Gauge

from tests.support.repository import ROOT

SOURCE = ROOT / "operator" / "src"


async def get(application: aiohttp.web.Application, path: str) -> tuple[int, str]:
    """One GET against the application on a free port."""
    runner = aiohttp.web.AppRunner(application)
    await runner.setup()
    await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{runner.addresses[0][1]}{path}") as response,
        ):
            return response.status, await response.text()
    finally:
        await runner.cleanup()


async def test_probes_say_what_is_wrong() -> None:
    def application() -> aiohttp.web.Application:
        return health_application(live=lambda: None, ready=lambda: "the store is being seeded")

    assert await get(application(), "/healthz") == (200, "ok")
    assert await get(application(), "/readyz") == (503, "the store is being seeded")


async def test_metrics_are_served_in_the_text_format() -> None:
    registry = CollectorRegistry()
    Gauge("answer", "The answer.", registry=registry).set(42)
    status, text = await get(metrics_application(registry), "/metrics")
    assert status == 200
    assert "answer 42.0" in text


def test_kopf_writes_nothing_and_watches_only_what_is_labelled() -> None:
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


def test_log_lines_are_json_with_the_traceback_inside() -> None:
    try:
        int("odd")
    except ValueError:
        record = logging.LogRecord("a", logging.ERROR, "f", 1, "x %s", ("y",), sys.exc_info())
    line = json.loads(JsonFormatter().format(record))
    assert (line["level"], line["logger"], line["message"]) == ("ERROR", "a", "x y")
    assert "ValueError: invalid literal" in line["exception"]


async def test_leader_election_needs_to_know_its_own_pod() -> None:
    settings = parse_settings('{"trainer": {"image": "i"}}')
    with pytest.raises(SettingsError, match="POD_NAME and POD_NAMESPACE"):
        Operator(settings, {"POD_NAME": "p"})


def test_the_process_refuses_unusable_settings_with_exit_code_2(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text("{}")
    environment = {"FINETUNE_OPERATOR_SETTINGS": str(file), "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        [sys.executable, "-m", "finetune_operator"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "trainer: Field required" in done.stderr
