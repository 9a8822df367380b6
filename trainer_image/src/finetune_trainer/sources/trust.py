"""Certificate authorities that every client trusts: the system's, and those of the bundle of chart or job."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from pathlib import Path

import httpx

from finetune_trainer.contract.network import CA_BUNDLE
from finetune_trainer.errors import Reason, StageError

_LARGEST_BYTES = 4 << 20
_BEGIN = "-----BEGIN CERTIFICATE-----"
_CERTIFICATE = re.compile(rf"{_BEGIN}[^-]*-----END CERTIFICATE-----")
_DER = b"\x30\x82"


def read_bundle(environment: Mapping[str, str]) -> str | None:
    """Return the certificates of the bundles that `environment` names, as PEM without other text.

    Returns None if it names none. Raises StageError(InvalidNetworkSettings) if a file cannot be read, or if one of its
    certificates cannot be parsed.
    """
    names = [name.strip() for name in environment.get(CA_BUNDLE, "").split(":") if name.strip()]
    return "".join(_certificates(_read(Path(name))) for name in names) or None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_BYTES + 1)
    except FileNotFoundError as error:
        raise invalid_bundle(
            "no file, because the ConfigMap or Secret or its key is missing in the namespace"
        ) from error
    except OSError as error:
        raise invalid_bundle(f"a file that cannot be read ({error.strerror})") from error
    if len(content) > _LARGEST_BYTES:
        raise invalid_bundle(f"more than {_LARGEST_BYTES} bytes")
    return content


def _certificates(content: bytes) -> str:
    """Return the certificates of a file as PEM. Raises StageError if there is none or if one cannot be parsed."""
    if content.startswith(_DER):
        raise invalid_bundle("a certificate in DER; convert it with `openssl x509 -inform der`")
    text = content.decode("utf-8-sig", "replace")
    blocks = _CERTIFICATE.findall(text)
    if text.count(_BEGIN) != len(blocks):
        raise invalid_bundle("a certificate without its end")
    if not blocks:
        raise invalid_bundle("no certificate")
    for number, block in enumerate(blocks, start=1):
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=block)
        except (ssl.SSLError, ValueError) as error:
            raise invalid_bundle(f"certificate {number} of {len(blocks)} damaged") from error
    return "\n".join(blocks) + "\n"


def trusting_context(bundle: str | None) -> ssl.SSLContext:
    """Return a client's TLS context that trusts the system's authorities, and `bundle` (PEM) in addition."""
    context = httpx.create_ssl_context()
    context.load_default_certs()
    if bundle is not None:
        context.load_verify_locations(cadata=bundle)
    return context


def invalid_bundle(found: str) -> StageError:
    """Make the error for a bundle that cannot be used."""
    return StageError(
        Reason.INVALID_NETWORK_SETTINGS,
        f"the CA bundle must be a PEM file of at least one certificate, found {found}; correct the key that "
        "network.caBundle of the job or trainer.network.caBundle of the chart names",
    )
