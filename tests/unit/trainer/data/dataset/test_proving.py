"""Rows are proven in order, in constant memory and in several processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from finetune_trainer.data.chat_template.template import ChatTemplate
from finetune_trainer.data.dataset.proving import prove, row_line
from finetune_trainer.data.masking.masking import Masker
from finetune_trainer.data.rows.rejection import RowRejected
from finetune_trainer.errors import Reason, StageError
from transformers import AddedToken, ByT5Tokenizer

from tests.support import proving_rows
from tests.support.proving_rows import (
    MANY,
    PARSE,
    children,
    failing_late,
    killing_late,
    rejecting_late,
    rows,
    unsendable_late,
)
from tests.support.tiny_models import CHATML, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny tokenizer."""
    path = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def masker(folder: Path) -> Masker:
    return proving_rows.masker(folder)


def test_outcomes_are_the_same_for_any_number_of_processes(masker: Masker) -> None:
    one = [row_line(row) for row in prove(rows(MANY), masker, PARSE, processes=1)]
    assert len(one) == MANY
    for processes in (2, 3):
        assert [row_line(row) for row in prove(rows(MANY), masker, PARSE, processes=processes)] == one


def test_rows_come_in_order_with_their_conversations_or_contents(masker: Masker) -> None:
    proven = list(prove(rows(MANY), masker, PARSE, processes=2))
    assert [row.number for row in proven] == list(range(1, MANY + 1))
    for row, source in zip(proven, rows(MANY), strict=True):
        if isinstance(row.outcome, RowRejected):
            assert row.conversation is None
            assert row.content == (None if isinstance(source.value, RowRejected) else source.value)
        else:
            assert row.conversation == PARSE(source.value)  # type: ignore[arg-type]  # it was readable


def test_a_small_dataset_starts_no_process(masker: Masker) -> None:
    before = children()
    for row in prove(rows(200), masker, PARSE, processes=2):
        assert children() == before, row.number


def test_a_worker_that_is_killed_ends_with_a_reason(masker: Masker) -> None:
    with pytest.raises(StageError, match="SIGKILL") as caught:
        list(prove(rows(MANY), masker, killing_late, processes=2))
    assert caught.value.reason is Reason.INTERNAL_ERROR


def test_a_worker_without_memory_ends_with_a_reason(masker: Masker) -> None:
    """It cannot send its rows, whatever the reason is that it cannot allocate."""
    with pytest.raises(StageError, match=r"raise resources\.prepare\.memory") as caught:
        list(prove(rows(MANY), masker, unsendable_late, processes=2))
    assert caught.value.reason is Reason.HOST_OUT_OF_MEMORY


def test_a_failure_in_a_worker_is_raised_in_the_parent(masker: Masker) -> None:
    with pytest.raises(ZeroDivisionError, match="what is 2900"):
        list(prove(rows(MANY), masker, failing_late, processes=2))


def test_a_failure_that_cannot_be_sent_keeps_its_text(masker: Masker) -> None:
    with pytest.raises(RuntimeError, match="no such column"):
        list(prove(rows(MANY), masker, rejecting_late, processes=2))


@pytest.mark.slow
def test_a_tokenizer_without_a_fast_backend_is_sent_as_it_is() -> None:
    tokenizer = ByT5Tokenizer(extra_ids=0)
    tokenizer.add_tokens([AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>")])
    tokenizer.eos_token = "<|im_end|>"
    slow = Masker(ChatTemplate(tokenizer, CHATML), 256)
    one = [row_line(row) for row in prove(rows(MANY), slow, PARSE, processes=1)]
    assert [row_line(row) for row in prove(rows(MANY), slow, PARSE, processes=2)] == one
    assert sum('"accepted": true' in line for line in one) > 2000


def test_stopping_early_ends_every_process(masker: Masker) -> None:
    before = children()
    proven = prove(rows(MANY * 4), masker, PARSE, processes=2)
    for row in proven:
        if row.number == MANY:
            break
    assert len(children()) == len(before) + 2
    proven.close()  # type: ignore[attr-defined]  # it is a generator
    assert children() == before


_ORPHANED = """
import sys, time
from pathlib import Path
from tests.support.proving_rows import PARSE, children, masker, rows
from finetune_trainer.data.dataset.proving import prove
for row in prove(rows(3000), masker(Path(sys.argv[1])), PARSE, processes=2):
    if row.number == 2500:
        print(*children(), flush=True)
        time.sleep(60)
"""


@pytest.mark.slow
def test_workers_end_when_their_parent_ends(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", _ORPHANED, str(folder)], env=environment, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        workers = [int(number) for number in parent.stdout.readline().split()]
        parent.kill()
    assert len(workers) == 2
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{number}/cmdline").exists() for number in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


_MEASURED = """
import resource, sys
from pathlib import Path
from tests.support.proving_rows import PARSE, children, masker, rows
from finetune_trainer.data.dataset.proving import prove
count = int(sys.argv[1])
workers = 0
for row in prove(rows(count), masker(Path(sys.argv[2])), PARSE, processes=2):
    if row.number == count - 10:
        for child in children():
            status = Path(f"/proc/{child}/status").read_text()
            workers += int(status.split("VmHWM:")[1].split()[0])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, workers)
"""


def peaks(count: int, folder: Path) -> tuple[int, int]:
    """Return the peak resident sets in KiB of a proving process and of its workers for `count` rows."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, str(count), str(folder)],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    own, workers = done.stdout.split()
    return int(own), int(workers)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(folder: Path) -> None:
    """Five times as many rows may need only a few megabytes more, in the parent and in the workers."""
    noise = 24 * 1024
    few, many = peaks(20_000, folder), peaks(100_000, folder)
    assert min(few) > 0
    assert many[0] - few[0] < noise
    assert many[1] - few[1] < noise
