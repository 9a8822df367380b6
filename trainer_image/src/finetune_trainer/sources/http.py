"""Fetch a file from a secret URL: streamed, resumed, bounded, and only from allowed addresses.

The table in `responses` says what each response means. Requests carry no cookie and no referrer. They carry no
credentials but those in the URL itself, and send these to the URL's own origin only. No message of this module holds
any part of the URL.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpcore
import httpx

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.addresses import GuardedNetwork
from finetune_trainer.sources.content_encoding import coding_of, decode_beginning, decode_file
from finetune_trainer.sources.partial_download import PartialFile, Version
from finetune_trainer.sources.responses import PREFIX_BYTES, Action, Verdict, interpret
from finetune_trainer.sources.retry import ATTEMPTS, Outage, retry
from finetune_trainer.sources.url import InvalidLocationError, Location

_log = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
READ_SECONDS = 8.0
_REDIRECTS = 5
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]{1,200}"')
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/(?:([0-9]{1,18})|\*)")
_PASSING_ERRORS = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError)

OnBytes = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Limits:
    """Bounds of one download: bytes in all, seconds in all, and whether private addresses may be used."""

    bytes: int
    seconds: float
    allow_private_addresses: bool


def download(
    url: str,
    destination: Path,
    limits: Limits,
    on_bytes: OnBytes,
    *,
    reuse: bool = False,
    ssl_context: ssl.SSLContext | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Fetch `url` into the file `destination` and return the file's identity: kind, ETag and size in bytes.

    Three attempts without new bytes end the download; new bytes start the count again. If the server sends a strong
    ETag, the rest is requested with Range and If-Range. The bytes that a killed process left are resumed in the same
    way, also under a newly signed URL. `on_bytes` receives the bytes done and the total. With `reuse`, a file that an
    earlier process finished from the same URL path is returned without a request. A body in gzip content coding is
    decoded. Raises StageError with a reason that starts with `Dataset`, or MalformedDataset if the coding is broken.
    """
    location = _checked(url, limits)
    path = location.target.partition(b"?")[0].decode("ascii")
    partial = PartialFile(destination, f"{location.scheme}://{location.host}:{location.port}{path}")
    if reuse and (identity := partial.finished()) is not None:
        return identity
    deadline = time.monotonic() + limits.seconds
    context = httpx.create_ssl_context() if ssl_context is None else ssl_context
    state = _Download(partial, limits, deadline, on_bytes)
    network = GuardedNetwork(
        allow_private=limits.allow_private_addresses,
        deadline=deadline,
        forbidden=_forbidden,
        late=state.late,
    )
    with httpcore.ConnectionPool(ssl_context=context, network_backend=network, max_connections=2) as pool:
        retry(
            lambda: state.attempt(pool, location),
            _unavailable,
            name="dataset",
            sleep=sleep,
            progress=lambda: state.done,
            deadline=deadline,
        )
    return state.finish()


