from __future__ import annotations

import json
from pathlib import Path

import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.stages.merge.publish import discard_staging, open_staging, publish, seal
from finetune_trainer.workspace.destination import MANIFEST, OWNER

SPEC, OTHER = "sha256:" + "0" * 64, "sha256:" + "1" * 64


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def stage(destination: Path, content: str = "weights") -> Path:
    staging = open_staging(destination, SPEC)
    (staging / "adapter").mkdir()
    (staging / "adapter" / "model.safetensors").write_text(content)
    return staging


def test_nothing_is_visible_until_everything_is_published(tmp_path: Path) -> None:
    stage(tmp_path)
    assert [name for name in names(tmp_path) if not name.startswith(".")] == []
    publish(tmp_path, ["adapter"], {"specHash": SPEC})
    assert names(tmp_path) == ["adapter", MANIFEST]
    assert json.loads((tmp_path / MANIFEST).read_text()) == {"specHash": SPEC}


def test_another_run_of_the_same_spec_replaces_existing_files(tmp_path: Path) -> None:
    stage(tmp_path)
    publish(tmp_path, ["adapter"], {"specHash": SPEC})
    stage(tmp_path, "better")
    assert not (tmp_path / MANIFEST).exists(), "a manifest must not list files that are replaced"
    publish(tmp_path, ["adapter"], {"specHash": SPEC})
    assert (tmp_path / "adapter" / "model.safetensors").read_text() == "better"


def test_a_run_interrupted_between_two_folders_is_finished_by_the_next(tmp_path: Path) -> None:
    staging = stage(tmp_path)
    (staging / "adapter").replace(tmp_path / "adapter")
    assert not (stage(tmp_path) / "merged").exists()
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("public", [False, True])
def test_weights_that_a_journal_knows_stay_for_the_next_run(tmp_path: Path, *, public: bool) -> None:
    """They stay also if the run stopped after it had made their folder public."""
    staging = stage(tmp_path)
    for name in ("merged", "journal/merged", "report"):
        (staging / name).mkdir(parents=True)
    (staging / "merged" / "model.safetensors").write_text("weights")
    if public:
        (staging / "merged").replace(tmp_path / "merged")
    again = open_staging(tmp_path, SPEC)
    assert (again / "merged" / "model.safetensors").read_text() == "weights"
    assert names(again) == ["journal", "merged", OWNER]
    assert not (tmp_path / "merged").exists()
    discard_staging(tmp_path, SPEC)
    assert names(tmp_path) == []


def test_weights_of_another_spec_do_not_stay(tmp_path: Path) -> None:
    staging = open_staging(tmp_path, OTHER)
    for name in ("merged", "journal/merged"):
        (staging / name).mkdir(parents=True)
    assert names(open_staging(tmp_path, SPEC)) == [OWNER]


@pytest.mark.parametrize("manifest", [json.dumps({"specHash": OTHER}), "{", "[]"])
def test_a_manifest_of_another_or_unknown_spec_is_not_changed(tmp_path: Path, manifest: str) -> None:
    (tmp_path / MANIFEST).write_text(manifest)
    with pytest.raises(StageError, match="another job") as caught:
        open_staging(tmp_path, SPEC)
    assert caught.value.reason is Reason.DESTINATION_UNWRITABLE
    assert (tmp_path / MANIFEST).read_text() == manifest


def test_a_folder_without_a_manifest_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    with pytest.raises(StageError, match="a folder `merged` without"):
        open_staging(tmp_path, SPEC)
    assert (tmp_path / "merged").is_dir()


def test_other_files_in_the_destination_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    discard_staging(stage(tmp_path).parent, SPEC)
    assert names(tmp_path) == ["notes.txt"]


def test_a_publication_that_fails_halfway_is_finished_by_the_next_run(tmp_path: Path) -> None:
    """The owner file must stay: without it, the folder that is already public would be of unknown origin."""
    staging = stage(tmp_path)
    (staging / "merged").mkdir()
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "in-the-way").write_text("x")
    with pytest.raises(StageError, match="Directory not empty") as caught:
        publish(tmp_path, ["adapter", "merged"], {"specHash": SPEC})
    assert caught.value.reason is Reason.DESTINATION_UNWRITABLE
    discard_staging(tmp_path, SPEC)
    assert (tmp_path / "adapter").is_dir()
    stage(tmp_path, "second")
    publish(tmp_path, ["adapter"], {"specHash": SPEC})
    assert (tmp_path / "adapter" / "model.safetensors").read_text() == "second"
    assert names(tmp_path) == ["adapter", MANIFEST]


def test_a_job_does_not_publish_over_another_that_began_later_and_leaves_its_files(tmp_path: Path) -> None:
    stage(tmp_path)
    other = open_staging(tmp_path, OTHER)
    (other / "adapter").mkdir()
    with pytest.raises(StageError, match="another job has begun"):
        publish(tmp_path, ["adapter"], {"specHash": SPEC})
    discard_staging(tmp_path, SPEC)
    publish(tmp_path, ["adapter"], {"specHash": OTHER})
    assert names(tmp_path) == ["adapter", MANIFEST]
    with pytest.raises(StageError, match="another job"):
        publish(tmp_path, ["adapter"], {"specHash": SPEC})


def test_sealed_files_have_digest_and_size(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert seal(tmp_path) == {
        "a": {"digest": "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "bytes": 3}
    }


def test_a_known_digest_is_not_computed_again(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"abc")
    sealed = seal(tmp_path, {"a": {"digest": "sha256:known", "bytes": 3}})
    assert sealed["a"] == {"digest": "sha256:known", "bytes": 3}
    assert sealed["b"]["digest"].startswith("sha256:ba7816bf")
