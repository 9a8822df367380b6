"""Finds the values of a JSON text one by one, so that an array of any size is read in constant memory.

Only quotes and brackets matter here: the end of a value is found without parsing the value. A value that is not JSON
inside its brackets therefore costs only itself. Between the values, the text must be strict JSON.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK = 256 * 1024
_BRACES = re.compile(rb'["{}]')
_BRACKETS = re.compile(rb'["\[\]]')
_SCALAR = re.compile(rb"[^ \t\r\n,\[\]{}]*+")
_SPACE = re.compile(rb"[ \t\r\n]*+")
_CONTINUATION_BYTES = bytes(range(0x80, 0xC0))


class Readable(Protocol):
    """A source of bytes; it returns b"" at its end."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes."""


class ScanError(Exception):
    """Text between values that is not JSON, at a 1-based line and column (in characters)."""

    def __init__(self, place: Place, message: str) -> None:
        super().__init__(f"{place}: {message}")
        self.place = place
        self.message = message


@dataclass(frozen=True)
class Place:
    """A 1-based line and column, counted in characters."""

    line: int
    column: int

    def after(self, text: str) -> Place:
        """Return the place after `text`, which begins here."""
        lines = text.count("\n")
        if not lines:
            return Place(self.line, self.column + len(text))
        return Place(self.line + lines, len(text) - text.rfind("\n"))

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}"


@dataclass(frozen=True)
class Value:
    """A value's place and its bytes; None if it has more bytes than the scanner keeps."""

    place: Place
    raw: bytes | None


class JsonScanner:
    """Walks through a JSON text. At most `maximum` bytes of a value are kept."""

    def __init__(self, source: Readable, maximum: int, start: int = 0) -> None:
        """Begin at byte `start` of `source`."""
        self._source = source
        self._maximum = maximum
        self._buffer = b""
        self._position = 0
        self._counted = 0
        self._place = Place(1, 1)
        self._forgotten = 0
        self._kept_from: int | None = 0
        while start > len(self._buffer) and self._more(0):
            pass
        self._position = start

    def items(self) -> Iterator[Value]:
        """Yield the items of the array that begins here, and move past it. Raises ScanError."""
        self._expect(b"[", "an array")
        if self.peek() == b"]":
            self._position += 1
            return
        while True:
            yield self.value()
            if self.peek() == b"]":
                self._position += 1
                return
            self._expect(b",", "a comma or the end of the array")

    def values(self) -> Iterator[Value]:
        """Yield the values that follow one another, with nothing but white space between them."""
        while self.peek():
            yield self.value()

    def members(self) -> Iterator[tuple[bytes, int]]:
        """Yield the name of each member of the object that begins here, and where its value begins.

        That offset counts from the beginning of the source. Raises ScanError.
        """
        self._expect(b"{", "an object")
        while self.peek() not in {b"}", b""}:
            name = self.value().raw or b""
            self._expect(b":", "a colon")
            self.peek()
            yield name, self._forgotten + self._position
            self.value()
            if self.peek() != b"}":
                self._expect(b",", "a comma or the end of the object")

    def peek(self) -> bytes:
        """Skip white space and return the next byte, b"" at the end."""
        while True:
            match = _SPACE.match(self._buffer, self._position)
            self._position = match.end() if match else self._position
            if self._position < len(self._buffer) or not self._more(self._position):
                return self._buffer[self._position : self._position + 1]

    def value(self) -> Value:
        """Skip the value that begins here, even if it is not JSON inside. Raises ScanError if there is none."""
        first = self.peek()
        place = self.place()
        if not first or first in b",:]}":
            found = f"{first.decode()!r}" if first else "the end of the file"
            raise ScanError(place, f"must be a value, found {found}")
        self._kept_from = self._position
        if first == b'"':
            ended = self._pass_string()
        elif first in b"{[":
            ended = self._pass_nested(first)
        else:
            ended = self._pass_scalar()
        if not ended:
            raise ScanError(
                self._end(), f"the value that begins at {place} must end, found the end of the file"
            )
        start = self._kept_from
        if start is None or self._position - start > self._maximum:
            return Value(place, None)
        return Value(place, self._buffer[start : self._position])

    def _pass_string(self) -> bool:
        """Skip the string that begins here. Return False if it does not end."""
        self._position += 1
        while True:
            end = self._buffer.find(b'"', self._position)
            passed = self._buffer[self._position : None if end < 0 else end]
            backslashes = len(passed) - len(passed.rstrip(b"\\"))
            if end < 0:
                # An unpaired backslash belongs to the next character, which is not read yet.
                self._position = len(self._buffer) - backslashes % 2
                if not self._more_of_value():
                    return False
            else:
                self._position = end + 1
                if backslashes % 2 == 0:
                    return True

    def _pass_nested(self, opening: bytes) -> bool:
        """Skip the object or array that begins here. Return False if it does not end.

        Brackets of the other kind are ignored: a surplus one inside an object must not cost its neighbors.
        """
        brackets = _BRACES if opening == b"{" else _BRACKETS
        depth = 0
        while True:
            bracket = brackets.search(self._buffer, self._position)
            if bracket is None:
                self._position = len(self._buffer)
                if not self._more_of_value():
                    return False
            elif bracket[0] == b'"':
                self._position = bracket.start()
                if not self._pass_string():
                    return False
            else:
                self._position = bracket.end()
                depth += 1 if bracket[0] == opening else -1
                if not depth:
                    return True

    def _pass_scalar(self) -> bool:
        while True:
            scalar = _SCALAR.match(self._buffer, self._position)
            self._position = scalar.end() if scalar else self._position
            if self._position < len(self._buffer) or not self._more_of_value():
                return True

    def _more_of_value(self) -> bool:
        """Read on, and forget what lies before the value, and the value itself once it is too large."""
        start = self._kept_from
        if start is not None and len(self._buffer) - start > self._maximum:
            start = self._kept_from = None
        if not self._more(self._position if start is None else start):
            return False
        if start is not None:
            self._kept_from = 0
        return True

    def rest(self, maximum: int) -> bytes:
        """Return what follows. Raises ScanError if it has more than `maximum` bytes."""
        place = self.place()
        while len(self._buffer) - self._position <= maximum:
            if not self._more(self._position):
                return self._buffer[self._position :]
        raise ScanError(place, f"at most {maximum} bytes may follow the list of rows")

    def place(self) -> Place:
        """Return the scanner's current place."""
        passed = self._buffer[self._counted : self._position]
        lines = passed.count(b"\n")
        tail = passed[passed.rfind(b"\n") + 1 :] if lines else passed
        columns = len(tail.translate(None, _CONTINUATION_BYTES))
        column = columns + 1 if lines else self._place.column + columns
        self._place = Place(self._place.line + lines, column)
        self._counted = self._position
        return self._place

    def _end(self) -> Place:
        self._position = len(self._buffer)
        return self.place()

    def _expect(self, wanted: bytes, what: str) -> None:
        found = self.peek()
        if found != wanted:
            shown = f"{found.decode('latin-1')!r}" if found else "the end of the file"
            raise ScanError(self.place(), f"must be {what}, found {shown}")
        self._position += 1

    def _more(self, keep_from: int) -> bool:
        """Read on, and forget the buffer before `keep_from`. Return False at the end of the source."""
        size = max(_CHUNK, len(self._buffer) - keep_from)
        chunk = self._source.read(size)
        if not chunk:
            return False
        self.place()
        self._buffer = self._buffer[keep_from:] + chunk
        self._position -= keep_from
        self._counted -= keep_from
        self._forgotten += keep_from
        return True
