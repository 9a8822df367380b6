"""A repository on a Hugging Face hub at one commit, whose files are downloaded one by one."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm import tqdm

from finetune_trainer.errors import StageError
from finetune_trainer.sources.fetch_target import DATASET, FetchTarget
from finetune_trainer.sources.http import OnBytes
from finetune_trainer.sources.retry import ATTEMPTS, Outage, retry
from finetune_trainer.workspace.layout import write_json_atomically

_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_RESPONSE_SECONDS = 10
_Result = TypeVar("_Result")


class _UnexpectedResponseError(Exception):
    """The hub's response does not follow its API."""


class HubRepository:
    """A model or dataset repository. Its commit is resolved once, so that every file is of one version."""

    def __init__(
        self,
        target: FetchTarget,
        repository: str,
        revision: str,
        token: str | None,
        folder: Path,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Resolve the revision and list the files.

        The commit is saved in `folder`. A process that continues there uses the same commit, even if a branch has
        moved. Raises StageError with the target's not-found, access-denied or unavailable reason.
        """
        self._target = target
        self._repository = repository
        self._revision = revision
        # False, not None: for None the library would look for a token itself.
        self._token = token or False
        self._sleep = sleep
        # Read now: the library keeps the value from the time of its import.
        self._endpoint = os.environ.get("HF_ENDPOINT") or None
        note = folder / ".commit.json"
        requested = {"repository": repository, "revision": revision, "endpoint": self._endpoint}
        self.commit, self.sizes = self._retried(
            lambda: self._resolve(_saved_commit(note, requested) or revision)
        )
        write_json_atomically(note, {**requested, "commit": self.commit})
        self.folder = folder / self.commit
        self.folder.mkdir(parents=True, exist_ok=True)

    def download(self, name: str, on_bytes: OnBytes) -> Path:
        """Download a file below the commit's folder; an interrupted download is resumed.

        `on_bytes` receives the bytes done and the total, and ends the download by raising. Raises StageError.
        """
        on_bytes(0, self.sizes.get(name))

        meter: Any = partial(_Meter, on_bytes)  # declared as a class, but only ever called
        path = Path(
            self._retried(
                lambda: hf_hub_download(
                    self._repository,
                    name,
                    repo_type=self._target.name,
                    revision=self.commit,
                    local_dir=self.folder,
                    token=self._token,
                    endpoint=self._endpoint,
                    etag_timeout=_RESPONSE_SECONDS,
                    tqdm_class=meter,
                )
            )
        )
        size = path.stat().st_size
        on_bytes(size, size)
        return path

    def _resolve(self, revision: str) -> tuple[str, dict[str, int | None]]:
        api = HfApi(endpoint=self._endpoint, token=self._token)
        request = api.dataset_info if self._target is DATASET else api.model_info
        try:
            info = request(
                self._repository, revision=revision, timeout=_RESPONSE_SECONDS, files_metadata=True
            )
        except (HfHubHTTPError, HFValidationError):
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            # The library does not check the members of the response.
            raise _UnexpectedResponseError from error
        if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
            raise _UnexpectedResponseError
        files = {item.rfilename: item.size for item in info.siblings or []}
        return info.sha, {name: size for name, size in files.items() if _is_inside(name)}

    def _retried(self, action: Callable[[], _Result]) -> _Result:
        """Run a call to the hub, three times if the failure may pass, and give a final failure its reason."""
        return retry(
            lambda: self._attempt(action), self._unavailable, name=self._target.name, sleep=self._sleep
        )

    def _attempt(self, action: Callable[[], _Result]) -> _Result:
        """Run a call to the hub once. Raises Outage for a failure that may pass, StageError for any other."""
        try:
            return action()
        except GatedRepoError as error:
            raise self._denied() from error
        except RevisionNotFoundError as error:
            raise self._missing(
                f"an existing revision, found no {self._revision!r} in {self._repository}; check revision"
            ) from error
        except RepositoryNotFoundError as error:
            # The hub answers 401 for a private repository and for one that does not exist.
            if error.response is not None and error.response.status_code == 401 and self._token:
                raise self._denied() from error
            raise self._missing(
                f"an existing repository, found no {self._repository}; check the name, or set tokenSecretRef for a "
                "private one"
            ) from error
        except HFValidationError as error:
            raise self._missing(f"an existing repository as ORGANIZATION/NAME: {error}") from error
        except (
            HfHubHTTPError,
            LocalEntryNotFoundError,
            EntryNotFoundError,
            httpx2.HTTPError,
            httpx2.InvalidURL,
            OSError,
            RuntimeError,  # the library's storage client raises it
            _UnexpectedResponseError,
        ) as error:
            self._require_outage(error)
            raise Outage(_found(error)) from error

    def _require_outage(self, error: Exception) -> None:
        """Raise if the failure cannot pass: access denied, a missing file, or a local fault such as a full disk."""
        status = _status(error)
        denied = isinstance(error, PermissionError) and error.errno is None  # from the storage client
        if status in {401, 402, 403, 451} or denied:
            raise self._denied() from error
        if status in {404, 410}:
            raise self._missing(
                f"existing files, but {self._repository} lacks one; check the repository and revision"
            ) from error
        network = isinstance(error, ConnectionError | TimeoutError)
        if isinstance(error, OSError) and error.errno is not None and not network:
            raise error

    def _unavailable(self, found: str) -> StageError:
        return StageError(
            self._target.unavailable,
            f"could not download the {self._target.name} from the hub after {ATTEMPTS} attempts: {found}; "
            "check that the hub is up and reachable from the cluster",
        )

    def _missing(self, what: str) -> StageError:
        return StageError(self._target.not_found, f"{self._target.name}.source must name {what}")

    def _denied(self) -> StageError:
        return StageError(
            self._target.access_denied,
            f"the job must be allowed to read {self._repository}, which is gated or private; "
            f"request access and set {self._target.name}.source.huggingFace.tokenSecretRef to a valid token",
        )


class _Meter(tqdm):  # type: ignore[misc]  # tqdm has no types
    """Replaces the library's progress bar and shows nothing."""

    def __init__(self, on_bytes: OnBytes, **options: Any) -> None:
        self._on_bytes = on_bytes
        super().__init__(disable=True, **{key: options.get(key) for key in ("total", "initial")})

    def update(self, n: float | None = 1) -> None:
        """Pass on the number of bytes received so far."""
        self.n += n or 0
        self._on_bytes(int(self.n), None if self.total is None else int(self.total))


def _is_inside(name: Any) -> bool:
    """Return whether a file's name stays below the folder that it is written to."""
    return (
        isinstance(name, str)
        and bool(name)
        and "\\" not in name
        and all(part not in {"", ".", ".."} and len(os.fsencode(part)) < 256 for part in name.split("/"))
    )


def _saved_commit(note: Path, requested: dict[str, Any]) -> str | None:
    """Return the commit that an earlier process found for the same revision."""
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    commit = found.pop("commit", None) if isinstance(found, dict) else None
    return commit if found == requested and isinstance(commit, str) and _COMMIT.fullmatch(commit) else None


def _status(error: Exception) -> int | None:
    """HTTP status of the response that caused an error, also if the library has wrapped the error."""
    for link in (error, error.__cause__):
        status = getattr(getattr(link, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def _found(error: Exception) -> str:
    status = _status(error)
    if isinstance(error, _UnexpectedResponseError):
        return "a response that does not follow the hub's API"
    return f"HTTP status {status}" if status else type(error).__name__
