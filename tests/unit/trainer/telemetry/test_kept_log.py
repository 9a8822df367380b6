from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.telemetry.kept_log import MAXIMUM_LINE, MAXIMUM_LINES, KeptLog, clean_lines, cut_record
from finetune_trainer.telemetry.redaction import MASK, Redactor

SECRET = "hf_secret_token"


@pytest.fixture
def logs() -> Iterator[Callable[..., KeptLog]]:
    """Open logs that are closed after the test."""
    opened: list[KeptLog] = []

    def open_log(*arguments: Any, **options: Any) -> KeptLog:
        opened.append(KeptLog(*arguments, **options))
        return opened[-1]

    yield open_log
    for log in opened:
        log.close()


def write(log: KeptLog, text: str) -> None:
    log.handle(logging.LogRecord("test", logging.INFO, __file__, 1, text, None, None))


def test_commands_to_a_terminal_are_removed() -> None:
    text = "\x1b[31mred\x1b[0m \x1b]0;title\x07new title \x1b]8;;https://x\x1b\\link \x1bcreset \x1b[2Kgone"
    assert clean_lines(text) == "red new title link reset gone"


def test_a_command_to_a_terminal_without_an_end_costs_only_its_line() -> None:
    assert clean_lines("first \x1b]0;title\nTraceback\nlast") == "first \nTraceback\nlast"


def test_binary_and_reordering_characters_are_shown_as_escapes() -> None:
    assert clean_lines("a\x00b\x9bc\u202ed\udc80\te") == "a\\x00b\\x9bc\\u202ed\\udc80\te"


def test_a_progress_bar_that_returns_to_its_start_becomes_lines() -> None:
    assert clean_lines("1 %\r2 %\r\n3 %") == "1 %\n2 %\n3 %"


@pytest.mark.parametrize("text", ["Grüße, 你好 \u3000x", "\U0001f469\u200d\U0001f4bb", "a\xa0b"])
def test_ordinary_text_of_all_scripts_stays(text: str) -> None:
    assert clean_lines(text) == text


def test_the_middle_of_a_long_line_is_left_out() -> None:
    text = cut_record("first " + "x" * 3_000_000 + " last\nshort")
    assert text.startswith("first xxx")
    assert text.endswith(" last\nshort")
    assert "characters are left out" in text
    assert len(text) < MAXIMUM_LINE + 100


def test_the_middle_of_a_record_with_many_lines_is_left_out() -> None:
    text = cut_record("\n".join(str(number) for number in range(100_000)))
    assert text.startswith("0\n1\n")
    assert text.endswith("\n99998\n99999")
    assert text.count("\n") == MAXIMUM_LINES


def test_a_secret_that_a_terminal_command_splits_is_masked(
    tmp_path: Path, logs: Callable[..., KeptLog]
) -> None:
    log = logs(tmp_path / "train-0.log", Redactor([SECRET]))
    write(log, f"token {SECRET[:6]}\x1b[0m{SECRET[6:]} end")
    assert (tmp_path / "train-0.log").read_text() == f"token {MASK} end\n"


def test_a_secret_at_a_cut_is_masked(tmp_path: Path, logs: Callable[..., KeptLog]) -> None:
    log = logs(tmp_path / "train-0.log", Redactor([SECRET]))
    write(log, "x" * (MAXIMUM_LINE // 2 - 5) + SECRET + "y" * MAXIMUM_LINE)
    assert SECRET[:5] not in (tmp_path / "train-0.log").read_text()


def test_a_long_log_keeps_its_start_and_its_end(tmp_path: Path, logs: Callable[..., KeptLog]) -> None:
    path = tmp_path / "logs" / "train-0.log"
    log = logs(path, str, maximum=4000)
    for number in range(1000):
        write(log, f"line {number}")
        assert path.stat().st_size <= 4000
    lines = path.read_text().splitlines()
    assert lines[0] == "line 0"
    assert lines[-1] == "line 999"
    assert any("bytes of the log are left out" in line for line in lines)
    others = [line for line in lines if not line.startswith("line ") and "left out" not in line]
    assert others == [], "only whole lines stay"


def test_a_second_process_of_an_attempt_continues_the_file(
    tmp_path: Path, logs: Callable[..., KeptLog]
) -> None:
    for text in ("first", "second"):
        log = logs(tmp_path / "train-0.log", str)
        write(log, text)
        log.close()
    assert (tmp_path / "train-0.log").read_text() == "first\nsecond\n"


def test_a_full_disk_loses_lines_and_ends_nothing(
    capsys: pytest.CaptureFixture[str], logs: Callable[..., KeptLog]
) -> None:
    log = logs(Path("/dev/full"), str)
    write(log, "text")
    assert capsys.readouterr().err == ""
