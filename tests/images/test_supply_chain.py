"""What a release says about its images: a list of their content and signatures, made and verified with the real tools."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scripts.release.package_chart import IMAGES, package
from scripts.release.provenance import NEEDED
from tests.support import built_images
from tests.support.built_images import SCRIPT, name_of, push, write_layout
from tests.support.repository import ROOT
from tests.support.servers.loopback import binary
from tests.support.servers.registry import registry_server

pytestmark = pytest.mark.full
PUSH_CHART = ROOT / "scripts/release/push_chart.sh"
SBOM, SIGN = ROOT / "scripts/release/sbom.sh", ROOT / "scripts/release/sign.sh"
SPDX_VALIDATOR = ROOT / ".cache" / "checkers" / "bin" / "pyspdxtools"
PASSWORD = {"COSIGN_PASSWORD": "pass-word-1"}
# Whoever asks another host than loopback gets an error at once.
NO_NETWORK = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9") | {"NO_PROXY": "127.0.0.1"}


def run(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command without a network, and return how it ended."""
    environment = {**os.environ, **PASSWORD, **NO_NETWORK, **variables}
    return subprocess.run(
        list(map(str, command)), check=False, capture_output=True, text=True, env=environment, cwd=ROOT
    )


def succeed(*command: str | Path, **variables: str) -> str:
    """Run a command that must succeed, and return what it printed."""
    ended = run(*command, **variables)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module", params=["operator", "trainer"])
def listed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The name of an image, and the list of its content."""
    built_images.built()
    folder = tmp_path_factory.mktemp(request.param)
    layout = write_layout(name_of(request.param), folder / "layout")
    file = folder / "sbom.spdx.json"
    succeed(
        SBOM, f"oci-dir:{layout}", f"docker.io/finetune/{request.param}", "0.1.0", file, TMPDIR=str(folder)
    )
    return request.param, file


def test_the_list_is_valid_spdx(listed: tuple[str, Path]) -> None:
    _, file = listed
    assert json.loads(file.read_text())["spdxVersion"] == "SPDX-2.3"
    succeed(SPDX_VALIDATOR, "--infile", file)


def test_the_list_has_every_locked_package_and_debians(listed: tuple[str, Path]) -> None:
    image, file = listed
    document = json.loads(file.read_text())
    found = {
        (package["name"].lower().replace("_", "-"), package.get("versionInfo"))
        for package in document["packages"]
    }
    lock = (ROOT / "requirements" / f"{image}.txt").read_text()
    pinned = {"aiohttp": "operator", "kopf": "operator", "torch": "trainer", "transformers": "trainer"}
    for name in (name for name, of in pinned.items() if of == image):
        (version,) = {
            line.split("==")[1].split()[0] for line in lock.splitlines() if line.startswith(f"{name}==")
        }
        assert (name, version) in found
    assert "finetune" in {name for name, _ in found}
    purls = [
        reference["referenceLocator"]
        for package in document["packages"]
        for reference in package.get("externalRefs", [])
        if reference["referenceType"] == "purl"
    ]
    assert sum(purl.startswith("pkg:pypi/") for purl in purls) > 15
    assert sum(purl.startswith("pkg:deb/debian/") for purl in purls) > 50


@dataclass(frozen=True)
class Signed:
    """A signed image in a registry: its repository, its digest, and the folder with the keys."""

    repository: str
    digest: str
    folder: Path
    storage: Path

    @property
    def reference(self) -> str:
        return f"{self.repository}@{self.digest}"

    def verify(self, reference: str = "", key: str = "cosign.pub") -> subprocess.CompletedProcess[str]:
        """Verify as docs/verify-release.md says, in this registry without TLS."""
        return run(
            binary("cosign"), "verify", "--key", self.folder / key, "--insecure-ignore-tlog", "--allow-http-registry",
            reference or self.reference,
        )  # fmt: skip

    def attested(self, kind: str, key: str = "cosign.pub") -> subprocess.CompletedProcess[str]:
        return run(
            binary("cosign"), "verify-attestation", "--key", self.folder / key, "--insecure-ignore-tlog",
            "--allow-http-registry", "--type", kind, self.reference,
        )  # fmt: skip


def keys(folder: Path) -> dict[str, str]:
    """Make a pair of keys in a folder, and return the variables of whoever signs."""
    succeed(binary("cosign"), "generate-key-pair", "--output-key-prefix", folder / "cosign")
    return {"COSIGN_KEY": str(folder / "cosign.key"), "COSIGN_ALLOW_HTTP": "1"}


def push_image(text: str, reference: str, folder: Path) -> str:
    """Build a small image with one file, push it, forget it here, and return its digest."""
    (folder / "file").write_text(text)
    container = built_images.buildah("from", "scratch").strip()
    built_images.buildah("add", "--quiet", container, str(folder / "file"), "/file")
    name = f"localhost/test/{text}:1"
    built_images.buildah("commit", "--quiet", "--rm", container, name)
    digest = push(name, reference, folder)
    built_images.buildah("rmi", name)
    return digest


@pytest.fixture
def signed(tmp_path: Path) -> Iterator[Signed]:
    """An image with a signature, a list of its content and its provenance, signed by the script of the release."""
    key = keys(tmp_path)
    succeed(binary("cosign"), "generate-key-pair", "--output-key-prefix", tmp_path / "other")
    (tmp_path / "sbom.json").write_text('{"spdxVersion": "SPDX-2.3"}')
    github = {name: f"value-of-{name.lower()}" for name in NEEDED}
    command = (
        sys.executable,
        "-m",
        "scripts.release.provenance",
        "operator/Dockerfile",
        "--base",
        f"python@sha256:{'c' * 64}",
    )
    (tmp_path / "provenance.json").write_text(
        succeed(*command, "--started", "2026-01-01T00:00:00Z", **github)
    )
    with registry_server(tmp_path / "registry") as host:
        digest = push_image("signed", f"{host}/team/operator:1", tmp_path)
        made = Signed(f"{host}/team/operator", digest, tmp_path, tmp_path / "registry")
        succeed(
            SIGN, made.reference, f"spdxjson={tmp_path}/sbom.json", f"slsaprovenance1={tmp_path}/provenance.json",
            **key,
        )  # fmt: skip
        yield made


def statement(answer: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the signed statement that cosign prints."""
    assert answer.returncode == 0, answer.stderr
    found: dict[str, Any] = json.loads(base64.b64decode(json.loads(answer.stdout)["payload"]))
    return found


