"""A hub inside the cluster that takes files. Its pod runs this module from the checkout, so it needs the dev cluster."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from devcluster import product
from devcluster.images import PRODUCT_ROOT
from devcluster.kubectl import Kubectl

from tests.support.e2e.server_pods import FOLDER, await_server, server_pod
from tests.support.servers.loopback import http_server
from tests.support.servers.writable_hub import TOKEN, WritableHub

NAME = "writable-hub"
PORT, STORAGE_PORT = 8000, 8001
_SEEN = "seen"
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class HubPod:
    """A running hub; `endpoint` is its URL for pods."""

    kubectl: Kubectl
    endpoint: str
    token: str = TOKEN

    def download(self, commit: str, folder: Path) -> None:
        """Write the files that a reader sees at the head `commit` of a branch to a folder."""
        place = f"{FOLDER}/{_SEEN}/{commit}"
        self.kubectl("exec", NAME, "--", "sh", "-c", f"until [ -e {place} ]; do sleep 0.2; done")
        product.read_volume(self.kubectl, NAME, f"{_SEEN}/{commit}", folder)


@contextmanager
def hub_pod(kubectl: Kubectl, image: str) -> Iterator[HubPod]:
    """Run a hub without repositories in kubectl's namespace for the duration of a `with` block."""
    paths = (".", "tools/devcluster", "trainer_image/src", "operator/src", "cli/src")
    environment = {"PYTHONPATH": ":".join(f"{PRODUCT_ROOT}/{path}" for path in paths)}
    start = f"exec {PRODUCT_ROOT}/.venv/bin/python -m {__name__}"
    with server_pod(kubectl, NAME, image, start=start, port=PORT, env=environment):
        yield HubPod(kubectl, f"http://{await_server(kubectl, NAME)}:{PORT}")


def _serve() -> None:
    """Serve on all addresses of the pod, and write each new commit to a folder."""
    hub = WritableHub()
    address = socket.gethostbyname(socket.gethostname())
    seen = Path(FOLDER) / _SEEN
    with (
        http_server(hub.answer, bind=("", PORT)),
        http_server(hub.answer_storage, bind=("", STORAGE_PORT)),
    ):
        hub.storage = f"http://{address}:{STORAGE_PORT}"
        while True:
            _write_commits(hub, seen)
            time.sleep(_POLL_SECONDS)


def _write_commits(hub: WritableHub, folder: Path) -> None:
    with hub.lock:
        commits = {
            commit: tree
            for repository in hub.repositories.values()
            for commit, tree in repository.commits.items()
        }
    for commit, tree in commits.items():
        final = folder / commit
        if final.exists():
            continue
        partial = folder / f"{commit}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        for name, entry in tree.items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(entry.content)
        partial.rename(final)


if __name__ == "__main__":
    os.umask(0o022)
    _serve()
