from __future__ import annotations

from pathlib import Path

import pytest
from finetune_trainer.destinations.local_artifact import read_artifact
from finetune_trainer.errors import Reason, StageError

from tests.support.publishing import OTHER, SPEC, make_artifact, make_folder


def test_files_without_an_entry_in_the_manifest_are_published_too(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "verify.py").write_text("print()")
    (folder / ".finetune-staging").mkdir()
    (folder / ".finetune-staging" / "leftover").write_text("x")
    artifact = read_artifact(folder, SPEC)
    names = [file.name for file in artifact.files]
    assert "verify.py" in names
    assert names == sorted(names)
    assert not {"manifest.json", ".finetune-staging/leftover"} & set(names)
    assert artifact.manifest == (folder / "manifest.json").read_bytes()
    assert artifact.bytes == sum(file.path.stat().st_size for file in artifact.files) + len(artifact.manifest)


@pytest.mark.parametrize("fault", ["missing", "shorter"])
def test_a_damaged_file_is_named_and_not_copied(tmp_path: Path, fault: str) -> None:
    path = make_folder(tmp_path) / "merged" / "config.json"
    if fault == "missing":
        path.unlink()
    else:
        path.write_text("{")
    with pytest.raises(StageError, match=r"merged/config\.json") as caught:
        read_artifact(tmp_path, SPEC)
    assert caught.value.reason is Reason.ARTIFACT_VERIFICATION_FAILED


def test_artifacts_of_another_spec_are_not_copied(tmp_path: Path) -> None:
    with pytest.raises(StageError):
        read_artifact(make_folder(tmp_path / "other", spec=OTHER), SPEC)
    with pytest.raises(StageError):
        read_artifact(tmp_path / "absent", SPEC)


def test_a_manifest_of_other_files_is_another_publication(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path)
    assert artifact.is_listed_by({"specHash": SPEC, "files": make_files(tmp_path)})
    assert not artifact.is_listed_by({"specHash": OTHER, "files": make_files(tmp_path)})
    assert not artifact.is_listed_by({"specHash": SPEC, "files": {}})
    assert not artifact.is_listed_by({})


def make_files(folder: Path) -> dict[str, object]:
    artifact = read_artifact(folder, SPEC)
    return {file.name: {"digest": file.digest, "bytes": file.bytes} for file in artifact.files}
