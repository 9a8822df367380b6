from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from finetune_trainer.stages.merge.signing import SigningKey
from finetune_trainer.stages.merge.statement import (
    SIGNATURE,
    STATEMENT,
    signed_bytes,
    statement_document,
    write_statement,
)
from finetune_trainer.workspace.layout import json_text

_PRIVATE = ec.generate_private_key(ec.SECP256R1())


def manifest(**files: str) -> dict[str, Any]:
    """Return what a statement takes from a manifest, with the digest of each of `files` by name."""
    return {
        "version": "1.2",
        "specHash": "sha256:" + "1" * 64,
        "contentDigest": "sha256:" + "2" * 64,
        "job": {"namespace": "team", "name": "numbers", "uid": "u1"},
        "base": {"name": "tiny", "commit": None},
        "datasetDigest": "sha256:" + "3" * 64,
        "seeds": {"training": 1},
        "image": None,
        "files": {
            f"merged/{name}": {"digest": f"sha256:{digest}", "bytes": 1} for name, digest in files.items()
        },
    }


def test_a_statement_lists_every_file_by_path_and_the_manifest_with_its_own_bytes() -> None:
    statement = statement_document(manifest(b="b" * 64, a="a" * 64), b"{}")
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    names = [resource["name"] for resource in statement["predicate"]["resources"]]
    assert names == ["manifest.json", "merged/a", "merged/b"]
    digests = [resource["digest"] for resource in statement["predicate"]["resources"]]
    assert digests == [hashlib.sha256(b"{}").hexdigest(), "a" * 64, "b" * 64]
    root = hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests)).hexdigest()
    assert statement["subject"] == [{"name": "numbers", "digest": {"sha256": root}}]
    assert statement["predicate"]["provenance"]["datasetDigest"] == "sha256:" + "3" * 64


def test_without_a_key_the_statement_is_a_plain_file(tmp_path: Path) -> None:
    named = write_statement(tmp_path / "provenance", manifest(a="a" * 64), None)
    assert named["statement"] == f"provenance/{STATEMENT}"
    statement = json.loads((tmp_path / "provenance" / STATEMENT).read_text())
    assert statement == statement_document(named, json_text(named).encode())


def test_with_a_key_the_statement_is_signed_over_its_type_and_its_bytes(tmp_path: Path) -> None:
    named = write_statement(tmp_path / "provenance", manifest(a="a" * 64), SigningKey(_PRIVATE))
    assert named["statement"] == f"provenance/{SIGNATURE}"
    bundle = json.loads((tmp_path / "provenance" / SIGNATURE).read_text())
    assert bundle["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    envelope = bundle["dsseEnvelope"]
    payload = base64.b64decode(envelope["payload"])
    assert json.loads(payload) == statement_document(named, json_text(named).encode())
    signature = base64.b64decode(envelope["signatures"][0]["sig"])
    _PRIVATE.public_key().verify(signature, signed_bytes(payload), ec.ECDSA(hashes.SHA256()))


def test_the_signed_bytes_are_those_of_the_dsse_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of the protocol's page, with its own payload type."""
    monkeypatch.setattr(
        "finetune_trainer.stages.merge.statement.PAYLOAD_TYPE", "http://example.com/HelloWorld"
    )
    assert signed_bytes(b"hello world") == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_a_statement_of_an_interrupted_run_is_replaced(tmp_path: Path) -> None:
    write_statement(tmp_path / "provenance", manifest(a="a" * 64), SigningKey(_PRIVATE))
    write_statement(tmp_path / "provenance", manifest(a="b" * 64), None)
    assert [path.name for path in (tmp_path / "provenance").iterdir()] == [STATEMENT]
