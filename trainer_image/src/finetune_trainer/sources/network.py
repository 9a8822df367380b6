"""How a client reaches servers: proxies, trusted certificate authorities and the time to wait for an outage."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field

from finetune_trainer.sources.proxy import Proxies
from finetune_trainer.sources.retry import RetryPolicy
from finetune_trainer.sources.trust import read_bundle, trusting_context


@dataclass(frozen=True)
class Network:
    """The network settings of one process.

    `bundle` is PEM, trusted in addition to the system's authorities. With `allow_private`, a job's proxy may have a
    private address.
    """

    proxies: Proxies = field(default_factory=Proxies)
    bundle: str | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    allow_private: bool = False

    @classmethod
    def from_environment(
        cls,
        environment: Mapping[str, str] = os.environ,
        retry: RetryPolicy | None = None,
        *,
        allow_private: bool = False,
    ) -> Network:
        """Read proxies and CA bundle. Raises StageError(InvalidNetworkSettings) if one of them cannot be used."""
        proxies, bundle = Proxies.from_environment(environment), read_bundle(environment)
        return cls(proxies, bundle, RetryPolicy() if retry is None else retry, allow_private)

    def tls_context(self) -> ssl.SSLContext:
        """Make a client's TLS context."""
        return trusting_context(self.bundle)
