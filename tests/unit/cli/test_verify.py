"""Real artifacts of a tiny model, tampered with in every way that somebody thought of."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetune_cli.verify
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from finetune_cli.verify import (
    EXIT_FINDINGS,
    EXIT_INTACT,
    EXIT_UNREADABLE,
    EXIT_USAGE,
    InvalidKeyError,
    Kind,
    Verification,
    is_signed,
    main,
    read_public_key,
    verify,
)
from finetune_trainer.contract.run_spec import RunSpec, Signing
from finetune_trainer.stages.merge.signing import read_signing_key
from finetune_trainer.stages.merge.stage import merge
from finetune_trainer.stages.merge.statement import write_statement
from finetune_trainer.stages.train.stage import train
from finetune_trainer.telemetry.reporter import NullReporter
from finetune_trainer.workspace.digests import file_digest
from finetune_trainer.workspace.layout import write_json_atomically
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import workspaces

_CURVE_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def write_keys(folder: Path) -> tuple[Path, Path]:
    """Write a new pair of keys; return the paths of the private and the public one."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / "private.pem", folder / "public.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the artifacts of two signed jobs and of an unsigned one, and the keys."""
    root = tmp_path_factory.mktemp("published")
    private, _public = write_keys(root)
    workspaces.write_base(root / "base", "llama", shard="60KB")
    workspaces.prepare(root / "workspace", root / "base")
    train(workspaces.run_spec(root / "workspace", root / "unused", maximumSteps=2), NullReporter())
    for name, signing in (("signed", private), ("another", private), ("unsigned", None)):
        run = workspaces.run_spec(root / "workspace", root / name, maximumSteps=2)
        job = {"namespace": "team", "name": name, "uid": name}
        run = RunSpec.model_validate({**run.model_dump(by_alias=True), "job": job})
        output = {"signing": None if signing is None else Signing(key_path=signing)}
        merge(run.model_copy(update={"output": run.output.model_copy(update=output)}), NullReporter())
    return root


@pytest.fixture
def artifact(made: Path, tmp_path: Path) -> Path:
    """Return a copy of the signed artifacts, to be changed."""
    return Path(shutil.copytree(made / "signed", tmp_path / "artifact"))


@pytest.fixture
def key(made: Path) -> Path:
    """Return the public key of the signed artifacts."""
    return made / "public.pem"


def shards(folder: Path) -> list[Path]:
    """Return weight files of one size, the first ones."""
    found = sorted((folder / "merged").glob("*.safetensors"))
    return [path for path in found if path.stat().st_size == found[0].stat().st_size] if found else []


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def swap(first: Path, second: Path) -> None:
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)


def duplicate_key(path: Path) -> None:
    path.write_text('{"a": 1, "a": 2, ' + path.read_text().lstrip()[1:])


def replace_folder(folder: Path, other: Path) -> None:
    """Put a copy of `other` in the place of `folder`."""
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


def link_to(path: Path, target: Path) -> None:
    """Put a link to `target` in the place of a file."""
    path.unlink()
    path.symlink_to(target)


def replace_with_pipe(path: Path) -> None:
    """Put a pipe in the place of a file: whoever opens it would wait for ever."""
    path.unlink()
    os.mkfifo(path)


def let_a_path_escape(folder: Path) -> None:
    """List a file outside of the folder, without a statement that says otherwise."""
    entry = {"digest": "sha256:" + "0" * 64, "bytes": 0}
    edit_json(
        folder / "manifest.json", lambda document: document["files"].update({"../../etc/passwd": entry})
    )
    shutil.rmtree(folder / "provenance")


def replace_with_link(folder: Path, name: str) -> None:
    path, target = folder / name, folder.parent / "elsewhere"
    path.rename(target)
    path.symlink_to(target)


def edit_statement(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what a bundle states, and leave its signature."""

    def edit(bundle: dict[str, Any]) -> None:
        statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
        change(statement)
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()

    edit_json(path, edit)


