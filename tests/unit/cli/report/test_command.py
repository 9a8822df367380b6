from __future__ import annotations

from pathlib import Path

import pytest
from finetune_cli.__main__ import main
from finetune_cli.exit_codes import ExitCode

from tests.support.fake_kubectl import FakeKubectl
from tests.support.kept_jobs import frame, job


@pytest.fixture
def served(kubectl: FakeKubectl) -> FakeKubectl:
    kubectl.answer("finetunejobs.finetune.dev", output=job())
    kubectl.answer("get", "pods", "-l", output={"items": []})
    kubectl.answer("persistentvolumeclaims", output={"metadata": {"name": "models"}})
    kubectl.answer("create", output={"metadata": {"name": "reader-1"}})
    kubectl.answer("get", "reader-1", output={"status": {"phase": "Succeeded"}})
    kubectl.answer("delete")
    return kubectl


def test_the_page_is_printed(served: FakeKubectl, capsys: pytest.CaptureFixture[str]) -> None:
    served.answer("logs", output=frame(b"<p>page</p>"))
    assert main(["report", "numbers"]) == 0
    assert capsys.readouterr().out.endswith("<p>page</p>\n")
    assert served.given()[0]["spec"]["containers"][0]["args"] == ["kept", "/kept/numbers", "html"]


def test_the_json_is_saved(served: FakeKubectl, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    served.answer("logs", output=frame(b"{}"))
    path = tmp_path / "report.json"
    assert main(["report", "numbers", "-o", "json", "--save", str(path)]) == 0
    assert path.read_text() == "{}\n"
    assert capsys.readouterr().out == f"{path}\n"
    assert served.given()[0]["spec"]["containers"][0]["args"][-1] == "json"


def test_a_file_that_cannot_be_written_is_an_error(
    served: FakeKubectl, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served.answer("logs", output=frame(b"{}"))
    assert main(["report", "numbers", "--save", str(tmp_path)]) == ExitCode.USAGE
    assert "--save must be a file that can be written" in capsys.readouterr().err


def test_a_report_that_is_not_there_is_an_error(
    served: FakeKubectl, capsys: pytest.CaptureFixture[str]
) -> None:
    served.answer("logs", output=frame(None, error="No such file or directory"))
    assert main(["report", "numbers"]) == ExitCode.USAGE
    assert "must be kept, found No such file or directory" in capsys.readouterr().err


def test_commands_to_a_terminal_are_not_printed_to_one(
    served: FakeKubectl, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    served.answer("logs", output=frame(b'{"name": "\x1b]0;owned\x07\x1b[2J"}'))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["report", "numbers", "-o", "json"]) == 0
    assert capsys.readouterr().out == '{"name": ""}\n'


def test_a_page_with_a_script_is_neither_printed_nor_saved(
    served: FakeKubectl, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served.answer("logs", output=frame(b"<script>alert(1)</script>"))
    path = tmp_path / "page.html"
    assert main(["report", "numbers", "--save", str(path)]) == ExitCode.USAGE
    assert not path.exists()
    assert "found <script>" in capsys.readouterr().err
