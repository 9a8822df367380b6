"""Forward proxies from the environment, and the servers that are reached without one.

`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` have the meaning that they have for curl. An entry of `NO_PROXY`
is a name (with all names below it), an IP address, a block of addresses or `*`, and it may end with a port.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from finetune_trainer.contract.network import (
    ALL_PROXY,
    HTTP_PROXY,
    HTTPS_PROXY,
    JOB_PROXIES,
    NO_PROXY,
)
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.url import InvalidLocationError, Location

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_VARIABLES = {"https": (HTTPS_PROXY, ALL_PROXY), "http": (HTTP_PROXY, ALL_PROXY)}
_PORT = re.compile(r"(.*):([0-9]{1,5})")
_BRACKETS = re.compile(r"^\[([^\]]*)\](/[0-9]+)?$")


@dataclass(frozen=True)
class Proxy:
    """A forward proxy.

    `authorization` is the header for its user and password. With `from_job`, the FineTuneJob names the proxy and not
    the administrator, so its address must be allowed like the address of a source.
    """

    scheme: str
    host: str
    port: int
    authorization: bytes | None = field(default=None, repr=False)
    from_job: bool = False


@dataclass(frozen=True)
class _Exception:
    """An entry of NO_PROXY: a domain or a block of addresses, on any port if `port` is None."""

    domain: str
    block: Network | None
    port: int | None

    def covers(
        self, host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None, port: int
    ) -> bool:
        if self.port not in {None, port}:
            return False
        if self.block is not None:
            return address is not None and address.version == self.block.version and address in self.block
        return host == self.domain or host.endswith(f".{self.domain}")


@dataclass(frozen=True)
class Proxies:
    """The proxy for each scheme, and the exceptions."""

    by_scheme: Mapping[str, Proxy] = field(default_factory=dict)
    exceptions: tuple[_Exception, ...] = ()
    all_excepted: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Proxies:
        """Read the variables. Raises StageError(InvalidNetworkSettings) for a proxy that is no URL."""
        from_job = environment.get(JOB_PROXIES, "").split()
        by_scheme: dict[str, Proxy] = {}
        for scheme, names in _VARIABLES.items():
            for name in names:
                value = _value(environment, name)
                if value:
                    by_scheme[scheme] = _proxy(name, value, from_job=name in from_job)
                    break
        entries = re.split(r"[\s,]+", _value(environment, NO_PROXY))
        exceptions = tuple(found for entry in entries if (found := _exception(entry)) is not None)
        return cls(by_scheme, exceptions, "*" in entries)

    def __bool__(self) -> bool:
        """Whether a proxy is set."""
        return bool(self.by_scheme)

    def route(self, scheme: str, host: str, port: int) -> Proxy | None:
        """Return the proxy for a server; None for a direct connection."""
        if self.all_excepted:
            return None
        host = host.strip("[]").rstrip(".").lower()
        address = _address(host)
        if any(exception.covers(host, address, port) for exception in self.exceptions):
            return None
        return self.by_scheme.get(scheme)


def _value(environment: Mapping[str, str], name: str) -> str:
    return (environment.get(name.lower()) or environment.get(name) or "").strip()


def _proxy(name: str, value: str, *, from_job: bool) -> Proxy:
    try:
        location = Location.parse(value if "://" in value else f"http://{value}")
    except InvalidLocationError:
        # The value may hold a password, so the message does not repeat it.
        raise StageError(
            Reason.INVALID_NETWORK_SETTINGS,
            f"{name} must be http://[USER:PASSWORD@]HOST[:PORT] or the same with https, found another value; "
            "correct the proxy in trainer.network of the chart or in spec.network of the job",
        ) from None
    return Proxy(location.scheme, location.host, location.port, location.authorization, from_job)


def _exception(entry: str) -> _Exception | None:
    """Parse an entry; None for one that no server can match."""
    port = None
    block = _block(entry)
    if block is None:
        match = _PORT.fullmatch(entry)
        if match is not None:
            entry, port = match[1], int(match[2])
            block = _block(entry)
    domain = entry.removeprefix("*").strip(".").lower()
    return _Exception(domain, block, port) if domain and "*" not in domain else None


def _block(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(_BRACKETS.sub(r"\1\2", text), strict=False)
    except ValueError:
        return None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
