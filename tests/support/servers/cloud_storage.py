"""The XML API of Google Cloud Storage: a real S3 server behind a gateway with Google's sign-in.

fake-gcs-server 1.56, the emulator of the other tests, has no uploads in parts by the XML API, which obstore uses. Cloud
Storage documents that API as one with S3's ("Migrate from Amazon S3", "XML API multipart uploads"). So versitygw stores the
objects. The gateway takes only tokens that a service account has signed for itself, and signs each request again for
versitygw.
"""

from __future__ import annotations

import base64
import http.client
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from finetune_trainer.destinations.request_signatures import AwsSigner, StoreRequest
from finetune_trainer.sources.url import Location

from tests.support.servers.loopback import ACCESS_KEY, SECRET_KEY, http_server, s3_server, status

ACCOUNT = "publisher@team.example"
_DENIED = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>%s</Message></Error>"
_OWN = frozenset({"connection", "content-length", "date", "server", "transfer-encoding"})


class CloudStorage:
    """The gateway, with the service account's key. `key_file` is the JSON that Google hands out for it."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(65537, 2048)
        self._signer = AwsSigner(ACCESS_KEY, SECRET_KEY, None, "us-east-1")
        self.server = ""

    def key_file(self, endpoint: str) -> str:
        """Return the service account's key for clients of `endpoint`."""
        private = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        key = {
            "type": "service_account",
            "private_key_id": "key-1",
            "private_key": private,
            "client_email": ACCOUNT,
        }
        return json.dumps({**key, "gcs_base_url": endpoint})

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        claims = self._claims(handler.headers.get("Authorization", ""))
        if claims is None:
            status(401, _DENIED % (b"AuthenticationRequired", b"Authentication required."))(handler)
        elif claims["exp"] < time.time():
            status(401, _DENIED % (b"AuthenticationRequired", b"The token has expired."))(handler)
        else:
            self._forward(handler, body)

    def _claims(self, authorization: str) -> dict[str, Any] | None:
        """Return what a token says; None if the account's key has not signed it for this API."""
        try:
            head, claims, signature = authorization.removeprefix("Bearer ").split(".")
            self._key.public_key().verify(
                _decoded(signature), f"{head}.{claims}".encode(), PKCS1v15(), SHA256()
            )
            found: dict[str, Any] = json.loads(_decoded(claims))
        except (ValueError, InvalidSignature):
            return None
        wanted = found.get("scope") or found.get("aud") or ""
        return found if found["iss"] == ACCOUNT and "googleapis.com" in wanted else None

    def _forward(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        given, _, text = handler.path.partition("?")
        # Google's clients encode the slashes of a name, which S3's signature does not.
        path = quote(unquote(given), safe="/-_.~")
        query = dict(parse_qsl(text, keep_blank_values=True))
        encoded = "&".join(
            f"{quote(key, safe='-_.~')}={quote(query[key], safe='-_.~')}" for key in sorted(query)
        )
        place = f"{path}?{encoded}" if query else path
        location = Location.parse(f"http://{self.server}{place}")
        fields = {
            name: handler.headers[name]
            for name in ("Content-MD5", "Range", "Content-Type")
            if name in handler.headers
        }
        signed = self._signer(StoreRequest(handler.command, location, query, {}, body))
        connection = http.client.HTTPConnection(self.server)
        connection.request(handler.command, place, body, {**fields, **signed})
        response = connection.getresponse()
        content = response.read()
        handler.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in _OWN:
                handler.send_header(name, value)
        handler.send_header("Content-Length", response.headers.get("Content-Length") or str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)
        connection.close()


@contextmanager
def cloud_storage(folder: Path) -> Iterator[tuple[str, CloudStorage]]:
    """Serve the buckets that are folders in `folder`; yields the endpoint and the gateway."""
    storage = CloudStorage()
    with s3_server(folder) as server, http_server(storage, host="127.0.0.1") as endpoint:
        storage.server = server.removeprefix("http://")
        yield endpoint, storage


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
