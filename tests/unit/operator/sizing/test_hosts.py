"""Host resources of each stage, and the size of the workspace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest
from finetune_operator.api.plan import Optimizer
from finetune_operator.api.quantities import format_bytes
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.api.stages import WORK_STAGES, Stage
from finetune_operator.contract.dataset_report import DatasetReport
from finetune_operator.sizing.hosts import (
    adapter_parameters,
    may_retry_with_more,
    out_of_memory_message,
    quantized_bytes,
    stage_host,
    workspace_bytes,
)
from finetune_operator.sizing.memory.shape import ModelShape, model_shape

from tests.support.operator import PREPARE, make_spec

GIB = 2**30
MISTRAL = model_shape({"model_type": "mistral", "num_key_value_heads": 8, "vocab_size": 32768})
LLAMA_70B = model_shape(
    {
        "model_type": "llama",
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    }
)
HUB = {"source": {"huggingFace": {"repository": "org/model"}}}


@dataclass(frozen=True)
class Chart:
    cpu: str | None = None
    memory: str | None = None


def parse(**changes: Any) -> FineTuneJobSpec:
    return FineTuneJobSpec.parse(make_spec(**changes))


def report(**changes: Any) -> DatasetReport:
    return DatasetReport.model_validate({**PREPARE["dataset"], **changes})


def test_the_specs_size_comes_before_the_charts_and_the_computed_one() -> None:
    given_spec = parse(resources={"train": {"cpu": "3", "memory": "30Gi"}})
    chart = Chart(cpu="7", memory="24Gi")
    kept = stage_host(given_spec, Stage.TRAIN, MISTRAL, None, chart, 1)
    assert (kept.cpu, kept.memory_bytes) == ("3", 30 * GIB)
    assert kept.memory_reason == "set by resources.train.memory"
    charts = stage_host(parse(), Stage.TRAIN, MISTRAL, None, chart, 0)
    assert (charts.cpu, charts.memory_bytes) == ("7", 24 * GIB)
    computed = stage_host(parse(), Stage.TRAIN, MISTRAL, None, Chart(), 0)
    assert computed == stage_host(parse(), Stage.TRAIN, MISTRAL, None, None, 0)
    assert 4 * GIB < computed.memory_bytes < 12 * GIB
    assert "CUDA" in computed.memory_reason


@pytest.mark.parametrize("stage", WORK_STAGES)
@pytest.mark.parametrize("shape", [None, MISTRAL, LLAMA_70B], ids=["unknown", "7B", "70B"])
def test_every_stage_has_a_size_and_a_reason_with_and_without_a_known_model(
    stage: Stage, shape: ModelShape | None
) -> None:
    needs = stage_host(parse(), stage, shape, None, None, 0)
    assert GIB <= needs.memory_bytes <= 64 * GIB
    assert "GiB" in needs.memory_reason
    assert needs.scratch_bytes > 0
    assert (needs.shared_memory_bytes > 0) == (stage is Stage.TRAIN)


def test_a_larger_model_needs_more_to_merge_and_load_but_not_to_prepare() -> None:
    def memory(stage: Stage, shape: ModelShape) -> int:
        return stage_host(parse(), stage, shape, None, None, 0).memory_bytes

    assert memory(Stage.MERGE, MISTRAL) < memory(Stage.MERGE, LLAMA_70B)
    assert memory(Stage.TRAIN, MISTRAL) < memory(Stage.TRAIN, LLAMA_70B)
    assert memory(Stage.PREPARE, MISTRAL) == memory(Stage.PREPARE, LLAMA_70B)


def test_the_report_over_more_rows_needs_more_memory() -> None:
    def memory(rows: int) -> int:
        return stage_host(parse(), Stage.PREPARE, None, report(rows=rows), None, 0).memory_bytes

    assert memory(20) < memory(1_000_000) < memory(10_000_000)


def test_a_cpu_device_holds_the_model_on_the_host() -> None:
    def memory(size: int) -> int:
        needs = stage_host(parse(), Stage.TRAIN, MISTRAL, None, None, 0, device="cpu", device_bytes=size)
        return needs.memory_bytes

    assert memory(6 * GIB) > 12 * GIB
    assert memory(GIB) < memory(6 * GIB)


@pytest.mark.parametrize("stage", WORK_STAGES)
def test_a_killed_stage_gets_half_as_much_memory_again_once(stage: Stage) -> None:
    spec = parse()
    first = stage_host(spec, stage, MISTRAL, None, None, 0)
    assert may_retry_with_more(spec, stage, 1)
    second = stage_host(spec, stage, MISTRAL, None, None, 1)
    assert 1.5 <= second.memory_bytes / first.memory_bytes < 2
    assert "an attempt ran out of memory" in second.memory_reason
    assert not may_retry_with_more(spec, stage, 2)
    message = out_of_memory_message(spec, stage, second)
    assert f"resources.{stage.slug}.memory" in message
    assert format_bytes(second.memory_bytes) in message


def test_memory_that_the_user_set_is_not_raised_and_the_message_says_so() -> None:
    spec = parse(resources={"merge": {"memory": "2Gi"}})
    assert not may_retry_with_more(spec, Stage.MERGE, 1)
    needs = stage_host(spec, Stage.MERGE, MISTRAL, None, None, 1)
    assert needs.memory_bytes == 2 * GIB
    message = out_of_memory_message(spec, Stage.MERGE, needs)
    assert "The spec sets this size" in message
    assert "3Gi" in message


def test_an_adapter_has_as_many_parameters_as_in_peft() -> None:
    """Published numbers for Mistral-7B at rank 16: all linear layers, while q and v alone have 6.8 M."""
    assert adapter_parameters(MISTRAL, 16, "AllLinear") == 41_943_040
    assert adapter_parameters(MISTRAL, 16, "AttentionOnly") == 13_631_488
    assert quantized_bytes(MISTRAL) == pytest.approx(3.854 * GIB, rel=0.01)


def test_the_default_workspace_holds_a_7b_model_of_the_hub_and_not_a_70b_one() -> None:
    small, why = workspace_bytes(parse(model=HUB), MISTRAL, None)
    large, _ = workspace_bytes(parse(model=HUB), LLAMA_70B, None)
    assert small < 20 * GIB < large
    for part in ("4-bit model", "largest weight file", "adapter checkpoints"):
        assert part in why


def test_a_checkpoint_takes_more_of_the_workspace_if_the_optimizer_keeps_32_bits() -> None:
    """Both moments of AdamW have the 4 bytes of the adapter's values. While the optimizer is open, the largest counts."""
    spec = parse(training={"lora": {"rank": 512}})
    small, _ = workspace_bytes(spec, MISTRAL, None, optimizers=["AdamW8Bit", "PagedAdamW8Bit"])
    large, _ = workspace_bytes(spec, MISTRAL, None, optimizers=["PagedAdamW8Bit", "AdamW"])
    assert large - small >= 3 * 4 * adapter_parameters(MISTRAL, 512, "AllLinear")
    assert workspace_bytes(spec, MISTRAL, None) == (large, workspace_bytes(spec, MISTRAL, None)[1])