TAMPERINGS: dict[str, tuple[Callable[[Path, Path], object], Kind, str]] = {
    "a changed byte in the weights": (
        lambda folder, _: flip_byte(shards(folder)[0]), Kind.WEIGHTS_CHANGED, "merged/model-"),
    "a changed byte in the adapter": (
        lambda folder, _: flip_byte(folder / "adapter/adapter_model.safetensors"),
        Kind.WEIGHTS_CHANGED, "adapter/adapter_model.safetensors"),
    "a truncated file": (
        lambda folder, _: os.truncate(shards(folder)[0], 1000), Kind.FILE_TRUNCATED, "merged/model-"),
    "a missing file": (
        lambda folder, _: (folder / "merged/config.json").unlink(), Kind.FILE_MISSING, "merged/config.json"),
    "an extra file": (
        lambda folder, _: (folder / "merged/modeling.py").write_text("import os"),
        Kind.FILE_ADDED, "merged/modeling.py"),
    "an extra file at the top": (
        lambda folder, _: (folder / ".hidden").write_text(""), Kind.FILE_ADDED, ".hidden"),
    "an extra statement": (
        lambda folder, _: (folder / "provenance/statement.json").write_text("{}"),
        Kind.FILE_ADDED, "provenance/statement.json"),
    "a renamed file": (
        lambda folder, _: (folder / "merged/tokenizer.json").rename(folder / "merged/other.json"),
        Kind.FILE_RENAMED, "merged/other.json"),
    "swapped shards": (
        lambda folder, _: swap(*sorted((folder / "merged").glob("*.safetensors"))[:2]),
        Kind.FILES_SWAPPED, "merged/model-"),
    "a changed config": (
        lambda folder, _: edit_json(folder / "merged/config.json", lambda d: d.update(rope_theta=1)),
        Kind.CONFIG_CHANGED, "merged/config.json"),
    "another stop token": (
        lambda folder, _: edit_json(folder / "merged/generation_config.json", lambda d: d.update(eos_token_id=0)),
        Kind.CONFIG_CHANGED, "merged/generation_config.json"),
    "an added quantization": (
        lambda folder, _: edit_json(
            folder / "merged/config.json", lambda d: d.update(quantization_config={"load_in_4bit": True})),
        Kind.QUANTIZATION_ADDED, "merged/config.json"),
    "a changed tokenizer": (
        lambda folder, _: edit_json(folder / "merged/tokenizer.json", lambda d: d.update(truncation=1)),
        Kind.TOKENIZER_CHANGED, "merged/tokenizer.json"),
    "a changed chat template": (
        lambda folder, _: (folder / "adapter/chat_template.jinja").write_text("{{ messages }}"),
        Kind.TOKENIZER_CHANGED, "adapter/chat_template.jinja"),
    "a changed card": (
        lambda folder, _: (folder / "merged/README.md").write_text("# Better"), Kind.FILE_CHANGED, "merged/README.md"),
    "a changed manifest": (
        lambda folder, _: edit_json(folder / "manifest.json", lambda d: d["evaluation"].update(verdict="Improved!")),
        Kind.MANIFEST_CHANGED, "manifest.json"),
    "a manifest without a file list": (
        lambda folder, _: edit_json(folder / "manifest.json", lambda d: d.pop("files")),
        Kind.MANIFEST_INVALID, "manifest.json"),
    "a missing manifest": (
        lambda folder, _: (folder / "manifest.json").unlink(), Kind.FILE_MISSING, "manifest.json"),
    "duplicate keys in the manifest": (
        lambda folder, _: duplicate_key(folder / "manifest.json"), Kind.DUPLICATE_KEYS, "manifest.json"),
    "duplicate keys in a config": (
        lambda folder, _: duplicate_key(folder / "merged/config.json"), Kind.DUPLICATE_KEYS, "merged/config.json"),
    "a changed statement": (
        lambda folder, _: edit_statement(
            folder / "provenance/model.sig", lambda s: s["predicate"]["provenance"].update(specHash="x")),
        Kind.STATEMENT_CHANGED, "provenance/model.sig"),
    "a statement that leaves a file out": (
        lambda folder, _: edit_statement(folder / "provenance/model.sig", lambda s: s["predicate"]["resources"].pop()),
        Kind.STATEMENT_CHANGED, "provenance/model.sig"),
    "a statement that is no bundle": (
        lambda folder, _: (folder / "provenance/model.sig").write_text("[]"),
        Kind.STATEMENT_INVALID, "provenance/model.sig"),
    "a removed signature": (
        lambda folder, _: shutil.rmtree(folder / "provenance"), Kind.UNSIGNED, "provenance/model.sig"),
    "the artifacts of an unsigned job": (
        lambda folder, made: replace_folder(folder, made / "unsigned"),
        Kind.UNSIGNED, "provenance/model.sig"),
    "the signature of another artifact": (
        lambda folder, made: shutil.copy(made / "another/provenance/model.sig", folder / "provenance/model.sig"),
        Kind.ANOTHER_ARTIFACT, "manifest.json"),
    "a link in place of a file": (
        lambda folder, _: replace_with_link(folder, "merged/config.json"),
        Kind.NO_REGULAR_FILE, "merged/config.json"),
    "a link in place of a folder": (
        lambda folder, _: replace_with_link(folder, "merged"), Kind.NO_REGULAR_FILE, "merged"),
    "a link in place of the manifest": (
        lambda folder, _: link_to(folder / "manifest.json", Path("/etc/passwd")),
        Kind.NO_REGULAR_FILE, "manifest.json"),
    "a pipe in place of a file": (
        lambda folder, _: replace_with_pipe(folder / "merged/config.json"),
        Kind.NO_REGULAR_FILE, "merged/config.json"),
    "a path that escapes": (
        lambda folder, _: let_a_path_escape(folder),
        Kind.PATH_ESCAPES, "../../etc/passwd"),
}  # fmt: skip


