"""Requests to a Hugging Face hub that change a repository, each tried again during an outage.

The token goes to the hub alone, and never to the storage that the hub names for large files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from finetune_trainer.contract.credentials import clean_secret
from finetune_trainer.destinations.http_client import LARGEST_DOCUMENT, Answer, HttpClient
from finetune_trainer.errors import StageError
from finetune_trainer.sources.hub_endpoint import PUBLIC_HUB, hub_endpoint
from finetune_trainer.sources.hub_listing import Listing, UnexpectedListingError, parse_listing
from finetune_trainer.sources.retry import Outage
from finetune_trainer.sources.retry_after import requested_pause
from finetune_trainer.sources.secret_values import require_header_value
from finetune_trainer.sources.url import InvalidLocationError, Location

if TYPE_CHECKING:
    from finetune_trainer.contract.destinations import HubDestination
    from finetune_trainer.sources.fetch_target import FetchTarget
    from finetune_trainer.sources.network import Network

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAXIMUM_REDIRECTS = 5
_PASSING = frozenset({408, 425, 429})


class HubClient(HttpClient):
    """One model repository of a hub."""

    server = "hub"

    def __init__(
        self,
        destination: HubDestination,
        target: FetchTarget,
        environment: Mapping[str, str],
        network: Network,
        *,
        allow_private: bool,
    ) -> None:
        """Read token and endpoint. Raises StageError if one of them cannot be used."""
        hub = hub_endpoint(environment)
        # The administrator names another hub, so that hub and its storage may have any address.
        named = hub.url != PUBLIC_HUB and not hub.of_job
        super().__init__(target, network, allow_private=allow_private or named)
        self.repository = destination.repository
        self.namespace = destination.repository.partition("/")[0]
        self.endpoint = hub.url
        try:
            self._root = Location.parse(self.endpoint + "/")
        except InvalidLocationError:
            raise StageError(
                target.unavailable,
                hub.remedy,
            ) from None
        try:
            validate_repo_id(self.repository)
        except HFValidationError as error:
            raise self.missing(f"a repository as NAMESPACE/NAME: {error}") from error
        self._token = _token(destination.token_variable, environment, target)

    def whoami(self) -> dict[str, Any]:
        """Return the hub's description of the token's user. Raises StageError for a token that is not valid."""
        return self.retried(lambda: document_of(self.ask("GET", "/api/whoami-v2")))

    def organization_exists(self, name: str) -> bool:
        """Return whether the hub has an organization of this name."""
        path = f"/api/organizations/{quote(name)}/overview"
        return self.retried(lambda: self.ask("GET", path, wanted={200, 404})).status == 200

    def describe(self, revision: str) -> tuple[Listing, bool] | None:
        """Return the files at a revision and whether the repository is private; None if there is no such revision."""
        path = f"/api/models/{self.repository}/revision/{quote(revision, safe='')}?blobs=true"

        def attempt() -> tuple[Listing, bool] | None:
            found = self.ask("GET", path, wanted={200, 404})
            if found.status == 404:
                return None
            try:
                listing = parse_listing(found.body)
            except UnexpectedListingError:
                raise Outage("a response that does not follow the hub's API") from None
            if listing.commit is None:
                raise Outage("a description without a commit")
            return listing, document_of(found).get("private") is True

        return self.retried(attempt)

    def exists(self) -> bool:
        """Return whether the repository exists, with whatever branches."""
        path = f"/api/models/{self.repository}"
        return self.retried(lambda: self.ask("GET", path, wanted={200, 404})).status == 200

    def create_repository(self, *, private: bool) -> None:
        """Create the repository. One that exists stays as it is."""
        name = self.repository.partition("/")[2]
        document = {"type": "model", "name": name, "organization": self.namespace, "private": private}
        self.retried(lambda: self.ask("POST", "/api/repos/create", document, wanted={200, 201, 409}))

    def create_branch(self, name: str, start: str) -> None:
        """Create a branch at the commit `start`. One that exists stays as it is."""
        path = f"/api/models/{self.repository}/branch/{quote(name, safe='')}"
        self.retried(lambda: self.ask("POST", path, {"startingPoint": start}, wanted={200, 201, 409}))

    def read(self, commit: str, name: str) -> bytes | None:
        """Return a small file at a commit; None if there is none."""

        def attempt() -> bytes | None:
            found = self._resolve(commit, name, LARGEST_DOCUMENT)
            return None if found is None else found[1]

        return self.retried(attempt)

    def digest(self, commit: str, name: str) -> str | None:
        """Read a file at a commit and return its `sha256:` digest; None if there is none."""

        def attempt() -> str | None:
            found = self._resolve(commit, name, 0)
            return None if found is None else found[0]

        return self.retried(attempt)

    def _resolve(self, commit: str, name: str, kept: int) -> tuple[str, bytes] | None:
        """Return digest and content of a file, which redirects may lead to. More than `kept` bytes are not kept."""
        location = self.at(f"/{self.repository}/resolve/{commit}/{quote(name)}")
        for _ in range(_MAXIMUM_REDIRECTS + 1):
            token = self._authorization(location)
            with self.responding("GET", location, {}, authorization=token) as (response, named):
                if response.status in _REDIRECTS and named.get("location"):
                    location = self.follow(location, named["location"])
                    continue
                if response.status == 404:
                    return None
                if response.status != 200:
                    self.require(Answer(response.status, named, b""), {200})
                digest, content = hashlib.sha256(), bytearray()
                for chunk in response.iter_stream():
                    digest.update(chunk)
                    content += chunk[: max(0, kept - len(content))]
                return f"sha256:{digest.hexdigest()}", bytes(content)
        raise self.unavailable(f"over {_MAXIMUM_REDIRECTS} redirects")

    def at(self, path: str) -> Location:
        """Return the location of a path of the hub."""
        try:
            return Location.parse(self.endpoint + path)
        except InvalidLocationError:
            raise self.unavailable("an address that is no URL") from None

    def follow(self, base: Location, reference: str) -> Location:
        """Return the location that the hub names. A mirror that names the public hub means itself."""
        if reference.startswith(PUBLIC_HUB + "/"):
            reference = self.endpoint + reference.removeprefix(PUBLIC_HUB)
        try:
            found = base.follow(reference)
        except InvalidLocationError:
            raise Outage("an address that is no URL") from None
        if found.scheme != "https" and self._root.scheme == "https":
            raise self.target.forbidden_address()
        return found

    def ask(
        self,
        method: str,
        path: str,
        content: object = None,
        *,
        wanted: frozenset[int] | set[int] = frozenset({200, 201}),
        media: str = "application/json",
    ) -> Answer:
        """Send one request to the hub, with its token. `content` is a JSON document or bytes. Raises as `require` does."""
        body = (
            content
            if isinstance(content, bytes)
            else b""
            if content is None
            else json.dumps(content).encode()
        )
        fields = {} if content is None else {"content-type": media, "content-length": str(len(body))}
        accepted = media if "+json" in media else "application/json"
        return self.require(self.send(method, self.at(path), {"accept": accepted, **fields}, body), wanted)

    def send(
        self,
        method: str,
        location: Location,
        fields: Mapping[str, str],
        content: bytes | Iterator[bytes] = b"",
    ) -> Answer:
        """Send one request. Only the hub's own origin gets the token."""
        return self.answer(method, location, fields, content, self._authorization(location))

    def _authorization(self, location: Location) -> bytes | None:
        return f"Bearer {self._token}".encode() if self.is_own(location) else None

    def is_own(self, location: Location) -> bool:
        """Return whether a location is the hub's own, and so may see the token."""
        return location.origin == self._root.origin

    def require(self, found: Answer, wanted: frozenset[int] | set[int]) -> Answer:
        """Return an answer of a `wanted` status. Raises Outage for one that may pass, StageError for any other."""
        status, pause = found.status, requested_pause(found.fields)
        if status in wanted:
            return found
        said = f"HTTP status {status}"
        if status >= 500 or status in _PASSING or (status == 403 and pause):
            raise Outage(said, pause)
        if status == 401:
            raise self.denied(f"be valid, but the hub answered {said}, as for a wrong or expired one")
        if status in {402, 403}:
            raise self.denied(
                f"allow to write to {self.repository}, but the hub answered {said}, as for a token that may only read or "
                "an account without room"
            )
        if status in _REDIRECTS:
            raise self.missing(
                f"a repository by its present name, found a redirect from {self.repository}, as after a renaming"
            )
        if status == 404:
            raise self.missing(f"a repository that the token can reach, found {said} for {self.repository}")
        raise self.unavailable(said)

    def denied(self, must: str) -> StageError:
        """Make the error for a token that does not do."""
        return StageError(
            self.target.access_denied,
            f"the token for {self.target.field} must {must}; set tokenSecretRef to a valid token with the permission to write",
        )

    def missing(self, what: str) -> StageError:
        """Make the error for a place that does not exist."""
        return StageError(
            self.target.not_found,
            f"{self.target.field}.huggingFace must name {what}; check repository and revision",
        )


def document_of(answer: Answer) -> dict[str, Any]:
    """Return the body as a JSON object. Raises Outage if it is none."""
    try:
        found = json.loads(answer.body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Outage("a response that does not follow the hub's API")
    return found


def _token(variable: str, environment: Mapping[str, str], target: FetchTarget) -> str:
    token = clean_secret(environment.get(variable))
    if not token:
        raise StageError(
            target.access_denied,
            f"the Secret for {target.field} must hold a token, found none; correct tokenSecretRef or the Secret",
        )
    return require_header_value(token, f"the token for {target.field}", target)
