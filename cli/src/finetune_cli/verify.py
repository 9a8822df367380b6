"""Verify published artifacts offline: every file against manifest.json, the statement, and a public key.

This file runs alone: `python verify.py FOLDER --key PUBLIC.pem`. Take it from a release or from the repository. A verifier
that lies beside the artifacts proves nothing. It needs Python's standard library, and for `--key` the package
`cryptography`.

Only `--key` proves the origin: without it, a forger can write a manifest that fits. All input counts as hostile: sizes are
bounded, no name from a document is ever opened, and links and devices are not followed.

Exit codes: 0 intact, and signed by the key if one was given; 1 at least one finding; 64 wrong usage or key; 66 a folder or
file that cannot be read.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import json
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

EXIT_INTACT, EXIT_FINDINGS, EXIT_USAGE, EXIT_UNREADABLE = 0, 1, 64, 66
MANIFEST = "manifest.json"
PROVENANCE = "provenance"
STATEMENT, SIGNATURE = f"{PROVENANCE}/statement.json", f"{PROVENANCE}/model.sig"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_MAXIMUM_DOCUMENT = 64 * 1024 * 1024
_MAXIMUM_KEY = 64 * 1024
_MAXIMUM_FILES = 100_000
_MAXIMUM_DEPTH = 16
_CHUNK = 1024 * 1024
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_CONFIGS = ("config.json", "generation_config.json", "adapter_config.json")
_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "tekken.json",
    "*.model",
    "*.tiktoken",
    "chat_template.jinja",
)
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


class Kind(StrEnum):
    """What is wrong, for programs."""

    WEIGHTS_CHANGED = "WeightsChanged"
    FILE_TRUNCATED = "FileTruncated"
    CONFIG_CHANGED = "ConfigChanged"
    QUANTIZATION_ADDED = "QuantizationAdded"
    TOKENIZER_CHANGED = "TokenizerChanged"
    FILE_CHANGED = "FileChanged"
    FILE_MISSING = "FileMissing"
    FILE_ADDED = "FileAdded"
    FILE_RENAMED = "FileRenamed"
    FILES_SWAPPED = "FilesSwapped"
    NO_REGULAR_FILE = "NoRegularFile"
    CHANGED_WHILE_READ = "ChangedWhileRead"
    PATH_ESCAPES = "PathEscapes"
    MANIFEST_CHANGED = "ManifestChanged"
    MANIFEST_INVALID = "ManifestInvalid"
    DUPLICATE_KEYS = "DuplicateKeys"
    STATEMENT_CHANGED = "StatementChanged"
    STATEMENT_INVALID = "StatementInvalid"
    ANOTHER_ARTIFACT = "AnotherArtifact"
    WRONG_KEY = "WrongKey"
    UNSIGNED = "Unsigned"


@dataclass(frozen=True, order=True)
class Finding:
    """One thing that is wrong: where, what, and a sentence."""

    path: str
    kind: Kind
    message: str

    def __str__(self) -> str:
        return f"{self.kind}: {_shown(self.path)}: {self.message}"


@dataclass
class Verification:
    """The findings, the number of files that were read, and whether the key signed the statement over them."""

    findings: list[Finding] = field(default_factory=list)
    files: int = 0
    signed: bool = False

    def add(self, path: str, kind: Kind, message: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(path, kind, message))


class InvalidKeyError(Exception):
    """The public key cannot be used."""


class _InvalidError(Exception):
    """A document cannot be what it should be."""

    def __init__(self, message: str, kind: Kind | None = None) -> None:
        super().__init__(message)
        self.kind = kind


class _RacedError(Exception):
    """A file is not the one that was listed, or changed while it was read."""


@dataclass(frozen=True)
class PublicKey:
    """A key of P-256. `hint` is the digest of its PEM, by which a bundle names it."""

    key: EllipticCurvePublicKey
    hint: str


@dataclass(frozen=True)
class _Stated:
    """What the statement in the file `path` says: digests by path, and its provenance."""

    path: str
    digests: Mapping[str, str]
    provenance: Mapping[str, Any]


def verify(
    folder: Path, key: PublicKey | None = None, on_file: Callable[[str], None] = lambda _path: None
) -> Verification:
    """Compare everything in `folder` with its manifest and its statement, and the signature with `key`.

    `on_file` hears of each file before it is read. Raises OSError if the folder or a file cannot be read.
    """
    found = Verification()
    listed = _list_files(folder, found)
    manifest, manifest_digest = _manifest(folder, listed, found)
    stated = _statement(folder, listed, manifest, key, found)
    truth, sizes = _truth(manifest, manifest_digest, stated, found)
    actual = _digests(folder, listed, found, on_file)
    found.files = len(actual)
    _compare(folder, listed, actual, truth, sizes, found)
    found.findings = sorted(set(found.findings))
    return found


def _list_files(folder: Path, found: Verification) -> dict[str, os.stat_result]:
    """Return the regular files below `folder` by path, as they are now. No link is followed."""
    listed: dict[str, os.stat_result] = {}

    def fail(error: OSError) -> None:
        raise error

    for path, folders, files, descriptor in os.fwalk(folder, onerror=fail):
        for name in (*folders, *files):
            relative = (Path(path) / name).relative_to(folder).as_posix()
            status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
                listed[relative] = status
            elif not stat.S_ISDIR(status.st_mode):
                found.add(
                    relative,
                    Kind.NO_REGULAR_FILE,
                    "must be a regular file, found a link, a device or the like",
                )
        place = Path(path).relative_to(folder)
        if len(place.parts) >= _MAXIMUM_DEPTH and folders:
            found.add(
                place.as_posix(),
                Kind.FILE_ADDED,
                f"must not hold folders, found more than {_MAXIMUM_DEPTH} levels",
            )
            folders.clear()
        if len(listed) > _MAXIMUM_FILES:
            raise OSError(f"the folder must have at most {_MAXIMUM_FILES} files")
    return listed


def _read(folder: Path, path: str, listed: os.stat_result, take: Callable[[bytes], object]) -> None:
    """Pass the content of a listed file to `take`. Raises _RacedError, and OSError if it cannot be read."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(folder / path, flags)
    except FileNotFoundError as error:
        raise _RacedError from error
    except OSError as error:
        if (folder / path).is_symlink():
            raise _RacedError from error
        raise
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if _identity(os.fstat(descriptor)) != _identity(listed):
            raise _RacedError
        left = listed.st_size
        while left > 0 and (chunk := file.read(min(_CHUNK, left))):
            take(chunk)
            left -= len(chunk)
        if left or _identity(os.fstat(descriptor)) != _identity(listed):
            raise _RacedError


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns)


