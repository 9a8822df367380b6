"""Fetch a file from a URL that is a secret: streamed, resumed, bounded, and only from allowed addresses.

What each answer means is the table of `answers`. Requests carry no cookie, no referrer and no credentials but
those that the URL itself names, and these go to its own origin only. No message of this module holds any part of
the URL.
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
from finetune_trainer.sources.addresses import GuardedNetwork, is_public
from finetune_trainer.sources.content_encoding import coding_of, decode_beginning, decode_file
from finetune_trainer.sources.partial_download import PartialFile, Version
from finetune_trainer.sources.responses import PREFIX_BYTES, Action, Verdict, judge
from finetune_trainer.sources.url import InvalidLocationError, Location

__all__ = ["TRIES", "Limits", "download", "is_public"]

_log = logging.getLogger(__name__)

TRIES = 3
PAUSES_SECONDS = (1.0, 2.0)
CONNECT_SECONDS = 5.0
READ_SECONDS = 8.0
_REDIRECTS = 5
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]{1,200}"')
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/(?:([0-9]{1,18})|\*)")

OnBytes = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Limits:
    """Bounds of one download: bytes in all, seconds in all, and whether private addresses may be used."""

    bytes: int
    seconds: float
    allow_private_addresses: bool


class _Transient(Exception):  # noqa: N818 -- a signal to try again, turned into a reason at the end
    """This try failed in a way that may pass."""

    def __init__(self, found: str, pause_seconds: float = 0.0) -> None:
        super().__init__(found)
        self.pause_seconds = pause_seconds


def download(
    url: str,
    target: Path,
    limits: Limits,
    on_bytes: OnBytes,
    *,
    reuse: bool = False,
    ssl_context: ssl.SSLContext | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Fetch `url` into `target` and return which bytes these are: kind, ETag and size.

    Three tries without new bytes end the download; after new bytes the count starts again, and the rest is
    asked for with Range and If-Range where the server names a strong ETag. Bytes that a killed process left are
    gone on with in the same way, also under a newly signed URL. `on_bytes` hears of bytes done and in all.
    With `reuse`, a target that an earlier process finished from this URL's path is taken without asking.
    A body in gzip content coding is decoded. Raises StageError with a reason that starts with `Dataset`, or
    MalformedDataset where the coding is broken.
    """
    location = _checked(url, limits)
    host, port = location.host, location.port
    path = location.target.partition(b"?")[0].decode("ascii")
    partial = PartialFile(target, f"{location.scheme}://{host}:{port}{path}")
    if reuse and (identity := partial.finished()) is not None:
        return identity
    deadline = time.monotonic() + limits.seconds
    context = httpx.create_ssl_context() if ssl_context is None else ssl_context
    state = _Download(partial, limits, deadline, on_bytes)
    network = GuardedNetwork(
        allow_private=limits.allow_private_addresses, deadline=deadline, forbidden=_forbidden, late=state.late
    )
    failures, best = 0, state.done
    with httpcore.ConnectionPool(ssl_context=context, network_backend=network, max_connections=2) as pool:
        while True:
            try:
                state.attempt(pool, location)
                break
            except (
                _Transient,
                httpcore.NetworkError,
                httpcore.TimeoutException,
                httpcore.ProtocolError,
            ) as error:
                failures = 1 if state.done > best else failures + 1
                best = max(best, state.done)
                found = _found(error)
                _log.warning("dataset: try %d of %d failed (%s)", failures, TRIES, found)
                if failures >= TRIES:
                    raise StageError(
                        Reason.DATASET_UNAVAILABLE,
                        f"the dataset's server must send the file, found after {TRIES} tries: {found}; "
                        "check that it is up and reachable from the cluster",
                    ) from None
                pause = max(
                    PAUSES_SECONDS[failures - 1], error.pause_seconds if isinstance(error, _Transient) else 0
                )
                sleep(max(0.0, min(pause, deadline - time.monotonic())))
    return state.finish()


