from __future__ import annotations

from pathlib import Path

import pytest
from finetune_trainer.stages.train.checkpoints import KEPT, newest_checkpoint, publish_checkpoint


def write(root: Path, step: int) -> Path:
    folder = root / "partial" / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(b"state %d" % step)
    return publish_checkpoint(folder, root / "checkpoints")


def test_the_newest_checkpoints_are_kept_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        write(tmp_path, step)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["checkpoint-10", "checkpoint-100"]
    assert len(kept) == KEPT
    assert newest_checkpoint(tmp_path / "checkpoints") == (100, tmp_path / "checkpoints" / "checkpoint-100")


@pytest.mark.parametrize("fault", ["changed", "missing", "unsealed", "damaged"])
def test_a_broken_checkpoint_is_skipped_with_its_fault(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    write(tmp_path, 1)
    folder = write(tmp_path, 2)
    if fault == "changed":
        (folder / "optimizer.pt").write_bytes(b"other")
    elif fault == "missing":
        (folder / "optimizer.pt").unlink()
    elif fault == "unsealed":
        (folder / "files.json").unlink()
    else:
        (folder / "files.json").write_text("[]")
    found = newest_checkpoint(tmp_path / "checkpoints")
    assert found is not None
    assert found[0] == 1
    assert "checkpoint of step 2 is skipped" in caplog.text


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    (folder / "optimizer.pt").write_bytes(b"broken")
    write(tmp_path, 1)
    found = newest_checkpoint(tmp_path / "checkpoints")
    assert found is not None
    assert (found[1] / "optimizer.pt").read_bytes() == b"state 1"


def test_other_folders_and_an_absent_folder_hold_no_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "checkpoints") is None
    (tmp_path / "checkpoints" / "checkpoint-last").mkdir(parents=True)
    assert newest_checkpoint(tmp_path / "checkpoints") is None