def test_the_public_key_verifies_image_list_and_provenance_without_a_network(signed: Signed) -> None:
    assert signed.verify().returncode == 0
    assert signed.verify(f"{signed.repository}:1").returncode == 0
    listed, provenance = statement(signed.attested("spdxjson")), statement(signed.attested("slsaprovenance1"))
    for each in (listed, provenance):
        assert {f"sha256:{subject['digest']['sha256']}" for subject in each["subject"]} == {signed.digest}
    assert (
        provenance["predicate"]["buildDefinition"]["externalParameters"]["dockerfile"]
        == "operator/Dockerfile"
    )


def test_a_copy_through_a_folder_keeps_digest_signature_and_attestations(
    signed: Signed, tmp_path: Path
) -> None:
    """As docs/air-gap.md copies the images of a release into a network without the internet."""
    carried = f"{tmp_path}/operator:0.1.0"
    succeed(
        binary("oras"), "cp", "--recursive", "--from-plain-http", "--to-oci-layout", signed.reference, carried
    )
    with registry_server(tmp_path / "inside") as host:
        name = f"{host}/finetune/operator"
        succeed(
            binary("oras"),
            "cp",
            "--recursive",
            "--from-oci-layout",
            "--to-plain-http",
            carried,
            f"{name}:0.1.0",
        )
        copy = Signed(name, signed.digest, signed.folder, tmp_path / "inside")
        assert copy.verify(f"{name}:0.1.0").returncode == 0
        assert copy.verify().returncode == 0
        assert statement(copy.attested("spdxjson")) == statement(signed.attested("spdxjson"))
        assert copy.attested("slsaprovenance1").returncode == 0


def test_another_key_verifies_nothing(signed: Signed) -> None:
    assert signed.verify(key="other.pub").returncode != 0
    assert signed.attested("spdxjson", key="other.pub").returncode != 0


def test_an_image_without_a_signature_under_the_same_tag_is_refused(signed: Signed, tmp_path: Path) -> None:
    tag = f"{signed.repository}:1"
    digest = push_image("tampered", tag, tmp_path)
    assert digest != signed.digest
    refused = signed.verify(tag)
    assert refused.returncode != 0
    assert "no signatures found" in refused.stderr
    assert signed.verify().returncode == 0


