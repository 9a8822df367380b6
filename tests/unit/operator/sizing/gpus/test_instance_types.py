"""Cloud instance types, with the GPUs that the clouds publish for them."""

from __future__ import annotations

import pytest
from finetune_operator.sizing.gpus.instance_types import instance_gpu
from finetune_operator.sizing.gpus.products import find_product


@pytest.mark.parametrize(
    ("kind", "gpu"),
    [
        ("g5.xlarge", "A10G"),
        ("ml.g5.xlarge", "A10G"),
        ("p6-b200.48xlarge", "B200"),
        ("a3-ultragpu-8g", "H200"),
        ("Standard_NC4as_T4_v3", "T4"),
        ("Standard_ND96asr_v4", "A100 40GB"),
        ("Standard_ND96amsr_A100_v4", "A100 80GB"),
        ("Standard_NC6s_v3", "V100 16GB"),
        ("Standard_ND40rs_v2", "V100 32GB"),
        ("ecs.gn7i-c8g1.2xlarge", "A10"),
        ("VM.GPU.A10.1", "A10"),
        ("BM.GPU4.8", "A100 40GB"),
        ("BM.GPU.A100-v2.8", "A100 80GB"),
    ],
)
def test_each_cloud_spells_its_types_differently(kind: str, gpu: str) -> None:
    assert instance_gpu(kind) == gpu
    assert find_product(gpu) is not None


@pytest.mark.parametrize(
    "kind",
    ["", ".", "ecs.", "m5.large", "g6f.large", "Standard_NV12ads_A10_v5", "Standard_NC", "VM.Standard3.Flex"],
)
def test_a_type_without_one_whole_kind_of_gpu_is_unknown(kind: str) -> None:
    assert instance_gpu(kind) is None
