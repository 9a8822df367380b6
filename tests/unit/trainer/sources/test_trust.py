"""The bundle of certificate authorities."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.trust import read_bundle, trusting_context


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def pem(authority: trustme.CA) -> bytes:
    return authority.cert_pem.bytes()


def bundle_of(path: Path, content: bytes) -> str | None:
    path.write_bytes(content)
    return read_bundle({"FINETUNE_CA_BUNDLE": str(path)})


def test_without_a_variable_there_is_no_bundle() -> None:
    assert read_bundle({}) is None
    assert read_bundle({"FINETUNE_CA_BUNDLE": " "}) is None


def test_comments_line_ends_and_a_byte_order_mark_do_not_matter(
    tmp_path: Path, authority: trustme.CA
) -> None:
    content = b"\xef\xbb\xbf# Zo\xc3\xab's authority\r\n" + pem(authority).replace(b"\n", b"\r\n") + b"\nend"
    found = bundle_of(tmp_path / "ca.pem", content)
    assert found is not None
    assert found.count("BEGIN CERTIFICATE") == 1
    assert "authority" not in found


def test_bundles_of_chart_and_job_add_up_to_those_of_the_system(
    tmp_path: Path, authority: trustme.CA
) -> None:
    other = trustme.CA()
    for name, content in (("a", pem(authority)), ("b", pem(other))):
        (tmp_path / name).write_bytes(content)
    bundle = read_bundle({"FINETUNE_CA_BUNDLE": f"{tmp_path / 'a'}:{tmp_path / 'b'}"})
    own, system = trusting_context(bundle).get_ca_certs(binary_form=True), trusting_context(None)
    ours = {ssl.PEM_cert_to_DER_cert(pem(item).decode()) for item in (authority, other)}
    assert ours <= set(own)
    assert set(system.get_ca_certs(binary_form=True)) == set(own) - ours


def broken(authority: trustme.CA) -> bytes:
    lines = pem(authority).splitlines(keepends=True)
    return b"".join([*lines[:3], lines[3][::-1], *lines[4:]])


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (lambda _ca: b"", "no certificate"),
        (lambda _ca: b"not a certificate", "no certificate"),
        (lambda _ca: b"<html><title>404</title></html>", "no certificate"),
        (lambda ca: ca.private_key_pem.bytes(), "no certificate"),
        (lambda ca: pem(ca)[:-30], "without its end"),
        (lambda ca: pem(ca) + pem(ca)[:100], "without its end"),
        (lambda ca: ssl.PEM_cert_to_DER_cert(pem(ca).decode()), "in DER"),
        (lambda ca: pem(ca) + broken(ca), "certificate 2 of 2 damaged"),
        (
            lambda _ca: b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n",
            "certificate 1 of 1 damaged",
        ),
        (lambda ca: pem(ca) * 10_000, "more than"),
    ],
)
def test_a_file_that_is_no_bundle_has_its_own_reason(
    tmp_path: Path, authority: trustme.CA, content: object, found: str
) -> None:
    assert callable(content)
    with pytest.raises(StageError, match=found) as caught:
        bundle_of(tmp_path / "ca.pem", content(authority))
    assert caught.value.reason is Reason.INVALID_NETWORK_SETTINGS


@pytest.mark.parametrize(("name", "found"), [("none.pem", "its key is missing"), (".", "cannot be read")])
def test_a_missing_or_unreadable_file_has_the_same_reason(tmp_path: Path, name: str, found: str) -> None:
    with pytest.raises(StageError, match=found) as caught:
        read_bundle({"FINETUNE_CA_BUNDLE": str(tmp_path / name)})
    assert caught.value.reason is Reason.INVALID_NETWORK_SETTINGS
