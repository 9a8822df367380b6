"""One bucket of an object store: its client, with the rules about addresses, proxies, outages and reasons."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from finetune_trainer.contract.object_store import ObjectStoreSource
from finetune_trainer.errors import StageError
from finetune_trainer.sources.connections import proxy_rejection
from finetune_trainer.sources.egress import Egress, public_egress
from finetune_trainer.sources.fetch_target import FetchTarget
from finetune_trainer.sources.network import Network
from finetune_trainer.sources.retry import Outage, retry
from finetune_trainer.sources.store_client import (
    LIBRARY_ERRORS,
    READ_SECONDS,
    Store,
    StoreUri,
    check_endpoint,
    interpret_error,
    open_store,
)


class StoreConnection:
    """One bucket, with the reasons and the name of the target."""

    def __init__(
        self,
        source: ObjectStoreSource,
        target: FetchTarget,
        environment: Mapping[str, str],
        *,
        allow_private: bool,
        seconds: float,
        network: Network,
        read_seconds: float = READ_SECONDS,
    ) -> None:
        """Check the URI and the endpoint. `seconds` and `read_seconds` are those of `open_store`. Raises StageError."""
        self.uri = StoreUri.parse(source.uri, target)
        self.source = source
        self.target = target
        self._environment = environment
        self._allow_private = allow_private
        self._seconds = seconds
        self._network = network
        self._read_seconds = read_seconds
        if source.endpoint is not None:
            check_endpoint(source.endpoint, target, allow_private=allow_private)

    @contextmanager
    def connected(self) -> Iterator[tuple[Store, Egress | None]]:
        """Open a client for the bucket, and the egress of its connections; None if it needs none."""
        if self._allow_private and not self._network.proxies:
            yield self._open(None), None
            return
        with public_egress(self._network, allow_private=self._allow_private) as egress:
            yield self._open(egress), egress

    def _open(self, egress: Egress | None) -> Store:
        seconds, bundle = self._seconds, self._network.bundle
        return open_store(
            self.source, self.uri, self.target, self._environment, egress, seconds, bundle, self._read_seconds
        )

    def retried(
        self,
        action: Callable[[], Any],
        egress: Egress | None,
        waiting: Callable[[], None],
        *,
        progress: Callable[[], int] = lambda: 0,
        deadline: float = math.inf,
    ) -> Any:
        """Run a call to the store, again and again until it succeeds or an outage does not pass. Raises StageError."""
        return retry(
            lambda: self._attempt(action, egress),
            self._unavailable,
            name=self.target.name,
            policy=self._network.retry,
            progress=progress,
            waiting=waiting,
            deadline=deadline,
        )

    def _attempt(self, action: Callable[[], Any], egress: Egress | None) -> Any:
        """Run a call to the store once. Raises Outage for a failure that may pass, StageError for any other."""
        try:
            return action()
        except (*LIBRARY_ERRORS, Outage) as error:
            if egress is not None:
                self._require_egress(egress)
            if isinstance(error, Outage):
                raise
            ambient = self.source.credentials_prefix is None
            raise interpret_error(error, self.target, ambient=ambient) from None

    def _require_egress(self, egress: Egress) -> None:
        """Raise if the egress, and not the store, ended the request."""
        if egress.blocked:
            raise self.target.forbidden_address() from None
        if egress.proxy_blocked:
            raise self.target.forbidden_proxy() from None
        status, egress.proxy_status = egress.proxy_status, None
        if status is not None:
            raise proxy_rejection(status, self.target) from None

    def _unavailable(self, found: str) -> StageError:
        return StageError(
            self.target.unavailable,
            f"could not {self.target.transfer} the {self.target.name}: {found}; check that the store is up and reachable from the "
            "cluster, or wait longer for it with network.retrySeconds",
        )
