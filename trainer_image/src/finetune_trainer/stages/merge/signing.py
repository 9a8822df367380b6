"""The key that signs the statement over published files: ECDSA with P-256 and SHA-256, from a PEM file."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_MAXIMUM_BYTES = 64 * 1024


class SigningKey:
    """A private key. `hint` is the digest of its public key's PEM, by which model-signing recognizes it."""

    def __init__(self, private: EllipticCurvePrivateKey) -> None:
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 -- only signed runs need it

        self._private = private
        self.public_pem = private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.hint = hashlib.sha256(self.public_pem).hexdigest()

    def sign(self, message: bytes) -> bytes:
        """Return the DER signature. It is deterministic (RFC 6979), so a repeated publication has the same bytes."""
        from cryptography.hazmat.primitives import hashes  # noqa: PLC0415 -- see above
        from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 -- see above

        return self._private.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))


def read_signing_key(path: Path) -> SigningKey:
    """Read an unencrypted PEM key of the curve P-256, in the form of PKCS#8 or SEC 1.

    Raises StageError(DestinationUnwritable) if there is none, so that MERGE waits and keeps the trained adapter. The message
    has nothing of the file's content.
    """
    # The import is late: only signed runs need the package.
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    try:
        with path.open("rb") as file:
            content = file.read(_MAXIMUM_BYTES)
    except OSError as error:
        raise _unusable(f"no readable file ({error.strerror})") from error
    try:
        key = load_pem_private_key(content, password=None)
    except TypeError:
        raise _unusable("a key with a passphrase") from None
    except (ValueError, UnsupportedAlgorithm):
        raise _unusable("a file that is no private key in PEM") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        found = (
            f"the curve {key.curve.name}"
            if isinstance(key, ec.EllipticCurvePrivateKey)
            else "another kind of key"
        )
        raise _unusable(found)
    return SigningKey(key)


def _unusable(found: str) -> StageError:
    return StageError(
        Reason.DESTINATION_UNWRITABLE,
        "output.signing must name a Secret's key with an unencrypted ECDSA key of the curve P-256 in PEM, found "
        f"{found}; correct the Secret, for example with `openssl ecparam -genkey -name prime256v1 -noout`. Nothing is "
        "published without the signature",
    )
