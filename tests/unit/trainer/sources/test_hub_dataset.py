"""Datasets of a hub: the files of a split, and every error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.contract.run_spec import HubDatasetSource
from finetune_trainer.contract.run_spec import Limits as RunLimits
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.sources.dataset import Fetched, fetch_dataset
from finetune_trainer.sources.retry import RetryPolicy

from tests.support.servers.loopback import COMMIT, TOKEN, Hub, http_server

CONFIGS = """---
license: apache-2.0
configs:
- config_name: one
  data_files:
  - split: train
    path: ["a/first.jsonl", "a/second*.jsonl"]
  - split: test
    path: a/third.jsonl
- config_name: two
  default: true
  data_files: b/*.jsonl
---
# A dataset
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub("datasets", {"train.jsonl": b"rows"}, "org/data")
    with http_server(hub, host="127.0.0.1") as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        monkeypatch.setattr(RetryPolicy, "pause", lambda *_: 0.0)
        yield hub


def fetch(
    folder: Path, *, size: int = 10**6, environment: dict[str, str] | None = None, **members: Any
) -> Fetched:
    source = HubDatasetSource(
        **{"kind": "HuggingFace", "repository": "org/data", "revision": "main"} | members
    )
    limits = RunLimits(
        dataset_bytes=size, download_seconds=60, allow_private_addresses=False, retry_seconds=2
    )
    return fetch_dataset(source, "dataset", limits, folder, lambda _done, _total: None, environment or {})


def names(fetched: Fetched) -> list[str]:
    return [str(path).partition(f"{COMMIT}/")[2] for path in fetched.paths]


def rejection(folder: Path, **options: Any) -> StageError:
    with pytest.raises(StageError) as caught:
        fetch(folder, **options)
    return caught.value


@pytest.mark.parametrize(
    ("files", "split", "expected"),
    [
        (["train.jsonl", "test.jsonl"], "train", ["train.jsonl"]),
        (["train.jsonl", "test.jsonl"], "test", ["test.jsonl"]),
        (["rows.csv"], "train", ["rows.csv"]),
        (["rows.jsonl.gz", "README.md"], "train", ["rows.jsonl.gz"]),
        (
            [
                "data/train-00001-of-00002.parquet",
                "data/train-00000-of-00002.parquet",
                "data/test-00000-of-00001.parquet",
            ],
            "train",
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
        ),
        (
            ["train/b.parquet", "train/a.parquet", "validation/c.parquet"],
            "train",
            ["train/a.parquet", "train/b.parquet"],
        ),
        (["train/b.parquet", "validation/c.parquet"], "validation", ["validation/c.parquet"]),
        (["my-dataset-dev.json", "my-dataset-train.json"], "validation", ["my-dataset-dev.json"]),
    ],
)
def test_usual_layouts_are_resolved_as_the_library_does(
    hub: Hub, tmp_path: Path, files: list[str], split: str, expected: list[str]
) -> None:
    hub.files = {name: name.encode() for name in files}
    fetched = fetch(tmp_path, split=split)
    assert names(fetched) == expected
    assert [path.read_text() for path in fetched.paths] == expected
    size = sum(map(len, expected))
    assert fetched.identity == {
        "kind": "HuggingFace",
        "repository": "org/data",
        "commit": COMMIT,
        "files": expected,
        "bytes": size,
    }


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({}, ["b/only.jsonl"]),
        ({"configuration": "one"}, ["a/first.jsonl", "a/second-1.jsonl", "a/second-2.jsonl"]),
        ({"configuration": "one", "split": "test"}, ["a/third.jsonl"]),
        ({"configuration": "two"}, ["b/only.jsonl"]),
        ({"path": "a/third.jsonl"}, ["a/third.jsonl"]),
    ],
)
def test_the_configurations_of_the_card_are_used(
    hub: Hub, tmp_path: Path, members: dict[str, Any], expected: list[str]
) -> None:
    paths = [
        "a/first.jsonl",
        "a/second-2.jsonl",
        "a/second-1.jsonl",
        "a/third.jsonl",
        "b/only.jsonl",
        "c/not.jsonl",
    ]
    hub.files = {"README.md": CONFIGS.encode(), **dict.fromkeys(paths, b"rows")}
    assert names(fetch(tmp_path, **members)) == expected


@pytest.mark.parametrize(
    ("members", "listed"),
    [
        ({"split": "dev"}, "train"),
        ({"split": "train[:10%]"}, "train"),
        ({"configuration": "three"}, "one, two"),
        ({"configuration": "one", "split": "validation"}, "test, train"),
        ({"path": "a/none.jsonl"}, "a/first.jsonl"),
    ],
)
def test_a_missing_name_is_not_found_and_the_existing_names_are_listed(
    hub: Hub, tmp_path: Path, members: dict[str, str], listed: str
) -> None:
    hub.files = {
        "README.md": CONFIGS.encode(),
        "a/first.jsonl": b"",
        "a/second.jsonl": b"",
        "a/third.jsonl": b"",
        "b/x.jsonl": b"",
    }
    error = rejection(tmp_path, **members)
    assert error.reason is Reason.DATASET_NOT_FOUND
    assert listed in error.message


def test_several_configurations_without_a_default_require_a_choice(hub: Hub, tmp_path: Path) -> None:
    card = CONFIGS.replace("  default: true\n", "").encode()
    hub.files = {
        "README.md": card,
        "a/first.jsonl": b"",
        "a/second1.jsonl": b"",
        "a/third.jsonl": b"",
        "b/x.jsonl": b"",
    }
    error = rejection(tmp_path)
    assert error.reason is Reason.DATASET_NOT_FOUND
    assert "one, two" in error.message


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"README.md": b"# nothing"},
        {"data.py": b"import os", "rows.jsonl": b""},
        {"picture.png": b"", "other.png": b""},
        {"text.txt": b""},
        {"archive.zip": b"no zip"},
        {"README.md": b"---\nconfigs: 5\n---\n", "x.jsonl": b""},
        {"README.md": b"---\nconfigs: [1\n---\n", "x.jsonl": b""},
        {"README.md": b"---\nconfigs:\n- data_files: x.jsonl\n---\n", "x.jsonl": b""},
        {"README.md": b"---\nconfigs:\n- config_name: a\n  data_files: none/*\n---\n", "x.jsonl": b""},
        {
            "README.md": b"---\nconfigs:\n- config_name: a\n  data_files: {train: {deep: 5}}\n---\n",
            "x.jsonl": b"",
        },
    ],
)
def test_repositories_without_readable_rows_are_not_found(
    hub: Hub, tmp_path: Path, files: dict[str, bytes]
) -> None:
    """The repository has no files, a loading script (never run), pictures, plain text, or empty metadata."""
    hub.files = files
    assert rejection(tmp_path).reason is Reason.DATASET_NOT_FOUND


@pytest.mark.parametrize(
    "pattern",
    [
        "https://localhost/x.jsonl",
        "/etc/passwd",
        "../../x.jsonl",
        "~/x",
        "zip://x.jsonl::http://localhost/x.zip",
    ],
)
def test_a_card_cannot_name_files_elsewhere(hub: Hub, tmp_path: Path, pattern: str) -> None:
    card = f"---\nconfigs:\n- config_name: a\n  data_files:\n  - split: train\n    path: ['{pattern}']\n---\n"
    hub.files = {"README.md": card.encode(), "x.jsonl": b""}
    error = rejection(tmp_path)
    assert error.reason is Reason.DATASET_NOT_FOUND
    assert "inside the repository" in error.message


def test_names_that_lead_out_of_the_folder_are_not_used(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"../../escaped.jsonl": b"", "/absolute.jsonl": b"", "train.jsonl": b"rows"}
    assert names(fetch(tmp_path)) == ["train.jsonl"]
    assert rejection(tmp_path, path="../../escaped.jsonl").reason is Reason.DATASET_NOT_FOUND


@pytest.mark.parametrize(
    "members", [{"repository": "org/other"}, {"revision": "v2"}, {"repository": "not a name"}]
)
def test_missing_repositories_and_revisions_are_not_found(
    hub: Hub, tmp_path: Path, members: dict[str, str]
) -> None:
    assert rejection(tmp_path, **members).reason is Reason.DATASET_NOT_FOUND
    assert hub.files


def test_a_gated_repository_needs_the_token_of_its_variable(hub: Hub, tmp_path: Path) -> None:
    hub.gated = True
    assert rejection(tmp_path).reason is Reason.DATASET_ACCESS_DENIED
    assert fetch(tmp_path, token_variable="HUB", environment={"HUB": TOKEN}).paths[0].read_bytes() == b"rows"
    wrong = rejection(tmp_path / "wrong", token_variable="HUB", environment={"HUB": "hf_wrong"})
    assert wrong.reason is Reason.DATASET_ACCESS_DENIED
    assert "hf_wrong" not in wrong.message


def test_an_outage_is_survived_or_named(hub: Hub, tmp_path: Path) -> None:
    hub.failures = 1
    assert fetch(tmp_path).paths[0].read_bytes() == b"rows"
    hub.failures = 10_000
    assert rejection(tmp_path / "again").reason is Reason.DATASET_UNAVAILABLE


def test_too_many_bytes_are_rejected_before_and_during_the_download(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"train.jsonl": b"x" * 1000}
    assert rejection(tmp_path, size=999).reason is Reason.DATASET_TOO_LARGE
    assert not any("resolve" in path for path in hub.paths)
    hub.information = (
        b'{"id": "org/data", "sha": "%s", "siblings": [{"rfilename": "train.jsonl", "size": 1}]}'
        % (COMMIT.encode())
    )
    assert rejection(tmp_path, size=999).reason is Reason.DATASET_TOO_LARGE
