from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.repository import ROOT

SOURCE = ROOT / "operator" / "src"


def test_the_process_ends_with_exit_code_2_if_its_settings_are_unusable(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text("{}")
    environment = {"FINETUNE_OPERATOR_SETTINGS": str(file), "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        [sys.executable, "-m", "finetune_operator"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "trainer: Field required" in done.stderr
