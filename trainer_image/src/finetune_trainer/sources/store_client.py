"""Clients of object stores: where an address leads, whose credentials are used, and what an error means."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from obstore.exceptions import (
    BaseError,
    InvalidPathError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore, S3Store

from finetune_trainer.contract.credentials import REGIONS
from finetune_trainer.contract.run_spec import ObjectStoreSource
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.addresses import allowed_addresses
from finetune_trainer.sources.credentials import credentials
from finetune_trainer.sources.egress import Egress
from finetune_trainer.sources.responses import Action, judge
from finetune_trainer.sources.subject import Subject
from finetune_trainer.sources.url import InvalidLocationError, Location

Store = S3Store | GCSStore | AzureStore

LIBRARY_ERRORS = (BaseError, FileNotFoundError, ValueError)
CONNECT_SECONDS = 5
READ_SECONDS = 8
_URI = re.compile(r"(s3|gs|az)://([A-Za-z0-9][A-Za-z0-9._\-]{0,254})/(.+)", re.DOTALL)
_CONTAINER = re.compile(r"[a-z0-9$][a-z0-9\-]{0,62}")
# Variables of the clouds' own tools that say who a pod is. Everything else with these beginnings (endpoints, buckets,
# switches that turn off signing or TLS) must come from the spec.
_IDENTITY = re.compile(
    r"AWS_(?:ACCESS_KEY_ID|SECRET_ACCESS_KEY|SESSION_TOKEN|REGION|DEFAULT_REGION|ROLE_ARN|ROLE_SESSION_NAME|"
    r"WEB_IDENTITY_TOKEN_FILE|CONTAINER_[A-Z_]+|STS_REGIONAL_ENDPOINTS)|"
    r"GOOGLE_(?:APPLICATION_CREDENTIALS|SERVICE_ACCOUNT|SERVICE_ACCOUNT_PATH|SERVICE_ACCOUNT_KEY)|"
    r"AZURE_(?:CLIENT_ID|CLIENT_SECRET|TENANT_ID|FEDERATED_TOKEN_FILE|AUTHORITY_HOST|STORAGE_ACCOUNT_KEY|"
    r"STORAGE_SAS_TOKEN|OBJECT_ID)"
)
_CLOUD = re.compile(r"(?:AWS|GOOGLE|AZURE)_")
# Where a pod's identity is asked for its credentials, on every cloud.
_IDENTITY_SERVERS = (
    "169.254.169.254,169.254.170.2,169.254.170.23,fd00:ec2::254,metadata.google.internal,metadata"
)
_IDENTITY_REQUEST = re.compile(
    r"GCP credential error|Error performing (?:token request|[A-Z]+ https?://(?:169\.254\.|metadata[./]|\[fd00:ec2|"
    r"oauth2\.googleapis\.|sts\.|login\.microsoftonline\.))"
)
_STATUS = re.compile(r"status code: ([0-9]{3})[^:\n]*: ?(.*?)(?:\n\nDebug source:|\Z)", re.DOTALL)
_environment_lock = threading.Lock()


class Changed(Exception):  # noqa: N818 -- not a failure: the object is fetched anew
    """The object is another one than when its fetching began."""


class Outage(Exception):  # noqa: N818 -- a signal to try again, turned into a reason at the end
    """The store failed in a way that may pass. The text says what was found.

    `ending` is the error that ends the stage if it does not pass; None where that is plain unavailability.
    """

    def __init__(self, found: str, pause_seconds: float = 0.0, ending: StageError | None = None) -> None:
        super().__init__(found)
        self.pause_seconds = pause_seconds
        self.ending = ending


@dataclass(frozen=True)
class Place:
    """What a URI names: kind of store, account (Azure alone), bucket or container, key or prefix."""

    kind: str
    account: str
    bucket: str
    key: str

    @classmethod
    def parse(cls, uri: str, subject: Subject) -> Place:
        """Take a URI apart. Raises StageError with the subject's not-found reason."""
        match = _URI.fullmatch(uri)
        account, bucket, key = ("", match[2], match[3]) if match is not None else ("", "", "")
        if match is not None and match[1] == "az":
            account, (bucket, _, key) = bucket, key.partition("/")
            if not _CONTAINER.fullmatch(bucket):
                key = ""
        key = key.strip("/")
        if match is None or not key or any(part in {"", ".", ".."} for part in key.split("/")):
            raise StageError(
                subject.not_found,
                f"{subject.name}.source's uri must be s3://BUCKET/KEY, gs://BUCKET/KEY or az://ACCOUNT/CONTAINER/KEY "
                "without empty parts, found another; correct it",
            )
        return cls(match[1], account, bucket, key)


