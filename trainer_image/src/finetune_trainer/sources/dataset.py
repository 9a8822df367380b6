"""Fetches a dataset from any kind of source and returns its identity."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_trainer.contract.credentials import clean_secret
from finetune_trainer.contract.object_store import ObjectStoreSource
from finetune_trainer.contract.run_spec import (
    DatasetSource,
    FileSource,
    HubDatasetSource,
    UrlSource,
)
from finetune_trainer.contract.run_spec import Limits as RunLimits
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.http import Limits, download
from finetune_trainer.sources.local_file import require_file
from finetune_trainer.sources.network import Network
from finetune_trainer.sources.transfer import OnBytes


@dataclass(frozen=True)
class Fetched:
    """The files with the rows, in order, and their identity (kind, commit or ETag, size) without secrets."""

    paths: tuple[Path, ...]
    identity: dict[str, Any]


def fetch_dataset(
    source: DatasetSource,
    name: str,
    run_limits: RunLimits,
    folder: Path,
    on_bytes: OnBytes,
    environment: Mapping[str, str] = os.environ,
) -> Fetched:
    """Download a dataset, or check a mounted one.

    `name` distinguishes the datasets of one job in `folder`. A later process of the same job passes the same folder:
    complete files are not fetched again, incomplete ones are resumed. Mounted files stay in place. `on_bytes` receives
    the bytes done and the total; secrets and network settings come from `environment`. Raises StageError with a reason
    that starts with `Dataset`, MalformedDataset for a broken content coding, or InvalidNetworkSettings.
    """
    limits = Limits(
        run_limits.dataset_bytes,
        run_limits.download_seconds,
        run_limits.allow_private_addresses,
        run_limits.retry_seconds,
    )
    if isinstance(source, FileSource):
        path = require_file(source.path, limits.bytes)
        size = path.stat().st_size
        on_bytes(size, size)
        return Fetched((path,), {"kind": "File", "bytes": size})
    folder.mkdir(parents=True, exist_ok=True)
    destination = folder / name
    if isinstance(source, UrlSource):
        url = clean_secret(environment.get(source.url_variable))
        if not url:
            raise StageError(
                Reason.DATASET_NOT_FOUND,
                f"the environment variable {source.url_variable} must hold the dataset's URL, found it empty; "
                "set the key in the Secret",
            )
        network = Network.from_environment(environment)
        identity = download(url, destination, limits, on_bytes, reuse=True, network=network)
        return Fetched((destination,), identity)
    # These clients take up to a second to import, and a job needs at most one.
    if isinstance(source, ObjectStoreSource):
        from finetune_trainer.sources.object_store import download_object  # noqa: PLC0415

        return Fetched((destination,), download_object(source, destination, limits, on_bytes, environment))
    assert isinstance(source, HubDatasetSource)  # noqa: S101 -- for the type checker: no other kind is left
    from finetune_trainer.sources.hub_dataset import download_split  # noqa: PLC0415

    split = download_split(source, destination, limits, on_bytes, environment)
    return Fetched(split.paths, split.identity)
