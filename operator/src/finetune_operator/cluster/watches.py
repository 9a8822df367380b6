"""Kopf as an informer: watch events go into the store and the queue. It decides nothing and writes nothing.

Only low-level event handlers are used, because Kopf's change handlers add annotations and finalizers to objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import aiohttp
import kopf

from finetune_operator.api.stages import GROUP, JOB_LABEL, PLURAL, VERSION
from finetune_operator.cluster.informer import Informer
from finetune_operator.cluster.watch_ages import WatchAges

if TYPE_CHECKING:
    from kubernetes.aio.client import Configuration

WATCH_SECONDS = 300
"""Duration of one watch request. Load balancers silently drop longer ones."""


def build_settings() -> kopf.OperatorSettings:
    """Kopf's settings: no scanning, no peering, no Events, and watches of labeled children only."""
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.watching.chunk_size = 500
    settings.watching.server_timeout = WATCH_SECONDS
    settings.watching.client_timeout = WATCH_SECONDS + 60
    settings.networking.request_timeout = 30
    # A burst of new objects has one task each until then.
    settings.queueing.idle_timeout = 0.5
    settings.persistence.diffbase_storage = _NoDiffs()
    settings.persistence.progress_storage = _NoProgress()
    for group, plural in (("batch", "jobs"), ("", "pods"), ("", "persistentvolumeclaims")):
        settings.watching.label_selectors[group, "v1", plural] = JOB_LABEL
    return settings


class _NoDiffs(kopf.DiffBaseStorage):
    """Compares nothing. Kopf would copy and compare every object three times, for handlers that do not exist."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence({})

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        """Kopf stores nothing without handlers of changes."""


class _NoProgress(kopf.ProgressStorage):
    """Stores nothing, because event handlers have no progress."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        """See above."""

    def purge(self, **_: Any) -> None:
        """See above."""

    def touch(self, **_: Any) -> None:
        """See above."""

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence


def watched_kinds(*, watch_nodes: bool) -> tuple[str, ...]:
    """The plurals of the kinds that are watched."""
    return (PLURAL, "jobs", "pods", "persistentvolumeclaims", *(("nodes",) if watch_nodes else ()))


def build_registry(
    informer: Informer, configuration: Configuration, ages: WatchAges, *, watch_nodes: bool
) -> kopf.OperatorRegistry:
    """Handlers that feed `informer`, with the operator's own credentials. `ages` sees the requests of the watches.

    `watch_nodes` must be false if the operator may not read nodes: Kopf would retry a forbidden watch forever.
    """
    registry = kopf.OperatorRegistry()
    labels = {JOB_LABEL: kopf.PRESENT}

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        return open_session(await connection_info(configuration), ages)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def job_event(event: kopf.RawEvent, **_: Any) -> None:
        deliver(informer, PLURAL, event)

    @kopf.on.event("batch", "v1", "jobs", labels=labels, registry=registry)
    async def child_event(event: kopf.RawEvent, **_: Any) -> None:
        deliver(informer, "jobs", event)

    @kopf.on.event("", "v1", "pods", labels=labels, registry=registry)
    async def pod_event(event: kopf.RawEvent, **_: Any) -> None:
        deliver(informer, "pods", event)

    @kopf.on.event("", "v1", "persistentvolumeclaims", labels=labels, registry=registry)
    async def claim_event(event: kopf.RawEvent, **_: Any) -> None:
        deliver(informer, "persistentvolumeclaims", event)

    if watch_nodes:

        @kopf.on.event("", "v1", "nodes", registry=registry)
        async def node_event(event: kopf.RawEvent, **_: Any) -> None:
            deliver(informer, "nodes", event)

    return registry


def deliver(informer: Informer, plural: str, event: Mapping[str, Any]) -> None:
    """Take in one event of a watch, or one object of its list, whose type is None. It does no I/O."""
    body, deleted = event["object"], event["type"] == "DELETED"
    match plural:
        case "nodes":
            informer.put_node(body, deleted=deleted)
        case "jobs":
            informer.wake(informer.put_child(body, deleted=deleted))
        case "pods":
            informer.wake(informer.put_pod(body, deleted=deleted))
        case "persistentvolumeclaims":
            informer.wake(informer.put_claim(body, deleted=deleted))
        case _:
            informer.wake(informer.put_job(body, deleted=deleted))


def open_session(info: kopf.ConnectionInfo, ages: WatchAges) -> kopf.AiohttpSession:
    """The session that Kopf would open itself, with hooks for `ages`. Kopf closes it."""
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=info.as_ssl_context()),
        headers=info.as_http_headers(),
        trace_configs=[ages.trace()],
    )
    return kopf.AiohttpSession(server=info.server, aiohttp_session=session)


async def connection_info(configuration: Configuration) -> kopf.ConnectionInfo:
    """The client's credentials for Kopf, which asks for them again if the API server responds with 401."""
    authorization = await configuration.get_api_key_with_prefix("BearerToken")
    scheme, _, token = (authorization or "").partition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        ca_data=configuration.ca_cert_data,
        insecure=not configuration.verify_ssl,
        scheme=scheme.capitalize() if token else None,
        token=token or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
    )