def check(folder: Path, key: Path | None) -> Verification:
    return verify(folder, None if key is None else read_public_key(key))


def test_untouched_artifacts_are_intact(made: Path, key: Path) -> None:
    for name in ("signed", "another"):
        found = check(made / name, key)
        assert found.findings == []
        assert found.signed
    unsigned = check(made / "unsigned", None)
    assert unsigned.findings == []
    assert not unsigned.signed
    assert unsigned.files == len(json.loads((made / "unsigned/manifest.json").read_text())["files"])


@pytest.mark.parametrize("name", TAMPERINGS)
def test_each_kind_of_tampering_is_named(name: str, artifact: Path, made: Path, key: Path) -> None:
    tamper, kind, path = TAMPERINGS[name]
    tamper(artifact, made)
    findings = check(artifact, key).findings
    assert [finding for finding in findings if finding.kind is kind and finding.path.startswith(path)], (
        findings
    )


_NEED_THE_KEY = {
    "a changed statement",
    "a statement that leaves a file out",
    "a removed signature",
    "the artifacts of an unsigned job",
}


@pytest.mark.parametrize("name", sorted(set(TAMPERINGS) - _NEED_THE_KEY))
def test_changes_against_the_statement_are_found_without_a_key_too(
    name: str, artifact: Path, made: Path
) -> None:
    tamper, kind, _path = TAMPERINGS[name]
    tamper(artifact, made)
    assert kind in {finding.kind for finding in check(artifact, None).findings}


def test_a_forger_who_writes_manifest_and_statement_anew_fails_at_the_key(
    artifact: Path, key: Path, tmp_path: Path
) -> None:
    """Without the key nothing is wrong: the forged documents fit."""
    flip_byte(shards(artifact)[0])
    manifest = json.loads((artifact / "manifest.json").read_text())
    name = shards(artifact)[0].relative_to(artifact).as_posix()
    manifest["files"][name]["digest"] = file_digest(artifact / name)
    private, public = write_keys(tmp_path)
    write_json_atomically(
        artifact / "manifest.json",
        write_statement(artifact / "provenance", manifest, read_signing_key(private)),
    )
    assert check(artifact, None).findings == []
    assert check(artifact, public).findings == []
    assert [finding.kind for finding in check(artifact, key).findings] == [Kind.WRONG_KEY]


