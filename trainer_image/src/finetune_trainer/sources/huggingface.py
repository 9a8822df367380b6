"""A base model from a Hugging Face hub, its weight files downloaded one by one."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx2
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.model import is_small_file, weight_files

if TYPE_CHECKING:
    from collections.abc import Callable

_TRIES = 3
_PAUSES = (1.0, 2.0)
_Result = TypeVar("_Result")


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

        Raises StageError with ModelNotFound, ModelAccessDenied, ModelUnavailable or what `weight_files` finds.
        """
        self._repository = repository
        self._token = token or False
        self._sleep = sleep
        # Read now: the library keeps the value it saw when it was imported.
        self._endpoint = os.environ.get("HF_ENDPOINT") or None
        api = HfApi(endpoint=self._endpoint, token=self._token)
        info = self._retried(lambda: api.model_info(repository, revision=revision, timeout=10), revision)
        if info.sha is None:
            raise StageError(Reason.MODEL_UNAVAILABLE, "the hub must name the revision's commit, found none")
        self.commit: str | None = info.sha
        self._commit = info.sha
        names = sorted(item.rfilename for item in info.siblings or [] if "/" not in item.rfilename)
        self._sizes = {item.rfilename: item.size for item in info.siblings or []}
        self._folder = folder / info.sha
        self._folder.mkdir(parents=True, exist_ok=True)
        self._small = [self._download(name) for name in names if is_small_file(name)]
        self._weights = weight_files(names, lambda name: (self._folder / name).read_bytes())

    def identity(self) -> dict[str, Any]:
        """Repository and commit."""
        return {"kind": "HuggingFace", "repository": self._repository, "commit": self.commit}

    def small_files(self) -> list[Path]:
        """Return config, tokenizer and other small files."""
        return self._small

    def weight_files(self) -> list[str]:
        """Names of the weight files, sorted."""
        return self._weights

    def fetch(self, name: str, on_bytes: Callable[[int, int | None], None]) -> Path:
        """Download a weight file; an interrupted download goes on where it stood."""
        on_bytes(0, self._sizes.get(name))
        path = self._download(name)
        size = path.stat().st_size
        on_bytes(size, size)
        return path

    def release(self, name: str) -> None:
        """Delete a downloaded weight file."""
        (self._folder / name).unlink(missing_ok=True)

    def _download(self, name: str) -> Path:
        return Path(
            self._retried(
                lambda: hf_hub_download(
                    self._repository,
                    name,
                    revision=self._commit,
                    local_dir=self._folder,
                    token=self._token,
                    endpoint=self._endpoint,
                    etag_timeout=10,
                ),
                self._commit,
            )
        )

    def _retried(self, action: Callable[[], _Result], revision: str) -> _Result:
        """Run a call to the hub, three times where the fault may pass, and give its failure a reason."""
        for attempt in range(_TRIES):
            try:
                return action()
            except GatedRepoError as error:
                raise self._denied() from error
            except RevisionNotFoundError as error:
                raise StageError(
                    Reason.MODEL_NOT_FOUND,
                    f"model.source must name an existing revision, found no {revision!r} in {self._repository}",
                ) from error
            except RepositoryNotFoundError as error:
                # The hub answers 401 for a private repository and for one that does not exist.
                if error.response is not None and error.response.status_code == 401 and self._token:
                    raise self._denied() from error
                raise StageError(
                    Reason.MODEL_NOT_FOUND,
                    f"model.source must name an existing repository, found no {self._repository}; "
                    "a private one needs tokenSecretRef",
                ) from error
            except HFValidationError as error:
                raise StageError(
                    Reason.MODEL_NOT_FOUND,
                    f"model.source.huggingFace.repository must be ORGANISATION/NAME: {error}",
                ) from error
            except (HfHubHTTPError, LocalEntryNotFoundError, httpx2.HTTPError, OSError) as error:
                self._require_outage(error)
                if attempt == _TRIES - 1:
                    status = _status(error)
                    detail = f"HTTP status {status}" if status else type(error).__name__
                    raise StageError(
                        Reason.MODEL_UNAVAILABLE,
                        f"the hub must answer, found after {_TRIES} tries: {detail}; check that it is reachable",
                    ) from error
                self._sleep(_PAUSES[attempt])
        raise AssertionError("the last try either returns or raises")

    def _require_outage(self, error: Exception) -> None:
        """Raise what is no outage: a refusal, or a fault of this machine such as a full disk."""
        if _status(error) in {401, 403}:
            raise self._denied() from error
        network = isinstance(error, ConnectionError | TimeoutError)
        if isinstance(error, OSError) and error.errno is not None and not network:
            raise error

    def _denied(self) -> StageError:
        return StageError(
            Reason.MODEL_ACCESS_DENIED,
            f"the token must be allowed to read {self._repository}, found it gated or private; "
            "ask for access and name a valid token in model.source.huggingFace.tokenSecretRef",
        )


def _status(error: Exception) -> int | None:
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status
