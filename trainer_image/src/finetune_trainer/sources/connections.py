"""HTTP connections of one client: directly to allowed addresses, or through a forward proxy."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

import httpcore

from finetune_trainer.errors import StageError
from finetune_trainer.sources.addresses import ErrorFactory, GuardedNetwork, may_ask_proxy_for
from finetune_trainer.sources.fetch_target import FetchTarget
from finetune_trainer.sources.network import Network
from finetune_trainer.sources.proxy import Proxy
from finetune_trainer.sources.retry import Outage
from finetune_trainer.sources.url import Location

CONNECT_SECONDS = 5.0
READ_SECONDS = 8.0
_PASSWORD_WANTED = 407
_PASSING_ERRORS = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError)

Headers = Sequence[tuple[bytes, bytes]]


class Connections:
    """Pools of connections, one for direct requests and one for each proxy.

    `forbidden` makes the error for a server without an allowed address, `late` the error for work after `deadline` (of
    time.monotonic).
    """

    def __init__(
        self,
        network: Network,
        target: FetchTarget,
        *,
        allow_private: bool,
        deadline: float,
        forbidden: ErrorFactory,
        late: ErrorFactory,
        ssl_context: ssl.SSLContext | None = None,
        read_seconds: float = READ_SECONDS,
    ) -> None:
        self._timeouts = {
            "connect": CONNECT_SECONDS,
            **dict.fromkeys(("read", "write", "pool"), read_seconds),
        }
        self._network = network
        self._target = target
        self._allow_private = allow_private
        self._deadline = deadline
        self._forbidden = forbidden
        self._late = late
        self._context = network.tls_context() if ssl_context is None else ssl_context
        self._stack = ExitStack()
        self._pools: dict[Proxy | None, httpcore.ConnectionPool] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    @contextmanager
    def get(self, location: Location, headers: Headers) -> Iterator[httpcore.Response]:
        """Send a GET request; yields the response as `send` does."""
        with self.send("GET", location, headers) as response:
            yield response

    @contextmanager
    def send(
        self, method: str, location: Location, headers: Headers, content: bytes | Iterator[bytes] = b""
    ) -> Iterator[httpcore.Response]:
        """Send a request with the body `content`; yields the response, whose body has not been read.

        Raises Outage for a connection that fails in a way that may pass, also while the body is read in the context.
        Raises StageError for a forbidden address, and for a proxy that rejects the request.
        """
        proxy = self._network.proxies.route(location.scheme, location.host, location.port)
        if proxy is not None and not may_ask_proxy_for(
            location.host, location.port, allow_private=self._allow_private
        ):
            raise self._forbidden()
        url = httpcore.URL(
            scheme=location.scheme, host=location.host, port=location.port, target=location.target
        )
        try:
            with self._pool(proxy).stream(
                method,
                url,
                headers=list(headers),
                content=content or None,
                extensions={"timeout": self._timeouts},
            ) as response:
                if proxy is not None and response.status == _PASSWORD_WANTED:
                    raise proxy_rejection(str(response.status), self._target)
                yield response
        except httpcore.ProxyError as error:
            raise proxy_rejection(str(error), self._target) from None
        except _PASSING_ERRORS as error:
            if _is_certificate_error(error):
                raise untrusted(self._target) from None
            place = "" if proxy is None else " at the proxy"
            raise Outage(f"{type(error).__name__}{place}") from None

    def _pool(self, proxy: Proxy | None) -> httpcore.ConnectionPool:
        if proxy not in self._pools:
            self._pools[proxy] = self._stack.enter_context(self._new_pool(proxy))
        return self._pools[proxy]

    def _new_pool(self, proxy: Proxy | None) -> httpcore.ConnectionPool:
        # An administrator may name a proxy at any address, but a job may not reach private addresses with one.
        allow_private = self._allow_private
        if proxy is not None:
            allow_private = self._network.allow_private or not proxy.from_job
        backend = GuardedNetwork(
            allow_private=allow_private,
            deadline=self._deadline,
            forbidden=self._forbidden if proxy is None else self._target.forbidden_proxy,
            late=self._late,
        )
        if proxy is None:
            return httpcore.ConnectionPool(
                ssl_context=self._context, network_backend=backend, max_connections=2
            )
        authorization = [] if proxy.authorization is None else [(b"Proxy-Authorization", proxy.authorization)]
        return httpcore.HTTPProxy(
            httpcore.URL(scheme=proxy.scheme, host=proxy.host, port=proxy.port, target="/"),
            proxy_headers=authorization,
            ssl_context=self._context,
            proxy_ssl_context=self._context if proxy.scheme == "https" else None,
            network_backend=backend,
            max_connections=2,
        )


def proxy_rejection(status: str, target: FetchTarget) -> Exception:
    """Make the error for a proxy that answered a CONNECT request with a status other than success.

    A rejection is a StageError with the target's access-denied reason, any other status an Outage.
    """
    code = status[:3]
    if code not in {"401", "403", "407", "451"}:
        return Outage(f"HTTP status {code} from the proxy")
    remedy = (
        "set a user and password that it accepts in network.proxySecretRef"
        if code == "407"
        else f"ask its administrator to allow the {target.name}'s server, or except the server with network.noProxy"
    )
    return StageError(
        target.access_denied,
        f"the proxy must forward requests for the {target.name}, found HTTP status {code} from it; {remedy}",
    )


def untrusted(target: FetchTarget) -> StageError:
    """Make the error for a server whose certificate cannot be verified. Another attempt would find the same one."""
    return StageError(
        target.unavailable,
        f"the {target.name}'s server must have a certificate of a known authority for its name, found a certificate "
        "that cannot be verified; add the authority with network.caBundle",
    )


def _is_certificate_error(error: BaseException) -> bool:
    return isinstance(error.__cause__ or error.__context__, ssl.SSLCertVerificationError)
