"""HTTP requests to the server of a destination or tracker, each tried again during an outage: what these clients share."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from finetune_trainer.errors import StageError
from finetune_trainer.sources.connections import Connections
from finetune_trainer.sources.retry import Outage, retry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from finetune_trainer.sources.fetch_target import FetchTarget
    from finetune_trainer.sources.network import Network
    from finetune_trainer.sources.url import Location

LARGEST_DOCUMENT = 64 << 20
"""Bytes of a body that is read whole."""
_READ_SECONDS = 120.0  # a server may take long to digest a large file, or to make a commit of many
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Answer:
    """A response whose body has been read. The names of its `fields` are in small letters."""

    status: int
    fields: Mapping[str, str]
    body: bytes = field(repr=False)


class HttpClient:
    """Keeps connections to one server open. Use it as a context manager."""

    server: ClassVar[str]
    """The kind of server, for messages."""

    def __init__(
        self,
        target: FetchTarget,
        network: Network,
        *,
        allow_private: bool,
        deadline: float = math.inf,
        read_seconds: float = _READ_SECONDS,
    ) -> None:
        """`deadline` (of time.monotonic) ends all requests, and `read_seconds` one wait for bytes."""
        self.target = target
        self.network = network
        self.deadline = deadline
        self._connections = Connections(
            network,
            target,
            allow_private=allow_private,
            deadline=deadline,
            forbidden=target.forbidden_address,
            late=lambda: self.unavailable("a deadline"),
            read_seconds=read_seconds,
        )

    def __enter__(self) -> Self:
        self._connections.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connections.__exit__(kind, error, traceback)

    @contextmanager
    def responding(
        self,
        method: str,
        location: Location,
        fields: Mapping[str, str],
        content: bytes | Iterator[bytes] = b"",
        authorization: bytes | None = None,
    ) -> Iterator[tuple[Any, dict[str, str]]]:
        """Send one request; the response, whose body is not read yet, and its header fields."""
        headers = [(b"host", location.authority.encode()), (b"user-agent", b"finetune-trainer")]
        headers += [(name.encode(), value.encode()) for name, value in fields.items()]
        if authorization is not None:
            headers.append((b"authorization", authorization))
        with self._connections.send(method, location, headers, content) as response:
            yield (
                response,
                {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers},
            )

    def answer(
        self,
        method: str,
        location: Location,
        fields: Mapping[str, str],
        content: bytes | Iterator[bytes] = b"",
        authorization: bytes | None = None,
    ) -> Answer:
        """Send one request and read the whole response. Raises Outage if that is too large."""
        with self.responding(method, location, fields, content, authorization) as (response, named):
            body = bytearray()
            for chunk in response.iter_stream():
                body += chunk
                if len(body) > LARGEST_DOCUMENT:
                    raise Outage(f"a document of more than {LARGEST_DOCUMENT >> 20} MiB")
            return Answer(response.status, named, bytes(body))

    def retried(
        self,
        action: Callable[[], _Result],
        progress: Callable[[], int] = lambda: 0,
        waiting: Callable[[], None] = lambda: None,
    ) -> _Result:
        """Call `action` until it succeeds or an outage does not pass."""
        return retry(
            action,
            self.unavailable,
            name=self.target.name,
            policy=self.network.retry,
            progress=progress,
            waiting=waiting,
            deadline=self.deadline,
        )

    def unavailable(self, found: str) -> StageError:
        """Make the error for an outage that does not pass."""
        return StageError(
            self.target.unavailable,
            f"could not {self.target.transfer} the {self.target.name}: {found}; check that the {self.server} is up and "
            "reachable from the cluster, or wait longer for it with network.retrySeconds",
        )
