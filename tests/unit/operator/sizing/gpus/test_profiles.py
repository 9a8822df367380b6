from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from finetune_operator.sizing.gpus.offers import eligible, offers
from finetune_operator.sizing.gpus.products import find_product
from finetune_operator.sizing.gpus.profiles import GpuProfileError, parse_gpu_profiles

from tests.support.gpu_nodes import MIB, selecting
from tests.support.repository import ROOT

L4 = {"name": "l4", "product": "nvidia-l4", "labels": {"cloud.google.com/gke-accelerator": "nvidia-l4"}}


def profile(**changes: Any) -> dict[str, Any]:
    return {**L4, **changes}


def test_a_profile_offers_its_product_before_any_node_exists() -> None:
    taint = {"key": "team", "value": "a", "effect": "NoSchedule"}
    profiles = parse_gpu_profiles(
        [profile(count=8, taints=[taint], computeCapability="8.9", driverCuda="13.0")]
    )
    (found,) = offers((), profiles, "nvidia.com/gpu", allow_time_slicing=False)
    known = find_product("L4")
    assert known is not None
    assert (found.node, found.profile, found.count, found.zone) == (None, "l4", 8, None)
    assert (found.gpu.product, found.gpu.usable_bytes) == (known.product, known.usable_bytes)
    assert (found.gpu.compute_capability, found.gpu.driver_cuda) == ((8, 9), (13, 0))
    assert found.taints == (taint,)
    assert found.selector_labels == (L4["labels"],)


def test_each_zone_of_a_profile_is_an_offer() -> None:
    found = offers(
        (), parse_gpu_profiles([profile(zones=["a", "b"])]), "nvidia.com/gpu", allow_time_slicing=False
    )
    assert [offer.zone for offer in found] == ["a", "b"]
    why = eligible(found[0], selecting({"topology.kubernetes.io/zone": "b"}))
    assert why is not None
    assert eligible(found[1], selecting({"topology.kubernetes.io/zone": "b"})) is None
    # The zone is where the node will be, not a label to select this profile by.
    assert found[0].selector_labels == (L4["labels"],)


def test_a_profile_is_offered_under_its_own_resource_only() -> None:
    profiles = parse_gpu_profiles(
        [profile(), profile(name="amd", product="MI300X", resourceName="amd.com/gpu")]
    )
    assert [offer.profile for offer in offers((), profiles, "amd.com/gpu", allow_time_slicing=False)] == [
        "amd"
    ]


@pytest.mark.parametrize(
    ("members", "usable_mib"),
    [
        ({"product": None, "memory": "24Gi"}, 24576 - 24576 * 25 // 1000),
        ({"product": "card of ours", "memory": "100000Mi"}, 97_500),
        # An advertised size is more than there is: the table counts where it says less.
        ({"memory": "24Gi"}, 22476),
        ({"memory": "8Gi"}, 8192 - 560),
    ],
)
def test_memory_gives_the_size_of_an_unknown_product(members: dict[str, Any], usable_mib: int) -> None:
    (found,) = parse_gpu_profiles([profile(**members)])
    assert found.gpu.usable_bytes == pytest.approx(usable_mib * MIB, abs=MIB)


@pytest.mark.parametrize(
    ("selector", "may"),
    [
        ({"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}, True),
        ({"kubernetes.io/os": "windows"}, False),
        ({"kubernetes.io/hostname": "a"}, False),
        ({"pool": "a"}, False),
    ],
)
def test_a_selector_may_name_what_every_new_node_has(selector: dict[str, str], may: bool) -> None:  # noqa: FBT001 -- a case's outcome
    (found,) = offers((), parse_gpu_profiles([profile()]), "nvidia.com/gpu", allow_time_slicing=False)
    assert (eligible(found, selecting(selector)) is None) == may


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("x", "found 'x'"),
        ([{"name": "a", "product": "L4"}], "labels"),
        ([profile(labels={})], "labels"),
        ([profile(product=None)], "must have a product or the memory"),
        ([profile(product="Z900")], "add memory"),
        ([profile(memory="24")], "24Gi"),
        ([profile(memory="lots")], "memory"),
        ([profile(count=0)], "count]: Input should be greater than or equal to 1, found 0"),
        ([profile(extra=1)], "extra"),
        ([profile(driverCuda="13")], "driverCuda"),
        ([profile(taints=[{"key": "a", "effect": "Never"}])], "effect"),
        ([profile(), profile()], "l4 twice"),
        ([profile(), profile(name="other", product="L40S")], "must differ in a label"),
    ],
)
def test_bad_profiles_are_rejected_with_the_member_and_the_remedy(document: Any, words: str) -> None:
    with pytest.raises(GpuProfileError, match="gpuProfiles") as error:
        parse_gpu_profiles(document)
    assert words in str(error.value)


def test_every_example_of_the_documentation_is_valid() -> None:
    text = (ROOT / "docs/gpus.md").read_text()
    examples = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(examples) >= 5
    for example in examples:
        for entry in parse_gpu_profiles(yaml.safe_load(example)["gpuProfiles"]):
            assert entry.gpu.usable_bytes
