"""JSON over HTTP to the API server, with a rate limit and retries. The typed calls are in resources.py.

Only the library's configuration, authentication and transport are used. Its generated methods cost three times the CPU
and drop unknown fields.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from kubernetes.aio import client as kubernetes_client
from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.config import incluster_config

from finetune_operator.cluster.apply_body import APPLY, encode_apply
from finetune_operator.cluster.connections import PooledTransport
from finetune_operator.cluster.credentials import ServiceAccountToken, replaced_token
from finetune_operator.cluster.fence import Fence, elapsed_time
from finetune_operator.cluster.outage import Outage
from finetune_operator.cluster.pages import FIRST_PAGE, next_limit
from finetune_operator.cluster.rate_limiter import TokenBucket
from finetune_operator.cluster.refusals import is_webhook_failure
from finetune_operator.errors import ApiError

MERGE = "application/merge-patch+json"
JSON = "application/json"

PAGE = 500
"""Objects in one response to a LIST."""
LEASES = "/apis/coordination.k8s.io/"
TRIES = 4
FIRST_RETRY_DELAY = 0.2
REQUEST_TIMEOUT = 30.0
LONGEST_PAUSE = 60.0
"""Longest time for which a Retry-After is obeyed, so that a broken proxy cannot stop the operator."""
UNANSWERED = frozenset({0, 502, 503, 504})
"""Statuses that say nothing about the request: the API server or the way to it is down."""

_NAMESPACE = re.compile(r"/namespaces/([^/]+)/")


Item = TypeVar("Item")
Project = Callable[[dict[str, Any]], Item]
"""Reduces an object to what is kept of it. Each page of a LIST is reduced before the next one is read."""


@dataclass(frozen=True)
class ObjectList(Generic[Item]):
    """A LIST: its items, reduced, and its resource version."""

    items: list[Item]
    resource_version: int
    complete: bool = True
    """False if the collection has more pages than were asked for."""


async def load_configuration(environment: Mapping[str, str]) -> kubernetes_client.Configuration:
    """Load credentials: from KUBECONFIG if it is set, from the ServiceAccount in a pod, otherwise from ~/.kube/config."""
    configuration = kubernetes_client.Configuration()
    kubeconfig = environment.get("KUBECONFIG")
    if kubeconfig is None and "KUBERNETES_SERVICE_HOST" in environment:
        kubernetes_config.load_incluster_config(client_configuration=configuration, try_refresh_token=False)
        token = ServiceAccountToken(Path(incluster_config.SERVICE_TOKEN_FILENAME), elapsed_time)
        token.attach(configuration)
    else:
        await kubernetes_config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
    configuration.retries = None
    configuration.connection_pool_maxsize = 64
    # Otherwise two threads look for a proxy and for ~/.netrc at every request, which costs more than the request.
    configuration.proxy = configuration.proxy or _proxy_of(configuration.host)
    configuration.client_session_kwargs = {"trust_env": False}
    return configuration


def _proxy_of(url: str) -> str | None:
    """The proxy that the environment names for `url`; None if there is none."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)


class _TokenRefusedError(ApiError):
    """The API server does not accept the token, which is the value of the Authorization header."""

    def __init__(self, error: ApiError, token: str | None) -> None:
        super().__init__(error.status, error.reason, error.message)
        self.token = token


