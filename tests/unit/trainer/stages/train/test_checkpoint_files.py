from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from finetune_trainer.stages.train.checkpoint_files import REQUIRED, RUN, DigestingFile, write_files
from finetune_trainer.workspace.digests import folder_digests
from safetensors.torch import load_file
from transformers import TrainerState

from tests.support.snapshots import snapshot


def test_the_digests_are_those_of_the_files_on_the_disk(tmp_path: Path) -> None:
    digests = write_files(tmp_path, snapshot(), {"specHash": "x"})
    assert digests == folder_digests(tmp_path)
    assert digests.keys() == REQUIRED | {RUN}


def test_the_libraries_read_the_written_values(tmp_path: Path) -> None:
    state = snapshot(step=3)
    write_files(tmp_path, state, {"specHash": "x"})
    adapter = load_file(tmp_path / "adapter_model.safetensors")
    assert adapter.keys() == state.adapter.keys()
    for name, tensor in state.adapter.items():
        assert adapter[name].dtype == tensor.dtype
        assert torch.equal(adapter[name], tensor)
    optimizer = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    assert torch.equal(optimizer["state"][1]["state1"], state.optimizer["state"][1]["state1"])
    assert optimizer["param_groups"] == state.optimizer["param_groups"]
    assert torch.load(tmp_path / "scheduler.pt", weights_only=True) == state.scheduler
    read = TrainerState.load_from_json(str(tmp_path / "trainer_state.json"))
    assert (read.global_step, read.max_steps, read.log_history) == (3, 10, [{"loss": 1.5}])
    assert json.loads((tmp_path / RUN).read_text()) == {"specHash": "x"}


def test_a_large_write_is_whole_and_digested(tmp_path: Path) -> None:
    data = os.urandom((8 << 20) + 17)
    with DigestingFile(tmp_path / "file") as file:
        assert file.write(memoryview(data)) == len(data)
        file.write(b"end")
    assert (tmp_path / "file").read_bytes() == data + b"end"
    assert file.digest == f"sha256:{hashlib.sha256(data + b'end').hexdigest()}"


def test_a_full_disk_is_reported_at_the_end_of_the_file() -> None:
    """Torch's writer must not see the error: a second one in its destructor would end the process."""
    full = DigestingFile(Path("/dev/full"))
    with pytest.raises(OSError, match="No space") as caught, full:
        torch.save(snapshot().optimizer, full)  # type: ignore[arg-type]  # it needs no more methods
    assert caught.value.errno == errno.ENOSPC