def test_a_file_that_is_swapped_after_it_was_listed_is_named(artifact: Path, key: Path) -> None:
    victim = "merged/config.json"

    def swap_it(path: str) -> None:
        if path == victim:
            (artifact / "new").write_bytes((artifact / victim).read_bytes())
            (artifact / "new").replace(artifact / victim)

    found = verify(artifact, read_public_key(key), swap_it)
    assert [(finding.path, finding.kind) for finding in found.findings] == [(victim, Kind.CHANGED_WHILE_READ)]


def test_a_file_that_disappears_after_it_was_listed_is_named(artifact: Path, key: Path) -> None:
    found = verify(
        artifact, read_public_key(key), lambda path: (artifact / path).unlink() if "README" in path else None
    )
    assert {finding.kind for finding in found.findings} == {Kind.CHANGED_WHILE_READ}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"files": ' + b'{"a":' * 50_000,
        b'{"files": {"a": {"digest": "sha256:' + b"0" * 64 + b'", "bytes": ' + b"9" * 5000 + b"}}}",
        b'{"files": {"a": {"digest": "sha256:' + b"0" * 64 + b'", "bytes": 1e999}}}',
        b'{"files": {"a": {"digest": "sha256:' + b"0" * 64 + b'", "bytes": -1}}}',
        b'{"files": NaN}',
        b'{"files": []}',
        b'{"files": {"a": {"digest": "md5:0", "bytes": true}}}',
        b"null",
    ],
    ids=range(11),
)
@pytest.mark.parametrize("path", ["manifest.json", "provenance/model.sig"])
def test_hostile_documents_are_findings_and_never_crash(
    artifact: Path, key: Path, path: str, content: bytes
) -> None:
    (artifact / path).write_bytes(content)
    findings = check(artifact, key).findings
    assert {finding.kind for finding in findings if finding.path == path} & {
        Kind.MANIFEST_INVALID,
        Kind.STATEMENT_INVALID,
    }


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_MEMBERS = [
    ("mediaType",), ("dsseEnvelope",), ("dsseEnvelope", "payload"), ("dsseEnvelope", "payloadType"),
    ("dsseEnvelope", "signatures"), ("dsseEnvelope", "signatures", 0), ("dsseEnvelope", "signatures", 0, "sig"),
    ("verificationMaterial",), ("verificationMaterial", "publicKey"), ("verificationMaterial", "publicKey", "hint"),
]  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(member=st.sampled_from(_MEMBERS), value=_JSON)
def test_no_value_in_a_bundle_crashes_the_verifier(
    made: Path, key: Path, member: tuple[Any, ...], value: Any
) -> None:
    bundle = json.loads((made / "signed/provenance/model.sig").read_text())
    place = bundle
    for name in member[:-1]:
        place = place[name]
    place[member[-1]] = value
    found = Verification()
    content = json.dumps(bundle).encode()
    try:
        finetune_cli.verify._signed_payload(content, read_public_key(key), found)
    except finetune_cli.verify._InvalidError:
        assert not found.signed or member[0] != "dsseEnvelope"


def test_folders_without_end_are_a_finding_and_are_not_entered(artifact: Path, key: Path) -> None:
    deep = artifact
    for _level in range(200):
        deep /= "a"
        deep.mkdir()
    (deep / "payload").write_text("x")
    findings = check(artifact, key).findings
    assert [(finding.path, finding.kind) for finding in findings] == [("a/" * 15 + "a", Kind.FILE_ADDED)]


def test_a_document_that_is_too_large_is_not_read(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune_cli.verify, "_MAXIMUM_DOCUMENT", 100)
    assert Kind.MANIFEST_INVALID in {finding.kind for finding in check(artifact, None).findings}


