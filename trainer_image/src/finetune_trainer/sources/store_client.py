"""Clients for object stores: URIs, endpoints, credentials, and the meaning of errors."""

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

from finetune_trainer.contract.credentials import REGIONS, clean_secret
from finetune_trainer.contract.object_store import ObjectStoreSource
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.addresses import allowed_addresses
from finetune_trainer.sources.connections import untrusted
from finetune_trainer.sources.credentials import credentials
from finetune_trainer.sources.egress import Egress
from finetune_trainer.sources.fetch_target import FetchTarget
from finetune_trainer.sources.responses import Action, interpret
from finetune_trainer.sources.retry import IDENTITY_RETRY_SECONDS, Outage
from finetune_trainer.sources.trust import invalid_bundle
from finetune_trainer.sources.url import InvalidLocationError, Location

Store = S3Store | GCSStore | AzureStore

LIBRARY_ERRORS = (BaseError, FileNotFoundError, ValueError)
CONNECT_SECONDS = 5
READ_SECONDS = 8
_URI = re.compile(r"(s3|gs|az)://([A-Za-z0-9][A-Za-z0-9._\-]{0,254})/(.+)", re.DOTALL)
_CONTAINER = re.compile(r"[a-z0-9$][a-z0-9\-]{0,62}")
# Variables of the clouds' own tools that give a pod its identity. All other variables with these prefixes (endpoints,
# buckets, switches that turn off signing or TLS) must come from the spec.
_IDENTITY = re.compile(
    r"AWS_(?:ACCESS_KEY_ID|SECRET_ACCESS_KEY|SESSION_TOKEN|REGION|DEFAULT_REGION|ROLE_ARN|ROLE_SESSION_NAME|"
    r"WEB_IDENTITY_TOKEN_FILE|CONTAINER_[A-Z_]+|STS_REGIONAL_ENDPOINTS)|"
    r"GOOGLE_(?:APPLICATION_CREDENTIALS|SERVICE_ACCOUNT|SERVICE_ACCOUNT_PATH|SERVICE_ACCOUNT_KEY)|"
    r"AZURE_(?:CLIENT_ID|CLIENT_SECRET|TENANT_ID|FEDERATED_TOKEN_FILE|AUTHORITY_HOST|STORAGE_ACCOUNT_KEY|"
    r"STORAGE_SAS_TOKEN|OBJECT_ID)"
)
_CLOUD = re.compile(r"(?:AWS|GOOGLE|AZURE)_")
# Servers that give a pod the credentials of its identity, on every cloud.
_IDENTITY_SERVERS = (
    "169.254.169.254,169.254.170.2,169.254.170.23,fd00:ec2::254,metadata.google.internal,metadata"
)
_IDENTITY_REQUEST = re.compile(
    r"GCP credential error|Error performing (?:token request|[A-Z]+ https?://(?:169\.254\.|metadata[./]|\[fd00:ec2|"
    r"oauth2\.googleapis\.|sts\.|login\.microsoftonline\.))"
)
_STATUS = re.compile(r"status code: ([0-9]{3})[^:\n]*: ?(.*?)(?:\n\nDebug source:|\Z)", re.DOTALL)
_UNTRUSTED = re.compile(r"error: InvalidCertificate\(")  # in the part of the text that names the causes
_UNREADABLE = re.compile(r"source: InvalidCertificate\(|`root_certificate`")
_environment_lock = threading.Lock()


class Changed(Outage):
    """The object changed after its download began; the next attempt starts at its beginning."""

    def __init__(self) -> None:
        super().__init__("another version of the object")


@dataclass(frozen=True)
class StoreUri:
    """The parts of a URI: kind of store, account (Azure only), bucket or container, key or prefix."""

    kind: str
    account: str
    bucket: str
    key: str

    @classmethod
    def parse(cls, uri: str, target: FetchTarget) -> StoreUri:
        """Split a URI into its parts. Raises StageError with the target's not-found reason."""
        match = _URI.fullmatch(uri)
        account, bucket, key = ("", match[2], match[3]) if match is not None else ("", "", "")
        if match is not None and match[1] == "az":
            account, (bucket, _, key) = bucket, key.partition("/")
            if not _CONTAINER.fullmatch(bucket):
                key = ""
        key = key.strip("/")
        if match is None or not key or any(part in {"", ".", ".."} for part in key.split("/")):
            raise StageError(
                target.not_found,
                f"{target.field}'s uri must be s3://BUCKET/KEY, gs://BUCKET/KEY or az://ACCOUNT/CONTAINER/KEY "
                "without empty parts, found another; correct it",
            )
        return cls(match[1], account, bucket, key)