def check_endpoint(endpoint: str, subject: Subject, *, allow_private: bool) -> None:
    """Refuse an endpoint that is no plain URL, is not https, or has no public address.

    Raises StageError; a name that does not resolve is left to the connection. Later connections are checked by
    the egress, so that what is left to a rebinding name is nothing.
    """
    try:
        location = Location.parse(endpoint)
    except InvalidLocationError:
        location = None
    plain = location is not None and b"?" not in location.target and location.authorization is None
    if location is None or not plain or (location.scheme != "https" and not allow_private):
        raise StageError(
            subject.address_forbidden,
            f"{subject.name}.source's endpoint must be an https URL without user and query, found another; "
            "http needs trainer.limits.allowPrivateAddresses",
        )
    try:
        addresses = allowed_addresses(location.host, location.port, allow_private=allow_private)
    except (OSError, UnicodeError):
        return
    if not addresses:
        raise subject.forbidden_address()


def open_store(
    source: ObjectStoreSource,
    place: Place,
    subject: Subject,
    environment: Mapping[str, str],
    egress: Egress | None,
    seconds: float,
) -> Store:
    """Make a client for a bucket.

    With a `credentials_prefix` nothing but the variables under it is used, never the pod's own identity. `seconds`
    bounds one request. Without `egress` any address may be connected to, and http endpoints work. Raises
    StageError where credentials are missing or malformed.
    """
    # Each client has a type of its own for settings, of the same keys.
    config: Any = credentials(source, place.kind, subject, environment)
    prefixed = source.credentials_prefix is not None
    if egress is None:
        options: dict[str, Any] = {"allow_http": True}
    else:
        # Without a prefix the identity's own servers must be reached; a spec's endpoint cannot name them.
        excludes = {} if prefixed else {"proxy_excludes": _IDENTITY_SERVERS}
        options = {"allow_http": False, "proxy_url": egress.url, **excludes}
    options |= {
        "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
        "read_timeout": timedelta(seconds=READ_SECONDS),
        "timeout": timedelta(seconds=max(seconds, 1)),
    }
    retry: Any = {"max_retries": 0, "retry_timeout": timedelta(seconds=READ_SECONDS)}
    common: dict[str, Any] = {"client_options": options, "retry_config": retry}
    with _only_identity(keep=not prefixed and not config):
        try:
            if place.kind == "s3":
                config |= _s3_settings(source, environment)
                return S3Store(place.bucket, config=config, **common)
            if place.kind == "gs":
                config |= {"base_url": source.endpoint.rstrip("/")} if source.endpoint else {}
                return GCSStore(place.bucket, config=config, **common)
            config |= {"endpoint": source.endpoint.rstrip("/")} if source.endpoint else {}
            config |= {"account_name": place.account}
            return AzureStore(place.bucket, config=config, **common)
        except (BaseError, ValueError):
            # The library's text may hold the credentials.
            raise StageError(
                subject.access_denied,
                f"the credentials for {subject.name}.source must be valid for {place.kind}:// stores, found them "
                "malformed; correct the Secret",
            ) from None


def _s3_settings(source: ObjectStoreSource, environment: Mapping[str, str]) -> dict[str, str]:
    prefix = source.credentials_prefix or ""
    region = source.region
    for name in REGIONS:
        region = region or environment.get(prefix + name)
    settings = {"region": region} if region else {}
    return {**settings, "endpoint": source.endpoint.rstrip("/")} if source.endpoint else settings