def _document(folder: Path, path: str, listed: os.stat_result) -> bytes:
    """Return the content of a small file. Raises _InvalidError, _RacedError and OSError."""
    if listed.st_size > _MAXIMUM_DOCUMENT:
        raise _InvalidError(f"must have at most {_MAXIMUM_DOCUMENT} bytes, found {listed.st_size}")
    parts: list[bytes] = []
    _read(folder, path, listed, parts.append)
    return b"".join(parts)


def _parse(content: bytes) -> Any:
    """Parse strict JSON: UTF-8, no duplicate keys, no NaN. Raises _InvalidError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            raise _InvalidError("must have each key once, found a key twice", Kind.DUPLICATE_KEYS)
        return members

    def constant(name: str) -> NoReturn:
        raise _InvalidError(f"must have finite numbers, found {name}")

    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise _InvalidError(f"must be JSON, found {type(error).__name__}") from error


def _manifest(
    folder: Path, listed: dict[str, os.stat_result], found: Verification
) -> tuple[dict[str, Any] | None, str | None]:
    """Take the manifest out of `listed`; return it and its digest, or None for what cannot be read."""
    status = listed.pop(MANIFEST, None)
    if status is None:
        if not any(finding.path == MANIFEST for finding in found.findings):
            found.add(
                MANIFEST, Kind.FILE_MISSING, "must list the files; without it the artifacts are incomplete"
            )
        return None, None
    digest = None
    try:
        content = _document(folder, MANIFEST, status)
        digest = hashlib.sha256(content).hexdigest()
        return _listing(_parse(content)), digest
    except _RacedError:
        found.add(MANIFEST, Kind.CHANGED_WHILE_READ, "changed while it was read")
    except _InvalidError as error:
        found.add(MANIFEST, error.kind or Kind.MANIFEST_INVALID, str(error))
    return None, digest


def _listing(document: Any) -> dict[str, Any]:
    """Return a manifest that lists files. Raises _InvalidError."""
    files = document.get("files") if isinstance(document, dict) else None
    if not isinstance(files, dict) or not all(_is_listing(entry) for entry in files.values()):
        raise _InvalidError("must list `files` with digest and bytes of each")
    return dict(document)


def _is_listing(entry: object) -> bool:
    if not isinstance(entry, dict):
        return False
    size = entry.get("bytes")
    return (
        _hex(entry.get("digest")) is not None
        and isinstance(size, int)
        and not isinstance(size, bool)
        and size >= 0
    )


def _hex(digest: object) -> str | None:
    matched = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    return matched[1] if matched else None


def _statement(
    folder: Path,
    listed: dict[str, os.stat_result],
    manifest: Mapping[str, Any] | None,
    key: PublicKey | None,
    found: Verification,
) -> _Stated | None:
    """Take the statement out of `listed`, and check it; return None if it cannot be believed."""
    signed, plain = listed.pop(SIGNATURE, None), None
    if signed is None:
        plain = listed.pop(STATEMENT, None)
    path, status = (SIGNATURE, signed) if signed is not None else (STATEMENT, plain)
    if signed is None and key is not None:
        found.add(SIGNATURE, Kind.UNSIGNED, "must be signed, because a key was given; found no signature")
    named = manifest.get("statement") if manifest is not None else None
    if status is None or (named is not None and named != path):
        if named is not None:
            missing = named if named in (SIGNATURE, STATEMENT) else path
            found.add(missing, Kind.FILE_MISSING, "must be there, because the manifest names it")
        if status is None:
            return None
    try:
        content = _document(folder, path, status)
        payload = content if signed is None else _signed_payload(content, key, found)
        return _stated(path, _parse(payload))
    except _RacedError:
        found.add(path, Kind.CHANGED_WHILE_READ, "changed while it was read")
    except _InvalidError as error:
        found.add(path, error.kind or Kind.STATEMENT_INVALID, str(error))
    return None


def _signed_payload(content: bytes, key: PublicKey | None, found: Verification) -> bytes:
    """Return the payload of a bundle, after its signature is checked if there is a key. Raises _InvalidError."""
    try:
        bundle = _parse(content)
        envelope = bundle["dsseEnvelope"]
        (signature,) = envelope["signatures"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        sig = base64.b64decode(signature["sig"], validate=True)
        hint = bundle["verificationMaterial"]["publicKey"]["hint"]
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise _InvalidError("must be a Sigstore bundle with one DSSE signature of a key") from error
    if envelope.get("payloadType") != _PAYLOAD_TYPE:
        raise _InvalidError(f"must carry the type {_PAYLOAD_TYPE}")
    if key is not None:
        kind = _PAYLOAD_TYPE.encode()
        found.signed = is_signed(key, b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload), sig)
        if not found.signed and hint != key.hint:
            raise _InvalidError("must be signed with the given key, found another one", Kind.WRONG_KEY)
        if not found.signed:
            raise _InvalidError(
                "must have the content that was signed, found another one", Kind.STATEMENT_CHANGED
            )
    return payload


def _stated(path: str, statement: Any) -> _Stated:
    """Return what a statement says. Raises _InvalidError."""
    try:
        predicate = statement["predicate"]
        (subject,) = statement["subject"]
        digests = {entry["name"]: _hex(entry["digest"]) for entry in predicate["resources"]}
        root = hashlib.sha256(
            b"".join(bytes.fromhex(digest or "") for digest in digests.values())
        ).hexdigest()
        known = statement["_type"] == _STATEMENT_TYPE and statement["predicateType"] == _PREDICATE_TYPE
        whole = (
            None not in digests.values()
            and len(digests) == len(predicate["resources"])
            and MANIFEST in digests
        )
        agrees = subject["digest"] == {"sha256": root}
        provenance = predicate.get("provenance")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _InvalidError("must be an in-toto statement of model-signing") from error
    if not known or not whole:
        raise _InvalidError("must be an in-toto statement of model-signing that lists each file once")
    if not agrees:
        raise _InvalidError("must have the digest of its own list, found another one", Kind.STATEMENT_CHANGED)
    listed = {path: digest for path, digest in digests.items() if digest is not None}
    return _Stated(path, listed, provenance if isinstance(provenance, dict) else {})


def _truth(
    manifest: Mapping[str, Any] | None, digest: str | None, stated: _Stated | None, found: Verification
) -> tuple[dict[str, str] | None, dict[str, int]]:
    """Return the digests and the sizes that the files must have; digests are None if no document can be believed."""
    listed = (
        {path: _hex(entry["digest"]) or "" for path, entry in manifest["files"].items()} if manifest else {}
    )
    sizes = {path: entry["bytes"] for path, entry in manifest["files"].items()} if manifest else {}
    truth: dict[str, str] | None = listed if manifest is not None else None
    if stated is not None:
        own = {path: value for path, value in stated.digests.items() if path != MANIFEST}
        if digest is None or digest == stated.digests[MANIFEST]:
            if manifest is not None and own != listed:
                found.add(
                    STATEMENT, Kind.STATEMENT_CHANGED, "must list the files of the manifest, found others"
                )
            truth = own
        elif manifest is not None and stated.provenance.get("job") != manifest.get("job"):
            found.add(
                MANIFEST,
                Kind.ANOTHER_ARTIFACT,
                "must be the one of the statement, which is of another artifact",
            )
        else:
            found.add(
                MANIFEST, Kind.MANIFEST_CHANGED, "must have the digest in the statement, found another one"
            )
            truth, sizes = own, {}
    for path in truth or {}:
        if path.startswith("/") or "\0" in path or {"", ".", ".."} & set(path.split("/")):
            found.add(path, Kind.PATH_ESCAPES, "must be a plain path below the folder")
    return truth, sizes


def _digests(
    folder: Path, listed: Mapping[str, os.stat_result], found: Verification, on_file: Callable[[str], None]
) -> dict[str, str]:
    actual = {}
    for path, status in sorted(listed.items()):
        on_file(path)
        digest = hashlib.sha256()
        try:
            _read(folder, path, status, digest.update)
        except _RacedError:
            found.add(
                path, Kind.CHANGED_WHILE_READ, "must stay as it was listed, found another file or content"
            )
            continue
        actual[path] = digest.hexdigest()
    return actual


def _compare(
    folder: Path,
    listed: Mapping[str, os.stat_result],
    actual: Mapping[str, str],
    truth: Mapping[str, str] | None,
    sizes: Mapping[str, int],
    found: Verification,
) -> None:
    """Name each difference between the files that are there and those that should be."""
    if truth is None:
        return
    known = {finding.path for finding in found.findings}
    missing = {path: digest for path, digest in truth.items() if path not in listed and path not in known}
    added = [path for path in actual if path not in truth]
    for path in added:
        old = next((name for name, digest in sorted(missing.items()) if digest == actual[path]), None)
        if old is None:
            found.add(path, Kind.FILE_ADDED, "must not be there, because nothing lists it")
        else:
            del missing[old]
            found.add(path, Kind.FILE_RENAMED, f"must have the name {_shown(old)}")
    for path in missing:
        found.add(path, Kind.FILE_MISSING, "must be there")
    changed = {path for path, digest in actual.items() if path in truth and digest != truth[path]}
    for path in changed:
        other = next((name for name in sorted(changed) if name != path and truth[name] == actual[path]), None)
        if other is not None:
            found.add(path, Kind.FILES_SWAPPED, f"must have its own content, found that of {_shown(other)}")
            continue
        kind = _kind_of_change(folder, path, listed[path])
        size, wanted = listed[path].st_size, sizes.get(path)
        if kind is Kind.WEIGHTS_CHANGED and wanted is not None and size < wanted:
            found.add(path, Kind.FILE_TRUNCATED, f"must have {wanted} bytes, found {size}")
        else:
            found.add(path, kind, f"must have the digest sha256:{truth[path]}, found sha256:{actual[path]}")


def _kind_of_change(folder: Path, path: str, status: os.stat_result) -> Kind:
    name = path.rpartition("/")[2]
    if name in _CONFIGS:
        try:
            config = _parse(_document(folder, path, status))
        except _InvalidError as error:
            return error.kind or Kind.CONFIG_CHANGED
        except _RacedError:
            return Kind.CHANGED_WHILE_READ
        quantized = isinstance(config, dict) and "quantization_config" in config
        return Kind.QUANTIZATION_ADDED if quantized else Kind.CONFIG_CHANGED
    if any(fnmatch(name, pattern) for pattern in _TOKENIZER):
        return Kind.TOKENIZER_CHANGED
    return Kind.WEIGHTS_CHANGED if any(fnmatch(name, pattern) for pattern in _WEIGHTS) else Kind.FILE_CHANGED


def _shown(path: str) -> str:
    """Return a name without control characters: a hostile one must not steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in path)[
        :300
    ]


