from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_public_key,
)
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.merge.signing import read_signing_key

_KEY = ec.generate_private_key(ec.SECP256R1())
_PKCS8, _SEC1 = PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL


@pytest.mark.parametrize("form", [_PKCS8, _SEC1])
def test_a_key_in_either_form_signs_and_the_same_message_gets_the_same_signature(
    tmp_path: Path, form: PrivateFormat
) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(_KEY.private_bytes(Encoding.PEM, form, NoEncryption()))
    key = read_signing_key(path)
    signature = key.sign(b"message")
    assert signature == read_signing_key(path).sign(b"message")
    public = load_pem_public_key(key.public_pem)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    public.verify(signature, b"message", ec.ECDSA(hashes.SHA256()))
    with pytest.raises(InvalidSignature):
        public.verify(signature, b"other", ec.ECDSA(hashes.SHA256()))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "no readable file"),
        (b"", "no private key in PEM"),
        (b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n", "no private key in PEM"),
        (_KEY.private_bytes(Encoding.PEM, _PKCS8, BestAvailableEncryption(b"word")), "a passphrase"),
        (
            ec.generate_private_key(ec.SECP384R1()).private_bytes(Encoding.PEM, _PKCS8, NoEncryption()),
            "the curve secp384r1",
        ),
        (
            rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, _PKCS8, NoEncryption()),
            "another kind of key",
        ),
    ],
    ids=["missing", "empty", "broken", "encrypted", "other curve", "RSA"],
)
def test_another_key_makes_merge_wait_and_the_message_has_nothing_of_it(
    tmp_path: Path, content: bytes | None, found: str
) -> None:
    path = tmp_path / "key.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StageError, match=found) as caught:
        read_signing_key(path)
    assert caught.value.reason is Reason.DESTINATION_UNWRITABLE
    assert "BEGIN" not in caught.value.message
    assert "c2VjcmV0" not in caught.value.message
