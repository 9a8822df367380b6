"""A real OCI registry inside the cluster, with a certificate of an authority of its own."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from devcluster import product
from devcluster.kubectl import Kubectl
from devcluster.layout import BIN

from tests.support.e2e.server_pods import (
    FOLDER,
    address_of,
    await_server,
    forwarded_port,
    send_program,
    server_pod,
)
from tests.support.servers import registry

NAME = "registry"
PORT = 5000
CREDENTIALS = {"username": registry.USER, "password": registry.PASSWORD}
_CONFIG = f"""version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {FOLDER}/blobs}}
http:
  addr: ":{PORT}"
"""
_TLS = f"  tls: {{certificate: {FOLDER}/server/tls.crt, key: {FOLDER}/server/tls.key}}\n"


@dataclass(frozen=True)
class Registry:
    """A running registry. `host` is its address for pods, `forwarded` that for this process, `authority` a PEM."""

    host: str
    forwarded: str
    authority: str

    def files(self, repository: str, tag: str, *, image: bool = False) -> dict[str, bytes]:
        """Return the unpacked files of a tag by path."""
        trust = ssl.create_default_context(cadata=self.authority)
        found = (
            registry.pull_image(self.forwarded, repository, tag, trust=trust)
            if image
            else registry.pull(self.forwarded, repository, tag, trust)
        )
        assert found is not None
        return registry.unpack(self.forwarded, repository, found, trust)


@contextmanager
def registry_server(kubectl: Kubectl, image: str, *, tls: bool = True) -> Iterator[Registry]:
    """Run an empty registry in kubectl's namespace for the duration of a `with` block; without TLS it speaks http."""
    start = f"exec {FOLDER}/registry serve {FOLDER}/server/config.yml"
    with server_pod(kubectl, NAME, image, start=start, port=PORT, env={}):
        address = address_of(kubectl, NAME)
        authority, key = _certificate(address)
        with TemporaryDirectory() as folder:
            config = _CONFIG + (_TLS if tls else "")
            for name, text in {"config.yml": config, "tls.crt": authority, "tls.key": key}.items():
                (Path(folder) / name).write_text(text)
            product.fill_volume(kubectl, NAME, Path(folder), "server")
        send_program(kubectl, NAME, BIN / "registry")
        await_server(kubectl, NAME)
        with forwarded_port(kubectl, NAME, PORT) as port:
            yield Registry(f"{address}:{PORT}", f"127.0.0.1:{port}", authority)


def _certificate(address: str) -> tuple[str, str]:
    """Return a certificate for two addresses, signed by itself, and its key, both as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "registry of the tests")])
    now = datetime.now(UTC)
    addresses: list[Any] = [x509.IPAddress(ip_address(each)) for each in (address, "127.0.0.1")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM).decode(), private.decode()
