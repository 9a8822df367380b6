"""A dataset repository on a Hugging Face hub: the data files of one split of one configuration.

The `datasets` library itself chooses these files. It reads a folder of empty files with the repository's file names,
and the part of the repository's card that names files. So all its rules hold: the card's `configs`, the default
configuration, the usual layouts of folders and file names. The library loads no data, and no code of the repository
runs.
"""

from __future__ import annotations

import json
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from finetune_trainer.contract.run_spec import HubDatasetSource
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.fetch_target import DATASET
from finetune_trainer.sources.http import Limits
from finetune_trainer.sources.hub import HubRepository
from finetune_trainer.sources.network import Network
from finetune_trainer.sources.retry import RetryPolicy
from finetune_trainer.sources.transfer import OnBytes

CARD = "README.md"
_CARD_BYTES = 4 << 20
_LONGEST_LIST = 10
# The library's builders for the formats that the trainer reads.
_BUILDERS = frozenset({"json", "csv", "parquet"})
# The members of a configuration that name its files.
_FILE_MEMBERS = ("config_name", "data_files", "data_dir", "default")


@dataclass(frozen=True)
class HubDataset:
    """The files of a split in the library's order, and their identity with the commit."""

    paths: tuple[Path, ...]
    identity: dict[str, Any]


def download_split(
    source: HubDatasetSource,
    folder: Path,
    limits: Limits,
    on_bytes: OnBytes,
    environment: Mapping[str, str],
    sleep: Callable[[float], None] = time.sleep,
) -> HubDataset:
    """Download the files that `source` names into `folder`. Token and network settings come from `environment`.

    Raises StageError with DatasetNotFound (the message lists the existing splits, configurations or files),
    DatasetAccessDenied, DatasetUnavailable, DatasetTooLarge or InvalidNetworkSettings.
    """
    token = environment.get(source.token_variable) if source.token_variable else None
    network = Network.from_environment(
        environment, RetryPolicy(limits.retry_seconds), allow_private=limits.allow_private_addresses
    )
    repository = HubRepository(
        DATASET,
        source.repository,
        source.revision,
        token,
        folder,
        sleep,
        network=network,
        waiting=lambda: on_bytes(0, None),
    )
    budget = _Budget(limits, on_bytes)
    named = source.path is not None
    names = [_existing(source.path or "", repository)] if named else _split_files(source, repository)
    budget.total = sum(repository.sizes.get(name) or 0 for name in names)
    budget.require(budget.total)
    paths = []
    for name in names:
        paths.append(repository.download(name, budget.count))
        budget.before += paths[-1].stat().st_size
    identity = {
        "kind": "HuggingFace",
        "repository": source.repository,
        "commit": repository.commit,
        "files": names[:100],
        "bytes": budget.before,
    }
    return HubDataset(tuple(paths), identity)


class _Budget:
    """Counts bytes over all files and ends a download that is too large or takes too long."""

    def __init__(self, limits: Limits, on_bytes: OnBytes) -> None:
        self._limits = limits
        self._on_bytes = on_bytes
        self._deadline = time.monotonic() + limits.seconds
        self.total = 0
        self.before = 0

    def count(self, done: int, _total: int | None) -> None:
        """Receive the number of bytes of the current file."""
        self.require(self.before + done)
        if time.monotonic() > self._deadline:
            raise StageError(
                Reason.DATASET_UNAVAILABLE,
                f"the download must end within {self._limits.seconds:.0f} seconds, found it still running after "
                f"{self.before + done} bytes; use a nearer hub or raise trainer.limits.downloadSeconds",
            )
        self._on_bytes(self.before + done, self.total or None)

    def require(self, size: int) -> None:
        """Raise StageError(DatasetTooLarge) for more bytes than are allowed."""
        if size > self._limits.bytes:
            raise StageError(
                Reason.DATASET_TOO_LARGE,
                f"the dataset must have at most {self._limits.bytes} bytes, found more; "
                "use a smaller one or raise trainer.limits.datasetBytes in the chart",
            )


def _existing(path: str, repository: HubRepository) -> str:
    if path not in repository.sizes:
        raise _not_found("path must name a file of the repository", f"no {path!r}", sorted(repository.sizes))
    return path


def _split_files(source: HubDatasetSource, repository: HubRepository) -> list[str]:
    """Names of the split's files, as the library resolves them."""
    names = sorted(repository.sizes)
    script = f"{source.repository.rsplit('/', 1)[-1]}.py"
    if script in repository.sizes:
        raise StageError(
            Reason.DATASET_NOT_FOUND,
            f"{source.repository} must hold rows in data files, found the loading script {script}, which is never "
            "run; set revision to refs/convert/parquet, or path to one file",
        )
    configurations = []
    if CARD in repository.sizes and (repository.sizes[CARD] or 0) <= _CARD_BYTES:
        card = repository.download(CARD, lambda _done, _total: None)
        configurations = _file_configurations(card.read_bytes())
    with tempfile.TemporaryDirectory(dir=repository.folder.parent) as temporary:
        # The name is random: the library treats a Python file with the folder's name as a loading script.
        mirror = Path(temporary) / Path(temporary).name
        _mirror(mirror, names, configurations)
        return _resolved(mirror, source, names)