class _Download:
    """State of one download across attempts."""

    def __init__(self, partial: PartialFile, limits: Limits, deadline: float, on_bytes: OnBytes) -> None:
        self._partial = partial
        self._limits = limits
        self._deadline = deadline
        self._on_bytes = on_bytes
        self._version: Version | None = None
        self._etag: str | None = None
        self._coding = ""
        self.done = 0
        resumable = partial.resumable()
        if resumable is not None:
            self._version, self.done = resumable
            self._etag, self._coding = self._version.etag, self._version.coding
            if self.done == self._version.length:
                # All bytes are here, but the server may hold another version by now. An empty range cannot be
                # requested, so the last byte is.
                self.done -= 1
                os.truncate(partial.path, self.done)
        else:
            partial.begin(None)

    def late(self) -> StageError:
        """Make the error for a download that passes its deadline."""
        return StageError(
            Reason.DATASET_UNAVAILABLE,
            f"the download must end within {self._limits.seconds:.0f} seconds, found it still running after "
            f"{self.done} bytes; use a nearer server or raise trainer.limits.downloadSeconds",
        )

    def attempt(self, pool: httpcore.ConnectionPool, location: Location) -> None:
        """Follow redirects to the file and receive its bytes. Raises Outage to try again, StageError to end."""
        try:
            self._follow(pool, location)
        except _PASSING_ERRORS as error:
            raise Outage(_found(error)) from None

    def _follow(self, pool: httpcore.ConnectionPool, location: Location) -> None:
        timeouts = {
            "connect": CONNECT_SECONDS,
            "read": READ_SECONDS,
            "write": READ_SECONDS,
            "pool": READ_SECONDS,
        }
        for _ in range(_REDIRECTS + 1):
            url = httpcore.URL(
                scheme=location.scheme, host=location.host, port=location.port, target=location.target
            )
            with pool.stream(
                "GET", url, headers=self._request(location), extensions={"timeout": timeouts}
            ) as response:
                fields = {
                    key.decode("latin-1").lower(): value.decode("utf-8", "surrogateescape")
                    for key, value in response.headers
                }
                body = response.iter_stream()
                # The beginning of a file is checked later, when its bytes arrive.
                beginning = b"" if response.status in {200, 206} else _beginning(body)
                verdict = interpret(response.status, fields, beginning)
                if verdict.action is not Action.REDIRECT:
                    self._handle(verdict, fields, body)
                    return
            location = self._redirected(location, fields["location"])
        raise StageError(
            Reason.DATASET_UNAVAILABLE,
            f"the dataset's URL must lead to a file, found over {_REDIRECTS} redirects; use the file's own URL",
        )

    def finish(self) -> dict[str, Any]:
        """Remove the content coding, move the file to its destination and return its identity."""
        if self._coding:
            decode_file(self._partial.path, self._inspect, self._require_size)
        etag = None if self._etag is None else self._etag[:200].encode("ascii", "backslashreplace").decode()
        identity = {
            "kind": "Url",
            "etag": etag,
            "bytes": self._partial.path.stat().st_size,
        }
        self._partial.finish(identity)
        return identity

    def _request(self, location: Location) -> list[tuple[bytes, bytes]]:
        headers = [
            (b"Host", location.authority.encode("ascii")),
            (b"Accept", b"*/*"),
            (b"Accept-Encoding", b"identity"),
            (b"User-Agent", b"finetune-trainer"),
        ]
        if location.authorization is not None:
            headers.append((b"Authorization", location.authorization))
        if self.done and self._version is not None:
            headers += [
                (b"Range", b"bytes=%d-" % self.done),
                (b"If-Range", self._version.etag.encode("ascii")),
            ]
        return headers

    def _redirected(self, location: Location, reference: str) -> Location:
        try:
            found = location.follow(reference)
        except InvalidLocationError:
            raise _invalid_url() from None
        if location.scheme == "https" and found.scheme == "http":
            raise StageError(
                Reason.DATASET_ADDRESS_FORBIDDEN,
                "the dataset's https URL must redirect to https only, found a redirect to http; "
                "use the file's own https URL",
            )
        return found

    def _handle(self, verdict: Verdict, fields: Mapping[str, str], body: Any) -> None:
        if verdict.action is Action.TAKE:
            self._start(fields)
            self._receive(body, self._version_length(fields), inspect=not self._coding)
        elif verdict.action is Action.CONTINUE:
            self._receive(body, self._continued(fields), inspect=self.done == 0)
        else:
            if verdict.action is Action.RESTART:
                self._reset()
            raise _error(verdict)

    def _start(self, fields: Mapping[str, str]) -> None:
        """Start the file at its first byte, with the version that the response names."""
        self.done = 0
        self._coding = coding_of(fields.get("content-encoding", ""))
        self._etag = fields.get("etag")
        length = self._version_length(fields)
        strong = self._etag is not None and _STRONG_ETAG.fullmatch(self._etag)
        self._version = Version(self._etag, length, self._coding) if strong and self._etag else None
        self._require_size(length or 0)
        self._partial.begin(self._version)

    @staticmethod
    def _version_length(fields: Mapping[str, str]) -> int | None:
        length = fields.get("content-length", "")
        return int(length) if re.fullmatch(r"[0-9]{1,20}", length) else None

    def _continued(self, fields: Mapping[str, str]) -> int | None:
        """Check that a partial response begins where the file ends; return the file's length."""
        match = _CONTENT_RANGE.fullmatch(fields.get("content-range", "").strip())
        first = int(match[1]) if match is not None else -1
        total = int(match[3]) if match is not None and match[3] else None
        known = self._version
        if known is None or first != self.done or fields.get("etag", known.etag) != known.etag:
            self._reset()
            raise Outage("another part of the file than was requested")
        if total is not None and known.length not in {None, total}:
            self._reset()
            raise Outage("the file changed its length")
        self._require_size(total or 0)
        return total if total is not None else known.length

    def _reset(self) -> None:
        """Delete all received bytes, so that the next attempt starts at the beginning."""
        self._version, self._etag, self._coding, self.done = None, None, "", 0
        self._partial.begin(None)

    def _receive(self, body: Any, total: int | None, *, inspect: bool) -> None:
        """Append the body to the file. With `inspect`, check its beginning before anything is written."""
        held = b""
        with self._partial.path.open("ab") as file:
            for chunk in body:
                data = chunk
                if inspect:
                    held += chunk
                    if _may_be_markup(held) and len(held) < PREFIX_BYTES:
                        continue
                    self._inspect(held)
                    data, inspect = held, False
                self._require_size(self.done + len(data))
                file.write(data)
                self.done += len(data)
                if time.monotonic() > self._deadline:
                    raise self.late()
                self._on_bytes(self.done, total)
            if inspect and held:
                self._inspect(held)
                self._require_size(self.done + len(held))
                file.write(held)
                self.done += len(held)
                self._on_bytes(self.done, total)
        if total is not None and self.done != total:
            found = f"{self.done} of {total} bytes"
            if self.done > total:
                self._reset()
            raise Outage(found)

    @staticmethod
    def _inspect(beginning: bytes) -> None:
        verdict = interpret(200, {}, beginning[:PREFIX_BYTES])
        if verdict.action is not Action.TAKE:
            raise _error(verdict)

    def _require_size(self, size: int) -> None:
        if size > self._limits.bytes:
            raise StageError(
                Reason.DATASET_TOO_LARGE,
                f"the dataset must have at most {self._limits.bytes} bytes, found more; "
                "use a smaller one or raise trainer.limits.datasetBytes in the chart",
            )


