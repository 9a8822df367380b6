"""The GPU that is recognized from the labels of a node."""

from __future__ import annotations

import json

import pytest
from finetune_operator.api.pod_merge import NodeRules
from finetune_operator.sizing.gpus.gpu import Offer
from finetune_operator.sizing.gpus.nodes import HAMI_REGISTER, NodeRecord
from finetune_operator.sizing.gpus.offers import eligible, offers
from finetune_operator.sizing.gpus.products import find_product

from tests.support.gpu_nodes import GIB, MIB, gfd, node, nvidia

GPU = "nvidia.com/gpu"


def one(record: NodeRecord, resource_name: str = GPU, *, time_slicing: bool = False) -> Offer:
    (found,) = offers([record], (), resource_name, allow_time_slicing=time_slicing)
    return found


def usable(name: str) -> int:
    found = find_product(name)
    assert found is not None
    assert found.usable_bytes is not None
    return found.usable_bytes


def test_feature_discovery_gives_product_driver_and_capability() -> None:
    labels = gfd(
        "NVIDIA-L4",
        23034,
        gpu_compute_major="8",
        gpu_compute_minor="9",
        **{"cuda_runtime-version_major": "12", "cuda_runtime-version_minor": "8"},
    )
    found = one(node("a", {**labels, "topology.kubernetes.io/zone": "z"}, {GPU: "4"}))
    assert (found.gpu.product, found.gpu.vendor, found.gpu.usable_bytes) == (
        "NVIDIA L4",
        "Nvidia",
        usable("L4"),
    )
    assert (found.gpu.compute_capability, found.gpu.driver_cuda) == ((8, 9), (12, 8))
    assert (found.node, found.count, found.state, found.sharing, found.zone) == (
        "a",
        4,
        "Available",
        "None",
        "z",
    )


@pytest.mark.parametrize(
    ("labels", "cuda"),
    [
        ({"nvidia.com/cuda.runtime.major": "12", "nvidia.com/cuda.runtime.minor": "2"}, (12, 2)),
        ({"nvidia.com/cuda.driver-version.major": "580"}, (13, 0)),
        ({"nvidia.com/cuda.driver.major": "535"}, (12, 0)),
        ({"nvidia.com/cuda.driver.major": "470"}, (11, 0)),
        ({"nvidia.com/cuda.driver.major": "390"}, None),
        ({}, None),
    ],
)
def test_the_newest_cuda_of_a_driver_is_read_or_known_by_its_branch(
    labels: dict[str, str], cuda: tuple[int, int] | None
) -> None:
    assert one(nvidia("a", "NVIDIA-L4", 23034, labels=labels)).gpu.driver_cuda == cuda


def test_an_unknown_product_gets_97_5_percent_of_its_label() -> None:
    found = one(nvidia("a", "NVIDIA-Z900", 100_000))
    assert found.gpu.usable_bytes == 97_500 * MIB
    assert found.gpu.product == "NVIDIA-Z900"


@pytest.mark.parametrize(
    ("product", "memory"),
    [
        ("NVIDIA-A10", 11264),  # a vGPU, or a fraction that a cloud passes through
        ("NVIDIA-GeForce-RTX-4090", 49140),  # a card with other memory chips
    ],
)
def test_a_card_with_other_memory_than_its_products_has_what_its_label_says(
    product: str, memory: int
) -> None:
    found = one(nvidia("a", product, memory))
    assert found.gpu.usable_bytes is not None
    assert 0.94 < found.gpu.usable_bytes / (memory * MIB) < 0.98


@pytest.mark.parametrize("memory", [15079, 15109, 15360, 16384])
def test_labels_of_other_drivers_and_advertised_sizes_mean_the_same_card(memory: int) -> None:
    assert one(nvidia("a", "Tesla-T4", memory)).gpu.usable_bytes == usable("T4")


def test_a_gpu_without_evidence_has_no_size() -> None:
    found = one(node("a", {}, {GPU: "1"}))
    assert found.gpu.usable_bytes is None
    assert found.selector_labels == ()