class _Download:
    """State of one download across tries."""

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
                # All is here, but of which version? An empty range cannot be asked for, the last byte can.
                self.done -= 1
                os.truncate(partial.path, self.done)
        else:
            partial.begin(None)

    def late(self) -> StageError:
        """Make the error for a download that goes on after its deadline."""
        return StageError(
            Reason.DATASET_UNAVAILABLE,
            f"the download must end within {self._limits.seconds:.0f} seconds, found it still going after "
            f"{self.done} bytes; use a nearer server or raise trainer.limits.downloadSeconds",
        )

    def attempt(self, pool: httpcore.ConnectionPool, location: Location) -> None:
        """Follow redirects to the file and take its bytes. Raises _Transient or httpcore's errors to try again."""
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
                # A file is judged by its beginning, but only once it comes.
                verdict = judge(
                    response.status, fields, b"" if response.status in {200, 206} else _beginning(body)
                )
                if verdict.action is not Action.REDIRECT:
                    self._obey(verdict, fields, body)
                    return
            location = self._redirected(location, fields["location"])
        raise StageError(
            Reason.DATASET_UNAVAILABLE,
            f"the dataset's URL must lead to a file, found over {_REDIRECTS} redirects; use the file's own URL",
        )

    def finish(self) -> dict[str, Any]:
        """Undo the content coding, put the file in its place and return its identity."""
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
            raise _no_url() from None
        if location.scheme == "https" and found.scheme == "http":
            raise StageError(
                Reason.DATASET_ADDRESS_FORBIDDEN,
                "a redirect of the dataset's https URL must lead to https, found one to http; "
                "use the file's own https URL",
            )
        return found

    def _obey(self, verdict: Verdict, fields: Mapping[str, str], body: Any) -> None:
        if verdict.action is Action.TAKE:
            self._start(fields)
            self._take(body, self._version_length(fields), inspect=not self._coding)
        elif verdict.action is Action.CONTINUE:
            self._take(body, self._continued(fields), inspect=self.done == 0)
        else:
            if verdict.action is Action.RESTART:
                self._forget()
            raise _error(verdict)

    def _start(self, fields: Mapping[str, str]) -> None:
        """Take the answer's version for that of the file to come, from its first byte on."""
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
        """Check that a partial answer goes on where the file stands; return the file's length."""
        match = _CONTENT_RANGE.fullmatch(fields.get("content-range", "").strip())
        first = int(match[1]) if match is not None else -1
        total = int(match[3]) if match is not None and match[3] else None
        known = self._version
        if known is None or first != self.done or fields.get("etag", known.etag) != known.etag:
            self._forget()
            raise _Transient("another part of the file than was asked for")
        if total is not None and known.length not in {None, total}:
            self._forget()
            raise _Transient("the file changed its length")
        self._require_size(total or 0)
        return total if total is not None else known.length

    def _forget(self) -> None:
        """Give up what is here: the next try starts anew."""
        self._version, self._etag, self._coding, self.done = None, None, "", 0
        self._partial.begin(None)

    def _take(self, body: Any, total: int | None, *, inspect: bool) -> None:
        """Write the body behind what is here; with `inspect`, only after its beginning was judged."""
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
                self._forget()
            raise _Transient(found)

    @staticmethod
    def _inspect(beginning: bytes) -> None:
        verdict = judge(200, {}, beginning[:PREFIX_BYTES])
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
    """Read the first bytes of an error's body; a cut in the middle leaves what came."""
    beginning = b""
    try:
        for chunk in body:
            beginning += chunk
            if len(beginning) >= PREFIX_BYTES:
                break
    except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError):
        _log.debug("dataset: the error's body was cut after %d bytes", len(beginning))
    return decode_beginning(beginning, PREFIX_BYTES)


def _checked(url: str, limits: Limits) -> Location:
    try:
        location = Location.parse(url)
    except InvalidLocationError:
        raise _no_url() from None
    if location.scheme != "https" and not limits.allow_private_addresses:
        raise _no_url()
    return location


def _no_url() -> StageError:
    return StageError(
        Reason.DATASET_ADDRESS_FORBIDDEN,
        "the dataset's URL, and every redirect, must be a valid https URL, found another; "
        "check the value in the Secret",
    )


def _forbidden() -> StageError:
    return StageError(
        Reason.DATASET_ADDRESS_FORBIDDEN,
        "the dataset's URL must lead to a public address, found a private, loopback, link-local or "
        "reserved one; the administrator can allow it with trainer.limits.allowPrivateAddresses",
    )


def _error(verdict: Verdict) -> Exception:
    """Make the error that a verdict asks for."""
    if verdict.action in {Action.RETRY, Action.RESTART} or verdict.reason is None:
        return _Transient(verdict.found, verdict.pause_seconds)
    wanted, remedy = {
        Reason.DATASET_URL_EXPIRED: (
            "the signed URL must still be valid",
            "sign a new one, update the Secret and create the job again",
        ),
        Reason.DATASET_NOT_FOUND: ("the dataset's URL must lead to a file", "check the URL in the Secret"),
        Reason.DATASET_ACCESS_DENIED: (
            "the dataset's server must grant access",
            "give the Secret a URL that may read the dataset",
        ),
        Reason.DATASET_UNAVAILABLE: (
            "the dataset's server must send the file",
            "check the URL in the Secret",
        ),
    }[verdict.reason]
    return StageError(verdict.reason, f"{wanted}, found {verdict.found}; {remedy}")


def _found(error: Exception) -> str:
    """Say what a try ended with, without text that a library may have taken from the URL."""
    if isinstance(error, _Transient):
        return str(error)
    if isinstance(error.__cause__ or error.__context__, ssl.SSLCertVerificationError):
        return "a certificate that cannot be verified"
    return type(error).__name__
