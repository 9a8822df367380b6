"""A real OCI registry (distribution) on loopback."""

from __future__ import annotations

import json
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


def pull(host: str, repository: str, tag: str) -> dict[str, Any] | None:
    """Return the manifest of a tag as JSON; None if there is none."""
    accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
    try:
        with urlopen(Request(f"http://{host}/v2/{repository}/manifests/{tag}", headers=accept)) as response:
            found: dict[str, Any] = json.load(response)
            return found
    except OSError:
        return None


def pull_blob(host: str, repository: str, digest: str) -> bytes:
    """Return the bytes of a blob."""
    with urlopen(f"http://{host}/v2/{repository}/blobs/{digest}") as response:
        content: bytes = response.read()
        return content