@contextmanager
def _only_identity(*, keep: bool) -> Iterator[None]:
    """Hide the clouds' variables from the library, which reads them in every constructor and cannot be told not to.

    With `keep`, those that say who the pod is stay.
    """
    with _environment_lock:
        hidden = {
            name: value
            for name, value in os.environ.items()
            if _CLOUD.match(name) and not (keep and _IDENTITY.fullmatch(name))
        }
        for name in hidden:
            del os.environ[name]
        try:
            yield
        finally:
            os.environ.update(hidden)


def explain(error: Exception, subject: Subject, *, ambient: bool) -> Exception:
    """Turn an error of the library into Changed, Outage, or a StageError with the subject's reason.

    The library names most refusals by type; where it does not (lists, status 400), its text holds the answer's
    status and body, which are judged as any other answer. No text of the library is passed on. `ambient` says
    that the pod's own identity was to be used.
    """
    text = str(error)
    match = _STATUS.search(text)
    status = int(match[1]) if match is not None else _status_of_type(error)
    refused = status in range(400, 500) and status not in {408, 429}
    if _IDENTITY_REQUEST.search(text[:200]) and (ambient or refused):
        return _no_identity(subject, status, ambient=ambient)
    if isinstance(error, InvalidPathError | ValueError) and match is None:
        return StageError(
            subject.not_found, f"{subject.name}.source's uri must name a valid key, found another; correct it"
        )
    if "redirect without LOCATION" in text or status in range(300, 400):
        return StageError(
            subject.unavailable,
            f"{subject.name}.source's bucket must be in the region that is asked, found it in another; set region",
        )
    # Status 0 stands for no answer at all, which is judged as a gateway's time-out.
    verdict = judge(status or 504, {}, match[2].encode() if match is not None else b"")
    if verdict.action is Action.REFUSE:
        return _refusal(verdict.reason, verdict.found, subject)
    if verdict.action is Action.RESTART:
        return Changed()
    silent = "no answer" if "HTTP error" in text else "an answer that is not the store's protocol"
    return Outage(verdict.found if status else silent, verdict.pause_seconds)


def _no_identity(subject: Subject, status: int, *, ambient: bool) -> Exception:
    if not ambient:
        return _refusal(Reason.DATASET_ACCESS_DENIED, f"HTTP status {status}", subject)
    ending = StageError(
        subject.access_denied,
        f"the pod must have an identity that may read {subject.name}.source, found none that gives "
        "credentials; name a secretRef or give the service account an identity",
    )
    return Outage("no credentials for the pod's identity", ending=ending)


def _refusal(reason: Reason | None, found: str, subject: Subject) -> StageError:
    if reason is Reason.DATASET_NOT_FOUND:
        return StageError(
            subject.not_found,
            f"{subject.name}.source's uri must name what exists, found neither bucket nor key of that name "
            f"({found}); check uri and endpoint",
        )
    if reason is Reason.DATASET_URL_EXPIRED:
        return StageError(
            subject.access_denied,
            f"the credentials for {subject.name}.source must still be valid, found them expired ({found}); "
            "renew the Secret and create the job again",
        )
    if reason is Reason.DATASET_ACCESS_DENIED:
        return StageError(
            subject.access_denied,
            f"the credentials for {subject.name}.source must be allowed to read it, found {found}; "
            "correct the Secret or the store's permissions",
        )
    return StageError(
        subject.unavailable, f"the {subject.name}'s store must send it, found {found}; check uri and endpoint"
    )


def _status_of_type(error: Exception) -> int:
    """Status that the library named by an exception's type alone; 0 where it means no answer."""
    kinds: tuple[tuple[type[Exception], int], ...] = (
        (FileNotFoundError, 404),
        (PermissionDeniedError, 403),
        (UnauthenticatedError, 401),
        (PreconditionError, 412),
    )
    return next((status for kind, status in kinds if isinstance(error, kind)), 0)
