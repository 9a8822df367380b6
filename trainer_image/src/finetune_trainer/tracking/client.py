"""Requests to a tracker. All together end by a deadline, because a run does not wait for its tracker."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from finetune_trainer.contract.credentials import clean_secret
from finetune_trainer.destinations.http_client import Answer, HttpClient
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.fetch_target import FetchTarget
from finetune_trainer.sources.retry import Outage, RetryPolicy
from finetune_trainer.sources.retry_after import requested_pause
from finetune_trainer.sources.secret_values import require_header_value
from finetune_trainer.sources.url import InvalidLocationError, Location

if TYPE_CHECKING:
    from collections.abc import Mapping

    from finetune_trainer.contract.tracking import MlflowTracker, ModelRegistry
    from finetune_trainer.sources.network import Network

DEADLINE_SECONDS = 60.0
"""For everything that one tracker gets."""
_READ_SECONDS = 10.0
_OUTAGE_SECONDS = 20.0
"""A tracker that is down is given up after this time."""
_PASSING = frozenset({408, 425, 429})
_EXISTS = b"RESOURCE_ALREADY_EXISTS"
"""MLflow's code for it, which comes with status 400."""
_SHOWN = 200


class TrackerClient(HttpClient):
    """One tracker. `kind` is its name for people."""

    server = "tracker"

    def __init__(
        self,
        kind: str,
        tracker: MlflowTracker | ModelRegistry,
        environment: Mapping[str, str],
        network: Network,
        *,
        allow_private: bool,
        keys: str = "",
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> None:
        """Read the credentials, whose keys in the Secret begin with `keys`. Raises StageError if one cannot be sent."""
        outage = RetryPolicy(
            min(network.retry.seconds, _OUTAGE_SECONDS, deadline_seconds),
            network.retry.sleep,
            network.retry.chance,
            network.retry.clock,
        )
        super().__init__(
            tracker_target(kind),
            replace(network, retry=outage),
            allow_private=allow_private or tracker.any_address,
            deadline=time.monotonic() + deadline_seconds,
            read_seconds=min(_READ_SECONDS, deadline_seconds),
        )
        self.uri = tracker.uri.rstrip("/")
        self._authorization = _authorization(tracker.credentials_prefix, keys, environment, self.target)

    def get(self, path: str, **parameters: str) -> dict[str, Any] | None:
        """Return the document at a path; None if there is none."""
        query = f"?{urlencode(parameters)}" if parameters else ""
        found = self._call("GET", path + query, None, {200, 404})
        return None if found.status == 404 else document_of(found)

    def post(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """Send a document and return the answer."""
        return document_of(self._call("POST", path, document, {200, 201}))

    def patch(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """Change a document and return it."""
        return document_of(self._call("PATCH", path, document, {200}))

    def try_post(self, path: str, document: Mapping[str, Any]) -> dict[str, Any] | None:
        """Send a document that makes something; return None if the tracker has it already."""
        found = self._call("POST", path, document, {200, 201, 400, 409})
        if found.status == 409 or (found.status == 400 and _EXISTS in found.body):
            return None
        return document_of(self._require(found, {200, 201}))

    def put_file(self, path: str, content: bytes, media: str) -> None:
        """Upload a file."""
        fields = {"content-type": media, "content-length": str(len(content))}
        self._require(self.answer("PUT", self._at(path), fields, content, self._authorization), {200, 201})

    def _call(self, method: str, path: str, document: Mapping[str, Any] | None, wanted: set[int]) -> Answer:
        """Send one request once. Who repeats it must look first at what the tracker has got, so that nothing is twice."""
        body = b"" if document is None else json.dumps(document, allow_nan=False).encode()
        fields = {"accept": "application/json"}
        if document is not None:
            fields |= {"content-type": "application/json", "content-length": str(len(body))}
        found = self.answer(method, self._at(path), fields, body, self._authorization)
        return self._require(found, wanted)

    def _at(self, path: str) -> Location:
        if time.monotonic() >= self.deadline:
            raise self.unavailable("no end within its deadline")
        try:
            return Location.parse(self.uri + path)
        except InvalidLocationError:
            raise self.unavailable("an address that is no URL") from None

    def unavailable(self, found: str) -> StageError:
        """Make the error for a tracker that does not take the run."""
        return StageError(
            self.target.unavailable,
            f"could not {self.target.transfer} the {self.target.name}: {found}; check that the tracker is up and reachable "
            "from the cluster",
        )

    def _require(self, found: Answer, wanted: set[int]) -> Answer:
        """Return an answer of a `wanted` status. Raises Outage for one that may pass, StageError for any other."""
        status = found.status
        if status in wanted:
            return found
        said = f"HTTP status {status}"
        if status >= 500 or status in _PASSING:
            raise Outage(said, requested_pause(found.fields))
        if status in {401, 403}:
            raise StageError(
                self.target.access_denied,
                f"the credentials for {self.target.field} must allow writing, but the tracker answered {said}; "
                "correct the Secret or the tracker's permissions",
            )
        raise self.unavailable(f"{said}{_detail(found.body)}")


def tracker_target(kind: str) -> FetchTarget:
    """Return the target for messages about a tracker. Its reasons end no stage."""
    return FetchTarget(
        f"run to {kind}",
        Reason.DESTINATION_NOT_FOUND,
        Reason.DESTINATION_ACCESS_DENIED,
        Reason.DESTINATION_UNAVAILABLE,
        Reason.DESTINATION_ADDRESS_FORBIDDEN,
        Reason.DESTINATION_UNWRITABLE,
        given_as=f"tracking ({kind})",
        transfer="send",
    )


def document_of(answer: Answer) -> dict[str, Any]:
    """Return the body as a JSON object. Raises Outage if it is none, as from a page for signing in."""
    try:
        found = json.loads(answer.body or b"{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Outage("a response that does not follow the tracker's API")
    return found


def _detail(body: bytes) -> str:
    """Return what the server says about a refusal, if it says so as its API does."""
    try:
        found = json.loads(body)
        message = found.get("message") if isinstance(found, dict) else None
    except (ValueError, RecursionError):
        message = None
    return f" ({' '.join(message.split())[:_SHOWN]})" if isinstance(message, str) and message else ""


def _authorization(
    prefix: str | None, keys: str, environment: Mapping[str, str], target: FetchTarget
) -> bytes | None:
    """Return the Authorization header from the Secret's keys; None without a Secret."""
    if prefix is None:
        return None
    token, user, password = (
        clean_secret(environment.get(f"{prefix}{keys}{name}")) for name in ("TOKEN", "USERNAME", "PASSWORD")
    )
    if user and password:
        return b"Basic " + base64.b64encode(f"{user}:{password}".encode())
    if token:
        return b"Bearer " + require_header_value(token, f"the token for {target.field}", target).encode()
    raise StageError(
        target.access_denied,
        f"the Secret for {target.field} must exist and hold {keys}TOKEN, or {keys}USERNAME and {keys}PASSWORD, found "
        "neither; correct secretRef or the Secret",
    )
