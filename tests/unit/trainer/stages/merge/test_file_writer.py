from __future__ import annotations

import errno
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from finetune_trainer.errors import Reason, StageError
from finetune_trainer.model.safetensors_file import PlannedTensor, read_header
from finetune_trainer.quantization.dequantize import Scratch
from finetune_trainer.stages.merge import file_writer
from finetune_trainer.stages.merge.file_writer import FileWriter
from finetune_trainer.workspace.digests import file_digest
from numpy.typing import NDArray
from safetensors.numpy import load_file

TENSORS = (
    PlannedTensor("b", "F32", (30, 10)),
    PlannedTensor("a", "F32", (7,)),
    PlannedTensor("c", "F32", (0, 3)),
)


@dataclass(frozen=True)
class Counting:
    """Gives each element its position as value; not finite from `last` on."""

    step: int = 1
    last: int = 10**9

    def fill(self, first: int, out: NDArray[np.uint8], scratch: Scratch) -> bool:
        values = out.view(np.float32)
        assert first % self.step == 0
        assert values.size % self.step == 0
        values[:] = scratch.array("positions", values.size, np.int64) * 0 + np.arange(
            first, first + values.size
        )
        return first + values.size <= self.last


@pytest.mark.parametrize("threads", [1, 3])
def test_pieces_make_the_file_and_its_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(file_writer, "_PIECE_BYTES", 100)
    path = tmp_path / "model.safetensors"
    advanced: list[int] = []
    with FileWriter(threads) as writer:
        record = writer.write(path, TENSORS, lambda tensor: Counting(tensor.shape[-1]), advanced.append)
    found = load_file(path)
    assert found["b"].tolist() == np.arange(300, dtype=np.float32).reshape(30, 10).tolist()
    assert found["a"].tolist() == list(range(7))
    assert [entry.name for entry in read_header(path)] == ["b", "a", "c"] or found["c"].shape == (0, 3)
    assert record.digest == file_digest(path)
    assert record.bytes == path.stat().st_size
    assert sum(advanced) == 307 * 4
    assert len(advanced) == 16


def test_a_value_that_is_not_finite_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_writer, "_PIECE_BYTES", 100)
    with FileWriter(2) as writer, pytest.raises(StageError, match="NaN or infinity in b") as caught:
        writer.write(
            tmp_path / "m.safetensors", TENSORS, lambda _tensor: Counting(last=60), lambda _count: None
        )
    assert caught.value.reason is Reason.ARTIFACT_VERIFICATION_FAILED
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_file_and_keeps_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_writer, "_PIECE_BYTES", 100)
    write, lock, calls = os.pwrite, threading.Lock(), [0]

    def pwrite(descriptor: int, data: memoryview, position: int) -> int:
        with lock:
            calls[0] += 1
            if calls[0] > 5:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[: max(1, len(data) // 2)], position)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with FileWriter(2) as writer, pytest.raises(OSError, match="No space left"):
        writer.write(tmp_path / "m.safetensors", TENSORS, lambda _tensor: Counting(), lambda _count: None)
    assert list(tmp_path.iterdir()) == []