def test_a_hostile_file_name_does_not_steer_the_terminal(
    artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (artifact / "\x1b[2J\u202egnp.exe").write_text("")
    (artifact / os.fsdecode(b"\xff")).write_text("")
    assert main([str(artifact)]) == EXIT_FINDINGS
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\u202e" not in printed
    assert printed.count("FileAdded") == 2


def test_only_a_signature_of_the_message_by_the_key_counts(tmp_path: Path) -> None:
    for number in range(12):
        private = ec.generate_private_key(ec.SECP256R1())
        path = tmp_path / "public.pem"
        path.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        public, message = read_public_key(path), b"message %d" % number
        signature = private.sign(message, ec.ECDSA(hashes.SHA256()))
        assert is_signed(public, message, signature)
        assert not is_signed(public, message + b"!", signature)
        r, s = decode_dss_signature(signature)
        assert is_signed(public, message, encode_dss_signature(r, _CURVE_ORDER - s)), "ECDSA allows both"
        for wrong in (
            (0, s),
            (r, 0),
            (r + _CURVE_ORDER, s),
            (s, r),
            (_CURVE_ORDER, _CURVE_ORDER),
            (r, s + 1),
        ):
            assert not is_signed(public, message, encode_dss_signature(*wrong))
        for broken in (
            b"",
            signature[:-1],
            signature + b"\0",
            b"\x30\x80" + signature[2:],
            b"\0" * 70,
            b"\x30\x02\x02",
        ):
            assert not is_signed(public, message, broken)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        b"\xff",
        ec.generate_private_key(ec.SECP384R1())
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ),
    ],
    ids=["empty", "short", "binary", "other curve", "private"],
)
def test_another_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    with pytest.raises(InvalidKeyError):
        read_public_key(path)
    assert main([str(tmp_path), "--key", str(path)]) == EXIT_USAGE


def test_a_point_beside_the_curve_is_no_key(key: Path, tmp_path: Path) -> None:
    lines = key.read_text().splitlines()
    der = bytearray(base64.b64decode("".join(lines[1:-1])))
    der[-1] ^= 1
    (tmp_path / "key.pem").write_text("\n".join([lines[0], base64.b64encode(der).decode(), lines[-1]]))
    with pytest.raises(InvalidKeyError):
        read_public_key(tmp_path / "key.pem")


def test_exit_codes_and_texts(
    artifact: Path, key: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([str(artifact), "--key", str(key)]) == EXIT_INTACT
    assert "intact and signed by this key" in capsys.readouterr().out
    assert main([str(artifact)]) == EXIT_INTACT
    assert "does not prove who wrote it" in capsys.readouterr().out
    assert main([str(tmp_path / "none")]) == EXIT_UNREADABLE
    assert main([]) == EXIT_USAGE
    capsys.readouterr()
    flip_byte(shards(artifact)[0])
    assert main([str(artifact), "--key", str(key), "--json"]) == EXIT_FINDINGS
    document = json.loads(capsys.readouterr().out)
    assert [finding["kind"] for finding in document["findings"]] == ["WeightsChanged"]


def test_the_file_runs_alone_and_needs_a_package_for_a_key_only(
    artifact: Path, key: Path, tmp_path: Path
) -> None:
    alone = shutil.copy(finetune_cli.verify.__file__, tmp_path / "verify.py")

    def run(*options: str, key: Path | None) -> tuple[int, str]:
        wanted = [] if key is None else ["--key", str(key)]
        command = [sys.executable, "-I", *options, str(alone), str(artifact), *wanted]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        return found.returncode, found.stderr

    assert run(key=key) == (EXIT_INTACT, "")
    # Without site-packages there is only the standard library.
    assert run("-S", key=None) == (EXIT_INTACT, "")
    code, said = run("-S", key=key)
    assert code == EXIT_USAGE
    assert "pip install cryptography" in said
