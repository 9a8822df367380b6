"""Publishes to a model repository of a Hugging Face hub.

Large files go to the hub's storage first, where no reader sees them. Then one commit makes all files visible, the manifest
with them. The commit names its parent, so the hub refuses it if another one came between.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from finetune_trainer.destinations.hub_account import only_reads, role_in
from finetune_trainer.destinations.hub_client import HubClient, document_of
from finetune_trainer.destinations.hub_storage import LargeFile
from finetune_trainer.destinations.publisher import OnBytes, changed, parse_manifest, taken
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.fetch_target import destination_target
from finetune_trainer.sources.retry import Outage
from finetune_trainer.workspace.destination import MANIFEST
from finetune_trainer.workspace.layout import write_json_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from finetune_trainer.contract.destinations import HubDestination
    from finetune_trainer.destinations.local_artifact import LocalArtifact, LocalFile
    from finetune_trainer.sources.hub_listing import HubFile
    from finetune_trainer.sources.network import Network

MAIN = "main"
_MADE_BY_THE_HUB = frozenset({"README.md", ".gitattributes"})
_SAMPLE_BYTES = 512
_FILES_PER_REQUEST = 256


@dataclass(frozen=True)
class _State:
    """The branch at one moment. `manifest` is its manifest's text, None if there is none."""

    commit: str
    files: Mapping[str, HubFile]
    private: bool
    manifest: bytes | None

    @property
    def document(self) -> dict[str, Any]:
        """The manifest; empty if it is none."""
        return parse_manifest(self.manifest or b"")

    @property
    def listed(self) -> Mapping[str, Any]:
        """The entries of the manifest by file."""
        found = self.document.get("files")
        return found if isinstance(found, dict) else {}

    def is_whole(self, spec_hash: str) -> bool:
        """Return whether the manifest is of this spec, and every file that it lists has its size and digest here."""
        return self.document.get("specHash") == spec_hash and all(
            isinstance(entry, dict) and _agrees(self.files.get(name), entry)
            for name, entry in self.listed.items()
        )


