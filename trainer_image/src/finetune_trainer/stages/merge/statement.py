"""The in-toto statement over published files, in the form of OpenSSF model-signing 1.0, and the bundle that carries it.

The statement lists every file of the destination except its own folder, and so also manifest.json. Unsigned it is a JSON
file. Signed it is a Sigstore bundle with a DSSE envelope, which `model_signing verify key` accepts.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

from finetune_trainer.workspace.destination import MANIFEST, PROVENANCE_FOLDER
from finetune_trainer.workspace.layout import json_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from finetune_trainer.stages.merge.signing import SigningKey

STATEMENT = "statement.json"
"""An unsigned statement."""
SIGNATURE = "model.sig"
"""A signed one. A destination has one of the two."""
PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_SHA256 = "sha256:"


def statement_document(manifest: Mapping[str, Any], manifest_bytes: bytes) -> dict[str, Any]:
    """Return the statement over the files that `manifest` lists, and over the manifest's own bytes.

    The subject's digest is over the digests of all files in the order of their paths, as model-signing computes it.
    Verifiers of model-signing ignore the member `provenance`.
    """
    digests = {path: str(file["digest"]).removeprefix(_SHA256) for path, file in manifest["files"].items()}
    digests[MANIFEST] = hashlib.sha256(manifest_bytes).hexdigest()
    resources = [
        {"name": path, "algorithm": "sha256", "digest": digest} for path, digest in sorted(digests.items())
    ]
    root = hashlib.sha256(b"".join(bytes.fromhex(resource["digest"]) for resource in resources))
    return {
        "_type": _STATEMENT_TYPE,
        "subject": [{"name": manifest["job"]["name"], "digest": {"sha256": root.hexdigest()}}],
        "predicateType": _PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [PROVENANCE_FOLDER],
            },
            "resources": resources,
            "provenance": {
                name: manifest[name]
                for name in (
                    "version",
                    "specHash",
                    "contentDigest",
                    "job",
                    "base",
                    "datasetDigest",
                    "seeds",
                    "image",
                )
            },
        },
    }


def statement_file(statement: Mapping[str, Any], key: SigningKey | None) -> tuple[str, bytes]:
    """Return name and content of the file that holds the statement: with a signature if there is a key."""
    payload = json.dumps(statement, ensure_ascii=False, sort_keys=True).encode()
    if key is None:
        return STATEMENT, payload
    bundle = {
        "mediaType": _BUNDLE_TYPE,
        "verificationMaterial": {"publicKey": {"hint": key.hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(key.sign(signed_bytes(payload))).decode(), "keyid": ""}],
        },
    }
    return SIGNATURE, json.dumps(bundle, sort_keys=True).encode()


def write_statement(folder: Path, manifest: Mapping[str, Any], key: SigningKey | None) -> dict[str, Any]:
    """Write the statement into the new folder `folder`, to the disk; return the manifest with the name of its file.

    Raises OSError.
    """
    named = {**manifest, "statement": f"{PROVENANCE_FOLDER}/{STATEMENT if key is None else SIGNATURE}"}
    name, content = statement_file(statement_document(named, json_text(named).encode()), key)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with (folder / name).open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return named


def signed_bytes(payload: bytes) -> bytes:
    """Return what a DSSE signature is over: the pre-authentication encoding of type and payload.

    Source: https://github.com/secure-systems-lab/dsse/blob/v1.0.0/protocol.md.
    """
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)
