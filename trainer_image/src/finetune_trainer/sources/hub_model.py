"""A base model from a Hugging Face hub, its weight files downloaded one by one."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.fetch_target import MODEL
from finetune_trainer.sources.hub import HubRepository
from finetune_trainer.sources.hub_listing import file_digest
from finetune_trainer.sources.model import is_small_file, weight_files
from finetune_trainer.sources.network import Network
from finetune_trainer.sources.transfer import OnBytes


class HubModel:
    """A model repository at one commit. Downloaded files live in `folder` and are deleted when released."""

    def __init__(
        self,
        repository: str,
        revision: str,
        token: str | None,
        folder: Path,
        sleep: Callable[[float], None] = time.sleep,
        *,
        network: Network | None = None,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        """Resolve the revision and download the small files.

        `waiting` is called while an outage is waited for, until the small files are there. Raises StageError with
        ModelNotFound, ModelAccessDenied, ModelUnavailable, InvalidNetworkSettings or a reason of `weight_files`, and
        with InvalidModel if nothing identifies the weights.
        """
        self._name = repository
        self._repository = HubRepository(
            MODEL, repository, revision, token, folder, sleep, network=network, waiting=waiting
        )
        self.commit: str | None = self._repository.commit
        names = sorted(name for name in self._repository.sizes if "/" not in name)
        self._small = [
            self._repository.download(name, _ignore, waiting) for name in names if is_small_file(name)
        ]
        self._weights = weight_files(names, lambda name: (self._repository.folder / name).read_bytes())
        self._require_identity()

    def identity(self) -> dict[str, Any]:
        """Repository and commit; if the hub names no commit, the digests of the files. A job's own hub is named."""
        identity: dict[str, Any] = {"kind": "HuggingFace", "repository": self._name, "commit": self.commit}
        if self._repository.hub.of_job:
            # It may call any content by this commit, and the model cache belongs to other jobs, too.
            identity["endpoint"] = self._repository.hub.url
        if self.commit is None:
            small = {path.name: file_digest(path, "sha256") for path in self._small}
            weights = {name: self._repository.files[name].digest for name in self._weights}
            identity["files"] = {**small, **weights}
        return identity

    def small_files(self) -> list[Path]:
        """Return config, tokenizer and other small files."""
        return self._small

    def weight_files(self) -> list[str]:
        """Names of the weight files, sorted."""
        return self._weights

    def fetch(self, name: str, on_bytes: OnBytes) -> Path:
        """Download a weight file; an interrupted download is resumed."""
        return self._repository.download(name, on_bytes)

    def release(self, name: str) -> None:
        """Delete a downloaded weight file."""
        (self._repository.folder / name).unlink(missing_ok=True)

    def _require_identity(self) -> None:
        """Raise if another model could be taken for this one, for example in the model cache."""
        unknown = [name for name in self._weights if self._repository.files[name].digest is None]
        if self.commit is None and unknown:
            raise StageError(
                Reason.INVALID_MODEL,
                f"the hub must name the commit of {self._name} or the SHA-256 of its weights, found neither for "
                f"{unknown[0]}; use a mirror that names one of them, or set revision to a full commit",
            )


def _ignore(_done: int, _total: int | None) -> None:
    """Ignore progress: small files show none."""