SOURCES: list[tuple[dict[str, str], str]] = [
    ({"karpenter.k8s.aws/instance-gpu-name": "t4", "karpenter.k8s.aws/instance-gpu-memory": "16384"}, "T4"),
    (
        {"karpenter.k8s.aws/instance-gpu-name": "a10g", "karpenter.k8s.aws/instance-gpu-memory": "22888"},
        "A10G",
    ),
    (
        {"karpenter.k8s.aws/instance-gpu-name": "a100", "karpenter.k8s.aws/instance-gpu-memory": "81920"},
        "A100 80GB",
    ),
    ({"eks.amazonaws.com/instance-gpu-name": "l40s"}, "L40S"),
    (
        {
            "karpenter.azure.com/sku-gpu-name": "A100",
            "node.kubernetes.io/instance-type": "Standard_NC24ads_A100_v4",
        },
        "A100 80GB",
    ),
    ({"karpenter.azure.com/sku-gpu-name": "A100"}, "A100 40GB"),
    ({"cloud.google.com/gke-accelerator": "nvidia-l4"}, "L4"),
    ({"cloud.google.com/gke-accelerator": "nvidia-tesla-a100"}, "A100 40GB"),
    ({"cloud.google.com/gke-accelerator": "nvidia-h100-mega-80gb"}, "H100 80GB"),
    ({"k8s.amazonaws.com/accelerator": "nvidia-tesla-v100"}, "V100 16GB"),
    ({"aliyun.accelerator/nvidia_name": "NVIDIA-A10"}, "A10"),
    ({"cloud.tencent.com/tke-accelerator": "nvidia-tesla-t4"}, "T4"),
    (
        {
            "kubernetes.azure.com/accelerator": "nvidia",
            "node.kubernetes.io/instance-type": "Standard_NC4as_T4_v3",
        },
        "T4",
    ),
    ({"node.kubernetes.io/instance-type": "g5.xlarge"}, "A10G"),
    ({"node.kubernetes.io/instance-type": "g6.12xlarge"}, "L4"),
    ({"node.kubernetes.io/instance-type": "g4dn.xlarge"}, "T4"),
    ({"node.kubernetes.io/instance-type": "p4d.24xlarge"}, "A100 40GB"),
    ({"node.kubernetes.io/instance-type": "p4de.24xlarge"}, "A100 80GB"),
    ({"node.kubernetes.io/instance-type": "p5.48xlarge"}, "H100 80GB"),
    ({"beta.kubernetes.io/instance-type": "a2-highgpu-1g"}, "A100 40GB"),
    ({"node.kubernetes.io/instance-type": "a2-ultragpu-1g"}, "A100 80GB"),
    ({"node.kubernetes.io/instance-type": "g2-standard-8"}, "L4"),
    ({"node.kubernetes.io/instance-type": "Standard_ND96asr_v4"}, "A100 40GB"),
    ({"node.kubernetes.io/instance-type": "Standard_ND96amsr_A100_v4"}, "A100 80GB"),
    ({"node.kubernetes.io/instance-type": "ecs.gn7i-c8g1.2xlarge"}, "A10"),
    ({"node.kubernetes.io/instance-type": "VM.GPU.A10.1"}, "A10"),
]


@pytest.mark.parametrize(("labels", "product"), SOURCES)
def test_clouds_and_autoscalers_are_read_by_product(labels: dict[str, str], product: str) -> None:
    """A cloud advertises more memory than the card has, so the table counts."""
    assert one(node("a", labels, {GPU: "1"})).gpu.usable_bytes == usable(product)


@pytest.mark.parametrize(
    "kind",
    ["g6f.large", "Standard_NV12ads_A10_v5", "m5.large", "n1-standard-8", "inf2.xlarge", "", "ecs.g7.large"],
)
def test_an_instance_type_without_a_definite_gpu_gives_no_size(kind: str) -> None:
    assert one(node("a", {"node.kubernetes.io/instance-type": kind}, {GPU: "1"})).gpu.usable_bytes is None


def test_advertised_memory_of_an_unknown_product_is_cut_by_seven_percent() -> None:
    labels = {"karpenter.k8s.aws/instance-gpu-name": "z9", "karpenter.k8s.aws/instance-gpu-memory": "100000"}
    assert one(node("a", labels, {GPU: "1"})).gpu.usable_bytes == 93_000 * MIB


def test_the_drivers_label_counts_before_the_clouds() -> None:
    labels = {
        **gfd("NVIDIA-L4", 23034),
        "karpenter.k8s.aws/instance-gpu-name": "l40s",
        "node.kubernetes.io/instance-type": "p4d.24xlarge",
    }
    found = one(node("a", labels, {GPU: "1"}))
    assert found.gpu.product == "NVIDIA L4"
    # A label that contradicts is no way to ask for this GPU.
    assert found.selector_labels == ({"nvidia.com/gpu.product": "NVIDIA-L4"},)


