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


def test_numbers_are_read_like_in_kubectl(tmp_path: Path) -> None:
    """YAML 1.1 readers read 2e-4 as a string, but kubectl reads a number."""
    assert read_manifests(write(tmp_path, JOB)).spec == {"training": {"learningRate": 0.0002}}


def test_config_maps_and_secrets_in_the_same_file_are_found(tmp_path: Path) -> None:
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
        ("kind: ConfigMap\nmetadata: {name: x}", "must have exactly one FineTuneJob"),
        (JOB + "---" + JOB, "found one, one"),
        (JOB.replace("v1alpha1", "v9"), "apiVersion must be"),
        (JOB.replace("name: one", "labels: {}"), "metadata.name"),
        ("kind: ConfigMap\nmetadata: {name: s}\nbinaryData: {a: '%%'}\n---" + JOB, "must be base64"),
        ("kind: Secret\nmetadata: {name: s}\ndata: {url: '%%'}\n---" + JOB, "must be base64"),
    ],
)
def test_an_unusable_file_is_rejected_with_the_reason(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_manifests(write(tmp_path, text))


def test_binary_data_and_base64_with_line_breaks_are_decoded(tmp_path: Path) -> None:
    text = (
        JOB
        + "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: data}\nbinaryData: {rows: 'KLUv/Q=='}\n"
        + "---\napiVersion: v1\nkind: Secret\nmetadata: {name: link}\ndata:\n  url: |\n    aHR0\n    cHM6Ly94\n"
    )
    manifests = read_manifests(write(tmp_path, text))
    assert manifests.config_map_value("data", "rows") == bytes.fromhex("28b52ffd")
    assert manifests.secret_value("link", "url") == "https://x"


def test_a_missing_object_is_named_with_the_existing_ones(tmp_path: Path) -> None:
    manifests = read_manifests(write(tmp_path, JOB))
    with pytest.raises(UsageError, match="ConfigMap 'data' must be in the same file, found none"):
        manifests.config_map_value("data", "rows")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.yaml must be a readable file"):
        read_manifests(tmp_path / "absent.yaml")
