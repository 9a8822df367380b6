from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from finetune_trainer.telemetry.logs import add_log_file, configure_logging
from finetune_trainer.telemetry.redaction import MASK, Redactor

REDACT = Redactor(["hf_secret_token"])


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """Restore the root logger, which the functions under test change."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def test_records_and_tracebacks_are_redacted(capsys: pytest.CaptureFixture[str]) -> None:
    tail = configure_logging(REDACT)
    try:
        int("hf_secret_token")
    except ValueError:
        logging.getLogger("test").exception("failed with hf_secret_token")
    text = capsys.readouterr().err
    assert "hf_secret" not in text + "".join(tail.lines)
    assert text.count(MASK) == 3, "the message, the source line and the error of the traceback"
    assert tail.lines[-1].startswith("ValueError: invalid literal")
    assert tail.lines[-1].endswith(f"'{MASK}'")


def test_a_record_whose_arguments_do_not_fit_is_kept_without_them_and_ends_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tail = configure_logging(REDACT)
    add_log_file(tmp_path / "train-0.log", REDACT)
    logging.getLogger("library").warning("x is deprecated", FutureWarning, "hf_secret_token")  # noqa: PLE1205 -- as libraries do
    line = "WARNING library: x is deprecated (its arguments do not fit: TypeError)"
    assert list(tail.lines) == [line]
    assert (tmp_path / "train-0.log").read_text() == capsys.readouterr().err == f"{line}\n"


def test_only_the_last_20_lines_are_kept() -> None:
    tail = configure_logging(REDACT)
    for number in range(30):
        logging.getLogger("test").info("line %d", number)
    assert len(tail.lines) == 20
    assert tail.lines[-1].endswith("INFO test: line 29")


def test_pythons_warnings_reach_the_log_and_requests_do_not() -> None:
    tail = configure_logging(REDACT)
    logging.getLogger("httpx").info("GET https://example.com")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("look here", UserWarning, stacklevel=1)
    assert any("look here" in line for line in tail.lines)
    assert not any("example.com" in line for line in tail.lines)


def test_the_log_file_is_redacted_and_its_folder_is_created(tmp_path: Path) -> None:
    configure_logging(REDACT)
    path = tmp_path / "logs" / "train-0.log"
    add_log_file(path, REDACT)
    logging.getLogger("test").warning("with hf_secret_token")
    assert path.read_text().endswith(f"WARNING test: with {MASK}\n")


def test_a_log_file_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError):  # noqa: PT011 -- the system's own message
        add_log_file(tmp_path / "file" / "train-0.log", REDACT)
