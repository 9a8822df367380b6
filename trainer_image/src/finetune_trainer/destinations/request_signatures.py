"""Signs requests to object stores that obstore cannot make: those about the parts of an upload.

Three short schemes are written here, because the libraries that have them bring a client of their own with connections
that do not follow the job's rules about addresses and proxies. Sources: "Signature Version 4" in the Amazon S3 API
reference, "Authorize with Shared Key" in the REST reference of Azure Storage, and "Service account authorization without
OAuth" in Google's identity documentation.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune_trainer.sources.url import Location

AZURE_VERSION = "2023-11-03"
_GOOGLE_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
_TOKEN_SECONDS = 3600
_RENEWED_SECONDS = 300  # before its end
_AZURE_FIELDS = (
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
)


@dataclass(frozen=True)
class StoreRequest:
    """A request before it is signed. `location` has the sorted, encoded `query`; names of `fields` are in small letters."""

    method: str
    location: Location
    query: Mapping[str, str] = field(repr=False)
    fields: Mapping[str, str]
    content: bytes = field(repr=False)

    @property
    def path(self) -> str:
        """The encoded path."""
        return self.location.target.decode("ascii").partition("?")[0]

    @property
    def encoded_query(self) -> str:
        """The query as it is sent."""
        return self.location.target.decode("ascii").partition("?")[2]


Signer = Callable[[StoreRequest], dict[str, str]]
"""Returns the header fields to send in addition, among them a checksum of the content."""


@dataclass(frozen=True)
class AwsSigner:
    """Signature Version 4 with a key of one user or session."""

    key_id: str
    secret: str = field(repr=False)
    token: str | None = field(repr=False)
    region: str
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def __call__(self, request: StoreRequest) -> dict[str, str]:
        """Sign host, date and the SHA-256 of the content, which the store compares with what arrives."""
        moment = self.clock()
        day, time = f"{moment:%Y%m%d}", f"{moment:%Y%m%dT%H%M%SZ}"
        added = {"x-amz-content-sha256": hashlib.sha256(request.content).hexdigest(), "x-amz-date": time}
        if self.token is not None:
            added["x-amz-security-token"] = self.token
        signed = {"host": request.location.authority, **added}
        names = ";".join(sorted(signed))
        lines = "".join(f"{name}:{signed[name]}\n" for name in sorted(signed))
        canonical = "\n".join(
            (request.method, request.path, request.encoded_query, lines, names, added["x-amz-content-sha256"])
        )
        scope = f"{day}/{self.region}/s3/aws4_request"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        key = f"AWS4{self.secret}".encode()
        for part in (day, self.region, "s3", "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        signature = hmac.digest(key, f"AWS4-HMAC-SHA256\n{time}\n{scope}\n{digest}".encode(), "sha256").hex()
        credential = f"Credential={self.key_id}/{scope},SignedHeaders={names},Signature={signature}"
        return {**added, "authorization": f"AWS4-HMAC-SHA256 {credential}"}


@dataclass(frozen=True)
class AzureSigner:
    """Shared Key of a storage account. `key` is base64."""

    account: str
    key: str = field(repr=False)
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def __call__(self, request: StoreRequest) -> dict[str, str]:
        """Sign method, fields, path and query."""
        added = {**_azure_fields(request), "x-ms-date": format_datetime(self.clock(), usegmt=True)}
        fields = {**request.fields, **added}
        # A length of zero counts as absent.
        plain = ["" if fields.get(name, "") == "0" else fields.get(name, "") for name in _AZURE_FIELDS]
        special = [f"{name}:{fields[name]}" for name in sorted(fields) if name.startswith("x-ms-")]
        resource = [
            f"/{self.account}{request.path}",
            *(f"{name}:{request.query[name]}" for name in sorted(request.query)),
        ]
        text = "\n".join([request.method, *plain, *special, *resource])
        signature = hmac.digest(base64.b64decode(self.key), text.encode(), "sha256")
        return {**added, "authorization": f"SharedKey {self.account}:{base64.b64encode(signature).decode()}"}


def sign_with_query(request: StoreRequest) -> dict[str, str]:
    """Sign nothing: a shared access signature of Azure is part of the query."""
    return _azure_fields(request)


class GoogleSigner:
    """A token that a service account signs for itself, so that no server has to issue one."""

    def __init__(
        self, key: Mapping[str, Any], clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        """Take a service account's key in the form of its JSON file. Raises ValueError if it is malformed."""
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey  # noqa: PLC0415 -- needed here alone
        from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415 -- as above

        loaded = load_pem_private_key(str(key["private_key"]).encode(), None)
        if not isinstance(loaded, RSAPrivateKey):
            raise ValueError("a service account has an RSA key")  # noqa: TRY004 -- about a value in a document
        self._key = loaded
        self._email, self._key_id = str(key["client_email"]), str(key.get("private_key_id", ""))
        self._clock = clock
        self._token, self._until = "", 0.0

    def __call__(self, request: StoreRequest) -> dict[str, str]:
        """Add a token, which is renewed before its end, and the MD5 of the content."""
        now = self._clock().timestamp()
        if now > self._until - _RENEWED_SECONDS:
            self._token, self._until = self._make_token(int(now)), now + _TOKEN_SECONDS
        return {"authorization": f"Bearer {self._token}", **_md5(request)}

    def _make_token(self, now: int) -> str:
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15  # noqa: PLC0415 -- as above
        from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415 -- as above

        header = {"alg": "RS256", "typ": "JWT", "kid": self._key_id}
        claims = {
            "iss": self._email,
            "sub": self._email,
            "scope": _GOOGLE_SCOPE,
            "iat": now,
            "exp": now + _TOKEN_SECONDS,
        }
        text = ".".join(_url_base64(json.dumps(each).encode()) for each in (header, claims))
        return f"{text}.{_url_base64(self._key.sign(text.encode(), PKCS1v15(), SHA256()))}"


def sign_nothing(request: StoreRequest) -> dict[str, str]:
    """Send only a checksum: for servers that need no sign-in."""
    return _md5(request)


def _azure_fields(request: StoreRequest) -> dict[str, str]:
    return {"x-ms-version": AZURE_VERSION, **_md5(request)}


def _md5(request: StoreRequest) -> dict[str, str]:
    """Return the checksum of a content, which the store compares with what arrives."""
    if not request.content:
        return {}
    digest = hashlib.md5(request.content, usedforsecurity=False).digest()
    return {"content-md5": base64.b64encode(digest).decode()}


def _url_base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
