"""Splits a URL without changing a byte of its path and query: signatures cover them as written."""

from __future__ import annotations

import base64
import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

import httpx

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ASCII_HOST = re.compile(r"[A-Za-z0-9._\-]+")
_PORTS = {"https": 443, "http": 80}


class InvalidLocationError(ValueError):
    """The text is not an http or https URL. The message holds no part of it."""


@dataclass(frozen=True)
class Location:
    """The address of a request. Path, query and credentials are secret and stay out of `repr`.

    `target` is the path and query as they were written. Only characters that a request line cannot hold (spaces,
    characters outside ASCII) are percent-encoded. `authorization` is the header for the URL's user and password.
    """

    scheme: str
    host: str
    port: int
    target: bytes = field(repr=False)
    authorization: bytes | None = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Location:
        """Split a URL into its parts. Raises InvalidLocationError."""
        text = text.strip().partition("#")[0]
        # Checked first: the library would remove some of them.
        if _CONTROL.search(text):
            raise InvalidLocationError("must have no control characters")
        scheme, authority = _scheme_and_authority(text)
        if scheme not in _PORTS or not authority or "\\" in authority:
            raise InvalidLocationError("must be an http or https URL")
        user, marked, host_and_port = authority.rpartition("@")
        host, port = _host_and_port(host_and_port)
        authorization = None
        if marked and user.strip(":"):
            name, _, password = user.partition(":")
            pair = unquote_to_bytes(name) + b":" + unquote_to_bytes(password)
            authorization = b"Basic " + base64.b64encode(pair)
        # Path and query come from the text: the library's parts do not show the mark of an empty query.
        written = text[len(scheme) + len("://") + len(authority) :]
        return cls(scheme, host, port or _PORTS[scheme], _target(written), authorization)

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port. Credentials belong to one origin."""
        return self.scheme, self.host, self.port

    @property
    def authority(self) -> str:
        """Value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def follow(self, reference: str) -> Location:
        """Return the location of a redirect to `reference`. Credentials are kept within their origin only.

        Raises InvalidLocationError.
        """
        reference = reference.strip()
        base = f"{self.scheme}://{self.authority}"
        if _scheme_and_authority(reference)[0]:
            found = Location.parse(reference)
        elif reference.startswith("//"):
            found = Location.parse(f"{self.scheme}:{reference}")
        elif reference.startswith(("/", "?")) or not reference:
            path = self.target.decode("ascii").partition("?")[0]
            found = Location.parse(base + (reference if reference.startswith("/") else path + reference))
        else:
            relative, marked, query = reference.partition("#")[0].partition("?")
            path = self.target.decode("ascii").partition("?")[0]
            found = Location.parse(base + urljoin(path, f"./{relative}") + marked + query)
        if found.authorization is None and found.origin == self.origin:
            return Location(found.scheme, found.host, found.port, found.target, self.authorization)
        return found


def _scheme_and_authority(text: str) -> tuple[str, str]:
    try:
        parts = urlsplit(text)
    except ValueError:
        raise InvalidLocationError("must name a valid host") from None
    return parts.scheme, parts.netloc


def _host_and_port(text: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::([0-9]{0,5}))?", text)
    if match is None:
        raise InvalidLocationError("must name a host")
    port = int(match[2]) if match[2] else None
    if port is not None and not 0 < port < 65536:
        raise InvalidLocationError("must name a port between 1 and 65535")
    host = match[1]
    if host.startswith("["):
        try:
            return str(ipaddress.IPv6Address(host[1:-1])), port
        except ValueError as error:
            raise InvalidLocationError("must name a valid address") from error
    if not host.isascii():
        try:
            host = httpx.URL(scheme="https", host=host).raw_host.decode("ascii")
        except (httpx.InvalidURL, UnicodeError) as error:
            raise InvalidLocationError("must name a valid host") from error
    if not _ASCII_HOST.fullmatch(host) or len(host) > 253:
        raise InvalidLocationError("must name a valid host")
    return host.lower(), port


def _target(text: str) -> bytes:
    if not text.startswith("/"):
        text = "/" + text
    raw = text.encode("utf-8", "surrogateescape")
    return re.sub(rb"[^\x21-\x7e]", lambda match: b"%%%02X" % ord(match[0]), raw)