class HubPublisher:
    """One branch of one model repository. `journal` notes the commit at which this job has begun the branch."""

    def __init__(
        self,
        destination: HubDestination,
        spec_hash: str,
        journal: Path,
        environment: Mapping[str, str],
        network: Network,
        *,
        allow_private: bool,
    ) -> None:
        self._destination = destination
        self._spec_hash = spec_hash
        self._journal = journal
        self._open = partial(
            HubClient,
            destination,
            destination_target(destination.name),
            environment,
            network,
            allow_private=allow_private,
        )

    def probe(self) -> None:
        """Ask who the token's user is, and what the repository holds. It changes nothing there."""
        with self._open() as client:
            account = client.whoami()
            if only_reads(account):
                raise client.denied("allow to write, found one that may only read")
            if not client.exists():
                self._require_namespace(client, account)
                return
            state = self._state(client)
            if state is not None:
                self._require_free(client, state)
            else:
                self._require_main(client)
            # The hub answers this question only to those who may write.
            sample = {"path": MANIFEST, "sample": "", "size": 1}
            self._upload_modes(client, MAIN if state is None else self._destination.revision, [sample])

    def published(self) -> dict[str, Any] | None:
        """Compare the manifest at the branch with the hub's list of files."""
        with self._open() as client:
            state = self._state(client)
            return state.document if state is not None and state.is_whole(self._spec_hash) else None

    def publish(self, artifact: LocalArtifact, on_bytes: OnBytes) -> str | None:
        """Send the large files that the storage lacks, and make one commit; return its id."""
        with self._open() as client:
            if not client.exists():
                client.create_repository(private=self._destination.private)
            state = self._state(client)
            if state is None:
                self._require_main(client)
            elif self._holds(state, artifact) and self._different(client, state.commit, artifact) is None:
                return state.commit
            else:
                self._require_free(client, state)
            revision = MAIN if state is None else self._destination.revision
            large = self._send_large_files(client, artifact, revision, on_bytes)
            # Until the commit, a new branch shows the files of another one, so it is made as late as possible.
            before = (state or self._make_branch(client)).commit
            commit = client.retried(
                partial(self._commit, client, artifact, large, before),
                waiting=lambda: on_bytes(artifact.bytes),
            )
            different = self._different(client, commit, artifact)
            if different is not None:
                raise changed(self._destination.name, different)
        return commit

    def _require_main(self, client: HubClient) -> str:
        """Return the commit at which a new branch begins. Raises StageError if none can be made."""
        start = client.describe(MAIN)
        if start is None or self._destination.revision == MAIN:
            raise client.missing(
                f"a repository and a branch that can be made, found no {self._destination.revision!r}"
            )
        self._require_private(private=start[1])
        return str(start[0].commit)

    def _make_branch(self, client: HubClient) -> _State:
        """Create the branch. The note, written before, says that its first files are not its own."""
        start = self._require_main(client)
        write_json_atomically(self._journal, {**self._place(client), "start": start})
        client.create_branch(self._destination.revision, start)
        state = self._state(client)
        if state is None:
            raise client.missing(
                f"a branch that can be made, found no {self._destination.revision!r} after that"
            )
        return state

    def _state(self, client: HubClient) -> _State | None:
        """Return what the branch holds; None if there is no such repository or branch."""
        found = client.describe(self._destination.revision)
        if found is None:
            return None
        listing, private = found
        commit = str(listing.commit)
        manifest = client.read(commit, MANIFEST) if MANIFEST in listing.files else None
        return _State(commit, listing.files, private, manifest)

    def _place(self, client: HubClient) -> dict[str, str]:
        return {
            "endpoint": client.endpoint,
            "repository": client.repository,
            "revision": self._destination.revision,
        }

    def _is_inherited(self, client: HubClient, commit: str) -> bool:
        """Return whether this job made the branch at this commit, so that its files are those of another branch."""
        try:
            note = json.loads(self._journal.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(note == {**self._place(client), "start": commit})

    def _require_namespace(self, client: HubClient, account: dict[str, Any]) -> None:
        """Raise StageError unless the token's user may create a repository in the namespace."""
        role = role_in(account, client.namespace)
        if role is None and not client.organization_exists(client.namespace):
            raise client.missing(
                f"the token's user or an organization, found no organization {client.namespace}"
            )
        if role in {None, "read"}:
            raise client.denied(f"belong to a member of {client.namespace} who may write, found another one")

    def _require_free(self, client: HubClient, state: _State) -> None:
        """Raise StageError unless the branch is free, this spec's, or may be overwritten, and as private as it must be."""
        name = self._destination.name
        self._require_private(private=state.private)
        if self._destination.overwrite or self._is_inherited(client, state.commit):
            return
        if state.manifest is not None:
            if state.document.get("specHash") != self._spec_hash:
                raise taken(name, f"the {MANIFEST} of another job")
            return
        others = state.files.keys() - _MADE_BY_THE_HUB
        if others:
            raise taken(name, f"a file `{min(others)}` without a {MANIFEST}")

    def _require_private(self, *, private: bool) -> None:
        """Raise StageError for a public repository, unless the job allows one."""
        if self._destination.private and not private:
            raise StageError(
                Reason.DESTINATION_UNWRITABLE,
                f"output.destinations[{self._destination.name}].huggingFace must name a private repository, found a public "
                "one; make it private, or set private: false",
            )

    def _holds(self, state: _State, artifact: LocalArtifact) -> bool:
        return state.manifest == artifact.manifest and all(
            file.name in state.files for file in artifact.files
        )

    def _send_large_files(
        self, client: HubClient, artifact: LocalArtifact, revision: str, on_bytes: OnBytes
    ) -> set[str]:
        """Send the files that the hub wants in its storage; return their names."""
        samples = [_sample(file) for file in artifact.files]
        modes = self._upload_modes(client, revision, samples)
        # The storage takes no empty file.
        large = {file.name for file in artifact.files if file.bytes and modes.get(file.name) != "regular"}
        done = 0
        for file in artifact.files:
            if file.name in large:
                LargeFile(client, file, revision, partial(_report, on_bytes, done)).upload()
            done += file.bytes
            on_bytes(done)
        return large

    def _upload_modes(
        self, client: HubClient, revision: str, samples: list[dict[str, Any]]
    ) -> dict[str, str]:
        """Ask which files belong into the storage (`lfs`) and which into the commit (`regular`)."""
        modes: dict[str, str] = {}
        path = f"/api/models/{client.repository}/preupload/{_quoted(revision)}"

        def ask(files: list[dict[str, Any]]) -> list[Any]:
            found = document_of(client.ask("POST", path, {"files": files})).get("files")
            if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
                raise Outage("a response that does not follow the hub's API")
            return found

        for first in range(0, len(samples), _FILES_PER_REQUEST):
            part = samples[first : first + _FILES_PER_REQUEST]
            modes |= {
                str(entry.get("path")): str(entry.get("uploadMode"))
                for entry in client.retried(partial(ask, part))
            }
        return modes

    def _commit(self, client: HubClient, artifact: LocalArtifact, large: set[str], before: str) -> str:
        """Make the commit on top of what the branch holds now; return its id. A commit whose answer was lost counts."""
        state = self._state(client)
        if state is None:
            raise Outage("a branch that has disappeared")
        if state.commit != before and self._holds(state, artifact):
            return state.commit
        self._require_free(client, state)
        lines = [_header(state.commit), *self._operations(client, artifact, large, state)]
        body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        path = f"/api/models/{client.repository}/commit/{_quoted(self._destination.revision)}"
        found = client.ask("POST", path, body, wanted={200, 201, 409, 412}, media="application/x-ndjson")
        if found.status in {409, 412}:
            raise Outage("another commit came between")
        commit = document_of(found).get("commitOid")
        if not isinstance(commit, str) or not commit:
            raise Outage("a commit without an id")
        return commit

    def _operations(
        self, client: HubClient, artifact: LocalArtifact, large: set[str], state: _State
    ) -> Iterator[dict[str, Any]]:
        """Yield the lines of the commit: files to delete, large files, small files, and the manifest."""
        ours = {MANIFEST, *(file.name for file in artifact.files)}
        inherited = (
            state.files.keys() - {".gitattributes"} if self._is_inherited(client, state.commit) else set()
        )
        for name in sorted((state.files.keys() & (state.listed.keys() | inherited)) - ours):
            yield {"key": "deletedFile", "value": {"path": name}}
        for file in artifact.files:
            if file.name in large:
                oid = file.digest.removeprefix("sha256:")
                value = {"path": file.name, "algo": "sha256", "oid": oid, "size": file.bytes}
                yield {"key": "lfsFile", "value": value}
            else:
                yield _small_file(file.name, file.path.read_bytes())
        yield _small_file(MANIFEST, artifact.manifest)

    def _different(self, client: HubClient, commit: str, artifact: LocalArtifact) -> str | None:
        """Return the first file that has other bytes at the commit; None if all agree.

        The hub names the SHA-256 of a large file. Small files are read back.
        """
        files = client.retried(partial(_files_at, client, commit))
        wanted = {file.name: (file.digest, file.bytes) for file in artifact.files}
        manifest = f"sha256:{hashlib.sha256(artifact.manifest).hexdigest()}"
        wanted[MANIFEST] = (manifest, len(artifact.manifest))
        for name, (digest, size) in wanted.items():
            entry = files.get(name)
            if entry is None or entry.size not in {None, size}:
                return name
            stored = entry.digest or ""
            if (stored if stored.startswith("sha256:") else client.digest(commit, name)) != digest:
                return name
        return None


def _files_at(client: HubClient, commit: str) -> Mapping[str, HubFile]:
    """Return the files at a commit. A hub of several servers may show it a moment later."""
    found = client.describe(commit)
    if found is None:
        raise Outage("no sign of the commit yet")
    return found[0].files


def _agrees(file: HubFile | None, entry: Mapping[str, Any]) -> bool:
    if file is None or file.size not in {None, entry.get("bytes")}:
        return False
    return not (file.digest or "").startswith("sha256:") or file.digest == entry.get("digest")


def _header(parent: str) -> dict[str, Any]:
    value = {"summary": "Publish a fine-tuned model", "description": "", "parentCommit": parent}
    return {"key": "header", "value": value}


def _small_file(name: str, content: bytes) -> dict[str, Any]:
    encoded = base64.b64encode(content).decode()
    return {"key": "file", "value": {"content": encoded, "path": name, "encoding": "base64"}}


def _sample(file: LocalFile) -> dict[str, Any]:
    with file.path.open("rb") as content:
        sample = base64.b64encode(content.read(_SAMPLE_BYTES)).decode()
    return {"path": file.name, "sample": sample, "size": file.bytes}


def _quoted(revision: str) -> str:
    return quote(revision, safe="")


def _report(on_bytes: OnBytes, before: int, sent: int) -> None:
    on_bytes(before + sent)
