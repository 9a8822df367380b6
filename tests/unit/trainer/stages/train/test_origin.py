from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.stages.train.origin import Origin, origin_of
from finetune_trainer.workspace.layout import WorkspaceLayout, write_marker

from tests.support.workspaces import SPEC_HASH, run_spec


def saved(workspace: Path, **training: Any) -> Any:
    """Return the document as a checkpoint holds it."""
    document = origin_of(run_spec(workspace, workspace, **training), WorkspaceLayout(workspace)).document
    return json.loads(json.dumps(dict(document)))


@pytest.mark.parametrize(
    "training",
    [
        {"microBatchSize": 4},
        {"gradientCheckpointing": True},
        {"weights": "Dequantized"},
        {"parallelism": "FullyShard"},
        {"checkpoint": {"intervalSteps": 3}},
    ],
)
def test_settings_that_leave_the_mathematics_alone_may_differ(
    tmp_path: Path, training: dict[str, Any]
) -> None:
    origin = origin_of(run_spec(tmp_path, tmp_path), WorkspaceLayout(tmp_path))
    assert origin.difference(saved(tmp_path, **training), 0.0) is None


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"learningRate": 0.001}, "settings.learningRate 0.001, and this run has 0.005"),
        ({"seed": 12}, "settings.seed 12"),
        ({"effectiveBatchSize": 8}, "settings.effectiveBatchSize 8"),
        (
            {
                "lora": {
                    "rank": 8,
                    "alpha": 8,
                    "dropout": 0,
                    "targetModules": "AllLinear",
                    "variant": "Standard",
                }
            },
            "settings.lora.rank 8",
        ),
        ({"maximumSteps": None, "epochs": 2}, "settings.epochs 2"),
    ],
)
def test_other_settings_are_named(tmp_path: Path, training: dict[str, Any], said: str) -> None:
    origin = origin_of(run_spec(tmp_path, tmp_path), WorkspaceLayout(tmp_path))
    assert said in str(origin.difference(saved(tmp_path, **training), 0.0))


def test_a_checkpoint_names_moments_in_float32_and_no_others(
    tmp_path: Path,
) -> None:
    """A trainer before contract 1.7 names none, and rejects a setting that it does not have."""

    def on_gpu(**training: Any) -> Origin:
        run = run_spec(tmp_path, tmp_path, device="cuda", **training)
        return origin_of(run, WorkspaceLayout(tmp_path))

    older = saved(tmp_path)
    assert on_gpu().document == on_gpu(optimizer="AdamW8Bit").document == older
    assert on_gpu(optimizer="PagedAdamW8Bit").difference(older, 0.0) is None
    assert "settings.optimizer None, and this run has AdamW" in str(
        on_gpu(optimizer="AdamW").difference(older, 0.0)
    )
    assert "settings.optimizer AdamW, and this run has None" in str(
        on_gpu().difference(on_gpu(optimizer="AdamW").document, 0.0)
    )
    assert saved(tmp_path, optimizer="AdamW") == older, "a CPU has one optimizer"


def test_a_checkpoint_that_names_no_run_has_moments_in_8_bits(tmp_path: Path) -> None:
    layout = WorkspaceLayout(tmp_path)
    write_marker(layout, "base-evaluation", SPEC_HASH, {"losses": []})
    for optimizer, fits in (("AdamW", False), ("AdamW8Bit", True)):
        run = run_spec(tmp_path, tmp_path, device="cuda", optimizer=optimizer)
        assert (origin_of(run, layout).difference(None, time.time() + 1) is None) == fits


def test_another_spec_or_dataset_is_named(tmp_path: Path) -> None:
    origin = origin_of(run_spec(tmp_path, tmp_path), WorkspaceLayout(tmp_path))
    assert "specHash sha256:9" in str(origin.difference({**origin.document, "specHash": "sha256:9"}, 0.0))
    write_marker(WorkspaceLayout(tmp_path), "prepare", SPEC_HASH, {"dataset": {"digest": "sha256:5"}})
    later = origin_of(run_spec(tmp_path, tmp_path), WorkspaceLayout(tmp_path))
    assert "and this run has sha256:5" in str(later.difference(dict(origin.document), 0.0))


@pytest.mark.parametrize("saved_run", [[], "text", {}, {"specHash": SPEC_HASH}])
def test_a_document_that_names_no_run_belongs_to_none(tmp_path: Path, saved_run: object) -> None:
    assert origin_of(run_spec(tmp_path, tmp_path), WorkspaceLayout(tmp_path)).difference(saved_run, 0.0)


def test_other_members_of_the_document_are_ignored() -> None:
    assert Origin({"specHash": "a"}, began=None).difference({"specHash": "a", "versions": {}}, 0.0) is None


def test_a_checkpoint_without_a_document_belongs_to_the_run_that_began_before_it(
    tmp_path: Path,
) -> None:
    """Trainers before contract 1.5 wrote none, and measured the base before their first step."""
    layout = WorkspaceLayout(tmp_path)
    run = run_spec(tmp_path, tmp_path)
    assert origin_of(run, layout).difference(None, time.time())
    write_marker(layout, "base-evaluation", "sha256:other", {"losses": []})
    assert origin_of(run, layout).difference(None, time.time())
    write_marker(layout, "base-evaluation", SPEC_HASH, {"losses": []})
    os.utime(layout.marker("base-evaluation"), (100.0, 100.0))
    assert origin_of(run, layout).difference(None, 101.0) is None
    assert origin_of(run, layout).difference(None, 99.0)
