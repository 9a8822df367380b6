"""Evidence about a node's GPUs, in its order of precedence."""

from __future__ import annotations

import pytest
from finetune_operator.sizing.gpus.node_labels import has_gpu_evidence, memory_mib, number, read_evidence
from finetune_operator.sizing.gpus.nodes import HAMI_REGISTER

from tests.support.gpu_nodes import gfd, node

PREFIX = "nvidia.com/gpu"


@pytest.mark.parametrize(
    ("text", "mebibytes"),
    [
        ("16384", 16384),
        ("15109MiB", 15109),
        ("15109 mb", 15109),
        ("64G", 65536),
        ("24Gi", 24576),
        ("0", None),
        ("24.5G", None),
        ("24T", None),
        ("-1", None),
        ("", None),
        (None, None),
        ("9999999999", None),
    ],
)
def test_a_label_of_memory_is_read_in_binary_units(text: str | None, mebibytes: int | None) -> None:
    assert memory_mib(text) == mebibytes


@pytest.mark.parametrize(
    ("text", "found"),
    [("8", 8), ("0", 0), ("٣", None), ("+8", None), ("8.0", None), ("1234567890", None), (None, None)],
)
def test_a_number_has_only_ascii_digits(text: str | None, found: int | None) -> None:
    assert number(text) == found


def test_evidence_comes_from_driver_annotation_cloud_and_instance_type_in_this_order() -> None:
    labels = {
        **gfd("NVIDIA-L4", 23034),
        "cloud.google.com/gke-accelerator": "nvidia-l4",
        "node.kubernetes.io/instance-type": "g2-standard-8",
    }
    found = read_evidence(
        node("a", labels, annotations={HAMI_REGISTER: "GPU-1,10,23034,100,NVIDIA-L4,0,true:"}), PREFIX
    )
    assert [(item.origin, item.memory_mib, item.measured) for item in found] == [
        ("nvidia.com/gpu.product", 23034, True),
        (HAMI_REGISTER, 23034, True),
        ("cloud.google.com/gke-accelerator", None, False),
        ("node.kubernetes.io/instance-type", None, False),
    ]
    # An annotation cannot be selected by.
    assert [bool(item.labels) for item in found] == [True, False, True, True]


def test_a_gke_partition_is_part_of_the_name_and_of_the_selection() -> None:
    labels = {
        "cloud.google.com/gke-accelerator": "nvidia-tesla-a100",
        "cloud.google.com/gke-gpu-partition-size": "1g.5gb",
    }
    (found,) = read_evidence(node("a", labels), PREFIX)
    assert found.name == "nvidia-tesla-a100-MIG-1g.5gb"
    assert found.labels == labels


def test_hami_lists_devices_as_json_too_and_the_smallest_counts() -> None:
    text = '[{"devmem": 81920, "type": "A100"}, {"devmem": 23034, "type": "L4"}, {"devmem": "x"}, 3]'
    (found,) = read_evidence(node("a", annotations={HAMI_REGISTER: text}), PREFIX)
    assert (found.name, found.memory_mib, found.mixed) == ("L4", 23034, True)


def test_amds_labeller_writes_a_label_for_each_kind() -> None:
    labels = {"amd.com/gpu.vram.64G": "1", "amd.com/gpu.vram.192G": "1"}
    (found,) = read_evidence(node("a", labels), "amd.com/gpu")
    assert (found.memory_mib, found.mixed, found.labels) == (65536, True, {})


@pytest.mark.parametrize(
    ("labels", "evidence"),
    [
        ({}, False),
        ({"team": "a"}, False),
        ({"node.kubernetes.io/instance-type": "m5.large"}, False),
        ({"node.kubernetes.io/instance-type": "g5.xlarge"}, True),
        ({"accelerator": "nvidia"}, True),
        ({"beta.amd.com/gpu.vram": "16G"}, True),
    ],
)
def test_a_node_without_any_sign_of_a_gpu_has_no_evidence(labels: dict[str, str], evidence: bool) -> None:  # noqa: FBT001 -- a case's outcome
    assert has_gpu_evidence(node("a", labels)) == evidence