def test_all_labels_that_agree_select_the_gpu() -> None:
    labels = {**gfd("NVIDIA-A10G", 23028), "karpenter.k8s.aws/instance-gpu-name": "a10g"}
    assert one(node("a", labels, {GPU: "1"})).selector_labels == (
        {"nvidia.com/gpu.product": "NVIDIA-A10G"},
        {"karpenter.k8s.aws/instance-gpu-name": "a10g"},
    )


@pytest.mark.parametrize(
    ("labels", "usable_gib"),
    [
        ({"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM", "amd.com/gpu.vram": "192G"}, 191.6),
        ({"amd.com/gpu.vram": "64G"}, 62.4),
        ({"beta.amd.com/gpu.vram.64G": "2", "beta.amd.com/gpu.cu-count.104": "2"}, 62.4),
        ({"beta.amd.com/gpu.vram.64G": "2", "beta.amd.com/gpu.vram.32G": "1"}, 31.2),
        # A quarter of an MI300X, as in compute partitioning.
        ({"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM", "amd.com/gpu.vram": "48G"}, 46.8),
    ],
)
def test_amds_labeller_is_read(labels: dict[str, str], usable_gib: float) -> None:
    found = one(node("a", labels, {"amd.com/gpu": "2"}), "amd.com/gpu")
    assert found.gpu.vendor == "Amd"
    assert found.gpu.usable_bytes is not None
    assert found.gpu.usable_bytes / GIB == pytest.approx(usable_gib, abs=0.2)


def test_a_node_of_two_vendors_offers_each_under_its_own_resource() -> None:
    labels = {
        **gfd("NVIDIA-L4", 23034),
        "amd.com/gpu.product-name": "AMD_Instinct_MI210",
        "amd.com/gpu.vram": "64G",
    }
    record = node("a", labels, {GPU: "1", "amd.com/gpu": "1"})
    assert one(record).gpu.product == "NVIDIA L4"
    assert one(record, "amd.com/gpu").gpu.product == "AMD Instinct MI210"


@pytest.mark.parametrize(
    "text",
    [
        "GPU-1,10,23034,100,NVIDIA-NVIDIA L4,0,true:GPU-2,10,15360,100,NVIDIA-Tesla T4,0,true:",
        json.dumps(
            [
                {
                    "id": "GPU-1",
                    "count": 10,
                    "devmem": 23034,
                    "devcore": 100,
                    "type": "NVIDIA L4",
                    "health": True,
                },
                {
                    "id": "GPU-2",
                    "count": 10,
                    "devmem": 15360,
                    "devcore": 100,
                    "type": "Tesla T4",
                    "health": True,
                },
            ]
        ),
    ],
)
def test_of_several_kinds_of_gpu_on_one_node_the_smallest_counts(text: str) -> None:
    """A label names one kind for all; HAMi's annotation lists every card."""
    record = node("a", gfd("NVIDIA-L4", 23034), {GPU: "20"}, annotations={HAMI_REGISTER: text})
    found = one(record)
    assert found.gpu.product == "NVIDIA T4"
    assert found.gpu.usable_bytes == usable("T4")
    assert "smallest of several kinds" in found.gpu.source


@pytest.mark.parametrize(
    "text", ["", "x", "[", "[1, {}]", '[{"devmem": "a"}]', '{"devmem": 1}', "a,b,c,d,e", ":::"]
)
def test_an_unreadable_annotation_is_no_evidence(text: str) -> None:
    assert one(node("a", {}, {GPU: "1"}, annotations={HAMI_REGISTER: text})).gpu.usable_bytes is None


# ---- slices and shares ---------------------------------------------------------------------------------------------


def test_a_single_mig_layout_is_read_from_the_product() -> None:
    labels = gfd("NVIDIA-A100-SXM4-80GB-MIG-3g.40gb", 40192, mig_strategy="single")
    found = one(node("a", labels, {GPU: "2"}))
    assert (found.sharing, found.count) == ("Mig", 2)
    assert found.gpu.product == "NVIDIA A100 80GB MIG 3g.40gb"
    assert found.gpu.usable_bytes == 40192 * MIB * 975 // 1000
    assert found.gpu.compute_capability == (8, 0)


MIXED = {
    **gfd("NVIDIA-A100-SXM4-80GB", 81920, gpu_count="2", mig_strategy="mixed"),
    "nvidia.com/mig-3g.40gb.product": "NVIDIA-A100-SXM4-80GB-MIG-3g.40gb",
    "nvidia.com/mig-3g.40gb.memory": "40192",
    "nvidia.com/mig-3g.40gb.count": "2",
}


