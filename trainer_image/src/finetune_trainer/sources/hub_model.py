"""A base model from a Hugging Face hub, its weight files downloaded one by one."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_trainer.sources.fetch_target import MODEL
from finetune_trainer.sources.http import OnBytes
from finetune_trainer.sources.hub import HubRepository
from finetune_trainer.sources.model import is_small_file, weight_files


class HubModel:
    """A model repository at one commit. Downloaded files live in `folder` and are deleted when released."""

    def __init__(
        self,
        repository: str,
        revision: str,
        token: str | None,
        folder: Path,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Resolve the revision and download the small files.

        Raises StageError with ModelNotFound, ModelAccessDenied, ModelUnavailable or a reason of `weight_files`.
        """
        self._name = repository
        self._repository = HubRepository(MODEL, repository, revision, token, folder, sleep)
        self.commit: str | None = self._repository.commit
        names = sorted(name for name in self._repository.sizes if "/" not in name)
        self._small = [self.fetch(name, _ignore) for name in names if is_small_file(name)]
        self._weights = weight_files(names, lambda name: (self._repository.folder / name).read_bytes())

    def identity(self) -> dict[str, Any]:
        """Repository and commit."""
        return {"kind": "HuggingFace", "repository": self._name, "commit": self.commit}

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


def _ignore(_done: int, _total: int | None) -> None:
    """Ignore progress: small files show none."""
