from __future__ import annotations

import json

from finetune_operator.api.stages import Stage

from tests.support.operator import make_inventory
from tests.support.world import prepared


def test_merge_gets_the_values_that_train_used() -> None:
    world = prepared()
    world.settle()
    used = world.job.status["plan"]["training"]["microBatchSize"]
    world.run_pod("demo-train-0")
    world.inventory = make_inventory()
    world.succeed(Stage.TRAIN)
    world.settle()
    template = world.bodies["demo-merge-0"]["spec"]["template"]
    run = json.loads(template["metadata"]["annotations"]["finetune.dev/run"])
    assert run["training"]["microBatchSize"] == used
    assert "affinity" not in template["spec"]
