"""JSON over HTTP to the API server, with a rate limit and retries. The typed calls are in resources.py.

Only the library's configuration, authentication and transport are used. Its generated methods cost three times the CPU
and drop unknown fields.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import client as kubernetes_client
from kubernetes.aio import config as kubernetes_config

from finetune_operator.cluster.rate_limiter import TokenBucket
from finetune_operator.errors import ApiError

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
JSON = "application/json"

TRIES = 4
FIRST_RETRY_DELAY = 0.2
REQUEST_TIMEOUT = 30.0


@dataclass(frozen=True)
class ObjectList:
    """A full LIST: the items and the resource version of the list."""

    items: list[dict[str, Any]]
    resource_version: int


async def load_configuration(environment: Mapping[str, str]) -> kubernetes_client.Configuration:
    """Load credentials: from KUBECONFIG if it is set, from the ServiceAccount in a pod, otherwise from ~/.kube/config."""
    configuration = kubernetes_client.Configuration()
    kubeconfig = environment.get("KUBECONFIG")
    if kubeconfig is None and "KUBERNETES_SERVICE_HOST" in environment:
        kubernetes_config.load_incluster_config(client_configuration=configuration)
    else:
        await kubernetes_config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
    configuration.retries = None
    configuration.connection_pool_maxsize = 64
    return configuration


class ApiClient:
    """One connection pool to one API server."""

    def __init__(
        self,
        configuration: kubernetes_client.Configuration,
        bucket: TokenBucket,
        observe: Callable[[str, str], None],
    ) -> None:
        """`observe` is called with the method and the status code (or `<error>`) of every request."""
        self._api = kubernetes_client.ApiClient(configuration)
        self._bucket = bucket
        self._observe = observe
        self._random = random.Random(secrets.randbits(64))  # noqa: S311 - jitter, not a secret

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = JSON,
        limited: bool = True,
    ) -> dict[str, Any]:
        """Send one request and return the object of the response.

        Network faults and the statuses 429 and 5xx are retried with jitter. So every call must be safe to repeat:
        creates use a name, deletes and patches use a uid. Raises ApiError for any other failure; status 0 means that
        there was no response. `limited=False` is for the Lease, whose renewal must not wait for other calls.
        """
        delay = FIRST_RETRY_DELAY
        for last in (False,) * (TRIES - 1) + (True,):
            if limited:
                await self._bucket.acquire()
            try:
                return await self._send(method, path, query, body, content_type)
            except ApiError as error:
                if last or not limited or not (error.status in {0, 429} or error.status >= 500):
                    raise
            await asyncio.sleep(delay * self._random.uniform(0.5, 1.5))
            delay *= 2
        raise AssertionError("the last try returns or raises")

    async def list_all(self, path: str, selector: str = "", page: int = 500) -> ObjectList:
        """Read a whole collection in pages. If the continuation has expired, start again."""
        while True:
            try:
                return await self._list_pages(path, selector, page)
            except ApiError as error:
                if error.status != 410:
                    raise

    async def _list_pages(self, path: str, selector: str, page: int) -> ObjectList:
        items: list[dict[str, Any]] = []
        query = {"limit": str(page)}
        if selector:
            query["labelSelector"] = selector
        while True:
            body = await self.call("GET", path, query=query)
            items.extend(body.get("items") or ())
            token = body["metadata"].get("continue")
            if not token:
                return ObjectList(items, int(body["metadata"]["resourceVersion"]))
            query["continue"] = token

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        content_type: str,
    ) -> dict[str, Any]:
        url = self._api.configuration.host + path + (f"?{urlencode(query)}" if query else "")
        headers = {"Accept": JSON, "Content-Type": content_type, "User-Agent": "finetune-operator"}
        await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        try:
            response = await self._api.call_api(
                method, url, header_params=headers, body=body, _request_timeout=REQUEST_TIMEOUT
            )
            content = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._observe(method, "<error>")
            raise ApiError(0, "Unreachable", f"{type(error).__name__}: {error}") from error
        self._observe(method, str(response.status))
        return _read_response(response.status, content)


def _read_response(status: int, content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except ValueError:
        # A proxy or an overloaded API server responds in plain text.
        document = {"message": content[:256].decode("utf-8", "replace")}
    if not isinstance(document, dict):
        raise ApiError(502, "BadAnswer", "the API server must respond with a JSON object")
    if status >= 300:
        raise ApiError(status, str(document.get("reason", "")), str(document.get("message", "")))
    return document
