"""Fetch a file from a URL that is a secret: streamed, resumed, bounded, and only from allowed addresses.

No message of this module holds any part of the URL.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpcore
import httpx

from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

_log = logging.getLogger(__name__)

TRIES = 3
CONNECT_SECONDS = 5.0
READ_SECONDS = 8.0
_REDIRECTS = 5
_PAUSES = (1.0, 2.0)
_ERROR_BODY_BYTES = 8192
_REDIRECT_STATUS = frozenset({301, 302, 303, 307, 308})
_TRANSIENT_STATUS = frozenset({408, 425, 429})
# What S3, GCS and Azure say about a signed URL whose time is over.
_EXPIRED = re.compile(
    rb"Request has expired|ExpiredToken|token (?:has|is) expired|"
    rb"Signature not valid in the specified time frame|Signed expiry time",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Limits:
    """Bounds of one download: bytes in all, seconds in all, and whether private addresses may be used."""

    bytes: int
    seconds: float
    allow_private_addresses: bool


class _Transient(Exception):  # noqa: N818 -- a signal to try again, turned into a reason at the end
    """This try failed in a way that may pass."""


class _GuardedNetwork(httpcore.NetworkBackend):
    """Connects to an address that was checked itself, so that a second look-up cannot lead elsewhere."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._network = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Resolve `host`, drop forbidden addresses and connect to the first that answers."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError("the server's name cannot be resolved") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        allowed = [text for text in addresses if self._allow_private or is_public(text)]
        if not allowed:
            raise StageError(
                Reason.DATASET_ADDRESS_FORBIDDEN,
                "the dataset's URL must lead to a public address, found a private, loopback, link-local or "
                "reserved one; the administrator can allow it with trainer.limits.allowPrivateAddresses",
            )
        for number, address in enumerate(allowed, start=1):
            try:
                return self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if number == len(allowed):
                    raise
        raise httpcore.ConnectError("no address answered")

    def sleep(self, seconds: float) -> None:
        """Wait between httpcore's own connection attempts."""
        self._network.sleep(seconds)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public Internet, looking through IPv4 inside IPv6."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour
        if embedded is None and ip in ipaddress.ip_network("64:ff9b::/96"):
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public(str(embedded))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def download(
    url: str,
    target: Path,
    limits: Limits,
    on_bytes: Callable[[int, int | None], None],
    *,
    ssl_context: ssl.SSLContext | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Fetch `url` into `target`.

    Three tries without new bytes end the download; after new bytes the count starts again, and the rest is
    asked for with Range and If-Range where the server names a strong ETag. `on_bytes` hears of bytes done and
    in all. Raises StageError with a reason that starts with `Dataset`.
    """
    context = httpx.create_ssl_context() if ssl_context is None else ssl_context
    network = _GuardedNetwork(allow_private=limits.allow_private_addresses)
    partial = target.with_name(f".{target.name}.part")
    partial.unlink(missing_ok=True)
    deadline = time.monotonic() + limits.seconds
    state = _Download(partial, limits, deadline, on_bytes)
    failures = 0
    with httpcore.ConnectionPool(ssl_context=context, network_backend=network, max_connections=2) as pool:
        while True:
            before = state.done
            try:
                state.attempt(pool, url)
                break
            except (
                _Transient,
                httpcore.NetworkError,
                httpcore.TimeoutException,
                httpcore.ProtocolError,
            ) as error:
                failures = 1 if state.done > before else failures + 1
                detail = str(error) if isinstance(error, _Transient) else type(error).__name__
                _log.warning("dataset: try %d of %d failed (%s)", failures, TRIES, detail)
                if failures >= TRIES:
                    raise StageError(
                        Reason.DATASET_UNAVAILABLE,
                        f"the dataset's server must answer, found after {TRIES} tries: {detail}; "
                        "check that it is up and reachable from the cluster",
                    ) from None
                sleep(_PAUSES[failures - 1])
    partial.replace(target)


class _Download:
    """State of one download across tries."""

    def __init__(
        self, path: Path, limits: Limits, deadline: float, on_bytes: Callable[[int, int | None], None]
    ) -> None:
        self._path = path
        self._limits = limits
        self._deadline = deadline
        self._on_bytes = on_bytes
        self._etag: str | None = None
        self.done = 0

    def attempt(self, pool: httpcore.ConnectionPool, url: str) -> None:
        """Follow redirects to the file and take its bytes. Raises _Transient or httpcore's errors to try again."""
        location = self._checked(url)
        for _ in range(_REDIRECTS + 1):
            headers: dict[bytes | str, bytes | str] = {
                "Host": location.netloc.decode(),
                "Accept": "*/*",
                "Accept-Encoding": "identity",
            }
            if self.done and self._etag is not None:
                headers |= {"Range": f"bytes={self.done}-", "If-Range": self._etag}
            timeouts = {
                "connect": CONNECT_SECONDS,
                "read": READ_SECONDS,
                "write": READ_SECONDS,
                "pool": READ_SECONDS,
            }
            target = httpcore.URL(
                scheme=location.raw_scheme,
                host=location.raw_host,
                port=location.port,
                target=location.raw_path,
            )
            with pool.stream("GET", target, headers=headers, extensions={"timeout": timeouts}) as response:
                fields = {
                    key.decode("latin-1").lower(): value.decode("latin-1") for key, value in response.headers
                }
                if response.status not in _REDIRECT_STATUS:
                    self._take(response, fields)
                    return
                if "location" not in fields:
                    raise _refused(response.status)
                location = self._checked(str(location.join(fields["location"])))
        raise StageError(
            Reason.DATASET_UNAVAILABLE,
            f"the dataset's URL must lead to a file, found over {_REDIRECTS} redirects",
        )

    def _checked(self, url: str) -> httpx.URL:
        try:
            location = httpx.URL(url)
        except (httpx.InvalidURL, ValueError):
            location = httpx.URL("")
        schemes = {"https", "http"} if self._limits.allow_private_addresses else {"https"}
        if location.scheme not in schemes or not location.host:
            raise StageError(
                Reason.DATASET_ADDRESS_FORBIDDEN,
                "the dataset's URL, and every redirect, must be a valid https URL, found another; "
                "check the value in the Secret",
            )
        return location.copy_with(fragment=None)

    def _take(self, response: httpcore.Response, fields: Mapping[str, str]) -> None:
        if response.status not in {200, 206}:
            self._refuse(response)
        resumed = response.status == 206 and self._resumes(fields.get("content-range", ""))
        if response.status == 206 and not resumed:
            self._etag, self.done = None, 0
            raise _Transient("the server answered with another range than asked for")
        if not resumed:
            self.done = 0
        etag = fields.get("etag")
        self._etag = etag if etag is not None and etag.startswith('"') else None
        length = fields.get("content-length", "")
        total = self.done + int(length) if length.isdigit() else None
        self._require_size(total or 0)
        with self._path.open("ab" if resumed else "wb") as file:
            for chunk in response.iter_stream():
                file.write(chunk)
                self.done += len(chunk)
                self._require_size(self.done)
                if time.monotonic() > self._deadline:
                    raise StageError(
                        Reason.DATASET_UNAVAILABLE,
                        f"the download must end within {self._limits.seconds:.0f} seconds, found it still going "
                        f"after {self.done} bytes; use a nearer server or raise trainer.limits.downloadSeconds",
                    )
                self._on_bytes(self.done, total)
        if total is not None and self.done != total:
            raise _Transient(f"{self.done} of {total} bytes came")

    def _resumes(self, content_range: str) -> bool:
        match = re.fullmatch(r"bytes (\d+)-\d+/(?:\d+|\*)", content_range)
        return match is not None and int(match[1]) == self.done

    def _require_size(self, size: int) -> None:
        if size > self._limits.bytes:
            raise StageError(
                Reason.DATASET_TOO_LARGE,
                f"the dataset must have at most {self._limits.bytes} bytes, found more; "
                "use a smaller one or raise trainer.limits.datasetBytes in the chart",
            )

    def _refuse(self, response: httpcore.Response) -> None:
        """Raise what a status other than success means."""
        body = b""
        for chunk in response.iter_stream():
            body += chunk
            if len(body) >= _ERROR_BODY_BYTES:
                break
        status = response.status
        if status == 416:
            self._etag, self.done = None, 0
        if status >= 500 or status in _TRANSIENT_STATUS or status == 416:
            raise _Transient(f"HTTP status {status}")
        if status in {400, 401, 403} and _EXPIRED.search(body):
            raise StageError(
                Reason.DATASET_URL_EXPIRED,
                f"the signed URL must still be valid, found it expired (HTTP status {status}); "
                "sign a new one, update the Secret and create the job again",
            )
        raise _refused(status)


def _refused(status: int) -> StageError:
    if status in {401, 403, 407}:
        return StageError(
            Reason.DATASET_ACCESS_DENIED,
            f"the dataset's server must grant access, found HTTP status {status}; "
            "give the Secret a URL that may read the dataset",
        )
    if status == 404:
        return StageError(
            Reason.DATASET_NOT_FOUND,
            "the dataset's URL must lead to a file, found HTTP status 404; check the URL in the Secret",
        )
    if status == 410:
        return StageError(
            Reason.DATASET_URL_EXPIRED,
            "the dataset's URL must still be valid, found HTTP status 410; sign a new one",
        )
    return StageError(
        Reason.DATASET_UNAVAILABLE, f"the dataset's server must send the file, found HTTP status {status}"
    )