class ApiClient:
    """One connection pool to one API server."""

    def __init__(
        self,
        configuration: kubernetes_client.Configuration,
        bucket: TokenBucket,
        observe: Callable[[str, str], None],
        clock: Callable[[], float] = elapsed_time,
    ) -> None:
        """`observe` is called with the method and the status code of every request.

        The code is `<error>` for a request without a response, and `<fenced>` for a write that was not sent. `clock` is
        monotonic, in seconds. Must be called in a running event loop.
        """
        self.fence = Fence(clock)
        """Holds back all writes but those of the Lease."""
        self._api = kubernetes_client.ApiClient(configuration)
        self._api.rest_client = PooledTransport(configuration)
        # Writes have connections of their own, because their sockets know the fence.
        self._writes = kubernetes_client.ApiClient(configuration)
        self._writes.rest_client = PooledTransport(configuration, self.fence)
        self._bucket = bucket
        self._clock = clock
        self._observe = observe
        self._random = random.Random(secrets.randbits(64))  # noqa: S311 - jitter, not a secret
        self.outage = Outage(clock, self._random.random, bucket.restart)
        """Whether the API server answers."""

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()
        await self._writes.close()

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = JSON,
        limited: bool = True,
        aside: bool = False,
        starts: bool = False,
    ) -> dict[str, Any]:
        """Send one request and return the object of the response.

        Network faults and the statuses 429 and 5xx are retried with jitter, and not before the time of a Retry-After. So
        every call must be safe to repeat: creates use a name, deletes and patches use a uid. An admission webhook that
        cannot be reached is not retried here. Raises ApiError for any other failure; status 0 means that there was no
        response. `limited=False` is for the Lease, whose renewal must not wait for other calls. `starts=True` is for what
        starts a job, which goes before other calls of its namespace.
        Raises FencedError for any write but that of a Lease while the fence is closed.

        `aside=True` is for Events: one try without a rate limit, whose failure delays no other call. The API server may
        keep Events in a database of their own, or limit their rate.
        """
        if aside:
            self._pass_fence(method, path)
            return await self._send(method, path, query, body, content_type)
        delay = FIRST_RETRY_DELAY
        found = _NAMESPACE.search(path)
        flow = found[1] if found else ""
        for last in (False,) * (TRIES - 1) + (True,):
            if limited:
                await self._bucket.acquire(flow, starts=starts)
            self._pass_fence(method, path)
            try:
                response = await self._send(method, path, query, body, content_type)
            except ApiError as error:
                if error.retry_after:
                    self._bucket.pause(error.retry_after)
                if last or not limited or not _is_transient(error):
                    self._note(error)
                    raise
            else:
                self.outage.answered()
                return response
            await asyncio.sleep(delay * self._random.uniform(0.5, 1.5))
            delay *= 2
        raise AssertionError("the last try returns or raises")

    def _pass_fence(self, method: str, path: str) -> None:
        """Raises FencedError for a write early, before a connection is taken. The sockets check again."""
        if _is_fenced(method, path) and self.fence.closed:
            self._observe(method, "<fenced>")
            self.fence.check()

    def _note(self, error: ApiError) -> None:
        """Tell an outage from an answer."""
        if error.status in UNANSWERED:
            self.outage.failed(str(error), error.retry_after)
        else:
            self.outage.answered()

    async def list_all(
        self,
        path: str,
        project: Project[Item],
        *,
        labels: str = "",
        fields: str = "",
        page: int = PAGE,
        maximum_pages: int | None = None,
        share: float = 1.0,
    ) -> ObjectList[Item]:
        """Read a collection in pages and reduce each object with `project`. If the continuation has expired, start again.

        `labels` and `fields` are selectors. Without `maximum_pages`, the whole collection is read, in pages of at most `page`
        objects that fit into `pages.PAGE_BYTES`. Memory holds one page of whole objects. `project` may see an object again
        after a new start. With a `share` below 1, the list takes this share of the time and rests in between.
        """
        query = {name: text for name, text in (("labelSelector", labels), ("fieldSelector", fields)) if text}
        for last in (False,) * (TRIES - 1) + (True,):
            try:
                return await self._list_pages(path, project, query, page, maximum_pages, share)
            except ApiError as error:
                if last or error.status != 410:
                    raise
        raise AssertionError("the last try returns or raises")

    async def _list_pages(
        self,
        path: str,
        project: Project[Item],
        query: Mapping[str, str],
        page: int,
        maximum_pages: int | None,
        share: float,
    ) -> ObjectList[Item]:
        items: list[Item] = []
        # Where the number of pages is bounded, so is that of the objects that are read.
        limit = page if maximum_pages is not None else min(page, FIRST_PAGE)
        token: str | None = ""
        pages = 0
        version = 0
        while token is not None:
            began = self._clock()
            sent = {"limit": str(limit), **query, **({"continue": token} if token else {})}
            body = await self._list_page(path, sent, share)
            metadata = body.get("metadata") or {}
            if "resourceVersion" not in metadata:
                raise ApiError(502, "BadAnswer", f"the API server must respond to {path} with a list")
            found = body.get("items") or ()
            items.extend(map(project, found))
            pages += 1
            version = version or int(metadata["resourceVersion"])
            token = metadata.get("continue") or None
            if maximum_pages is None:
                limit = next_limit(limit, len(found), _size(body), page)
            # Otherwise the next page would be read beside this one.
            del body, found
            if token is not None and pages == maximum_pages:
                return ObjectList(items, version, complete=False)
            if token is not None and share < 1.0:
                await asyncio.sleep((self._clock() - began) * (1.0 / share - 1.0))
        return ObjectList(items, version)

    async def _list_page(self, path: str, query: Mapping[str, str], share: float) -> dict[str, Any]:
        """One page. A slow list whose version has expired goes on at the present version.

        It would hardly end otherwise. It still has every object that has existed all the time, and its version stays that of
        its first page.
        """
        try:
            return await self.call("GET", path, query=query)
        except ApiError as error:
            if error.status != 410 or not error.rest or share == 1.0:
                raise
            return await self.call("GET", path, query={**query, "continue": error.rest})

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        content_type: str,
    ) -> dict[str, Any]:
        try:
            return await self._exchange(method, path, query, body, content_type)
        except _TokenRefusedError as error:
            # The kubelet may have replaced the token since the file was read.
            if not replaced_token(self._api.configuration, error.token):
                raise
            return await self._exchange(method, path, query, body, content_type)

    async def _exchange(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        content_type: str,
    ) -> dict[str, Any]:
        api = self._writes if _is_fenced(method, path) else self._api
        sent = encode_apply(body) if body is not None and content_type == APPLY else body
        url = self._api.configuration.host + path + (f"?{urlencode(query)}" if query else "")
        headers = {"Accept": JSON, "Content-Type": content_type, "User-Agent": "finetune-operator"}
        await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        try:
            response = await api.call_api(
                method, url, header_params=headers, body=sent, _request_timeout=REQUEST_TIMEOUT
            )
            content = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._observe(method, "<error>")
            raise ApiError(0, "Unreachable", f"{type(error).__name__}: {error}") from error
        self._observe(method, str(response.status))
        try:
            return _read_response(response.status, content, response.headers.get("Retry-After", ""))
        except ApiError as error:
            if error.status == 401:
                raise _TokenRefusedError(error, headers.get("authorization")) from error
            raise


