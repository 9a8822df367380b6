"""Server with the hub's API inside the cluster; its models have configs but only empty weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from devcluster import product
from devcluster.images import PRODUCT_ROOT
from devcluster.kubectl import Kubectl

from tests.support.e2e.server_pods import await_server, server_pod
from tests.support.repository import ROOT

NAME = "hub"
REPOSITORY = "org/model"
PORT = 8000
SERVER = ROOT / "tests" / "support" / "servers" / "model_hub.py"
SHARD_BYTES = 4_900_000_000

# Weight files are sparse: they have a size but no content. The log gets the counts of requests, one line per second.
_PROGRAM = f"""
import json, sys, time
from pathlib import Path
sys.path.insert(0, "/volume/server")
from model_hub import ModelHub, serving
model = Path("/volume/model")
for name in set(json.loads((model / "model.safetensors.index.json").read_text())["weight_map"].values()):
    with (model / name).open("wb") as file:
        file.truncate({SHARD_BYTES})
hub = ModelHub(model)
with serving(hub, "0.0.0.0", {PORT}):
    while True:
        print(json.dumps(hub.requests), flush=True)
        time.sleep(1)
"""


@dataclass(frozen=True)
class Hub:
    """A running server; `endpoint` is its URL for pods."""

    kubectl: Kubectl
    endpoint: str

    def requests(self) -> dict[str, int]:
        """Return the number of requests for each file."""
        counts: dict[str, int] = json.loads(self.kubectl("logs", NAME, "--tail=1"))
        return counts


def write_model_of_shape(folder: Path, config: dict[str, Any], tokenizer: Path, shards: int) -> None:
    """Create a hub's model folder without weights: `config`, a tokenizer, and an index of `shards` files."""
    folder.mkdir(parents=True)
    names = [f"model-{number:05d}-of-{shards:05d}.safetensors" for number in range(1, shards + 1)]
    index = {
        "metadata": {"total_size": shards * SHARD_BYTES},
        "weight_map": {f"part.{number}.weight": name for number, name in enumerate(names)},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((tokenizer / name).read_bytes())


@contextmanager
def hub_server(kubectl: Kubectl, image: str, model: Path) -> Iterator[Hub]:
    """Serve the folder `model` from a pod in kubectl's namespace for the duration of a `with` block."""
    # The thin image has the checkout's interpreter, the real image a separate one.
    python = f"$(command -v {PRODUCT_ROOT}/.venv/bin/python || command -v python3)"
    start = f'exec "{python}" -c "$PROGRAM"'
    with server_pod(kubectl, NAME, image, start=start, port=PORT, env={"PROGRAM": _PROGRAM}):
        with TemporaryDirectory() as folder:
            (Path(folder) / SERVER.name).write_bytes(SERVER.read_bytes())
            product.fill_volume(kubectl, NAME, Path(folder), "server")
        product.fill_volume(kubectl, NAME, model, "model")
        yield Hub(kubectl, f"http://{await_server(kubectl, NAME)}:{PORT}")
