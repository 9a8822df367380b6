"""The README's quickstart without a cluster, on the real model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.e2e import quickstart
from tests.support.e2e.local_runs import run_locally

pytestmark = [pytest.mark.model, pytest.mark.full]


@pytest.fixture(scope="module")
def local_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished `finetune run examples/quickstart.yaml`: `quickstart` is the claim, `runs` workspaces."""
    folder = tmp_path_factory.mktemp("local")
    claim = folder / "quickstart"
    claim.mkdir()
    for name in ("models", "datasets"):
        (claim / name).symlink_to(quickstart.VOLUME / name)
    run_locally(quickstart.JOB, folder / "runs", f"quickstart={claim}", seconds=1200)
    return folder


@pytest.fixture(scope="module")
def merged(local_run: Path) -> Path:
    """The merged model's folder."""
    return local_run / "quickstart" / "outputs" / "airports" / "merged"


def test_the_artifact_is_complete_and_not_quantized(merged: Path) -> None:
    quickstart.assert_complete_and_not_quantized(merged)


def test_the_merged_model_answers_unseen_rows_exactly(merged: Path) -> None:
    assert quickstart.exact_answers(merged, quickstart.ROWS) >= quickstart.ROWS // 2


def test_merged_equals_trained_on_held_out_rows(local_run: Path, merged: Path) -> None:
    workspace = next((local_run / "runs").iterdir()) / "workspace"
    quickstart.assert_merged_equals_trained(workspace, merged)
