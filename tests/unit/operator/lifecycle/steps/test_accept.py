from __future__ import annotations

from tests.support.operator import make_job, make_spec
from tests.support.world import World


def test_the_first_visit_writes_every_condition_and_the_plan() -> None:
    world = World()
    world.settle()
    assert {entry["type"]: entry["status"] for entry in world.job.status["conditions"]} == {
        "Succeeded": "Unknown",
        "Reconciling": "True",
        "Stalled": "False",
        "Suspended": "False",
        "DatasetReady": "Unknown",
        "ModelReady": "Unknown",
        "Trained": "Unknown",
        "Published": "Unknown",
    }
    assert {choice["name"] for choice in world.job.status["plan"]["choices"]} == {
        "microBatchSize",
        "gradientCheckpointing",
        "epochs",
    }
    assert world.job.status["phase"] == "Preparing"
    assert world.job.status["observedGeneration"] == 1
    assert world.job.status["specHash"].startswith("sha256:")


def test_an_invalid_spec_fails_without_creating_anything() -> None:
    world = World(job=make_job(spec=make_spec(training={"microBatchSize": 3})))
    world.settle()
    assert world.created == []
    assert world.condition("Succeeded") == ("False", "InvalidSpec")
    assert "must divide" in world.job.status["failure"]["message"]
