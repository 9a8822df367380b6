"""The calls of object stores about an upload in parts: begin, send, list, finish and abort.

S3-compatible stores and Cloud Storage share one XML protocol ("Multipart upload" of the Amazon S3 API reference, and "XML
API multipart uploads" of Cloud Storage). Azure has blocks ("Put Block", "Put Block List", "Get Block List").
"""

from __future__ import annotations

import base64
import html
import re
import secrets
from typing import TYPE_CHECKING, Protocol

from finetune_trainer.sources.retry import Outage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from finetune_trainer.destinations.store_http import StoreHttp

_ABSENT = frozenset({404})
_PAGE = 1000
_MAXIMUM_PAGES = 100


class PartStore(Protocol):
    """Each call raises Outage for a failure that may pass, and StageError for any other. Parts are counted from 1."""

    def begin(self, key: str) -> str:
        """Begin an upload; return its id."""

    def put(self, key: str, upload: str, number: int, content: bytes) -> str:
        """Send a part; return the name under which `finish` lists it. The store compares it with a checksum."""

    def parts(self, key: str, upload: str) -> dict[int, tuple[str, int]] | None:
        """Return name and size of the parts that have arrived; None if the store does not know the upload."""

    def finish(self, key: str, upload: str, names: Sequence[str]) -> None:
        """Make the object of these parts. An upload that is gone is no error: an earlier call may have finished it."""

    def abort(self, key: str, upload: str) -> None:
        """Give an upload up, and its parts. One that is gone is no error."""

    def unfinished(self, prefix: str) -> list[tuple[str, str]]:
        """Return key and id of the unfinished uploads below a prefix."""


def part_store(client: StoreHttp, kind: str) -> PartStore:
    """Return the calls for a kind of store: s3, gs or az."""
    return BlockStore(client) if kind == "az" else MultipartStore(client)


class MultipartStore:
    """Multipart uploads of S3 and of Cloud Storage."""

    def __init__(self, client: StoreHttp) -> None:
        self._client = client

    def begin(self, key: str) -> str:
        """Begin an upload; return its id."""
        found = _texts(self._client.call("POST", key, {"uploads": ""}).body, "UploadId")
        if not found:
            raise Outage("an upload without an id")
        return found[0]

    def put(self, key: str, upload: str, number: int, content: bytes) -> str:
        """Send a part; return its ETag."""
        query = {"partNumber": str(number), "uploadId": upload}
        etag = self._client.call("PUT", key, query, content).fields.get("etag")
        if etag is None:
            raise Outage("a part without an ETag")
        return etag

    def parts(self, key: str, upload: str) -> dict[int, tuple[str, int]] | None:
        """Return ETag and size of the parts that have arrived; None if the store does not know the upload."""
        found: dict[int, tuple[str, int]] = {}
        marker = "0"
        for _ in range(_MAXIMUM_PAGES):
            query = {"uploadId": upload, "max-parts": str(_PAGE), "part-number-marker": marker}
            answer = self._client.call("GET", key, query, also=_ABSENT)
            if answer.status == 404:
                return None
            for part in _texts(answer.body, "Part", unescape=False):
                number, etag, size = (_texts(part.encode(), name) for name in ("PartNumber", "ETag", "Size"))
                if number and etag and size and number[0].isdecimal() and size[0].isdecimal():
                    found[int(number[0])] = (etag[0], int(size[0]))
            following = _texts(answer.body, "NextPartNumberMarker")
            if _texts(answer.body, "IsTruncated") != ["true"] or not following or following[0] == marker:
                break
            marker = following[0]
        return found

    def finish(self, key: str, upload: str, names: Sequence[str]) -> None:
        """Make the object of the parts with these ETags."""
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{html.escape(name)}</ETag></Part>"
            for number, name in enumerate(names, start=1)
        )
        document = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        self._client.call("POST", key, {"uploadId": upload}, document, also=_ABSENT)

    def abort(self, key: str, upload: str) -> None:
        """Give an upload up, and its parts."""
        self._client.call("DELETE", key, {"uploadId": upload}, also=_ABSENT)

    def unfinished(self, prefix: str) -> list[tuple[str, str]]:
        """Return key and id of the unfinished uploads below a prefix."""
        found: list[tuple[str, str]] = []
        markers = {"key-marker": "", "upload-id-marker": ""}
        for _ in range(_MAXIMUM_PAGES):
            query = {
                "uploads": "",
                "prefix": prefix,
                **{name: text for name, text in markers.items() if text},
            }
            body = self._client.call("GET", None, query).body
            for each in _texts(body, "Upload", unescape=False):
                key, upload = (_texts(each.encode(), name) for name in ("Key", "UploadId"))
                if key and upload:
                    found.append((key[0], upload[0]))
            following = [_texts(body, name) for name in ("NextKeyMarker", "NextUploadIdMarker")]
            new = dict(zip(markers, ("".join(each) for each in following), strict=True))
            if _texts(body, "IsTruncated") != ["true"] or new == markers:
                break
            markers = new
        return found


class BlockStore:
    """Block blobs of Azure. Blocks that are in no list end by themselves after a week, so nothing is aborted."""

    def __init__(self, client: StoreHttp) -> None:
        self._client = client

    def begin(self, key: str) -> str:
        """Choose a name for the blocks of an upload. Its random part is as long as `_block` needs it."""
        del key
        return secrets.token_hex(13)

    def put(self, key: str, upload: str, number: int, content: bytes) -> str:
        """Send a block; return its id."""
        block = _block(upload, number)
        self._client.call("PUT", key, {"comp": "block", "blockid": block}, content)
        return block

    def parts(self, key: str, upload: str) -> dict[int, tuple[str, int]] | None:
        """Return id and size of the upload's own blocks."""
        query = {"comp": "blocklist", "blocklisttype": "uncommitted"}
        answer = self._client.call("GET", key, query, also=_ABSENT)
        found: dict[int, tuple[str, int]] = {}
        for block in _texts(answer.body, "Block", unescape=False) if answer.status == 200 else ():
            name, size = (_texts(block.encode(), each) for each in ("Name", "Size"))
            number = _number(name[0], upload) if name else None
            if number is not None and size and size[0].isdecimal():
                found[number] = (name[0], int(size[0]))
        return found

    def finish(self, key: str, upload: str, names: Sequence[str]) -> None:
        """Make the blob of these blocks."""
        del upload
        blocks = "".join(f"<Latest>{name}</Latest>" for name in names)
        document = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{blocks}</BlockList>'
        self._client.call("PUT", key, {"comp": "blocklist"}, document.encode())

    def abort(self, key: str, upload: str) -> None:
        """Do nothing: the next list of blocks for this blob drops all others."""

    def unfinished(self, prefix: str) -> list[tuple[str, str]]:
        """Return nothing, because nothing need be aborted."""
        del prefix
        return []


def _block(upload: str, number: int) -> str:
    """Return the id of a block. All ids of a blob must have the same length, also those that obstore has left there: 32."""
    return base64.b64encode(f"{upload}-{number:05d}".encode()).decode()


def _number(block: str, upload: str) -> int | None:
    """Return the number of a block of this upload; None for another one."""
    try:
        owner, _, number = base64.b64decode(block, validate=True).decode().rpartition("-")
    except ValueError:
        return None
    return int(number) if owner == upload and number.isdecimal() else None


def _texts(document: bytes, element: str, *, unescape: bool = True) -> list[str]:
    """Return the content of each element of this name."""
    found = re.findall(rf"<{element}>(.*?)</{element}>", document.decode("utf-8", "replace"), re.DOTALL)
    return [html.unescape(text) for text in found] if unescape else found
