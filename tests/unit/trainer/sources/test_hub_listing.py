"""A hub's description of a repository."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.sources.hub_listing import (
    HubFile,
    UnexpectedListingError,
    digest_of_etag,
    file_digest,
    parse_listing,
)

COMMIT = "a" * 40
SHA256, SHA1 = "b" * 64, "c" * 40


def listing(*files: dict[str, Any], **members: Any) -> bytes:
    return json.dumps({"id": "org/name", "sha": COMMIT, "siblings": list(files), **members}).encode()


def test_commit_sizes_and_digests_are_read() -> None:
    found = parse_listing(
        listing(
            {"rfilename": "config.json", "size": 5, "blobId": SHA1},
            {
                "rfilename": "a/b.safetensors",
                "size": 130,
                "blobId": SHA1,
                "lfs": {"sha256": SHA256, "size": 9},
            },
            {"rfilename": "plain"},
        )
    )
    assert found.commit == COMMIT
    assert found.files == {
        "config.json": HubFile(5, f"git:{SHA1}"),
        "a/b.safetensors": HubFile(9, f"sha256:{SHA256}"),
        "plain": HubFile(None, None),
    }


def test_a_large_files_pointer_is_not_taken_for_its_content() -> None:
    found = parse_listing(listing({"rfilename": "w", "blobId": SHA1, "lfs": {"size": 9}}))
    assert found.files["w"] == HubFile(9, None)


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../up", "a/../b", "a//b", "a\\b", "a\0b", "x" * 201, 7, None]
)
def test_names_that_lead_out_of_a_folder_are_left_out(name: Any) -> None:
    assert parse_listing(listing({"rfilename": name}, {"rfilename": "ok"})).files.keys() == {"ok"}


@pytest.mark.parametrize("size", [-1, True, "5", 1.5, None])
def test_a_size_that_is_none_is_not_known(size: Any) -> None:
    assert parse_listing(listing({"rfilename": "w", "size": size})).files["w"].size is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b"[" * 100_000,
        listing(sha="../../etc"),
        listing(sha=7),
        listing(siblings=None),
        listing(siblings={"a": 1}),
        listing(siblings=["a"]),
    ],
)
def test_a_document_outside_the_api_is_refused(body: bytes) -> None:
    with pytest.raises(UnexpectedListingError):
        parse_listing(body)


def test_without_a_commit_the_content_identifies_the_version() -> None:
    one = parse_listing(listing({"rfilename": "w", "size": 1}, sha=None))
    two = parse_listing(listing({"rfilename": "w", "size": 2}, sha=None))
    assert one.commit is None
    assert one.content_digest() != two.content_digest()


def test_a_files_digest_is_that_of_its_content_or_of_its_git_blob(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"hello\n")
    assert file_digest(path, "sha256") == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    # `git hash-object` gives this number.
    assert file_digest(path, "git") == "git:ce013625030ba8dba906f756967f9e9ca394464a"


def test_only_an_etag_that_is_a_sha256_is_a_digest() -> None:
    assert digest_of_etag(f'W/"{SHA256.upper()}"') == f"sha256:{SHA256}"
    assert digest_of_etag(f'"{SHA1}"') is None
    assert digest_of_etag('"5f1-abc"') is None
