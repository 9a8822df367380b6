from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.api.plan import Parallelism
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.sizing.cost.duration import Duration, estimate_duration
from finetune_operator.sizing.cost.exchange import (
    BETWEEN_NODES,
    WITHIN_NODE,
    Links,
    answer_bytes,
    exchange_of,
)
from finetune_operator.sizing.cost.speeds import speed_of
from finetune_operator.sizing.cost.work import Work, known_rows, sizes_of, work_of
from finetune_operator.sizing.ladder import training_plan
from finetune_operator.sizing.memory.training_plan import TrainingPlan

from tests.support.operator import make_spec
from tests.support.sizing_jobs import mistral

ROWS = known_rows(1600, 100, 1024, tokens=1600 * 800)
SIZES = sizes_of(mistral())
ADAPTER = 1_000_000
STEPS = 100


def job(**training: Any) -> FineTuneJobSpec:
    return FineTuneJobSpec.parse(make_spec(training={"maximumSteps": STEPS, **training}))


def plan(ranks: int, parallelism: Parallelism = "DataParallel", micro_batch: int = 1) -> TrainingPlan:
    alone = training_plan(job().training, 1024, micro_batch, checkpointing=True, optimizer="AdamW")
    return replace(
        alone, ranks=ranks, gradient_accumulation=-(-16 // (micro_batch * ranks)), parallelism=parallelism
    )


def work(of: TrainingPlan, bound: str = "expected") -> Work:
    return work_of(job(packing="Never"), SIZES, of, ROWS, bound)


def duration(of: TrainingPlan, nodes: int = 1, links: Links = Links()) -> Duration:  # noqa: B008 -- it is immutable
    speed = speed_of("NVIDIA L4", ())
    assert speed is not None
    return estimate_duration(job(packing="Never"), mistral(), of, ROWS, speed, nodes, links)


def part(found: Duration, name: str) -> float:
    return dict(found.parts)[name]


def test_replicas_add_the_gradients_of_the_adapter_once_in_a_step() -> None:
    two = plan(2)
    # A ring moves each of the 4 bytes twice, and half of the values are those of the other GPU.
    assert exchange_of(work(two), SIZES, two, ADAPTER).training == STEPS * 2 * 4 * ADAPTER / 2
    assert answer_bytes(work(two), SIZES, two) == 0


def test_shared_weights_are_gathered_twice_in_a_pass_and_the_vocabulary_once() -> None:
    four = plan(4, "FullyShard")
    done = work(four)
    assert done.training.count == STEPS * 4
    gathered = 2 * 0.53 * SIZES.linear_weights + 2 * SIZES.embedding_weights
    gradients = 2 * 4 * ADAPTER * STEPS
    found = exchange_of(done, SIZES, four, ADAPTER)
    assert found.training == pytest.approx(3 / 4 * (gathered * done.training.count + gradients))
    assert found.others > exchange_of(work(plan(4)), SIZES, plan(4), ADAPTER).others
    assert answer_bytes(done, SIZES, four) > 0


def test_a_larger_micro_batch_exchanges_less() -> None:
    small, large = plan(2, "FullyShard"), plan(2, "FullyShard", 4)
    less = exchange_of(work(large), SIZES, large, ADAPTER).training
    assert less < exchange_of(work(small), SIZES, small, ADAPTER).training


def test_one_gpu_exchanges_nothing() -> None:
    found = duration(plan(1))
    assert "Exchange" not in dict(found.parts)
    assert "exchange" not in found.reason


def test_the_exchange_adds_to_the_time_and_the_reason_says_that_it_is_not_measured() -> None:
    replicas, shared = duration(plan(4)), duration(plan(4, "FullyShard"))
    assert 0 < part(replicas, "Exchange") < part(shared, "Exchange")
    assert shared.seconds.expected == pytest.approx(sum(seconds for _, seconds in shared.parts))
    assert shared.tokens_per_second < replicas.tokens_per_second
    assert "computed and not measured: 20 GB/s in a node, a wide guess" in shared.reason


def test_the_interval_is_wider_than_that_of_replicas() -> None:
    """The lower bound hides the exchange behind the computation, and the upper one hides nothing."""
    replicas, shared = duration(plan(4)).seconds, duration(plan(4, "FullyShard")).seconds
    assert shared.low == pytest.approx(replicas.low, rel=0.01)
    assert shared.high - replicas.high > shared.expected - replicas.expected > 0


def test_nodes_exchange_more_slowly_than_the_gpus_of_one() -> None:
    shared = plan(4, "FullyShard")
    near, far = part(duration(shared), "Exchange"), part(duration(shared, 2), "Exchange")
    assert far / near == pytest.approx(WITHIN_NODE.expected / BETWEEN_NODES.expected)


def test_a_stated_speed_counts() -> None:
    shared, links = plan(4, "FullyShard"), Links(within_node=200, between_nodes=10)
    assert part(duration(shared, 1, links), "Exchange") == pytest.approx(
        part(duration(shared), "Exchange") / 10
    )
    assert links.speed(2).low > links.speed(2).expected == 1e10 > links.speed(2).high
    assert duration(shared, 2, links).reason.endswith("10 GB/s between nodes, stated in cost.links")


def test_answers_of_shared_weights_end_at_the_limit_of_the_trainer() -> None:
    slow = duration(plan(2, "FullyShard"), 2, Links(between_nodes=0.01))
    assert part(slow, "Answers") == work(plan(2, "FullyShard")).generation_limit


def test_several_gpus_take_less_time_and_more_gpu_hours() -> None:
    """The rows of a step are divided, and everything else is not."""
    found = {gpus: duration(plan(gpus)) for gpus in (1, 2, 4, 8)}
    times = [each.seconds.expected for each in found.values()]
    assert times == sorted(times, reverse=True)
    hours = [each.gpu_hours(gpus).expected for gpus, each in found.items()]
    assert hours == sorted(hours)


def test_a_gpu_without_equally_many_rows_as_another_waits_for_it() -> None:
    """16 rows on 3 GPUs: one of them has 6, so the step takes more than a third of that on one."""
    one, three = work(plan(1)).training, work(plan(3)).training
    assert three.operations * three.count / (one.operations * one.count) == pytest.approx(6 / 16 * 1.05)
    fair = work(plan(3), "low").training
    whole = work(plan(1), "low").training
    assert fair.operations * fair.count / (whole.operations * whole.count) == pytest.approx(1 / 3)
