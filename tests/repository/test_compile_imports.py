"""Set-up compiles what the project imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.repository import ROOT


def test_bytecode_is_written_even_where_the_environment_forbids_it(tmp_path: Path) -> None:
    package = tmp_path / "sources" / "parts"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text("import colorsys\n")
    environment = {
        **os.environ,
        "PYTHONPATH": str(package.parent),
        "PYTHONPYCACHEPREFIX": str(tmp_path / "bytecode"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    subprocess.run(
        [sys.executable, ROOT / "scripts/tools/compile_imports.py", "parts"], check=True, env=environment
    )
    written = {path.name.partition(".")[0] for path in (tmp_path / "bytecode").rglob("*.pyc")}
    assert {"one", "colorsys"} <= written
