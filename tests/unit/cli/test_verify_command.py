from __future__ import annotations

import json
from pathlib import Path

import pytest
from finetune_cli.__main__ import main
from finetune_cli.exit_codes import ExitCode


def test_a_folder_without_manifest_has_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("a", "utf-8")
    assert main(["verify", str(tmp_path), "--json"]) == ExitCode.FAILED
    assert json.loads(capsys.readouterr().out)["findings"]


def test_a_missing_folder_is_unreadable(tmp_path: Path) -> None:
    assert main(["verify", str(tmp_path / "absent")]) == ExitCode.NO_INPUT


def test_a_missing_key_is_a_wrong_request(tmp_path: Path) -> None:
    assert main(["verify", str(tmp_path), "--key", str(tmp_path / "absent.pub")]) == ExitCode.USAGE
