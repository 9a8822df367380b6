"""Reading YAML as kubectl would."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetune_cli.errors import UsageError
from finetune_cli.manifests import read_manifests

JOB = """
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: one}
spec: {training: {learningRate: 2e-4}}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_numbers_are_those_of_kubectl(tmp_path: Path) -> None:
    """YAML 1.1 readers take 2e-4 for a string; kubectl does not."""
    assert read_manifests(write(tmp_path, JOB)).spec == {"training": {"learningRate": 0.0002}}


def test_config_maps_and_secrets_beside_the_job_are_found(tmp_path: Path) -> None:
    text = (
        JOB
        + "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: data}\ndata: {rows: 'x'}\n"
        + "---\napiVersion: v1\nkind: Secret\nmetadata: {name: link}\ndata: {url: aHR0cHM6Ly94}\nstringData: {b: c}\n"
    )
    manifests = read_manifests(write(tmp_path, text))
    assert manifests.config_map_value("data", "rows") == b"x"
    assert manifests.secret_value("link", "url") == "https://x"
    assert manifests.secret_value("link", "b") == "c"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "must be YAML"),
        ("kind: ConfigMap\nmetadata: {name: x}", "must hold one FineTuneJob"),
        (JOB + "---" + JOB, "found one, one"),
        (JOB.replace("v1alpha1", "v9"), "apiVersion must be"),
        (JOB.replace("name: one", "labels: {}"), "metadata.name"),
        ("kind: ConfigMap\nmetadata: {name: s}\nbinaryData: {a: '%%'}\n---" + JOB, "must be base64"),
        ("kind: Secret\nmetadata: {name: s}\ndata: {url: '%%'}\n---" + JOB, "must be base64"),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_was_found(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_manifests(write(tmp_path, text))


def test_binary_data_and_broken_lines_of_base64_are_decoded_as_the_api_server_does(tmp_path: Path) -> None:
    text = (
        JOB
        + "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: data}\nbinaryData: {rows: 'KLUv/Q=='}\n"
        + "---\napiVersion: v1\nkind: Secret\nmetadata: {name: link}\ndata:\n  url: |\n    aHR0\n    cHM6Ly94\n"
    )
    manifests = read_manifests(write(tmp_path, text))
    assert manifests.config_map_value("data", "rows") == bytes.fromhex("28b52ffd")
    assert manifests.secret_value("link", "url") == "https://x"


def test_a_missing_object_names_those_that_are_there(tmp_path: Path) -> None:
    manifests = read_manifests(write(tmp_path, JOB))
    with pytest.raises(UsageError, match="ConfigMap 'data' must stand in the same file, found none"):
        manifests.config_map_value("data", "rows")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.yaml must be a readable file"):
        read_manifests(tmp_path / "absent.yaml")
