"""One file's download over HTTP: streamed, resumed, bounded and redirected. The caller's rules judge each response."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpcore

from finetune_trainer.errors import StageError
from finetune_trainer.sources.connections import Connections
from finetune_trainer.sources.content_encoding import coding_of, decode_beginning, decode_file
from finetune_trainer.sources.fetch_target import FetchTarget
from finetune_trainer.sources.partial_download import PartialFile, Version
from finetune_trainer.sources.responses import PREFIX_BYTES, Action, Verdict
from finetune_trainer.sources.retry import Outage
from finetune_trainer.sources.url import InvalidLocationError, Location

_REDIRECTS = 5
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]{1,200}"')
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/(?:([0-9]{1,18})|\*)")

Fields = Mapping[str, str]
OnBytes = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Rules:
    """What differs between the files of a URL and of a hub, for one target.

    `judge` interprets status, fields and the body's beginning, and `error` makes the exception for a verdict that is no
    success. `require_size` raises for too many bytes, `late` makes the error for a download that passes its deadline.
    `redirects` is the error for too many of them, `invalid` for one to a location that is not allowed. `headers` are
    sent with every request, `secret_headers` to the first location's origin only. `observe` receives the fields of
    every response.
    """

    target: FetchTarget
    judge: Callable[[int, Fields, bytes], Verdict]
    error: Callable[[Verdict], Exception]
    require_size: Callable[[int], None]
    late: Callable[[int], StageError]
    redirects: Callable[[], StageError]
    invalid: Callable[[], StageError]
    keep_https: Callable[[], StageError] | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    secret_headers: tuple[tuple[bytes, bytes], ...] = field(default=(), repr=False)
    observe: Callable[[Fields], None] = lambda _fields: None


class Transfer:
    """State of one download across attempts. `done` is the number of bytes in the file so far."""

    def __init__(self, partial: PartialFile, rules: Rules, deadline: float, on_bytes: OnBytes) -> None:
        self._partial = partial
        self._rules = rules
        self._deadline = deadline
        self._on_bytes = on_bytes
        self._version: Version | None = None
        self._etag: str | None = None
        self._coding = ""
        self._total: int | None = None
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
        return self._rules.late(self.done)

    def waiting(self) -> None:
        """Report the progress again, so that an outage does not look like a stage that hangs."""
        self._on_bytes(self.done, self._total)

    def attempt(self, connections: Connections, location: Location) -> None:
        """Follow redirects to the file and receive its bytes. Raises Outage to try again, StageError to end."""
        origin = location.origin
        for _ in range(_REDIRECTS + 1):
            with connections.get(location, self._request(location, origin)) as response:
                fields = fields_of(response)
                self._rules.observe(fields)
                body = response.iter_stream()
                # The beginning of a file is checked later, when its bytes arrive.
                beginning = b"" if response.status in {200, 206} else beginning_of(body)
                verdict = self._rules.judge(response.status, fields, beginning)
                if verdict.action is not Action.REDIRECT:
                    self._handle(verdict, fields, body)
                    return
            location = self._redirected(location, fields["location"])
        raise self._rules.redirects()

    def finish(self, size: int | None = None) -> str | None:
        """Remove the content coding and return the ETag. The bytes are still in the partial file.

        A file that has its final `size` already is only labeled with a coding.
        """
        if self._coding and self._partial.path.stat().st_size != size:
            inspect, require_size = self._inspect_decoded, self._rules.require_size
            decode_file(self._partial.path, inspect, require_size, self._rules.target)
        return self._etag

    def restart(self) -> None:
        """Delete all received bytes, so that the next attempt starts at the beginning."""
        self._version, self._etag, self._coding, self.done = None, None, "", 0
        self._partial.begin(None)

    def _request(self, location: Location, origin: tuple[str, str, int]) -> list[tuple[bytes, bytes]]:
        headers = [
            (b"Host", location.authority.encode("ascii")),
            (b"Accept", b"*/*"),
            (b"Accept-Encoding", b"identity"),
            (b"User-Agent", b"finetune-trainer"),
            *self._rules.headers,
        ]
        if location.origin == origin:
            headers += self._rules.secret_headers
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
            raise self._rules.invalid() from None
        if location.scheme == "https" and found.scheme == "http" and self._rules.keep_https is not None:
            raise self._rules.keep_https()
        return found

    def _handle(self, verdict: Verdict, fields: Fields, body: Any) -> None:
        if verdict.action is Action.TAKE:
            self._start(fields)
            self._receive(body, _length(fields), None if self._coding else fields)
        elif verdict.action is Action.CONTINUE:
            self._receive(body, self._continued(fields), fields if self.done == 0 else None)
        else:
            if verdict.action is Action.RESTART:
                self.restart()
            raise self._rules.error(verdict)

    def _start(self, fields: Fields) -> None:
        """Start the file at its first byte, with the version that the response names."""
        self.done = 0
        self._coding = coding_of(fields.get("content-encoding", ""), self._rules.target)
        self._etag = fields.get("etag")
        length = _length(fields)
        strong = self._etag is not None and _STRONG_ETAG.fullmatch(self._etag)
        self._version = Version(self._etag, length, self._coding) if strong and self._etag else None
        self._rules.require_size(length or 0)
        self._partial.begin(self._version)

    def _continued(self, fields: Fields) -> int | None:
        """Check that a partial response begins where the file ends; return the file's length."""
        match = _CONTENT_RANGE.fullmatch(fields.get("content-range", "").strip())
        first = int(match[1]) if match is not None else -1
        total = int(match[3]) if match is not None and match[3] else None
        known = self._version
        if known is None or first != self.done or fields.get("etag", known.etag) != known.etag:
            self.restart()
            raise Outage("another part of the file than was requested")
        if total is not None and known.length not in {None, total}:
            self.restart()
            raise Outage("the file changed its length")
        self._rules.require_size(total or 0)
        return total if total is not None else known.length

    def _receive(self, body: Any, total: int | None, inspected: Fields | None) -> None:
        """Append the body to the file. With fields in `inspected`, check its beginning before anything is written."""
        self._total = total
        held = b""
        with self._partial.path.open("ab") as file:
            for chunk in body:
                data = chunk
                if inspected is not None:
                    held += chunk
                    if _may_be_markup(held) and len(held) < PREFIX_BYTES:
                        continue
                    self._inspect(inspected, held)
                    data, inspected = held, None
                self._rules.require_size(self.done + len(data))
                file.write(data)
                self.done += len(data)
                if time.monotonic() > self._deadline:
                    raise self.late()
                self._on_bytes(self.done, total)
            if inspected is not None and held:
                self._inspect(inspected, held)
                self._rules.require_size(self.done + len(held))
                file.write(held)
                self.done += len(held)
                self._on_bytes(self.done, total)
        if total is not None and self.done != total:
            found = f"{self.done} of {total} bytes"
            if self.done > total:
                self.restart()
            raise Outage(found)

    def _inspect_decoded(self, beginning: bytes) -> None:
        self._inspect({}, beginning)

    def _inspect(self, fields: Fields, beginning: bytes) -> None:
        verdict = self._rules.judge(200, fields, beginning[:PREFIX_BYTES])
        if verdict.action is not Action.TAKE:
            raise self._rules.error(verdict)


def fields_of(response: httpcore.Response) -> dict[str, str]:
    """Return a response's header fields by lower-case name."""
    return {
        key.decode("latin-1").lower(): value.decode("utf-8", "surrogateescape")
        for key, value in response.headers
    }


def beginning_of(body: Any) -> bytes:
    """Read the first bytes of an error's body; if the connection breaks, return the bytes before that."""
    beginning = b""
    try:
        for chunk in body:
            beginning += chunk
            if len(beginning) >= PREFIX_BYTES:
                break
    except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError):
        pass  # the status alone has to do
    return decode_beginning(beginning, PREFIX_BYTES)


def _length(fields: Fields) -> int | None:
    length = fields.get("content-length", "")
    return int(length) if re.fullmatch(r"[0-9]{1,20}", length) else None


def _may_be_markup(beginning: bytes) -> bool:
    text = beginning.removeprefix(b"\xef\xbb\xbf").lstrip()
    return not text or text.startswith((b"<", b"\xef", b"\xbb"))
