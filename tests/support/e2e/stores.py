"""Real S3 server inside the cluster: versitygw in a pod, filled by the test process through a forwarded port."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import obstore
from devcluster.errors import DevClusterError
from devcluster.images import NONROOT
from devcluster.kubectl import Kubectl
from devcluster.layout import BIN, tool
from obstore.store import S3Store

from tests.support.e2e.server_pods import FOLDER, await_server, server_pod

NAME = "s3"
PORT = 7070
SERVER = BIN / "versitygw"
_FORWARDING = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+) ->")


@dataclass(frozen=True)
class ObjectStore:
    """A running S3 server; `endpoint` is its URL for pods, `forwarded` its URL for this process."""

    endpoint: str
    forwarded: str
    credentials: dict[str, str]

    def put(self, bucket: str, key: str, content: bytes) -> None:
        """Store one object."""
        obstore.put(self._client(self.forwarded, bucket), key, content)

    def download(self, bucket: str, prefix: str, folder: Path) -> None:
        """Write all objects below `prefix` to a folder."""
        client = self._client(self.forwarded, bucket)
        for batch in obstore.list(client, prefix=prefix):
            for entry in batch:
                target = folder / str(entry["path"]).removeprefix(f"{prefix}/")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(bytes(obstore.get(client, entry["path"]).bytes()))

    def signed_url(self, bucket: str, key: str) -> str:
        """Return a URL that lets pods read the object for an hour without credentials."""
        return str(obstore.sign(self._client(self.endpoint, bucket), "GET", key, timedelta(hours=1)))

    def _client(self, endpoint: str, bucket: str) -> S3Store:
        return S3Store(
            bucket,
            endpoint=endpoint,
            region="us-east-1",
            access_key_id=self.credentials["AWS_ACCESS_KEY_ID"],
            secret_access_key=self.credentials["AWS_SECRET_ACCESS_KEY"],
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )


@contextmanager
def s3_server(kubectl: Kubectl, image: str, buckets: list[str]) -> Iterator[ObjectStore]:
    """Run an S3 server with empty `buckets` in kubectl's namespace for the duration of a `with` block."""
    credentials = {
        "AWS_ACCESS_KEY_ID": "AKIA" + secrets.token_hex(8).upper(),
        # Like Amazon's keys: with characters that need escapes in queries and JSON.
        "AWS_SECRET_ACCESS_KEY": f"{secrets.token_hex(10)}/+{secrets.token_hex(10)}",
    }
    folders = " ".join(f"{FOLDER}/buckets/{bucket}" for bucket in buckets)
    start = f"mkdir -p {folders}; exec {FOLDER}/{SERVER.name} --port :{PORT} --quiet posix {FOLDER}/buckets"
    env = {
        "ROOT_ACCESS_KEY": credentials["AWS_ACCESS_KEY_ID"],
        "ROOT_SECRET_KEY": credentials["AWS_SECRET_ACCESS_KEY"],
    }
    with server_pod(kubectl, NAME, image, start=start, port=PORT, env=env):
        _send_server(kubectl)
        address = await_server(kubectl, NAME)
        with _forwarded_port(kubectl) as port:
            yield ObjectStore(f"http://{address}:{PORT}", f"http://127.0.0.1:{port}", credentials)


def _send_server(kubectl: Kubectl) -> None:
    if not os.access(SERVER, os.X_OK):
        raise DevClusterError(
            f"{SERVER} must exist, found none; run scripts/tools/build_go_tools.sh objectstore"
        )
    command = [
        str(tool("kubectl")), "--namespace", str(kubectl.namespace), "exec", "--stdin", NAME, "--",
        "tar", "-C", FOLDER, "-xf", "-",
    ]  # fmt: skip
    environment = {**os.environ, "KUBECONFIG": str(kubectl.kubeconfig)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as process:
        with tarfile.open(fileobj=process.stdin, mode="w|") as archive:
            archive.add(SERVER, arcname=SERVER.name, filter=_executable)
        if process.stdin is not None:
            process.stdin.close()
        if process.wait() != 0:
            raise DevClusterError(
                f"tar in pod {NAME} must unpack the server, it ended with {process.returncode}"
            )


def _executable(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = NONROOT
    entry.uname = entry.gname = ""
    entry.mode = 0o755
    return entry


@contextmanager
def _forwarded_port(kubectl: Kubectl) -> Iterator[int]:
    command = [str(tool("kubectl")), "--namespace", str(kubectl.namespace), "port-forward", f"pod/{NAME}",
               f":{PORT}", "--address=127.0.0.1"]  # fmt: skip
    environment = {**os.environ, "KUBECONFIG": str(kubectl.kubeconfig)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            line = process.stdout.readline() if process.stdout is not None else ""
            match = _FORWARDING.search(line)
            if match is None:
                raise DevClusterError(f"kubectl port-forward must print its port, found {line!r}")
            yield int(match[1])
        finally:
            process.terminate()
