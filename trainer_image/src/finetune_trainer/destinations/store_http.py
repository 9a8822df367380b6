"""Signed HTTP requests to one bucket of an object store, by the rules about addresses and proxies of other requests."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from finetune_trainer.destinations.http_client import Answer, HttpClient
from finetune_trainer.destinations.request_signatures import (
    AwsSigner,
    AzureSigner,
    GoogleSigner,
    Signer,
    StoreRequest,
    sign_nothing,
    sign_with_query,
)
from finetune_trainer.sources.credentials import credentials
from finetune_trainer.sources.responses import PREFIX_BYTES, Action, interpret
from finetune_trainer.sources.retry import Outage
from finetune_trainer.sources.store_client import StoreUri, rejection, s3_settings
from finetune_trainer.sources.url import Location

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from finetune_trainer.contract.destinations import ObjectStoreDestination
    from finetune_trainer.sources.fetch_target import FetchTarget
    from finetune_trainer.sources.network import Network

_NOT_IMPLEMENTED = 501  # no outage: the store lacks this call
_DEFAULT_REGION = "us-east-1"
_UNRESERVED = "-_.~"


@dataclass(frozen=True)
class StoreAccess:
    """The address of a bucket and the way to sign in. `query` belongs to every request."""

    kind: str
    root: Location
    path: str
    signer: Signer
    query: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(
        cls, destination: ObjectStoreDestination, target: FetchTarget, environment: Mapping[str, str]
    ) -> StoreAccess | None:
        """Return the access with the credentials of a Secret.

        None stands for credentials that only obstore can use: the pod's own identity, a client of Microsoft Entra, and a
        Google key that names a server of its own.
        Raises StageError as `credentials` does.
        """
        uri = StoreUri.parse(destination.uri, target)
        given = credentials(destination, uri.kind, target, environment)
        if destination.credentials_prefix is None or not given:
            return None
        if uri.kind == "s3":
            return cls._s3(destination, uri, given, environment)
        return cls._gcs(destination, uri, given) if uri.kind == "gs" else cls._azure(destination, uri, given)

    @classmethod
    def _s3(
        cls,
        destination: ObjectStoreDestination,
        uri: StoreUri,
        given: Mapping[str, str],
        environment: Mapping[str, str],
    ) -> StoreAccess:
        region = s3_settings(destination, environment).get("region", _DEFAULT_REGION)
        signer = AwsSigner(
            given["access_key_id"], given["secret_access_key"], given.get("session_token"), region
        )
        endpoint = destination.endpoint or f"https://s3.{region}.amazonaws.com"
        return cls(uri.kind, *_address(endpoint, uri.bucket), signer, {})

    @classmethod
    def _gcs(
        cls, destination: ObjectStoreDestination, uri: StoreUri, given: Mapping[str, str]
    ) -> StoreAccess | None:
        endpoint = destination.endpoint or "https://storage.googleapis.com"
        try:
            key: Any = json.loads(given["service_account_key"])
            signer = sign_nothing if key.get("disable_oauth") is True else GoogleSigner(key)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None  # obstore has the message about it
        if destination.endpoint is None and key.get("gcs_base_url"):
            return None
        return cls(uri.kind, *_address(endpoint, uri.bucket), signer, {})

    @classmethod
    def _azure(
        cls, destination: ObjectStoreDestination, uri: StoreUri, given: Mapping[str, str]
    ) -> StoreAccess | None:
        endpoint = destination.endpoint or f"https://{uri.account}.blob.core.windows.net"
        address = _address(endpoint, uri.bucket)
        if "account_key" in given:
            return cls(uri.kind, *address, AzureSigner(uri.account, given["account_key"]), {})
        if "sas_key" in given:
            return cls(uri.kind, *address, sign_with_query, _members(given["sas_key"]))
        return None

    @contextmanager
    def opened(self, target: FetchTarget, network: Network, *, allow_private: bool) -> Iterator[StoreHttp]:
        """Open connections of one thread."""
        with StoreHttp(self, target, network, allow_private=allow_private) as client:
            yield client


class StoreHttp(HttpClient):
    """Requests to one bucket. A key is relative to the bucket; None stands for the bucket itself."""

    server = "store"

    def __init__(
        self, access: StoreAccess, target: FetchTarget, network: Network, *, allow_private: bool
    ) -> None:
        super().__init__(target, network, allow_private=allow_private)
        self._access = access

    def call(
        self,
        method: str,
        key: str | None,
        query: Mapping[str, str],
        content: bytes = b"",
        also: frozenset[int] = frozenset(),
    ) -> Answer:
        """Send a request once. Raises Outage, or StageError for a status that is neither success nor one of `also`."""
        path = self._access.path + ("" if key is None else "/" + quote(key, safe="/" + _UNRESERVED))
        query = {**self._access.query, **query}
        encoded = "&".join(
            f"{quote(name, safe=_UNRESERVED)}={quote(query[name], safe=_UNRESERVED)}"
            for name in sorted(query)
        )
        location = self._access.root.follow(f"{path}?{encoded}")
        fields = {"content-length": str(len(content))}
        signed = self._access.signer(StoreRequest(method, location, query, fields, content))
        found = self.answer(method, location, {**fields, **signed}, content)
        return found if found.status in also else self._require(found)

    def _require(self, found: Answer) -> Answer:
        verdict = interpret(
            200 if found.status in {201, 204} else found.status, found.fields, found.body[:PREFIX_BYTES]
        )
        if verdict.action in {Action.TAKE, Action.CONTINUE}:
            return found
        if verdict.action is Action.RETRY and found.status != _NOT_IMPLEMENTED:
            raise Outage(verdict.found, verdict.pause_seconds)
        if verdict.action is Action.FAIL:
            raise rejection(verdict.reason, verdict.found, self.target)
        raise self.unavailable(f"HTTP status {found.status}")


def _members(signature: str) -> dict[str, str]:
    """Return the members of a shared access signature. A plus is no space in it, whether it is encoded or not."""
    pairs = (pair.partition("=") for pair in signature.lstrip("?").split("&") if pair)
    return {unquote(name): unquote(value) for name, _, value in pairs}


def _address(endpoint: str, bucket: str) -> tuple[Location, str]:
    """Return the server, and the path of the bucket there."""
    root = Location.parse(endpoint)
    return root, f"{root.target.decode('ascii').rstrip('/')}/{quote(bucket, safe=_UNRESERVED)}"
