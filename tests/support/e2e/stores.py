"""Real S3 server inside the cluster: versitygw in a pod, filled by the test process through a forwarded port."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import obstore
from devcluster.kubectl import Kubectl
from devcluster.layout import BIN
from obstore.store import S3Store

from tests.support.e2e.server_pods import (
    FOLDER,
    await_server,
    forwarded_port,
    send_program,
    server_pod,
)

NAME = "s3"
PORT = 7070
SERVER = BIN / "versitygw"


@dataclass(frozen=True)
class ObjectStore:
    """A running S3 server; `endpoint` is its URL for pods, `forwarded` its URL for this process."""

    kubectl: Kubectl
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

    def rename_bucket(self, name: str, new: str) -> None:
        """Rename a bucket, so that requests for its old name find none."""
        self.kubectl("exec", NAME, "--", "mv", f"{FOLDER}/buckets/{name}", f"{FOLDER}/buckets/{new}")

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
        send_program(kubectl, NAME, SERVER)
        address = await_server(kubectl, NAME)
        with forwarded_port(kubectl, NAME, PORT) as port:
            yield ObjectStore(kubectl, f"http://{address}:{PORT}", f"http://127.0.0.1:{port}", credentials)