def _may_be_markup(beginning: bytes) -> bool:
    text = beginning.removeprefix(b"\xef\xbb\xbf").lstrip()
    return not text or text.startswith((b"<", b"\xef", b"\xbb"))


def _beginning(body: Any) -> bytes:
    """Read the first bytes of an error's body; if the connection breaks, return the bytes before that."""
    beginning = b""
    try:
        for chunk in body:
            beginning += chunk
            if len(beginning) >= PREFIX_BYTES:
                break
    except _PASSING_ERRORS:
        _log.debug("dataset: the error's body was cut after %d bytes", len(beginning))
    return decode_beginning(beginning, PREFIX_BYTES)


def _checked(url: str, limits: Limits) -> Location:
    try:
        location = Location.parse(url)
    except InvalidLocationError:
        raise _invalid_url() from None
    if location.scheme != "https" and not limits.allow_private_addresses:
        raise _invalid_url()
    return location


def _invalid_url() -> StageError:
    return StageError(
        Reason.DATASET_ADDRESS_FORBIDDEN,
        "the dataset's URL and every redirect must be a valid https URL, found one that is not; "
        "check the value in the Secret",
    )


def _forbidden() -> StageError:
    return StageError(
        Reason.DATASET_ADDRESS_FORBIDDEN,
        "the dataset's URL must lead to a public address, found a private, loopback, link-local or "
        "reserved one; an administrator can allow such addresses with trainer.limits.allowPrivateAddresses",
    )


def _unavailable(found: str) -> StageError:
    return StageError(
        Reason.DATASET_UNAVAILABLE,
        f"could not download the dataset after {ATTEMPTS} attempts: {found}; "
        "check that the server is up and reachable from the cluster",
    )


def _error(verdict: Verdict) -> Exception:
    """Make the error for a verdict that is not a success."""
    if verdict.action in {Action.RETRY, Action.RESTART} or verdict.reason is None:
        return Outage(verdict.found, verdict.pause_seconds)
    wanted, remedy = {
        Reason.DATASET_URL_EXPIRED: (
            "the signed URL must still be valid",
            "sign a new one, update the Secret and create the job again",
        ),
        Reason.DATASET_NOT_FOUND: ("the dataset's URL must lead to a file", "check the URL in the Secret"),
        Reason.DATASET_ACCESS_DENIED: (
            "the dataset's server must grant access",
            "set the Secret to a URL that is allowed to read the dataset",
        ),
        Reason.DATASET_UNAVAILABLE: (
            "the dataset's server must send the file",
            "check the URL in the Secret",
        ),
    }[verdict.reason]
    return StageError(verdict.reason, f"{wanted}, found {verdict.found}; {remedy}")


def _found(error: Exception) -> str:
    """Describe an error without its text, which a library may have taken from the URL."""
    if isinstance(error.__cause__ or error.__context__, ssl.SSLCertVerificationError):
        return "a certificate that cannot be verified"
    return type(error).__name__
