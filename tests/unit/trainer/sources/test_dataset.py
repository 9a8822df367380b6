"""Each kind of dataset source."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetune_trainer.contract.run_spec import FileSource, Limits, UrlSource
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.dataset import fetch_dataset

from tests.support.servers.forward_proxy import ForwardProxy, proxying
from tests.support.servers.loopback import Script, http_server, status

LIMITS = Limits.model_validate({"datasetBytes": 100, "downloadSeconds": 10, "allowPrivateAddresses": False})


def test_a_mounted_file_stays_in_place(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"{}\n")
    heard: list[tuple[int, int | None]] = []
    source = FileSource.model_validate({"kind": "File", "path": str(path)})
    fetched = fetch_dataset(
        source, "training", LIMITS, tmp_path / "sources", lambda done, total: heard.append((done, total))
    )
    assert fetched.paths == (path,)
    assert fetched.identity == {"kind": "File", "bytes": 3}
    assert heard == [(3, 3)]
    assert not (tmp_path / "sources").exists()


@pytest.mark.parametrize("environment", [{}, {"DATASET_URL": "  "}])
def test_an_empty_url_variable_is_not_found(tmp_path: Path, environment: dict[str, str]) -> None:
    source = UrlSource.model_validate({"kind": "Url", "urlVariable": "DATASET_URL"})
    with pytest.raises(StageError, match="DATASET_URL") as caught:
        fetch_dataset(source, "training", LIMITS, tmp_path, lambda _done, _total: None, environment)
    assert caught.value.reason is Reason.DATASET_NOT_FOUND


def test_a_url_is_read_without_white_space_and_through_the_proxy_of_the_environment(tmp_path: Path) -> None:
    proxy = ForwardProxy()
    limits = LIMITS.model_copy(update={"allow_private_addresses": True})
    with http_server(Script([status(200, b"{}\n")]), host="127.0.0.1") as origin, proxying(proxy) as url:
        environment = {"DATASET_URL": f"\ufeff{origin}/rows \r\n", "HTTP_PROXY": url}
        source = UrlSource.model_validate({"kind": "Url", "urlVariable": "DATASET_URL"})
        fetched = fetch_dataset(source, "training", limits, tmp_path, lambda _done, _total: None, environment)
    assert fetched.paths[0].read_bytes() == b"{}\n"
    assert proxy.lines == [f"GET {origin}/rows HTTP/1.1"]