def _mirror(mirror: Path, names: list[str], configurations: list[dict[str, Any]]) -> None:
    mirror.mkdir()
    for name in names:
        path = mirror / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    # The library reads metadata from these two files; they may hold only checked metadata.
    (mirror / ".huggingface.yaml").unlink(missing_ok=True)
    text = json.dumps({"configs": configurations}) if configurations else "{}"
    (mirror / CARD).write_text(f"---\n{text}\n---\n", encoding="utf-8")


def _resolved(mirror: Path, source: HubDatasetSource, names: list[str]) -> list[str]:
    import datasets  # noqa: PLC0415 -- takes a second, and only a dataset from a hub needs it
    from datasets.exceptions import DatasetsError  # noqa: PLC0415

    datasets.disable_progress_bars()
    place = f"{source.repository} at {source.revision!r}"
    # The library raises these for metadata or layouts that it cannot resolve; the mirror holds no data.
    unresolved = (DatasetsError, OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError)
    try:
        known = [str(name) for name in datasets.get_dataset_config_names(str(mirror))]
        default = datasets.get_dataset_default_config_name(str(mirror))
        chosen = source.configuration or default
        if chosen is None or chosen not in known:
            found = "none chosen and no default" if chosen is None else f"no {chosen!r}"
            raise _not_found(f"configuration must name one of {place}", found, known)
        builder = datasets.load_dataset_builder(
            str(mirror), name=chosen, cache_dir=str(mirror.parent / "cache")
        )
    except (*unresolved, zipfile.BadZipFile, yaml.YAMLError) as error:
        raise StageError(
            Reason.DATASET_NOT_FOUND,
            f"{place} must hold JSON, JSON Lines, CSV or Parquet files in a layout of the datasets library, "
            f" found {_some(names)}; set path to one file",
        ) from error
    splits = {str(split): files for split, files in (builder.config.data_files or {}).items()}
    if source.split not in splits:
        raise _not_found(f"split must name one of {place}", f"no {source.split!r}", sorted(splits))
    if builder.name not in _BUILDERS:
        raise StageError(
            Reason.DATASET_NOT_FOUND,
            f"{place} must hold rows as JSON, JSON Lines, CSV or Parquet, found files for the library's "
            f"{builder.name} builder; set path to one file",
        )
    return [str(Path(file).relative_to(mirror.resolve())) for file in splits[source.split]]


def _file_configurations(card: bytes) -> list[dict[str, Any]]:
    """Return the file patterns in a card's `configs`. Raises StageError(DatasetNotFound) if they are unusable."""
    text = card.decode("utf-8-sig", "replace").replace("\r\n", "\n")
    head, marked, rest = text.partition("---\n")
    block, ended, _ = rest.partition("\n---")
    if head.strip() or not marked or not ended:
        return []
    try:
        metadata = yaml.safe_load(block)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _bad_card("valid YAML") from error
    configurations = metadata.get("configs") if isinstance(metadata, dict) else None
    if configurations is None:
        return []
    if not isinstance(configurations, list) or not all(isinstance(item, dict) for item in configurations):
        raise _bad_card("`configs` as a list of mappings")
    kept = [{key: item[key] for key in _FILE_MEMBERS if key in item} for item in configurations]
    for item in kept:
        if not isinstance(item.get("config_name"), str | int | float):
            raise _bad_card("a `config_name` in each of `configs`")
        item["config_name"] = str(item["config_name"])
        if not _names_files(item.get("data_files", [])) or not _is_pattern(item.get("data_dir", "")):
            raise _bad_card("patterns of files inside the repository in `data_files` and `data_dir`")
    return kept


def _names_files(value: Any) -> bool:
    """Return whether a `data_files` member has a form of the library and stays inside the repository."""
    if isinstance(value, dict):
        return all(_names_files(entry) for entry in value.values())
    if isinstance(value, list):
        return all(
            _is_pattern(entry) or (isinstance(entry, dict) and _names_files(entry.get("path")))
            for entry in value
        )
    return _is_pattern(value)


def _is_pattern(value: Any) -> bool:
    # "://" and "::" would make the library open other locations.
    return (
        isinstance(value, str)
        and not any(mark in value for mark in ("://", "::", "\0"))
        and not value.startswith(("/", "~"))
        and ".." not in value.split("/")
    )


def _bad_card(must_hold: str) -> StageError:
    return StageError(
        Reason.DATASET_NOT_FOUND,
        f"the repository's {CARD} must hold {must_hold}, found something else; correct it or set path to one file",
    )


def _not_found(must: str, found: str, known: list[str]) -> StageError:
    return StageError(
        Reason.DATASET_NOT_FOUND, f"dataset.source's {must}, found {found}; available: {_some(known)}"
    )


def _some(names: list[str]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - _LONGEST_LIST} more" if len(names) > _LONGEST_LIST else ""
    return ", ".join(names[:_LONGEST_LIST]) + more
