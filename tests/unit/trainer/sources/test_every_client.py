"""Every client of the trainer honors private authorities, proxies and their exceptions. docs/network.md lists them."""

from __future__ import annotations

import json
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import trustme
from finetune_trainer.contract.destinations import (
    HubDestination,
    NamedDestination,
    ObjectStoreDestination,
    RegistryDestination,
)
from finetune_trainer.contract.object_store import ObjectStoreSource
from finetune_trainer.contract.run_spec import (
    DatasetSource,
    HubDatasetSource,
    Limits,
    RunSpec,
    UrlSource,
)
from finetune_trainer.destinations.opening import open_place
from finetune_trainer.destinations.store_http import StoreAccess
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.dataset import fetch_dataset
from finetune_trainer.sources.fetch_target import destination_target
from finetune_trainer.sources.hub_model import HubModel
from finetune_trainer.sources.network import Network
from finetune_trainer.sources.object_store import ObjectStoreModel
from finetune_trainer.sources.retry import RetryPolicy
from finetune_trainer.tracking.recording import record_run
from finetune_trainer.workspace.layout import WorkspaceLayout

from tests.support.repository import ROOT
from tests.support.servers.forward_proxy import ForwardProxy, proxying
from tests.support.servers.loopback import http_server, status
from tests.support.tracking import report

LIMITS = Limits(dataset_bytes=10**6, download_seconds=30, allow_private_addresses=True, retry_seconds=0)
KEYS = {"TEAM_AWS_ACCESS_KEY_ID": "AKIATEST", "TEAM_AWS_SECRET_ACCESS_KEY": "secret"}
NAME = "server.example"
"""A name that the proxy knows, and `resolving` makes this process know."""

Call = Callable[[str, Path, Mapping[str, str]], None]
"""Lets a client speak to the server at an address, with a folder and an environment. It may raise StageError."""


@dataclass
class Seen:
    """A server that knows nothing: what it was asked for."""

    lines: list[str] = field(default_factory=list)

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        """Note the request."""
        handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        self.lines.append(handler.requestline)
        status(404, b"{}")(handler)


def dataset(source: Callable[[str], DatasetSource]) -> Call:
    def call(address: str, folder: Path, environment: Mapping[str, str]) -> None:
        given = {**environment, **KEYS, "ROWS_URL": f"{address}/rows.jsonl"}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HF_ENDPOINT", address)
            fetch_dataset(source(address), "dataset", LIMITS, folder, lambda _done, _total: None, given)

    return call


def place(destination: Callable[[str], NamedDestination]) -> Call:
    def call(address: str, folder: Path, environment: Mapping[str, str]) -> None:
        given = {**environment, **KEYS, "HUB_TOKEN": "hf_token", "HF_ENDPOINT": address}
        publisher = open_place(
            destination(address), "sha256:0", folder, given, retry_seconds=0, allow_private=True
        )
        publisher.published()

    return call


