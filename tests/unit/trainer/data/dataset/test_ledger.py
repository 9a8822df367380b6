from __future__ import annotations

import errno
import hashlib
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from finetune_trainer.data.dataset.ledger import RowLedger
from hypothesis import given
from hypothesis import strategies as st

if TYPE_CHECKING:
    from pathlib import Path


def digest(number: int) -> bytes:
    return hashlib.blake2b(str(number).encode(), digest_size=16).digest()


def test_a_conversation_is_entered_once_and_a_repetition_names_its_source(tmp_path: Path) -> None:
    ledger = RowLedger(tmp_path / "rows.sqlite", "inputs")
    assert ledger.add(digest(1), "validation", 1, 7) is None
    assert ledger.add(digest(1), "training", 5, 7) == "validation"


def test_committed_entries_are_found_again_and_others_are_not(tmp_path: Path) -> None:
    ledger = RowLedger(tmp_path / "rows.sqlite", "inputs")
    ledger.add(digest(1), "training", 1, 2**64 - 1)
    ledger.commit({"training": {"rows": 1}})
    ledger.add(digest(2), "training", 2, 0)
    ledger.close()
    again = RowLedger(tmp_path / "rows.sqlite", "inputs")
    assert again.state("training") == {"rows": 1}
    assert again.add(digest(1), "training", 9, 1) == "training"
    assert again.add(digest(2), "training", 2, 0) is None


def test_other_inputs_start_a_new_ledger(tmp_path: Path) -> None:
    ledger = RowLedger(tmp_path / "rows.sqlite", "inputs")
    ledger.add(digest(1), "training", 1, 1)
    ledger.commit({"training": {"rows": 1}})
    ledger.close()
    other = RowLedger(tmp_path / "rows.sqlite", "others")
    assert other.state("training") is None
    assert other.add(digest(1), "training", 1, 1) is None


@pytest.mark.parametrize("content", [b"", b"not a database" * 100])
def test_a_broken_file_starts_a_new_ledger(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.sqlite"
    path.write_bytes(content)
    assert RowLedger(path, "inputs").add(digest(1), "training", 1, 1) is None


@given(
    keys=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=60),
    fraction=st.floats(0.001, 0.5),
)
def test_the_conversations_with_the_lowest_keys_are_held_out(
    tmp_path_factory: pytest.TempPathFactory, keys: list[int], fraction: float
) -> None:
    ledger = RowLedger(tmp_path_factory.mktemp("ledger") / "rows.sqlite", "inputs")
    for number, key in enumerate(keys, start=1):
        ledger.add(digest(number), "training", number, key)
    ledger.choose_held_out("training", fraction)
    chosen = list(ledger.held_out())
    assert len(chosen) == max(1, round(fraction * len(keys)))
    expected = sorted(range(1, len(keys) + 1), key=lambda row: (keys[row - 1], row))[: len(chosen)]
    assert chosen == sorted(expected)
    ledger.close()


def test_a_full_disk_has_the_error_of_the_disk(tmp_path: Path) -> None:
    """A separate process has a limit on the size of its files."""
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from finetune_trainer.data.dataset.ledger import RowLedger\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "ledger = RowLedger(Path(sys.argv[1]), 'inputs')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "try:\n"
        "    for number in range(100000):\n"
        "        ledger.add(number.to_bytes(16, 'big'), 'training', number, number)\n"
        "    ledger.commit({})\n"
        "except OSError as error:\n"
        "    print(error.errno)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "rows.sqlite")],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() in {str(errno.ENOSPC), str(errno.EIO)}
