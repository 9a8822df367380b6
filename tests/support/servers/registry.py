"""A real OCI registry (distribution) on loopback."""

from __future__ import annotations

import io
import json
import ssl
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from tests.support.servers.loopback import binary, free_port, running

USER, PASSWORD = "publisher", "pass-word-1"
_HTPASSWD = f"{USER}:$2b$04$TaFnbyD1pSoqpvn4wbC34uDyebBF.De1QtXCmbWqoopSZyV1vyjEG\n"
_CONFIG = """version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {folder}/blobs}}
http: {{addr: "127.0.0.1:{port}"}}
{auth}
"""


@contextmanager
def registry_server(folder: Path, *, sign_in: bool = False) -> Iterator[str]:
    """Run a registry with its data in `folder`; yields HOST:PORT. With `sign_in` it takes USER and PASSWORD alone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "htpasswd").write_text(_HTPASSWD)
    auth = f"auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}" if sign_in else ""
    port = free_port()
    (folder / "config.yml").write_text(_CONFIG.format(folder=folder, port=port, auth=auth))
    with running([binary("registry"), "serve", str(folder / "config.yml")], port, {}):
        yield f"127.0.0.1:{port}"


def pull(host: str, repository: str, tag: str, trust: ssl.SSLContext | None = None) -> dict[str, Any] | None:
    """Return the manifest or the index of a tag as JSON; None if there is none."""
    kinds = ("manifest", "index")
    accept = {"Accept": ", ".join(f"application/vnd.oci.image.{kind}.v1+json" for kind in kinds)}
    try:
        request = Request(f"{_root(host, trust)}/{repository}/manifests/{tag}", headers=accept)  # noqa: S310 -- as named
        with urlopen(request, context=trust) as response:  # noqa: S310 -- as named
            found: dict[str, Any] = json.load(response)
            return found
    except OSError:
        return None


def pull_image(
    host: str, repository: str, tag: str, architecture: str = "amd64", trust: ssl.SSLContext | None = None
) -> dict[str, Any]:
    """Return the manifest of an image as a runtime of this architecture chooses it."""
    index = pull(host, repository, tag, trust)
    assert index is not None
    (chosen,) = [
        each["digest"] for each in index["manifests"] if each["platform"]["architecture"] == architecture
    ]
    image = pull(host, repository, chosen, trust)
    assert image is not None
    return image


def unpack(
    host: str, repository: str, manifest: dict[str, Any], trust: ssl.SSLContext | None = None
) -> dict[str, bytes]:
    """Return the files in the layers of a manifest by path."""
    files: dict[str, bytes] = {}
    for layer in manifest["layers"]:
        content = io.BytesIO(pull_blob(host, repository, layer["digest"], trust))
        with tarfile.open(fileobj=content, mode="r:") as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is not None:
                    files[member.name] = file.read()
    return files


def pull_blob(host: str, repository: str, digest: str, trust: ssl.SSLContext | None = None) -> bytes:
    """Return the bytes of a blob."""
    with urlopen(f"{_root(host, trust)}/{repository}/blobs/{digest}", context=trust) as response:  # noqa: S310 -- as named
        content: bytes = response.read()
        return content


def _root(host: str, trust: ssl.SSLContext | None) -> str:
    """Return the address of all repositories; with `trust` the registry speaks TLS."""
    return f"{'http' if trust is None else 'https'}://{host}/v2"