def hub_model(address: str, folder: Path, environment: Mapping[str, str]) -> None:
    network = Network.from_environment(environment, RetryPolicy(0), allow_private=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", address)
        HubModel("org/model", "main", None, folder, network=network)


def store_model(address: str, folder: Path, environment: Mapping[str, str]) -> None:
    ObjectStoreModel(
        store(address),
        folder,
        allow_private_addresses=True,
        environment={**environment, **KEYS},
        retry_seconds=0,
    )


def tracker(name: str, **members: str) -> Call:
    def call(address: str, folder: Path, environment: Mapping[str, str]) -> None:
        document = json.loads((ROOT / "contract" / "fixtures" / "run.tracked.json").read_text())
        document["tracking"] = {name: {"uri": address, "anyAddress": True, **members}}
        document["workspace"]["path"] = str(folder)
        run = RunSpec.model_validate(document)
        layout = WorkspaceLayout(folder)
        layout.report.mkdir(parents=True, exist_ok=True)
        (layout.report / "job.json").write_text(json.dumps({**report(1), "specHash": run.spec_hash}))
        [found] = record_run(run, layout, environment)
        assert not found.recorded
        raise StageError(Reason.DESTINATION_UNAVAILABLE, found.message or "")

    return call


def store(address: str) -> ObjectStoreSource:
    return ObjectStoreSource(
        kind="ObjectStore", uri="s3://bucket/thing", endpoint=address, credentials_prefix="TEAM_"
    )


def store_destination(address: str) -> ObjectStoreDestination:
    return ObjectStoreDestination(name="a", **store(address).model_dump())


def store_parts(address: str, _folder: Path, environment: Mapping[str, str]) -> None:
    target = destination_target("a")
    access = StoreAccess.of(store_destination(address), target, KEYS)
    assert access is not None
    network = Network.from_environment(environment, RetryPolicy(0), allow_private=True)
    with access.opened(target, network, allow_private=True) as client:
        client.retried(lambda: client.call("GET", None, {"uploads": ""}))


def registry(address: str) -> RegistryDestination:
    reference = f"{address.removeprefix('https://')}/team/bot:1"
    return RegistryDestination(kind="Oci", name="a", reference=reference)


CLIENTS: dict[str, Call] = {
    "model from a hub": hub_model,
    "model from an object store": store_model,
    "dataset from a hub": dataset(
        lambda _: HubDatasetSource(kind="HuggingFace", repository="org/rows", revision="main")
    ),
    "dataset from a URL": dataset(lambda _: UrlSource(kind="Url", url_variable="ROWS_URL")),
    "dataset from an object store": dataset(store),
    "destination in an object store": place(store_destination),
    "parts of large files in an object store": store_parts,
    "destination in a registry": place(registry),
    "destination on a hub": place(
        lambda _: HubDestination(
            kind="HuggingFace", name="a", repository="team/bot", token_variable="HUB_TOKEN"
        )
    ),
    "MLflow": tracker("mlflow", experiment="team"),
    "model registry": tracker("modelRegistry", registeredModel="team"),
}


@dataclass(frozen=True)
class Place:
    """A server with a certificate of a private authority for NAME."""

    seen: Seen
    port: int
    bundle: str

    def direct(self, client: str) -> str:
        """Address without a proxy. Clients of stores do not resolve names in this process."""
        return f"https://{'localhost' if 'object store' in client else NAME}:{self.port}"


def resolving(patch: pytest.MonkeyPatch, address: str) -> None:
    """Let NAME have this address."""
    resolve = socket.getaddrinfo

    def resolve_name(host: Any, *arguments: Any, **options: Any) -> Any:
        return resolve(address if host in {NAME, NAME.encode()} else host, *arguments, **options)

    patch.setattr(socket, "getaddrinfo", resolve_name)


@contextmanager
def private_server(folder: Path, host: str = "localhost") -> Iterator[Place]:
    """Run a server with the certificate of an authority, which is in `folder`."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(NAME, "localhost", "::1").configure_cert(context)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    seen = Seen()
    with http_server(seen, context=context, host=host) as origin:
        yield Place(seen, int(origin.rpartition(":")[2]), str(folder / "ca.pem"))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    resolving(monkeypatch, "127.0.0.1")
    with private_server(tmp_path) as place:
        yield place


def attempt(name: str, address: str, folder: Path, environment: Mapping[str, str]) -> str:
    """Let a client speak to a server that has nothing for it, and return what it says about that."""
    try:
        CLIENTS[name](address, folder / "work", environment)
    except StageError as error:
        return error.message
    return ""


@pytest.mark.parametrize("name", CLIENTS)
def test_a_private_authority_is_trusted(name: str, server: Place, tmp_path: Path) -> None:
    attempt(name, server.direct(name), tmp_path, {"FINETUNE_CA_BUNDLE": server.bundle})
    assert server.seen.lines


@pytest.mark.parametrize("name", CLIENTS)
def test_an_unknown_authority_is_named_at_once(name: str, server: Place, tmp_path: Path) -> None:
    message = attempt(name, server.direct(name), tmp_path, {})
    assert server.seen.lines == []
    assert "found a certificate that cannot be verified; add the authority with network.caBundle" in message


@pytest.mark.parametrize("name", CLIENTS)
def test_a_proxy_is_asked_and_the_bundle_holds_behind_it(name: str, server: Place, tmp_path: Path) -> None:
    proxy = ForwardProxy({NAME: server.port})
    with proxying(proxy) as url:
        environment = {"HTTPS_PROXY": url, "FINETUNE_CA_BUNDLE": server.bundle}
        attempt(name, f"https://{NAME}", tmp_path, environment)
    assert set(proxy.lines) == {f"CONNECT {NAME}:443 HTTP/1.1"}
    assert server.seen.lines


@pytest.mark.parametrize("name", CLIENTS)
def test_an_exception_from_the_proxy_is_reached_directly(name: str, server: Place, tmp_path: Path) -> None:
    proxy = ForwardProxy()
    with proxying(proxy) as url:
        environment = {
            "HTTPS_PROXY": url,
            "NO_PROXY": f"localhost,{NAME}",
            "FINETUNE_CA_BUNDLE": server.bundle,
        }
        attempt(name, server.direct(name), tmp_path, environment)
    assert proxy.lines == []
    assert server.seen.lines


# A registry on this machine is spoken to without TLS, as other clients do it.
@pytest.mark.parametrize("name", [name for name in CLIENTS if name != "destination in a registry"])
def test_a_server_is_reached_at_an_address_of_ipv6(name: str, tmp_path: Path) -> None:
    with private_server(tmp_path, "::1") as place:
        attempt(name, f"https://[::1]:{place.port}", tmp_path, {"FINETUNE_CA_BUNDLE": place.bundle})
        assert place.seen.lines


@pytest.mark.parametrize("name", [name for name in CLIENTS if "object store" not in name])
def test_a_name_that_has_an_address_of_ipv6_only_is_reached(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, "::1")
    with private_server(tmp_path, "::1") as place:
        attempt(name, place.direct(name), tmp_path, {"FINETUNE_CA_BUNDLE": place.bundle})
        assert place.seen.lines


def test_the_documentation_lists_every_client() -> None:
    text = (ROOT / "docs" / "network.md").read_text(encoding="utf-8")
    table = text.partition("## Clients")[2].partition("\n## ")[0]
    rows: list[Any] = re.findall(r"^\| ([^|]+?) \|", table, re.MULTILINE)
    assert set(CLIENTS) <= set(rows)