def check_endpoint(endpoint: str, target: FetchTarget, *, allow_private: bool) -> None:
    """Check that an endpoint is a plain https URL and has a public address. Raises StageError.

    A name that does not resolve passes: the connection fails later. The egress checks every later connection too, so
    a name that resolves to another address then gains nothing.
    """
    try:
        location = Location.parse(endpoint)
    except InvalidLocationError:
        location = None
    plain = location is not None and b"?" not in location.target and location.authorization is None
    if location is None or not plain or (location.scheme != "https" and not allow_private):
        raise StageError(
            target.address_forbidden,
            f"{target.field}'s endpoint must be an https URL without user and query, found another; "
            "an http URL needs trainer.limits.allowPrivateAddresses",
        )
    try:
        addresses = allowed_addresses(location.host, location.port, allow_private=allow_private)
    except (OSError, UnicodeError):
        return
    if not addresses:
        raise target.forbidden_address()


def open_store(
    source: ObjectStoreSource,
    uri: StoreUri,
    target: FetchTarget,
    environment: Mapping[str, str],
    egress: Egress | None,
    seconds: float,
    bundle: str | None = None,
    read_seconds: float = READ_SECONDS,
) -> Store:
    """Make a client for a bucket.

    With a `credentials_prefix` the client uses only the variables under it, never the pod's own identity. `seconds`
    bounds one request, and `read_seconds` the time for which a server may be silent. Without `egress`, or with one that
    allows private addresses, http endpoints work. `bundle` has certificate authorities (PEM) to trust in addition to the
    system's. Raises StageError if credentials are missing or malformed.
    """
    # The settings of the three clients have different types with the same keys.
    config: Any = credentials(source, uri.kind, target, environment)
    prefixed = source.credentials_prefix is not None
    if egress is None:
        options: dict[str, Any] = {"allow_http": True}
    else:
        # Without a prefix the client must reach the identity's servers. A spec's endpoint cannot name them.
        excludes = {} if prefixed else {"proxy_excludes": _IDENTITY_SERVERS}
        options = {"allow_http": egress.allow_private, "proxy_url": egress.url, **excludes}
    if bundle is not None:
        options["root_certificate"] = bundle
    options |= {
        "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
        "read_timeout": timedelta(seconds=read_seconds),
        "timeout": timedelta(seconds=max(seconds, 1)),
    }
    retry: Any = {"max_retries": 0, "retry_timeout": timedelta(seconds=READ_SECONDS)}
    common: dict[str, Any] = {"client_options": options, "retry_config": retry}
    with _only_identity(keep=not prefixed and not config):
        try:
            if uri.kind == "s3":
                config |= s3_settings(source, environment)
                return S3Store(uri.bucket, config=config, **common)
            if uri.kind == "gs":
                config |= {"base_url": source.endpoint.rstrip("/")} if source.endpoint else {}
                return GCSStore(uri.bucket, config=config, **common)
            config |= {"endpoint": source.endpoint.rstrip("/")} if source.endpoint else {}
            config |= {"account_name": uri.account}
            return AzureStore(uri.bucket, config=config, **common)
        except (BaseError, ValueError) as error:
            if _UNREADABLE.search(str(error)):
                raise invalid_bundle("a certificate that the client of object stores cannot read") from None
            # The library's text may hold the credentials.
            raise StageError(
                target.access_denied,
                f"the credentials for {target.field} must be valid for {uri.kind}:// stores, found them "
                "malformed; correct the Secret",
            ) from None


def s3_settings(source: ObjectStoreSource, environment: Mapping[str, str]) -> dict[str, str]:
    """Return region and endpoint of an S3 store, as far as they are given."""
    prefix = source.credentials_prefix or ""
    region = source.region
    for name in REGIONS:
        region = region or clean_secret(environment.get(prefix + name))
    settings = {"region": region} if region else {}
    return {**settings, "endpoint": source.endpoint.rstrip("/")} if source.endpoint else settings


