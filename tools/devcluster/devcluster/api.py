"""Small client of the API server over TLS with a client certificate; standard library only, to start in milliseconds."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import tempfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from devcluster.errors import ApiError, DevClusterError

Json = dict[str, Any]


class ApiClient:
    """Sends requests to one API server as one identity, both taken from a kubeconfig with inline data.

    `timeout` in seconds applies to each read of a request. Raises DevClusterError for any other kind of kubeconfig.
    """

    def __init__(self, kubeconfig: Path, timeout: float = 10) -> None:
        config = json.loads(kubeconfig.read_text())
        try:
            cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
            server = urllib.parse.urlsplit(cluster["server"])
            authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
            identity = [base64.b64decode(user[f"client-{part}-data"]) for part in ("certificate", "key")]
        except (KeyError, IndexError) as error:
            raise DevClusterError(
                f"{kubeconfig} must be a kubeconfig of the dev cluster, found no {error}"
            ) from error
        self._host, self._port, self._timeout = server.hostname or "", server.port or 443, timeout
        self._context = ssl.create_default_context(cadata=authority)
        # ssl reads certificates only from files.
        with tempfile.NamedTemporaryFile() as chain:
            chain.write(b"".join(identity))
            chain.flush()
            self._context.load_cert_chain(chain.name)

    def _send(
        self, method: str, path: str, body: Json | None, kind: str, timeout: float
    ) -> tuple[http.client.HTTPSConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPSConnection(
            self._host, self._port, timeout=timeout, context=self._context
        )
        data = None if body is None else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": kind, "Accept": "application/json"})
        response = connection.getresponse()
        if response.status >= http.client.BAD_REQUEST:
            text = response.read().decode(errors="replace")
            connection.close()
            raise ApiError(response.status, f"{method} {path}: {response.status} {text}")
        return connection, response

    def request(
        self, method: str, path: str, body: Json | None = None, kind: str = "application/json"
    ) -> Json:
        """Send one request and return its JSON response.

        Raises ApiError for an error status, OSError or http.client.HTTPException if the server cannot be reached.
        """
        connection, response = self._send(method, path, body, kind, self._timeout)
        try:
            content = response.read()
        finally:
            connection.close()
        answer = json.loads(content) if content.startswith(b"{") else {"text": content.decode()}
        return dict(answer)

    def apply(self, path: str, body: Json) -> Json:
        """Apply `body` to the object at `path` on the server side."""
        return self.request(
            "PATCH", f"{path}?fieldManager=devcluster&force=true", body, kind="application/apply-patch+yaml"
        )

    def watch(self, path: str, resource_version: str, seconds: int) -> Iterator[Json]:
        """Yield the events on the collection at `path` since `resource_version`, for about `seconds`."""
        query = urllib.parse.urlencode(
            {"watch": "1", "resourceVersion": resource_version, "timeoutSeconds": seconds}
        )
        connection, response = self._send(
            "GET", f"{path}?{query}", None, "application/json", seconds + self._timeout
        )
        try:
            while line := response.readline():
                yield json.loads(line)
        finally:
            connection.close()
