"""A repository on a Hugging Face hub at one commit, whose files are downloaded one by one.

The trainer's own client speaks the hub's protocol, so that one set of rules holds for every download: resuming, waiting
in an outage, proxies and certificate authorities. It also works with mirrors that leave out parts of the protocol: the
commit, ETags or digests.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from finetune_trainer.contract.credentials import clean_secret
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.connections import Connections
from finetune_trainer.sources.fetch_target import DATASET, FetchTarget
from finetune_trainer.sources.hub_endpoint import PUBLIC_HUB, hub_endpoint
from finetune_trainer.sources.hub_listing import (
    COMMIT,
    HubFile,
    Listing,
    UnexpectedListingError,
    digest_of_etag,
    file_digest,
    parse_listing,
)
from finetune_trainer.sources.hub_responses import interpret
from finetune_trainer.sources.network import Network
from finetune_trainer.sources.partial_download import PartialFile
from finetune_trainer.sources.responses import Action, Verdict
from finetune_trainer.sources.retry import Outage, retry
from finetune_trainer.sources.secret_values import require_header_value
from finetune_trainer.sources.transfer import Fields, OnBytes, Rules, Transfer
from finetune_trainer.sources.url import InvalidLocationError, Location
from finetune_trainer.workspace.layout import write_json_atomically

_LARGEST_LISTING_BYTES = 256 << 20
_READ_SECONDS = 30.0  # a hub may take long to describe a large repository
_log = logging.getLogger(__name__)


class HubRepository:
    """A model or dataset repository. Its commit is resolved once, so that every file is of one version.

    `files` are the repository's files by name. `commit` is None if the hub names none.
    """

    def __init__(
        self,
        target: FetchTarget,
        repository: str,
        revision: str,
        token: str | None,
        folder: Path,
        sleep: Callable[[float], None] = time.sleep,
        *,
        network: Network | None = None,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        """Resolve the revision and list the files.

        The commit is saved in `folder`. A process that continues there uses the same commit, even if a branch has
        moved. `network` is by default that of the process's environment, and `waiting` is called while an outage is
        waited for. Raises StageError with the target's not-found, access-denied or unavailable reason, or with
        InvalidNetworkSettings.
        """
        self._target = target
        self._repository = repository
        self._revision = revision
        self._token = clean_secret(token)
        if self._token:
            require_header_value(self._token, f"the token of {target.name}.source.huggingFace", target)
        self._network = Network.from_environment() if network is None else network
        self._network = replace(self._network, retry=replace(self._network.retry, sleep=sleep))
        self._context = self._network.tls_context()
        self.hub = hub_endpoint(os.environ)
        self._endpoint = self.hub.url
        self._warned = False
        try:
            validate_repo_id(repository)
        except HFValidationError as error:
            raise self._missing(f"an existing repository as ORGANIZATION/NAME: {error}") from error
        note = folder / ".commit.json"
        # The public hub's note has no endpoint, as in earlier releases.
        endpoint = None if self._endpoint == PUBLIC_HUB else self._endpoint
        requested = {"repository": repository, "revision": revision, "endpoint": endpoint}
        listing = self._list(_saved_commit(note, requested) or revision, folder, waiting)
        if listing.commit is not None:
            write_json_atomically(note, {**requested, "commit": listing.commit})
        self.commit = listing.commit
        self.files = listing.files
        self._version = listing.commit or listing.content_digest()
        self.folder = folder / self._version
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def sizes(self) -> dict[str, int | None]:
        """Size of each file in bytes, None if the hub names none."""
        return {name: file.size for name, file in self.files.items()}

    def download(self, name: str, on_bytes: OnBytes, waiting: Callable[[], None] | None = None) -> Path:
        """Download a file below the commit's folder; an interrupted download is resumed.

        Size and digest are compared with those that the hub names. `on_bytes` receives the bytes done and the total,
        and ends the download by raising. `waiting` is called while an outage is waited for; by default `on_bytes` is,
        with the bytes done so far. Raises StageError.
        """
        file = self.files[name]
        on_bytes(0, file.size)
        destination = self.folder / name
        partial_file = PartialFile(destination, f"{self._endpoint} {self._repository} {self._version} {name}")
        if partial_file.finished() is None:
            revision = self.commit or self._revision
            path = f"{self._prefix}{self._repository}/resolve/{quote(revision, safe='')}/{quote(name)}"
            self._fetch(path, partial_file, on_bytes, file, wanted="file", waiting=waiting)
            partial_file.finish({"kind": "HubFile", "bytes": partial_file.path.stat().st_size})
        size = destination.stat().st_size
        on_bytes(size, size)
        return destination

    @property
    def _prefix(self) -> str:
        return "/datasets/" if self._target is DATASET else "/"

    def _list(self, revision: str, folder: Path, waiting: Callable[[], None]) -> Listing:
        """Fetch the description of the repository at `revision`."""
        path = f"/api/{self._target.name}s/{self._repository}/revision/{quote(revision, safe='')}?blobs=true"
        found: list[Listing] = []

        def parse(document: Path) -> None:
            try:
                found[:] = [parse_listing(document.read_bytes())]
            except UnexpectedListingError as error:
                raise Outage("a response that does not follow the hub's API") from error

        partial_file = PartialFile(folder / "listing", f"{self._endpoint} {path}")
        partial_file.begin(None)
        self._fetch(
            path,
            partial_file,
            lambda _done, _total: None,
            None,
            wanted="repository",
            check=parse,
            waiting=waiting,
        )
        partial_file.begin(None)
        listing = found[0]
        if listing.commit is not None:
            return listing
        if len(revision) == 40 and COMMIT.fullmatch(revision):
            return Listing(revision, listing.files)
        _log.warning(
            "%s: the hub names no commit of %s at %r, so digests identify its files; a branch may move between two files",
            self._target.name,
            self._repository,
            revision,
        )
        return listing

    def _fetch(
        self,
        path: str,
        partial_file: PartialFile,
        on_bytes: OnBytes,
        file: HubFile | None,
        *,
        wanted: str,
        check: Callable[[Path], None] | None = None,
        waiting: Callable[[], None] | None = None,
    ) -> None:
        """Download to a partial file and check it, again and again until that succeeds or an outage does not pass."""
        try:
            location = Location.parse(self._endpoint + path)
        except InvalidLocationError:
            raise StageError(
                Reason.INVALID_NETWORK_SETTINGS,
                self.hub.remedy,
            ) from None
        linked: list[str] = []
        transfer = Transfer(partial_file, self._rules(path, wanted, linked), math.inf, on_bytes)
        with Connections(
            self._network,
            self._target,
            # A hub that the administrator names may have any address.
            allow_private=not self.hub.of_job or self._network.allow_private,
            deadline=math.inf,
            forbidden=self._target.forbidden_address,
            late=transfer.late,
            ssl_context=self._context,
            read_seconds=_READ_SECONDS,
        ) as connections:

            def attempt() -> None:
                transfer.attempt(connections, location)
                etag = transfer.finish(None if file is None else file.size)
                if file is not None:
                    self._verify(transfer, partial_file.path, file, linked)
                    self._warn(etag, file, linked)
                if check is not None:
                    try:
                        check(partial_file.path)
                    except Outage:
                        transfer.restart()
                        raise

            retry(
                attempt,
                self._unavailable,
                name=self._target.name,
                policy=self._network.retry,
                progress=lambda: transfer.done,
                waiting=waiting or transfer.waiting,
            )

    def _rules(self, path: str, wanted: str, linked: list[str]) -> Rules:
        authorization = ((b"Authorization", f"Bearer {self._token}".encode("ascii")),) if self._token else ()
        page = path.endswith((".html", ".htm"))

        def require_size(size: int) -> None:
            if wanted != "file" and size > _LARGEST_LISTING_BYTES:
                raise self._unavailable("a description of more than 256 MiB")

        def observe(fields: Fields) -> None:
            if "x-linked-etag" in fields:
                linked.append(fields["x-linked-etag"])

        return Rules(
            target=self._target,
            judge=partial(interpret, wanted=wanted, page=page, token=bool(self._token)),
            error=self._error,
            require_size=require_size,
            late=lambda _done: self._unavailable("no end of the download"),
            redirects=lambda: self._unavailable("over 5 redirects"),
            invalid=lambda: self._unavailable("a redirect to an invalid URL"),
            secret_headers=authorization,
            observe=observe,
        )

    def _verify(self, transfer: Transfer, path: Path, file: HubFile, linked: list[str]) -> None:
        """Compare a complete file with the size and digest that the hub names. Raises Outage if they differ."""
        size = path.stat().st_size
        if file.size is not None and size != file.size:
            transfer.restart()
            raise Outage(f"a file of {size} bytes instead of {file.size}")
        digest = file.digest or (digest_of_etag(linked[-1]) if linked else None)
        if digest is not None and file_digest(path, digest.partition(":")[0]) != digest:
            transfer.restart()
            raise Outage("other content than the hub's digest")

    def _warn(self, etag: str | None, file: HubFile, linked: list[str]) -> None:
        """Say once what this hub leaves out."""
        missing = [
            text
            for text, given in (
                ("a digest, so only sizes are checked", file.digest or linked),
                ("an ETag, so a broken download starts again", etag),
            )
            if not given
        ]
        if missing and not self._warned:
            self._warned = True
            _log.warning("%s: the hub does not name %s", self._target.name, " and ".join(missing))

    def _error(self, verdict: Verdict) -> Exception:
        """Make the error for a verdict that is no success."""
        if verdict.action in {Action.RETRY, Action.RESTART}:
            return Outage(verdict.found, verdict.pause_seconds)
        if verdict.reason is Reason.DATASET_ACCESS_DENIED:
            return self._denied()
        if verdict.reason is not Reason.DATASET_NOT_FOUND:
            return self._unavailable(verdict.found)
        texts = {
            "revision": f"an existing revision, found no {self._revision!r} in {self._repository}; check revision",
            "repository": f"an existing repository, found no {self._repository}; check the name, or set tokenSecretRef "
            "for a private one",
            "file": f"existing files, but {self._repository} lacks one; check the repository and revision",
        }
        return self._missing(texts[verdict.found])

    def _unavailable(self, found: str) -> StageError:
        return StageError(
            self._target.unavailable,
            f"could not download the {self._target.name} from the hub: {found}; check that the hub is up and reachable "
            "from the cluster, or wait longer for it with network.retrySeconds",
        )

    def _missing(self, what: str) -> StageError:
        return StageError(self._target.not_found, f"{self._target.name}.source must name {what}")

    def _denied(self) -> StageError:
        return StageError(
            self._target.access_denied,
            f"the job must be allowed to read {self._repository}, which is gated or private; "
            f"request access and set {self._target.name}.source.huggingFace.tokenSecretRef to a valid token",
        )


def _saved_commit(note: Path, requested: dict[str, Any]) -> str | None:
    """Return the commit that an earlier process found for the same revision."""
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    commit = found.pop("commit", None) if isinstance(found, dict) else None
    return commit if found == requested and isinstance(commit, str) and COMMIT.fullmatch(commit) else None