@contextmanager
def _only_identity(*, keep: bool) -> Iterator[None]:
    """Hide the clouds' variables from the library, which reads them in every constructor without a switch.

    With `keep`, the variables of the pod's identity stay.
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


def interpret_error(error: Exception, target: FetchTarget, *, ambient: bool) -> Exception:
    """Turn an error of the library into Changed, Outage, or a StageError with the target's reason.

    The library gives most rejections a type. For the others (lists, status 400) its text holds the response's status
    and body, which are interpreted like any other response. No text of the library is passed on. `ambient` is true
    if the request used the pod's own identity.
    """
    text = str(error)
    match = _STATUS.search(text)
    status = int(match[1]) if match is not None else _status_of_type(error)
    rejected = status in range(400, 500) and status not in {408, 429}
    if _IDENTITY_REQUEST.search(text[:200]) and (ambient or rejected):
        return _no_identity(target, status, ambient=ambient)
    if isinstance(error, InvalidPathError | ValueError) and match is None:
        return StageError(
            target.not_found, f"{target.field}'s uri must name a valid key, found another; correct it"
        )
    unreachable = _unreachable(text, status, target)
    if unreachable is not None:
        return unreachable
    # Status 0 means no response at all, which is handled like a gateway's timeout.
    verdict = interpret(status or 504, {}, match[2].encode() if match is not None else b"")
    if verdict.action is Action.FAIL:
        return rejection(verdict.reason, verdict.found, target)
    if verdict.action is Action.RESTART:
        return Changed()
    silent = "no response" if "HTTP error" in text else "a response that does not follow the store's API"
    return Outage(verdict.found if status else silent, verdict.pause_seconds)


def _unreachable(text: str, status: int, target: FetchTarget) -> StageError | None:
    """Make the error for a store that answers no request like this one, or None."""
    if not status and _UNTRUSTED.search(text):
        return untrusted(target)
    if "redirect without LOCATION" in text or status in range(300, 400):
        return StageError(
            target.unavailable,
            f"{target.field}'s bucket must be in the region of the request, found it in another; set region",
        )
    return None


def _no_identity(target: FetchTarget, status: int, *, ambient: bool) -> Exception:
    if not ambient:
        return rejection(Reason.DATASET_ACCESS_DENIED, f"HTTP status {status}", target)
    final_error = StageError(
        target.access_denied,
        f"the pod must have an identity for {target.field}, found none that gives "
        "credentials; set secretRef or give the service account an identity",
    )
    return Outage(
        "no credentials for the pod's identity",
        final_error=final_error,
        longest_seconds=IDENTITY_RETRY_SECONDS,
    )


def rejection(reason: Reason | None, found: str, target: FetchTarget) -> StageError:
    """Make the error with the target's reason for a response that `interpret` judges as final."""
    if reason is Reason.DATASET_NOT_FOUND:
        return StageError(
            target.not_found,
            f"{target.field}'s uri must name an existing bucket and key, found none of that name "
            f"({found}); check uri and endpoint",
        )
    if reason is Reason.DATASET_URL_EXPIRED:
        return StageError(
            target.access_denied,
            f"the credentials for {target.field} must still be valid, found them expired ({found}); "
            f"{target.renewal}",
        )
    if reason is Reason.DATASET_ACCESS_DENIED:
        return StageError(
            target.access_denied,
            f"the credentials for {target.field} must allow {target.access}, but the store answered {found}; "
            "correct the Secret or the store's permissions",
        )
    return StageError(
        target.unavailable,
        f"the store must {target.service} the {target.name}, found {found}; check uri and endpoint",
    )


def _status_of_type(error: Exception) -> int:
    """HTTP status for an exception's type; 0 if the type means that no response came."""
    kinds: tuple[tuple[type[Exception], int], ...] = (
        (FileNotFoundError, 404),
        (PermissionDeniedError, 403),
        (UnauthenticatedError, 401),
        (PreconditionError, 412),
    )
    return next((status for kind, status in kinds if isinstance(error, kind)), 0)
