"""Kopf as an informer: watch events go into the store and the queue. It decides nothing and writes nothing.

Only low-level event handlers are used, because Kopf's change handlers add annotations and finalizers to objects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import aiohttp
import kopf

from finetune_operator.api.stages import GROUP, JOB_LABEL, PLURAL, VERSION
from finetune_operator.cluster.credentials import replaced_token
from finetune_operator.cluster.fence import elapsed_time
from finetune_operator.cluster.informer import Informer
from finetune_operator.cluster.watch_ages import WatchAges
from finetune_operator.cluster.watch_session import Backoffs, Pace, WatchSession

if TYPE_CHECKING:
    from kubernetes.aio.client import Configuration

STOP_SECONDS = 5.0
"""Time for the watches to end after a cancellation."""
_IDENTITY: Any = "finetune-operator"
"""Without one, Kopf asks for the user's name, and the user of a container has none. The type of identities is not public."""
WATCH_SECONDS = 300
"""Duration of one watch request. Load balancers silently drop longer ones."""


def build_settings() -> kopf.OperatorSettings:
    """Kopf's settings: no scanning, no peering, no Events, and watches of labeled children only."""
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.posting.enabled = False
    # Kopf lists rarely, and holds a page of whole objects.
    settings.watching.chunk_size = 100
    settings.watching.server_timeout = WATCH_SECONDS
    settings.watching.client_timeout = WATCH_SECONDS + 60
    settings.networking.request_timeout = 30
    # A burst of new objects has one task each until then.
    settings.queueing.idle_timeout = 0.5
    settings.persistence.diffbase_storage = _NoDiffs()
    settings.persistence.progress_storage = _NoProgress()
    # Kopf would kill the process some time after one of several watches has ended.
    settings.process.ultimate_exiting_timeout = None
    settings.networking.error_backoffs = Backoffs()
    for plural in ("jobs", "pods", "persistentvolumeclaims", JOB_SETS):
        settings.watching.label_selectors[*_GROUPS.get(plural, ("", "v1")), plural] = JOB_LABEL
    return settings


JOB_SETS = "jobsets"
NAMESPACED_KINDS = (PLURAL, "jobs", "pods", "persistentvolumeclaims")
"""The plurals of the kinds that are watched in each namespace."""
CLUSTER_KINDS = ("nodes",)
"""Those that belong to no namespace."""

_KOPFS_METADATA = {"name", "namespace", "uid", "resourceVersion", "deletionTimestamp", "finalizers"}
_GROUPS = {PLURAL: (GROUP, VERSION), "jobs": ("batch", "v1"), JOB_SETS: ("jobset.x-k8s.io", "v1alpha2")}


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


def build_registry(
    informer: Informer,
    configuration: Configuration,
    ages: WatchAges,
    kinds: Iterable[str],
    forbidden: Callable[[], None] | None = None,
) -> kopf.OperatorRegistry:
    """Handlers that feed `informer` with `kinds`, with the operator's own credentials.

    `ages` sees the requests of the watches. `forbidden` is called if the API server answers one of them with 403. Kopf
    would try it again for a minute, and then end with a traceback for each kind.
    """
    registry = kopf.OperatorRegistry()
    pace = Pace(elapsed_time)

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        # Kopf asks again after each 401, without any pause.
        await asyncio.sleep(pace.delay())
        replaced_token(configuration, None)
        traces = [ages.trace(), *([] if forbidden is None else [_trace_forbidden(forbidden)])]
        return open_session(await connection_info(configuration), traces, informer.listed.take)

    for plural in kinds:
        group, version = _GROUPS.get(plural, ("", "v1"))
        labels = None if plural in {PLURAL, *CLUSTER_KINDS} else {JOB_LABEL: kopf.PRESENT}
        kopf.on.event(group, version, plural, id=plural, labels=labels, registry=registry)(
            _handler(informer, plural)
        )
    return registry


def _handler(informer: Informer, plural: str) -> Callable[..., Coroutine[Any, Any, None]]:
    async def handle(event: kopf.RawEvent, **_: Any) -> None:
        deliver(informer, plural, event)
        _release(event["object"])

    return handle


def _release(body: Any) -> None:
    """Free an object that is in the store, but for what Kopf reads afterwards.

    Kopf keeps it for the time in which another event of it may come, and then in a reference cycle. With many events a
    second, the objects of seconds would be the largest part of the operator's memory, and their peak stays with the process.
    """
    metadata = body["metadata"]
    for held, needed in ((metadata, _KOPFS_METADATA), (body, {"metadata"})):
        for name in held.keys() - needed:
            del held[name]


async def run_watches(
    registry: kopf.OperatorRegistry, namespace: str, started: Callable[[], None] = lambda: None
) -> None:
    """Run Kopf's watches of one namespace, or of all, until canceled. Raises an error if one of them ends.

    `started` is called when Kopf has set its signal handlers. Kopf's own loop is not used: at its end, it would cancel
    every task of the process.
    """
    tasks = await kopf.spawn_tasks(
        identity=_IDENTITY,
        registry=registry,
        settings=build_settings(),
        clusterwide=not namespace,
        namespaces=[namespace] if namespace else [],
    )
    started()
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=STOP_SECONDS)
    errors = [error for task in done if not task.cancelled() and (error := task.exception()) is not None]
    raise RuntimeError(
        "the watches must run until they are canceled, but they ended; see the log above"
    ) from next(iter(errors), None)


def deliver(informer: Informer, plural: str, event: Mapping[str, Any]) -> None:
    """Take in one event of a watch, or one object of its list, whose type is None. It does no I/O."""
    body, deleted = event["object"], event["type"] == "DELETED"
    match plural:
        case "nodes":
            informer.put_node(body, deleted=deleted)
        case "jobs" | "jobsets":
            informer.wake(informer.put_child(body, deleted=deleted))
        case "pods":
            informer.wake(informer.put_pod(body, deleted=deleted))
        case "persistentvolumeclaims":
            informer.wake(informer.put_claim(body, deleted=deleted))
        case _:
            informer.wake(informer.put_job(body, deleted=deleted))


def _trace_forbidden(forbidden: Callable[[], None]) -> aiohttp.TraceConfig:
    config = aiohttp.TraceConfig()

    async def answered(
        _session: aiohttp.ClientSession, _context: SimpleNamespace, request: aiohttp.TraceRequestEndParams
    ) -> None:
        if request.response.status == 403:
            forbidden()

    config.on_request_end.append(answered)
    return config


def open_session(
    info: kopf.ConnectionInfo,
    traces: list[aiohttp.TraceConfig],
    listed: Callable[[str], int | None] = lambda _: None,
) -> kopf.AiohttpSession:
    """The session that Kopf would open itself, with hooks that see its requests. Kopf closes it.

    `listed` gives the version from which the watch of a path may go on without a list of its own.
    """
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=info.as_ssl_context()),
        headers=info.as_http_headers(),
        trace_configs=traces,
    )
    watching: Any = WatchSession(session, elapsed_time, listed=listed)
    return kopf.AiohttpSession(server=info.server, aiohttp_session=watching)


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
