"""Certificate authority of the cluster, one client certificate per identity, and the kubeconfig files.

Kubernetes reads a client certificate's common name as the user and its organizations as the groups. So every
component gets exactly the rights that RBAC and the Node authorizer give to its name.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from devcluster.layout import API_SERVICE_ADDRESS, NODE_ADDRESS, NODE_NAME

_LIFETIME = datetime.timedelta(days=30)
# Certificates must stay valid if the clock is set back a little while the cluster runs.
_BACKDATE = datetime.timedelta(hours=1)

PROVISIONER_USER = "devcluster:provisioner"
KUBELET_CLIENT_USER = "kube-apiserver-kubelet-client"

API_SERVER_NAMES = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)
API_SERVER_ADDRESSES = ("127.0.0.1", API_SERVICE_ADDRESS, NODE_ADDRESS)


@dataclass(frozen=True)
class Identity:
    """A client of the API server (or of the kubelet): its file name, user and groups."""

    file: str
    user: str
    groups: tuple[str, ...] = ()


ADMIN = Identity("admin", "devcluster:admin", ("system:masters",))
CONTROLLER_MANAGER = Identity("kube-controller-manager", "system:kube-controller-manager")
SCHEDULER = Identity("kube-scheduler", "system:kube-scheduler")
KUBELET = Identity("kubelet", f"system:node:{NODE_NAME}", ("system:nodes",))
PROXY = Identity("kube-proxy", "system:kube-proxy")
PROVISIONER = Identity("provisioner", PROVISIONER_USER)
KUBELET_CLIENT = Identity("apiserver-kubelet-client", KUBELET_CLIENT_USER)
IDENTITIES = (ADMIN, CONTROLLER_MANAGER, SCHEDULER, KUBELET, PROXY, PROVISIONER, KUBELET_CLIENT)


@dataclass(frozen=True)
class Credential:
    """A private key and its certificate, both PEM."""

    key: bytes
    certificate: bytes


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    # SEC 1: the API server reads elliptic-curve keys of ServiceAccounts in no other form.
    form = serialization.PrivateFormat.TraditionalOpenSSL
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


class Authority:
    """A certificate authority that lives as long as the object; `ca` holds its key and certificate as PEM."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "finetune-devcluster")])
        usage = x509.KeyUsage(
            digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
            data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        builder = self._builder(self._subject, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        certificate = builder.add_extension(usage, critical=True).sign(self._key, hashes.SHA256())
        self.ca = Credential(_key_pem(self._key), certificate.public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._subject).public_key(key)
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(authority, critical=False)
        return builder.not_valid_before(now - _BACKDATE).not_valid_after(now + _LIFETIME)

    def client(self, identity: Identity) -> Credential:
        """Issue a certificate that lets its holder act as `identity`."""
        names = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in identity.groups]
        subject = x509.Name([*names, x509.NameAttribute(NameOID.COMMON_NAME, identity.user)])
        return self._issue(subject, ExtendedKeyUsageOID.CLIENT_AUTH, [])

    def server(self, common_name: str, names: Sequence[str], addresses: Sequence[str]) -> Credential:
        """Issue a certificate for a TLS server with the DNS names `names` and the IP addresses `addresses`."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
        alternatives += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        return self._issue(subject, ExtendedKeyUsageOID.SERVER_AUTH, alternatives)

    def _issue(
        self, subject: x509.Name, use: x509.ObjectIdentifier, alternatives: list[x509.GeneralName]
    ) -> Credential:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(subject, key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return Credential(_key_pem(key), certificate.public_bytes(serialization.Encoding.PEM))


def kubeconfig(server: str, ca_certificate: bytes, user: str, credential: Credential | None) -> str:
    """Return a kubeconfig (JSON, which is YAML) with inline data; without `credential` it has no identity."""
    identity = {}
    if credential is not None:
        identity = {
            "client-certificate-data": base64.b64encode(credential.certificate).decode(),
            "client-key-data": base64.b64encode(credential.key).decode(),
        }
    cluster = {"server": server, "certificate-authority-data": base64.b64encode(ca_certificate).decode()}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "devcluster", "cluster": cluster}],
        "users": [{"name": user, "user": identity}],
        "contexts": [{"name": "devcluster", "context": {"cluster": "devcluster", "user": user}}],
        "current-context": "devcluster",
    }
    return json.dumps(document, indent=2) + "\n"


def write_private(path: Path, content: bytes) -> None:
    """Write `content` to a file that only the owner can ever read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_bytes(content)


def write_all(folder: Path, server: str) -> None:
    """Write a new authority, all server and client certificates and a kubeconfig per identity into `folder`.

    Files: `ca.crt`, `ca.key`, `service-accounts.key` (signs ServiceAccount tokens), `apiserver.*`, `kubelet-server.*`, and per
    identity `NAME.crt`, `NAME.key`, `NAME.kubeconfig` for the API server at the URL `server`.
    """
    authority = Authority()
    credentials = {identity.file: authority.client(identity) for identity in IDENTITIES}
    for identity in IDENTITIES:
        text = kubeconfig(server, authority.ca.certificate, identity.user, credentials[identity.file])
        write_private(folder / f"{identity.file}.kubeconfig", text.encode())
    credentials["ca"] = authority.ca
    credentials["apiserver"] = authority.server("kube-apiserver", API_SERVER_NAMES, API_SERVER_ADDRESSES)
    credentials["kubelet-server"] = authority.server(KUBELET.user, [NODE_NAME], [NODE_ADDRESS, "127.0.0.1"])
    for name, credential in credentials.items():
        write_private(folder / f"{name}.key", credential.key)
        (folder / f"{name}.crt").write_bytes(credential.certificate)
    write_private(folder / "service-accounts.key", _key_pem(ec.generate_private_key(ec.SECP256R1())))
