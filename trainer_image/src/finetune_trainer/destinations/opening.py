"""Opens the publisher of a destination."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_trainer.contract.destinations import (
    DirectoryDestination,
    HubDestination,
    RegistryDestination,
)
from finetune_trainer.destinations.directory import DirectoryPublisher
from finetune_trainer.sources.network import Network
from finetune_trainer.sources.retry import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from finetune_trainer.contract.destinations import NamedDestination
    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.destinations.publisher import Publisher


def open_publisher(run: RunSpec, destination: NamedDestination, environment: Mapping[str, str]) -> Publisher:
    """Return the publisher of one of the run's destinations; the parameters are those of `open_place`."""
    return open_place(
        destination,
        run.spec_hash,
        run.workspace.path / "publish",
        environment,
        retry_seconds=run.limits.retry_seconds,
        allow_private=run.limits.allow_private_addresses,
    )


def open_place(
    destination: NamedDestination,
    spec_hash: str,
    journals: Path,
    environment: Mapping[str, str],
    *,
    retry_seconds: float,
    allow_private: bool,
) -> Publisher:
    """Return the publisher of a destination for one spec. `journals` is a folder of the workspace.

    Credentials and network settings come from `environment`. Raises StageError if the destination's address or its
    credentials cannot be used.
    """
    if isinstance(destination, DirectoryDestination):
        return DirectoryPublisher(destination, spec_hash)
    network = Network.from_environment(environment, RetryPolicy(retry_seconds), allow_private=allow_private)
    if isinstance(destination, RegistryDestination):
        from finetune_trainer.destinations.registry import RegistryPublisher  # noqa: PLC0415 -- as below

        digests = journals / "layer_digests.json"  # no destination has this name
        return RegistryPublisher(
            destination, spec_hash, digests, environment, network, allow_private=allow_private
        )
    journal = journals / f"{destination.name}.json"
    if isinstance(destination, HubDestination):
        from finetune_trainer.destinations.hub import HubPublisher  # noqa: PLC0415 -- as below

        return HubPublisher(
            destination, spec_hash, journal, environment, network, allow_private=allow_private
        )
    from finetune_trainer.destinations.object_store import ObjectStorePublisher  # noqa: PLC0415 -- takes a second

    return ObjectStorePublisher(
        destination, spec_hash, journal, environment, network, allow_private=allow_private
    )
