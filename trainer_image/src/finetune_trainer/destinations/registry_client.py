"""Requests to an OCI registry: sign-in, blobs and manifests, each tried again during an outage."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from finetune_trainer.contract.credentials import clean_secret
from finetune_trainer.destinations.http_client import Answer, HttpClient
from finetune_trainer.errors import StageError
from finetune_trainer.sources.retry import Outage
from finetune_trainer.sources.retry_after import requested_pause
from finetune_trainer.sources.secret_values import require_header_value
from finetune_trainer.sources.url import InvalidLocationError, Location

if TYPE_CHECKING:
    from finetune_trainer.contract.destinations import RegistryDestination
    from finetune_trainer.sources.fetch_target import FetchTarget
    from finetune_trainer.sources.network import Network

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
_REFERENCE = re.compile(
    r"((?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?)/"
    r"([a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*):([A-Za-z0-9_][A-Za-z0-9._-]{0,127})"
)
_LOOPBACK = re.compile(r"(?:localhost|127\.[0-9.]+|\[::1\])(?::[0-9]+)?")
_CHALLENGE = re.compile(r'([a-z]+)="([^"]*)"')


class RegistryClient(HttpClient):
    """One repository of a registry."""

    server = "registry"

    def __init__(
        self,
        destination: RegistryDestination,
        target: FetchTarget,
        environment: Mapping[str, str],
        network: Network,
        *,
        allow_private: bool,
    ) -> None:
        """Split the reference. Raises StageError if it is malformed or a credential cannot be sent."""
        match = _REFERENCE.fullmatch(destination.reference)
        if match is None:
            raise StageError(
                target.not_found,
                f"{target.field}.oci.reference must be HOST/REPOSITORY:TAG, found another form; correct it",
            )
        host, self.repository, self.tag = match.groups()
        super().__init__(target, network, allow_private=allow_private)
        # Like other clients, plain http is for registries on this machine alone.
        scheme = "http" if allow_private and _LOOPBACK.fullmatch(host) else "https"
        self._root = Location.parse(f"{scheme}://{host}/v2/{self.repository}/")
        self._authorization = _basic(destination.credentials_prefix, environment, target)
        self._signed_in: bytes | None = None

    def manifest(self, reference: str) -> bytes | None:
        """Return the manifest or index of a tag or digest; None if there is none."""
        found = self._call("GET", f"manifests/{reference}", {"accept": f"{MANIFEST_TYPE}, {INDEX_TYPE}"})
        return None if found.status == 404 else found.body

    def put_manifest(self, reference: str, content: bytes, media_type: str = MANIFEST_TYPE) -> None:
        """Store a manifest or an index under a tag or its digest. The registry refuses it if a part of it is missing."""
        self._call("PUT", f"manifests/{reference}", {"content-type": media_type}, content)

    def blob(self, digest: str) -> bytes:
        """Return a small blob. Raises StageError if it has other bytes than its digest says."""
        found = self._call("GET", f"blobs/{digest}")
        if f"sha256:{hashlib.sha256(found.body).hexdigest()}" != digest:
            raise self.unavailable("other bytes than were written")
        return found.body

    def has_blob(self, digest: str) -> bool:
        """Return whether the repository has a blob."""
        return self._call("HEAD", f"blobs/{digest}").status == 200

    def put_blob(self, digest: str, size: int, body: Callable[[], Iterator[bytes]]) -> None:
        """Upload a blob in one request. The registry takes it only if the bytes have this digest."""

        def upload() -> None:
            place = self._begin_upload()
            mark = "&" if b"?" in place.target else "?"
            place = place.follow(f"{place.target.decode()}{mark}digest={quote(digest)}")
            fields = {"content-type": "application/octet-stream", "content-length": str(size)}
            self._require(self._send("PUT", place, fields, body() if size else b""), {201, 204})

        self.retried(upload)

    def try_upload(self) -> None:
        """Begin an upload, send some bytes and cancel it. Most registries let nobody delete a finished blob."""

        def rehearse() -> None:
            place = self._begin_upload()
            content = b"\0" * 64
            fields = {
                "content-type": "application/octet-stream",
                "content-range": "0-63",
                "content-length": "64",
            }
            found = self._require(self._send("PATCH", place, fields, content), {202, 204})
            self._send("DELETE", place.follow(found.fields.get("location", "") or place.target.decode()), {})

        self.retried(rehearse)

    def _begin_upload(self) -> Location:
        found = self._require(self._send("POST", self._at("blobs/uploads/"), {"content-length": "0"}), {202})
        try:
            return self._root.follow(found.fields["location"])
        except (KeyError, InvalidLocationError):
            raise Outage("an upload without a location") from None

    def _call(self, method: str, path: str, fields: Mapping[str, str] = {}, content: bytes = b"") -> Answer:
        extra = {"content-length": str(len(content))} if content else {}
        wanted = {200, 201, 204} | ({404} if method in {"GET", "HEAD"} else set())
        return self.retried(
            lambda: self._require(self._send(method, self._at(path), {**fields, **extra}, content), wanted)
        )

    def _at(self, path: str) -> Location:
        return self._root.follow(f"/v2/{self.repository}/{path}")

    def _send(
        self,
        method: str,
        location: Location,
        fields: Mapping[str, str],
        content: bytes | Iterator[bytes] = b"",
    ) -> Answer:
        """Send one request, and sign in if the registry asks for it. The registry's credentials stay with its host."""
        ours = location.origin == self._root.origin
        found = self.answer(method, location, fields, content, self._signed_in if ours else None)
        if found.status == 401 and ours and isinstance(content, bytes):
            self._signed_in = self._sign_in(found.fields.get("www-authenticate", ""))
            return self.answer(method, location, fields, content, self._signed_in)
        if found.status == 401 and ours and self._signed_in is not None:
            # A token lives for minutes, and a large file may take longer. The next attempt signs in again.
            self._signed_in = None
            raise Outage("a sign-in that has expired")
        return found

    def _sign_in(self, challenge: str) -> bytes | None:
        """Return the Authorization header that a registry's challenge asks for."""
        parts = dict(_CHALLENGE.findall(challenge))
        if not challenge.lower().startswith("bearer") or "realm" not in parts:
            return self._authorization
        query = {
            "service": parts.get("service", ""),
            "scope": f"repository:{self.repository}:pull,push",
        }
        try:
            realm = Location.parse(
                f"{parts['realm']}{'&' if '?' in parts['realm'] else '?'}{urlencode(query)}"
            )
        except InvalidLocationError:
            raise Outage("a sign-in address that is no URL") from None
        if realm.scheme != "https" and realm.origin != self._root.origin and self._root.scheme == "https":
            raise self.target.forbidden_address()
        found = self._require(self.answer("GET", realm, {}, b"", self._authorization), {200})
        try:
            document: Any = json.loads(found.body)
            token = document.get("token") or document["access_token"]
        except (ValueError, KeyError, AttributeError):
            raise Outage("a sign-in without a token") from None
        return b"Bearer " + str(token).encode("ascii", "ignore")

    def _require(self, found: Answer, wanted: set[int]) -> Answer:
        """Return an answer of a `wanted` status. Raises Outage for one that may pass, StageError for any other."""
        status = found.status
        if status in wanted:
            return found
        said = f"HTTP status {status}"
        if status in {401, 403}:
            raise StageError(
                self.target.access_denied,
                f"the credentials for {self.target.field} must allow {self.target.access}, but the registry answered "
                f"{said}; correct the Secret or the registry's permissions",
            )
        if status == 404:
            raise StageError(
                self.target.not_found,
                f"{self.target.field}.oci.reference must name a repository that exists or can be made, found {said}; "
                "check the reference",
            )
        if status >= 500 or status in {400, 408, 409, 416, 425, 429}:
            raise Outage(said, requested_pause(found.fields))
        raise self.unavailable(said)


def _basic(prefix: str | None, environment: Mapping[str, str], target: FetchTarget) -> bytes | None:
    """Return the Authorization header of user and password; None without a Secret."""
    if prefix is None:
        return None
    user, password = (clean_secret(environment.get(prefix + name)) for name in ("username", "password"))
    if not user or not password:
        raise StageError(
            target.access_denied,
            f"the Secret for {target.field} must hold username and password, found not both; add the missing keys",
        )
    for name, value in (("username", user), ("password", password)):
        require_header_value(value, f"{name} for {target.field}", target)
    return b"Basic " + base64.b64encode(f"{user}:{password}".encode())
