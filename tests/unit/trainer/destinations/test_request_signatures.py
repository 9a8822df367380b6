"""Signatures that equal published examples, and tokens that the public key confirms."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from finetune_trainer.destinations.request_signatures import (
    AwsSigner,
    AzureSigner,
    GoogleSigner,
    StoreRequest,
    sign_nothing,
    sign_with_query,
)
from finetune_trainer.sources.url import Location

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
NOW = datetime(2013, 5, 24, tzinfo=UTC)


def request(url: str, content: bytes = b"") -> StoreRequest:
    return StoreRequest("GET", Location.parse(url), {}, {"content-length": str(len(content))}, content)


@pytest.mark.parametrize(
    ("query", "signature"),
    [
        ("lifecycle=", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        ("max-keys=2&prefix=J", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
    ],
)
def test_the_signature_of_amazon_equals_the_examples_of_its_reference(query: str, signature: str) -> None:
    signer = AwsSigner("AKIAIOSFODNN7EXAMPLE", SECRET, None, "us-east-1", lambda: NOW)
    fields = signer(request(f"https://examplebucket.s3.amazonaws.com/?{query}"))
    assert fields["authorization"] == (
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"
        f"SignedHeaders=host;x-amz-content-sha256;x-amz-date,Signature={signature}"
    )


def test_the_token_of_a_session_is_signed_too() -> None:
    signer = AwsSigner("AKIA", SECRET, "session", "eu-west-1", lambda: NOW)
    fields = signer(request("https://example.com/a"))
    assert fields["x-amz-security-token"] == "session"
    assert "host;x-amz-content-sha256;x-amz-date;x-amz-security-token" in fields["authorization"]
    assert SECRET not in repr(signer)


def test_a_token_is_confirmed_by_the_accounts_key_and_renewed_before_its_end() -> None:
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    now = [NOW]
    signer = GoogleSigner(
        {"private_key": pem, "client_email": "bot@team.example", "private_key_id": "k1"}, lambda: now[0]
    )
    first = signer(request("https://storage.googleapis.com/a", b"x"))
    assert (
        first["content-md5"] == base64.b64encode(bytes.fromhex("9dd4e461268c8034f5c8564e155c67a6")).decode()
    )
    scheme, _, token = first["authorization"].partition(" ")
    assert scheme == "Bearer"
    head, claims, signature = token.split(".")
    padded = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
    key.public_key().verify(padded, f"{head}.{claims}".encode(), PKCS1v15(), SHA256())
    document = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
    assert (document["iss"], document["exp"] - document["iat"]) == ("bot@team.example", 3600)
    now[0] += timedelta(minutes=50)
    assert signer(request("https://storage.googleapis.com/a"))["authorization"] == first["authorization"]
    now[0] += timedelta(minutes=6)
    assert signer(request("https://storage.googleapis.com/a"))["authorization"] != first["authorization"]


@pytest.mark.parametrize("key", [{}, {"private_key": "x", "client_email": "y"}])
def test_a_malformed_key_of_a_service_account_is_an_error(key: dict[str, str]) -> None:
    with pytest.raises((KeyError, ValueError)):
        GoogleSigner(key)


def test_azure_gets_its_version_and_a_checksum_with_and_without_a_shared_key() -> None:
    signed = AzureSigner("account", base64.b64encode(b"key").decode(), lambda: NOW)(
        request("https://account.blob.core.windows.net/c/b", b"x")
    )
    plain = sign_with_query(request("https://account.blob.core.windows.net/c/b", b"x"))
    assert signed["x-ms-version"] == plain["x-ms-version"]
    assert signed["content-md5"] == plain["content-md5"] == "ndTkYSaMgDT1yFZOFVxnpg=="
    assert signed["authorization"].startswith("SharedKey account:")
    assert "authorization" not in plain
    assert sign_nothing(request("https://example.com/")) == {}