def test_only_a_paged_optimizer_needs_host_memory_for_its_states() -> None:
    def reason(*optimizers: Optimizer) -> str:
        return stage_host(parse(), Stage.TRAIN, MISTRAL, None, None, 0, optimizers=optimizers).memory_reason

    assert "paged optimizer states 0.31 GiB" in reason("AdamW8Bit", "PagedAdamW8Bit")
    assert "paged" not in reason("AdamW", "AdamW8Bit")
    assert "copy of the training state 0.31 GiB" in reason("AdamW8Bit")
    assert "copy of the training state 0.47 GiB" in reason("AdamW", "AdamW8Bit")


def test_keeping_the_best_step_needs_room_for_two_more_checkpoints() -> None:
    large = {"rank": 512}
    last, _ = workspace_bytes(parse(training={"lora": large}), MISTRAL, None)
    best, _ = workspace_bytes(parse(training={"lora": large, "checkpoint": {"keep": "Best"}}), MISTRAL, None)
    assert best - last > 2 * 6 * adapter_parameters(MISTRAL, 512, "AllLinear")


@pytest.mark.parametrize(
    "changes", [{"mergeOnto": "OriginalWeights"}, {"artifacts": ["Adapter", "BaseAsTrained"]}]
)
def test_what_reads_the_original_weights_keeps_them_in_the_workspace(changes: dict[str, Any]) -> None:
    """Whatever the source and the cache: the merge needs the weights themselves."""
    output = {**make_spec()["output"], **changes}
    plain, _ = workspace_bytes(parse(), MISTRAL, None)
    for source in ({}, {"model": HUB}):
        kept, why = workspace_bytes(parse(output=output, **source), MISTRAL, None)
        assert kept - plain == pytest.approx(2 * MISTRAL.parameters * 1.1, rel=1e-6)
        assert "original weights" in why
        assert "largest weight file" not in why
    adapter = {**output, "artifacts": ["Adapter"]}
    assert workspace_bytes(parse(output=adapter), MISTRAL, None)[0] == plain, "no merge, nothing to keep"


def test_artifacts_for_several_destinations_are_staged_in_the_workspace() -> None:
    plain, _ = workspace_bytes(parse(), MISTRAL, None)
    copies = {"destinations": [{"name": "a", "s3": {"uri": "s3://bucket/a"}}]}
    merged, why = workspace_bytes(parse(output={**copies, "artifacts": ["Merged"]}), MISTRAL, None)
    assert merged - plain == pytest.approx(1.1 * 2 * MISTRAL.parameters, rel=1e-6)
    assert "artifacts before they are copied" in why
    adapter, _ = workspace_bytes(parse(output={**copies, "artifacts": ["Adapter"]}), MISTRAL, None)
    assert plain < adapter < merged


def test_a_workspace_counts_rows_but_not_files_stored_elsewhere() -> None:
    whole, _ = workspace_bytes(parse(model=HUB), MISTRAL, None)
    local, _ = workspace_bytes(parse(), MISTRAL, None)
    cached, _ = workspace_bytes(parse(model=HUB, modelCache={"claimName": "models"}), MISTRAL, None)
    rows = report(supervisedTokens=1_000_000_000)
    with_rows, why = workspace_bytes(parse(model=HUB), MISTRAL, rows)
    assert local < whole
    assert cached == pytest.approx(whole - 1.1 * quantized_bytes(MISTRAL), abs=2)
    assert with_rows == pytest.approx(whole + 1.1 * 8e9, abs=2)
    assert "rows" in why


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_training_has_room_for_the_copy_that_a_checkpoint_is_written_from(
    device: Literal["cuda", "cpu"],
) -> None:
    def needed(rank: int) -> tuple[int, str]:
        spec = parse(training={"lora": {"rank": rank}})
        needs = stage_host(spec, Stage.TRAIN, MISTRAL, None, None, 0, device=device, device_bytes=1 << 30)
        return needs.memory_bytes, needs.memory_reason

    (small, _), (large, reason) = needed(16), needed(256)
    parameters = adapter_parameters(MISTRAL, 256, "AllLinear") - adapter_parameters(MISTRAL, 16, "AllLinear")
    copy = {"cuda": 4 + 2 * (1 + 4 / 256), "cpu": 12}[device]
    assert large - small >= copy * parameters - (1 << 29)
    assert "copy of the training state" in reason