@pytest.mark.parametrize("changed", ["manifest", "layer"])
def test_content_that_the_registry_changes_under_a_signed_digest_cannot_be_pulled(
    signed: Signed, changed: str
) -> None:
    """The signature holds for the digest, and whoever pulls compares it with the bytes."""
    pull = (
        SCRIPT,
        "buildah",
        "pull",
        "--quiet",
        "--policy",
        "always",
        "--tls-verify=false",
        signed.reference,
    )
    (manifest,) = signed.storage.glob(f"blobs/**/{signed.digest.removeprefix('sha256:')}/data")
    layer = json.loads(manifest.read_text())["layers"][0]["digest"].removeprefix("sha256:")
    succeed(*pull)
    built_images.buildah("rmi", "--force", signed.reference)
    (blob,) = [manifest] if changed == "manifest" else signed.storage.glob(f"blobs/**/{layer}/data")
    content = bytearray(blob.read_bytes())
    content[-2] ^= 1
    blob.write_bytes(content)
    assert run(*pull).returncode != 0


def test_a_tag_alone_is_not_signed(signed: Signed) -> None:
    refused = run(SIGN, f"{signed.repository}:1", COSIGN_KEY=str(signed.folder / "cosign.key"))
    assert refused.returncode != 0
    assert "must end with @sha256:" in refused.stderr


def test_the_pushed_chart_is_signed_and_its_tag_verifies(tmp_path: Path) -> None:
    """As the release pushes it and as docs/verify-release.md verifies it, with an image of another digest refused."""
    images = {
        name: f"docker.io/finetune/{name}@sha256:{letter * 64}"
        for name, letter in zip(IMAGES, "ab", strict=True)
    }
    archive = package(tmp_path / "dist", images, "## 0.1.0\n### Added\n- A thing.\n")
    key = keys(tmp_path)
    with registry_server(tmp_path / "registry") as host:
        reference = succeed(PUSH_CHART, archive, REGISTRY=f"{host}/team", **key).strip()
        assert reference.startswith(f"{host}/team/finetune-operator@sha256:")
        verify = (
            "verify",
            "--key",
            tmp_path / "cosign.pub",
            "--insecure-ignore-tlog",
            "--allow-http-registry",
        )
        succeed(binary("cosign"), *verify, f"{host}/team/finetune-operator:0.1.0")
        package(
            tmp_path / "dist", {**images, "trainer": images["operator"]}, "## 0.1.0\n### Added\n- A thing.\n"
        )
        repository = f"oci://{host}/team"
        succeed(ROOT / ".cache/bin/helm", "push", archive, repository, "--plain-http")
        refused = run(binary("cosign"), *verify, f"{host}/team/finetune-operator:0.1.0")
        assert refused.returncode != 0
        assert "no signatures found" in refused.stderr


def test_the_files_of_a_release_have_one_signed_list_of_digests(tmp_path: Path) -> None:
    key, dist = keys(tmp_path), tmp_path / "dist"
    (dist / "folder").mkdir(parents=True)
    (dist / "verify.py").write_text("print()\n")
    (dist / "folder" / "with space").write_text("content\n")
    succeed(SIGN, dist, **key)
    assert (dist / "cosign.pub").read_text() == (tmp_path / "cosign.pub").read_text()
    bundle = dist / "SHA256SUMS.sigstore.json"
    signed_list: tuple[str | Path, ...] = (
        *("verify-blob", "--key", dist / "cosign.pub", "--insecure-ignore-tlog"),
        *("--bundle", bundle, dist / "SHA256SUMS"),
    )
    succeed(binary("cosign"), *signed_list)
    check = ("sha256sum", "--check", "SHA256SUMS")
    assert subprocess.run(check, cwd=dist, check=False, capture_output=True).returncode == 0
    assert len((dist / "SHA256SUMS").read_text().splitlines()) == 3
    (dist / "verify.py").write_text("print('intact')\n")
    assert subprocess.run(check, cwd=dist, check=False, capture_output=True).returncode == 1
    with (dist / "SHA256SUMS").open("a") as file:
        file.write(f"{'0' * 64}  another\n")
    assert run(binary("cosign"), *signed_list).returncode != 0
    succeed(SIGN, dist, **key)
    succeed(binary("cosign"), *signed_list)