def _is_fenced(method: str, path: str) -> bool:
    """True for every write but that of a Lease, which says itself who may write it."""
    return method != "GET" and not path.startswith(LEASES)


def _is_transient(error: ApiError) -> bool:
    return error.status in {0, 429} or (error.status >= 500 and not is_webhook_failure(error))


def _read_response(status: int, content: bytes, retry_after: str) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except ValueError:
        if status < 300:
            raise ApiError(502, "BadAnswer", "the API server must respond with JSON") from None
        # A proxy or an overloaded API server responds in plain text.
        document = {"message": content[:256].decode("utf-8", "replace")}
    if not isinstance(document, dict):
        raise ApiError(502, "BadAnswer", "the API server must respond with a JSON object")
    if status >= 300:
        raise _failure(status, document, retry_after)
    return _Document(document, len(content))


class _Document(dict[str, Any]):
    """The object of a response, with its number of bytes."""

    def __init__(self, document: Mapping[str, Any], size: int) -> None:
        super().__init__(document)
        self.size = size


def _size(document: Mapping[str, Any]) -> int:
    return document.size if isinstance(document, _Document) else 0


def _failure(status: int, document: Mapping[str, Any], retry_after: str) -> ApiError:
    """The error for a Status object, or for the text of a proxy."""
    details = document.get("details")
    details = details if isinstance(details, Mapping) else {}
    metadata = document.get("metadata")
    causes = [cause for cause in details.get("causes") or () if isinstance(cause, Mapping)]
    seconds = retry_after if retry_after.isdecimal() else str(details.get("retryAfterSeconds") or 0)
    asked = float(seconds) if status in {429, 500, 503} and seconds.isdecimal() else 0.0
    return ApiError(
        status,
        str(document.get("reason", "")),
        str(document.get("message", "")),
        fields=tuple(str(cause["field"]) for cause in causes if cause.get("field")),
        missing_namespace=status == 404 and details.get("kind") == "namespaces",
        retry_after=min(asked, LONGEST_PAUSE),
        rest=str(metadata.get("continue") or "") if isinstance(metadata, Mapping) else "",
    )
