from __future__ import annotations

import sys

import pytest
from finetune_cli.trainer import trainer_is_installed


def test_the_trainer_needs_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trainer_is_installed()
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    for name in ("torch", "transformers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert not trainer_is_installed()
