"""Fetches a dataset from wherever it is, and says which bytes came."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_trainer.contract.run_spec import (
    DatasetSource,
    FileSource,
    HubDatasetSource,
    ObjectStoreSource,
    UrlSource,
)
from finetune_trainer.contract.run_spec import Limits as RunLimits
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.http import Limits, OnBytes, download
from finetune_trainer.sources.local_file import require_file


@dataclass(frozen=True)
class Fetched:
    """Files that hold the rows, in order, and which bytes they are: kind, commit or ETag, size; no secret."""

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
    """Make a dataset present here.

    `name` tells the datasets of one job apart below `folder`, which a later process of the same job must be given
    again: what is whole there is not fetched again, what is not is gone on with. Mounted files stay where they
    are. `on_bytes` hears of bytes done and in all; secrets come from `environment`. Raises StageError with a
    reason that starts with `Dataset`, or MalformedDataset for a broken content coding.
    """
    limits = Limits(run_limits.dataset_bytes, run_limits.download_seconds, run_limits.allow_private_addresses)
    if isinstance(source, FileSource):
        path = require_file(source.path, limits.bytes)
        size = path.stat().st_size
        on_bytes(size, size)
        return Fetched((path,), {"kind": "File", "bytes": size})
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / name
    if isinstance(source, UrlSource):
        url = environment.get(source.url_variable, "").strip()
        if not url:
            raise StageError(
                Reason.DATASET_NOT_FOUND,
                f"the environment variable {source.url_variable} must hold the dataset's URL, found it empty; "
                "set the Secret's key",
            )
        return Fetched((target,), download(url, target, limits, on_bytes, reuse=True))
    # The clients below take up to a second to import; a job needs one at most.
    if isinstance(source, ObjectStoreSource):
        from finetune_trainer.sources.object_store import download_object  # noqa: PLC0415

        return Fetched((target,), download_object(source, target, limits, on_bytes, environment))
    assert isinstance(source, HubDatasetSource)  # noqa: S101 -- for the type checker: no kind is left
    from finetune_trainer.sources.hub_dataset import download_split  # noqa: PLC0415

    split = download_split(source, target, limits, on_bytes, environment)
    return Fetched(split.paths, split.identity)
