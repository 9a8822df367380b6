"""A small asynchronous client of the API server with the administrator's certificate."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import aiohttp

MERGE = "application/merge-patch+json"
Body = dict[str, Any]


class Rejected(Exception):  # noqa: N818 -- an answer, which most callers expect
    """An answer of the API server with an error status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status} {text}")
        self.status = status


class Admin:
    """Requests and watches in an `async with` block."""

    def __init__(self, kubeconfig: Path) -> None:
        document = json.loads(kubeconfig.read_text("utf-8"))
        cluster, user = document["clusters"][0]["cluster"], document["users"][0]["user"]
        self.server: str = cluster["server"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self.trust = ssl.create_default_context(cadata=authority)
        """Verifies the API server, without any identity of the client."""
        self._context = ssl.create_default_context(cadata=authority)
        # ssl reads certificates from files only.
        with tempfile.NamedTemporaryFile() as chain:
            for part in ("certificate", "key"):
                chain.write(base64.b64decode(user[f"client-{part}-data"]))
            chain.flush()
            self._context.load_cert_chain(chain.name)

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0, ssl=self._context)
        self._session = aiohttp.ClientSession(connector=connector)
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._session.close()

    async def request(
        self, method: str, path: str, body: Body | None = None, kind: str = "application/json"
    ) -> Body:
        """Send one request and return the answer's object; raises Rejected for an error status.

        A read of an overloaded API server is sent again.
        """
        while True:
            try:
                return await self._send(method, path, body, kind)
            except Rejected as error:
                if method != "GET" or error.status not in {429, 500, 503, 504}:
                    raise
            await asyncio.sleep(1.0)

    async def _send(self, method: str, path: str, body: Body | None, kind: str) -> Body:
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": kind, "Accept": "application/json"}
        async with self._session.request(method, self.server + path, data=data, headers=headers) as answer:
            text = await answer.text()
            if answer.status >= 400:
                raise Rejected(answer.status, text[:500])
            found: Body = json.loads(text)
            return found

    async def unless_gone(
        self, method: str, path: str, body: Body | None = None, kind: str = MERGE
    ) -> Body | None:
        """The same, but None if the object does not exist any more or has changed."""
        try:
            return await self.request(method, path, body, kind)
        except Rejected as error:
            if error.status not in {404, 409}:
                raise
            return None

    async def follow(self, collection: str, query: str = "") -> AsyncIterator[tuple[str, Body]]:
        """The present objects as ADDED, and then all changes for ever; starts again if the server ends the watch."""
        version = ""
        timeout = aiohttp.ClientTimeout(total=None)
        while True:
            if not version:
                listed = await self.request("GET", f"{collection}?{query}")
                version = listed["metadata"]["resourceVersion"]
                for item in listed["items"]:
                    yield "ADDED", item
            url = f"{self.server}{collection}?{query}&watch=true&allowWatchBookmarks=true&resourceVersion={version}"
            async with self._session.get(url, timeout=timeout) as answer:
                kept = b""
                async for chunk in answer.content.iter_any():
                    *lines, kept = (kept + chunk).split(b"\n")
                    for line in lines:
                        event = json.loads(line)
                        if event["type"] == "ERROR":
                            version = ""
                            break
                        version = event["object"]["metadata"]["resourceVersion"]
                        if event["type"] != "BOOKMARK":
                            yield event["type"], event["object"]