def read_public_key(path: Path) -> PublicKey:
    """Read a public key of P-256 in PEM. Raises InvalidKeyError, also without the package `cryptography`."""
    try:
        # Without a key, nobody needs the package.
        from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 -- see above
        from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 -- see above
        from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415 -- see above
            Encoding,
            PublicFormat,
            load_pem_public_key,
        )
    except ImportError as error:
        raise InvalidKeyError(
            "the package cryptography must be installed to check a signature, found none; run pip install cryptography"
        ) from error
    try:
        with path.open("rb") as file:
            key = load_pem_public_key(file.read(_MAXIMUM_KEY))
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise InvalidKeyError(
            f"the public key must be a PEM file, found {type(error).__name__} at {path}"
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidKeyError(
            f"the key must be the PUBLIC KEY of an ECDSA key of the curve P-256, found another: {path}"
        )
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return PublicKey(key, hashlib.sha256(pem).hexdigest())


def is_signed(key: PublicKey, message: bytes, signature: bytes) -> bool:
    """Return whether `signature` (DER) is one of `message` by `key`, with ECDSA and SHA-256."""
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 -- there is a key, so there is the package
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA  # noqa: PLC0415 -- as above
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415 -- as above

    try:
        key.key.verify(signature, message, ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


DESCRIPTION = (
    "Compare published artifacts with their manifest and statement, offline. Only --key proves who published them. Exit codes: "
    "0 intact (and signed, if a key was given), 1 findings, 64 wrong usage or key, 66 unreadable."
)


def add_verify_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command to a parser."""
    parser.add_argument("folder", type=Path, help="folder with manifest.json")
    parser.add_argument("--key", type=Path, help="public key in PEM; a signature is then required")
    parser.add_argument("--json", action="store_true", help="print findings as JSON")


def run_verify(options: argparse.Namespace, output: TextIO) -> int:
    """Verify, print, and return the exit code."""
    try:
        key = None if options.key is None else read_public_key(options.key)
    except InvalidKeyError as error:
        print(f"verify: {error}", file=sys.stderr)
        return EXIT_USAGE
    try:
        found = verify(options.folder, key)
    except OSError as error:
        print(
            f"verify: cannot read {_shown(str(error.filename or options.folder))}: {error}", file=sys.stderr
        )
        return EXIT_UNREADABLE
    if options.json:
        findings = [{"path": f.path, "kind": f.kind, "message": f.message} for f in found.findings]
        print(json.dumps({"files": found.files, "signed": found.signed, "findings": findings}), file=output)
    else:
        for line in _lines(found, signature_wanted=key is not None):
            print(line, file=output)
    return EXIT_FINDINGS if found.findings else EXIT_INTACT


def _lines(found: Verification, *, signature_wanted: bool) -> Iterable[str]:
    yield from map(str, found.findings)
    if found.findings:
        yield f"NOT INTACT: {len(found.findings)} findings in {found.files} files"
    elif signature_wanted:
        yield f"intact and signed by this key: {found.files} files"
    else:
        yield f"intact: {found.files} files agree with the manifest; without --key this does not prove who wrote it"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a program of its own."""
    parser = argparse.ArgumentParser(prog="verify.py", description=DESCRIPTION)
    add_verify_options(parser)
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stop:  # argparse exits with 2
        return EXIT_USAGE if stop.code else EXIT_INTACT
    return run_verify(options, sys.stdout)


if __name__ == "__main__":
    sys.exit(main())