def test_a_mixed_mig_layout_offers_each_profile_under_its_own_resource() -> None:
    record = node("a", MIXED, {GPU: "1", "nvidia.com/mig-3g.40gb": "2"})
    assert one(record).gpu.product == "NVIDIA A100 80GB"
    sliced = one(record, "nvidia.com/mig-3g.40gb")
    assert (sliced.sharing, sliced.count) == ("Mig", 2)
    assert sliced.gpu.usable_bytes == 40192 * MIB * 975 // 1000
    assert sliced.selector_labels == (
        {"nvidia.com/mig-3g.40gb.product": "NVIDIA-A100-SXM4-80GB-MIG-3g.40gb"},
    )
    assert offers([record], (), "nvidia.com/mig-1g.10gb", allow_time_slicing=False) == ()


def test_gpus_that_are_all_sliced_are_not_expected_whole() -> None:
    record = node("a", MIXED, {GPU: "0", "nvidia.com/mig-3g.40gb": "4"})
    assert offers([record], (), GPU, allow_time_slicing=False) == ()


def test_a_slice_without_labels_is_sized_by_its_resources_name() -> None:
    found = one(
        node("a", {"node.kubernetes.io/instance-type": "p4d.24xlarge"}, {"nvidia.com/mig-1g.5gb": "7"}),
        "nvidia.com/mig-1g.5gb",
    )
    assert found.gpu.usable_bytes == int(4.75 * GIB)


def test_an_invalid_mig_layout_admits_no_pod() -> None:
    labels = gfd("NVIDIA-A100-SXM4-40GB-MIG-INVALID", 0, gpu_count="0", mig_strategy="single")
    found = one(node("a", labels, {GPU: "0"}))
    assert found.gpu.usable_bytes is None
    why = eligible(found, NodeRules())
    assert why is not None
    assert "MIG layout" in why


def test_gkes_partitions_are_slices() -> None:
    labels = {
        "cloud.google.com/gke-accelerator": "nvidia-tesla-a100",
        "cloud.google.com/gke-gpu-partition-size": "1g.5gb",
    }
    found = one(node("a", labels, {GPU: "7"}))
    assert found.gpu.usable_bytes == int(4.75 * GIB)
    assert found.selector_labels == (labels,)


SLICED: list[tuple[dict[str, str], str]] = [
    (gfd("NVIDIA-L4-SHARED", 23034, gpu_replicas="4"), GPU),
    (gfd("NVIDIA-L4", 23034, gpu_replicas="4", **{"gpu_sharing-strategy": "time-slicing"}), f"{GPU}.shared"),
    (gfd("NVIDIA-L4", 23034), f"{GPU}.shared"),
    (
        {
            "cloud.google.com/gke-accelerator": "nvidia-l4",
            "cloud.google.com/gke-gpu-sharing-strategy": "time-sharing",
        },
        GPU,
    ),
]


@pytest.mark.parametrize(("labels", "resource"), SLICED)
def test_a_time_sliced_gpu_is_excluded_unless_the_administrator_allows_it(
    labels: dict[str, str], resource: str
) -> None:
    record = node("a", labels, {resource: "4"})
    barred = one(record, resource)
    assert barred.sharing == "TimeSlicing"
    why = eligible(barred, NodeRules())
    assert why is not None
    assert "allowTimeSlicing" in why
    allowed = one(record, resource, time_slicing=True)
    assert eligible(allowed, NodeRules()) is None
    assert allowed.gpu.usable_bytes == usable("L4")


def test_an_mps_client_has_its_equal_share() -> None:
    labels = gfd("NVIDIA-A100-SXM4-80GB-SHARED", 81920, gpu_replicas="4", **{"gpu_sharing-strategy": "mps"})
    found = one(node("a", labels, {GPU: "32"}))
    assert (found.sharing, found.replicas) == ("Mps", 4)
    assert found.gpu.usable_bytes == usable("A100 80GB") // 4
    assert eligible(found, NodeRules()) is None


def test_mps_of_an_unknown_number_of_clients_has_no_size() -> None:
    labels = gfd("NVIDIA-L4-SHARED", 23034, **{"gpu_sharing-strategy": "mps"})
    assert one(node("a", labels, {GPU: "4"})).gpu.usable_bytes is None
