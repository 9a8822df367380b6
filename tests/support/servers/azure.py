"""An HTTP server that implements operations of Azure Blob Storage on block blobs: read, list, write and delete, and errors.

Every Azure emulator needs Node.js, so this server follows the published REST reference of the service.
It checks Shared Key signatures and the times of shared access signatures, and returns the service's error documents.
The same tests had the same outcomes on Azurite 3.37, except the two about shared access signatures.
The test cannot sign one, and Azurite does not report that one has expired.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.support.servers.loopback import http_server, status

ACCOUNT = "devstoreaccount1"
KEY = base64.b64encode(b"a key of the test's own, 32 bytes").decode()
_SIGNED_HEADERS = (
    "Content-Encoding",
    "Content-Language",
    "Content-Length",
    "Content-MD5",
    "Content-Type",
    "Date",
    "If-Modified-Since",
    "If-Match",
    "If-None-Match",
    "If-Unmodified-Since",
    "Range",
)


class AzureBlobs:
    """Containers of blobs in one account, by container and name."""

    def __init__(self, containers: dict[str, dict[str, bytes]]) -> None:
        self.containers = containers
        self.ranges: list[str | None] = []
        self.received = 0
        self._blocks: dict[tuple[str, str], bytes] = {}

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlsplit(handler.path)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        fault = _authentication_fault(handler, url.path, query)
        match = re.fullmatch(rf"/{ACCOUNT}/([^/]+)(?:/(.+))?", url.path)
        container = self.containers.get(match[1]) if match else None
        name = unquote(match[2]) if match and match[2] else None
        if fault is not None:
            _error(handler, 403, "AuthenticationFailed", "Server failed to authenticate the request.", fault)
        elif container is None:
            _error(handler, 404, "ContainerNotFound", "The specified container does not exist.")
        elif query.get("comp") == "list":
            flat = "delimiter" not in query
            listing = _listing(container, query.get("prefix", ""), flat=flat)
            status(200, listing, Content_Type="application/xml")(handler)
        elif query.get("comp") == "batch":
            _delete_batch(handler, container)
        elif query.get("comp") == "blocklist" and handler.command == "GET":
            self._list_blocks(handler, name or "")
        elif handler.command == "PUT" and name is not None:
            self._write(handler, container, name, query)
        elif name is None or name not in container:
            _error(handler, 404, "BlobNotFound", "The specified blob does not exist.")
        else:
            self._blob(handler, container[name])

    def _write(
        self, handler: BaseHTTPRequestHandler, container: dict[str, bytes], name: str, query: dict[str, str]
    ) -> None:
        """Put Blob, Put Block or Put Block List. A block is no part of its blob before it is in a list.

        The ids of a blob's blocks have one length. Put Blob and Put Block List drop all other blocks of the blob.
        """
        body = handler.rfile.read(int(handler.headers.get("Content-Length", "0")))
        self.received += len(body)
        checksum = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        if handler.headers.get("Content-MD5", checksum) != checksum:
            _error(handler, 400, "Md5Mismatch", "The MD5 value specified in the request did not match.")
            return
        if query.get("comp") == "block":
            if any(blob == name and len(block) != len(query["blockid"]) for blob, block in self._blocks):
                _error(handler, 400, "InvalidBlobOrBlock", "The specified blob or block content is invalid.")
                return
            self._blocks[(name, query["blockid"])] = body
        elif query.get("comp") == "blocklist":
            ids = re.findall(r"<(?:Uncommitted|Latest)>([^<]+)</", body.decode())
            if any((name, found) not in self._blocks for found in ids):
                _error(handler, 400, "InvalidBlockList", "The specified block list is invalid.")
                return
            container[name] = b"".join(self._blocks[(name, found)] for found in ids)
            self._blocks = {key: block for key, block in self._blocks.items() if key[0] != name}
        else:
            container[name] = body
            self._blocks = {key: block for key, block in self._blocks.items() if key[0] != name}
        now = format_datetime(datetime.now(UTC), usegmt=True)
        status(201, ETag=_etag(container.get(name, b"")), Last_Modified=now)(handler)

    def _list_blocks(self, handler: BaseHTTPRequestHandler, name: str) -> None:
        """Get Block List: the blocks that are in no list."""
        found = {block: content for (blob, block), content in self._blocks.items() if blob == name}
        if not found:
            _error(handler, 404, "BlobNotFound", "The specified blob does not exist.")
            return
        blocks = "".join(
            f"<Block><Name>{block}</Name><Size>{len(content)}</Size></Block>"
            for block, content in found.items()
        )
        document = (
            f"<BlockList><CommittedBlocks /><UncommittedBlocks>{blocks}</UncommittedBlocks></BlockList>"
        )
        status(200, document.encode(), Content_Type="application/xml")(handler)

    def _blob(self, handler: BaseHTTPRequestHandler, content: bytes) -> None:
        etag = _etag(content)
        wanted = handler.headers.get("x-ms-range") or handler.headers.get("Range")
        self.ranges.append(wanted)
        if handler.headers.get("If-Match", etag) != etag:
            _error(handler, 412, "ConditionNotMet", "The condition specified using HTTP headers is not met.")
            return
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
        first = int(match[1]) if match else 0
        extra = {"Content_Range": f"bytes {first}-{len(content) - 1}/{len(content)}"} if match else {}
        now = format_datetime(datetime.now(UTC), usegmt=True)
        status(206 if match else 200, content[first:], ETag=etag, Last_Modified=now, **extra)(handler)


@contextmanager
def azure_server(blobs: AzureBlobs) -> Iterator[str]:
    """Serve the account; yields its endpoint."""
    with http_server(blobs, host="127.0.0.1") as origin:
        yield f"{origin}/{ACCOUNT}"


def _delete_batch(handler: BaseHTTPRequestHandler, container: dict[str, bytes]) -> None:
    """Blob Batch: several Delete Blob requests in one, each with a response of its own."""
    body = handler.rfile.read(int(handler.headers.get("Content-Length", "0"))).decode()
    parts = []
    for number, path in enumerate(re.findall(r"^DELETE (\S+) HTTP/1\.1\r?$", body, re.MULTILINE)):
        name = unquote(urlsplit(path).path).lstrip("/").removeprefix(f"{ACCOUNT}/").partition("/")[2]
        found = container.pop(name, None) is not None
        outcome = "202 Accepted" if found else "404 The specified blob does not exist."
        code = "" if found else "x-ms-error-code: BlobNotFound\r\n"
        parts.append(
            f"--batch\r\nContent-Type: application/http\r\nContent-ID: {number}\r\n\r\n"
            f"HTTP/1.1 {outcome}\r\n{code}x-ms-request-id: 1\r\nx-ms-version: 2023-11-03\r\n\r\n"
        )
    document = ("".join(parts) + "--batch--\r\n").encode()
    status(202, document, Content_Type="multipart/mixed; boundary=batch")(handler)


def _etag(content: bytes) -> str:
    return f'"0x{hashlib.sha256(content).hexdigest()[:15].upper()}"'


def _authentication_fault(handler: BaseHTTPRequestHandler, path: str, query: dict[str, str]) -> str | None:
    """Return why a request is not authenticated, or None if it is."""
    if "sig" in query:
        expiry = datetime.fromisoformat(query["se"])
        now = datetime.now(UTC)
        if now < expiry:
            return None
        times = [format_datetime(time, usegmt=True) for time in (expiry.replace(year=2020), expiry, now)]
        return (
            f"Signature not valid in the specified time frame: Start [{times[0]}] - Expiry [{times[1]}] - "
            f"Current [{times[2]}]"
        )
    expected = f"SharedKey {ACCOUNT}:{_signature(handler, path, query)}"
    given = handler.headers.get("Authorization", "")
    return (
        None if hmac.compare_digest(expected, given) else "The MAC signature found is not the computed one."
    )


def _signature(handler: BaseHTTPRequestHandler, path: str, query: dict[str, str]) -> str:
    """Return the Shared Key signature of the Blob service ("Authorize with Shared Key" in its REST reference)."""
    plain = [handler.headers.get(name, "") for name in _SIGNED_HEADERS]
    # The reference demands an empty string for a length of 0.
    if handler.headers.get("Content-Length", "0") == "0":
        plain[_SIGNED_HEADERS.index("Content-Length")] = ""
    special = sorted(
        f"{name.lower()}:{value.strip()}"
        for name, value in handler.headers.items()
        if name.lower().startswith("x-ms-")
    )
    resource = [f"/{ACCOUNT}{path}", *(f"{name.lower()}:{value}" for name, value in sorted(query.items()))]
    text = "\n".join([handler.command, *plain, *special, *resource])
    return base64.b64encode(hmac.digest(base64.b64decode(KEY), text.encode(), "sha256")).decode()


def _listing(container: dict[str, bytes], prefix: str, *, flat: bool) -> bytes:
    now = format_datetime(datetime.now(UTC), usegmt=True)
    blobs = "".join(
        f"<Blob><Name>{escape(name)}</Name><Properties><Last-Modified>{now}</Last-Modified>"
        f"<Etag>{_etag(content)}</Etag><Content-Length>{len(content)}</Content-Length>"
        "<Content-Type>application/octet-stream</Content-Type><BlobType>BlockBlob</BlobType></Properties></Blob>"
        for name, content in sorted(container.items())
        if name.startswith(prefix) and (flat or "/" not in name[len(prefix) :])
    )
    return (
        f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Prefix>{escape(prefix)}</Prefix>'
        f"<Blobs>{blobs}</Blobs><NextMarker /></EnumerationResults>"
    ).encode()


def _error(handler: BaseHTTPRequestHandler, code: int, name: str, message: str, detail: str = "") -> None:
    more = f"<AuthenticationErrorDetail>{detail}</AuthenticationErrorDetail>" if detail else ""
    body = f'\ufeff<?xml version="1.0" encoding="utf-8"?><Error><Code>{name}</Code><Message>{message}</Message>{more}</Error>'
    status(code, body.encode(), x_ms_error_code=name, Content_Type="application/xml")(handler)
