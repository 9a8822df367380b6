from __future__ import annotations

import pytest
from finetune_operator.sizing.gpus.product_table import TABLE
from finetune_operator.sizing.gpus.products import (
    PRODUCTS,
    find_product,
    match_product,
    mig_memory_mib,
    split_mig,
    usable_of_label,
    usable_of_product,
)
from hypothesis import given
from hypothesis import strategies as st

GIB = 2**30
MIB = 2**20

SPELLINGS = {
    "NVIDIA L4": ["NVIDIA L4", "nvidia-l4", "L4", "l4", "NVIDIA-L4-SHARED", " NVIDIA  L4 "],
    "NVIDIA T4": ["Tesla T4", "Tesla-T4", "nvidia-tesla-t4", "T4", "NVIDIA T4 16GB"],
    "NVIDIA A10G": ["A10G", "a10g", "NVIDIA-A10G", "nvidia-a10g", "NVIDIA A10G Tensor Core GPU"],
    "NVIDIA A10": ["NVIDIA-A10", "A10 24 GB"],
    "NVIDIA A100 40GB": [
        "NVIDIA-A100-SXM4-40GB",
        "A100-PCIE-40GB",
        "NVIDIA A100 40GB PCIe",
        "nvidia-tesla-a100",
    ],
    "NVIDIA A100 80GB": ["NVIDIA A100-SXM4-80GB", "nvidia-a100-80gb", "A100 80 GB", "NVIDIA-A100-80GB-PCIe"],
    "NVIDIA H100 80GB": [
        "H100 80GB HBM3",
        "nvidia-h100-mega-80gb",
        "nvidia-h100-80gb",
        "NVIDIA H100 PCIe",
        "H100",
    ],
    "NVIDIA H100 NVL": ["NVIDIA H100 NVL", "NVIDIA-H100-NVL"],
    "NVIDIA H200": ["nvidia-h200-141gb", "NVIDIA H200", "h200", "NVIDIA H200 NVL"],
    "NVIDIA GH200": ["NVIDIA GH200 480GB", "NVIDIA GH200 120GB"],
    "NVIDIA GH200 144GB": ["NVIDIA GH200 144G HBM3e"],
    "NVIDIA B200": ["nvidia-b200", "NVIDIA B200"],
    "NVIDIA B300": ["NVIDIA B300 SXM6 AC"],
    "NVIDIA L40S": ["NVIDIA-L40S", "l40s"],
    "NVIDIA V100 16GB": ["Tesla-V100-SXM2-16GB", "nvidia-tesla-v100"],
    "NVIDIA V100 32GB": ["Tesla V100-SXM2-32GB", "Tesla V100-PCIE-32GB"],
    "NVIDIA RTX A6000": ["NVIDIA RTX A6000", "RTX-A6000", "a6000"],
    "NVIDIA RTX 6000 Ada": ["NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"],
    "NVIDIA RTX PRO 6000": [
        "NVIDIA RTX PRO 6000 Blackwell Server Edition",
        "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
        "nvidia-rtx-pro-6000",
        "rtx-pro-server-6000",
    ],
    "NVIDIA RTX 4090": ["NVIDIA GeForce RTX 4090", "NVIDIA-GeForce-RTX-4090", "RTX 4090", "4090"],
    "NVIDIA RTX 4070 Ti SUPER": ["NVIDIA GeForce RTX 4070 Ti SUPER"],
    "NVIDIA RTX 3090": ["GeForce RTX 3090"],
    "AMD Instinct MI300X": ["MI300X", "AMD_Instinct_MI300X_OAM", "AMD-MI300X-192G", "AMD Instinct MI300X"],
    "AMD Instinct MI325X": ["AMD_Instinct_MI325_OAM"],
    "AMD Instinct MI250X": ["AMD Instinct MI250X"],
    "AMD Radeon RX 7900 XTX": ["AMD Radeon RX 7900 XTX"],
}


@pytest.mark.parametrize(
    ("name", "product"), [(name, product) for product, names in SPELLINGS.items() for name in names]
)
def test_every_common_spelling_means_its_product(name: str, product: str) -> None:
    gpu = find_product(name)
    assert gpu is not None
    assert gpu.product == product


@pytest.mark.parametrize(
    "name",
    [
        "",
        "nvidia",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA A10-24Q",
        "GRID A100-10C",
        "A100 55GB",
        "Orin",
        "Graphics Device",
        "mig",
        "MIG-1g.5gb",
        "NVIDIA-A100-SXM4-40GB-MIG-INVALID",
        "tpu-v5-lite-podslice",
    ],
)
def test_a_name_with_unknown_words_is_never_taken_for_a_product(name: str) -> None:
    assert find_product(name) is None


def test_a_name_of_several_sizes_means_the_smallest_and_says_so() -> None:
    gpu = find_product("A100")
    assert gpu is not None
    assert gpu.product == "NVIDIA A100 40GB"
    assert gpu.source == "A100 comes with 40, 80 GB, the smallest is assumed"


def test_a_total_decides_between_sizes_of_one_name() -> None:
    match = match_product("a100", 81920)
    assert match is not None
    assert match.product.name == "NVIDIA A100 80GB"
    assert not match.note


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        # Totals that PyTorch reports of these cards, in GiB.
        ("T4", 14.5, 14.75),
        ("A10G", 21.9, 22.0),
        ("L4", 21.9, 22.04),
        ("RTX 4090", 23.4, 23.7),
        ("A30", 23.4, 23.54),
        ("A100 40GB", 39.3, 39.51),
        ("L40S", 44.3, 44.54),
        ("RTX 6000 Ada", 47.2, 47.54),
        ("A100 80GB", 79.1, 79.33),
        ("H100 80GB", 79.1, 79.34),
        ("H200", 139.6, 139.82),
        ("B200", 178.3, 178.4),
    ],
)
def test_usable_memory_is_what_a_process_was_seen_to_get(name: str, low: float, high: float) -> None:
    gpu = find_product(name)
    assert gpu is not None
    assert gpu.usable_bytes is not None
    assert low <= gpu.usable_bytes / GIB <= high


def test_no_product_offers_more_than_its_label_or_less_than_nine_tenths() -> None:
    for product in TABLE:
        share = usable_of_product(product) / (product.label_mib * MIB)
        assert 0.88 < share < 1, product.name
        # nvidia-smi shows a few percent less than advertised, never more than 5 % beyond it.
        assert product.label_mib <= product.sizes[0] * 1024 * 1.05, product.name


def test_products_are_sorted_by_usable_memory_and_found_by_name() -> None:
    sizes = [gpu.usable_bytes or 0 for gpu in PRODUCTS]
    assert sizes == sorted(sizes)
    for gpu in PRODUCTS:
        found = find_product(gpu.product)
        assert found is not None
        assert (found.product, found.usable_bytes) == (gpu.product, gpu.usable_bytes)


@pytest.mark.parametrize(
    ("name", "product", "gibibytes"),
    [
        # Sizes that `nvidia-smi mig -lgip` shows; a name promises no more.
        ("NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", "NVIDIA A100 40GB MIG 1g.5gb", 4.75),
        ("NVIDIA-A100-SXM4-80GB-MIG-3g.40gb", "NVIDIA A100 80GB MIG 3g.40gb", 39.25),
        ("NVIDIA-A100-SXM4-80GB-MIG-1g.10gb", "NVIDIA A100 80GB MIG 1g.10gb", 9.5),
        ("NVIDIA-H200-MIG-1g.18gb", "NVIDIA H200 MIG 1g.18gb", 16.0),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb+me", "NVIDIA H100 80GB MIG 1g.10gb", 9.5),
        ("NVIDIA-H100-80GB-HBM3-MIG-1g.20gb-SHARED", "NVIDIA H100 80GB MIG 1g.20gb", 19.5),
        ("NVIDIA H100 NVL MIG 1g.12gb", "NVIDIA H100 NVL MIG 1g.12gb", 10.75),
    ],
)
def test_a_mig_slice_offers_at_most_its_own_memory(name: str, product: str, gibibytes: float) -> None:
    gpu = find_product(name)
    assert gpu is not None
    assert gpu.product == product
    assert gpu.usable_bytes is not None
    assert 0.85 * gibibytes < gpu.usable_bytes / GIB <= gibibytes
    assert gpu.compute_capability is not None


def test_a_slice_of_the_whole_card_offers_no_more_than_the_card() -> None:
    whole, sliced = find_product("A100 80GB"), find_product("A100 80GB MIG 7g.80gb")
    assert whole is not None
    assert sliced is not None
    assert (sliced.usable_bytes or 0) <= (whole.usable_bytes or 0)


def test_compute_instances_keep_their_own_profile() -> None:
    assert split_mig("NVIDIA-H200-MIG-1c.3g.71gb") == ("NVIDIA-H200", "1c.3g.71gb")
    assert mig_memory_mib("all-balanced") is None


def test_a_label_alone_gives_at_most_97_5_percent() -> None:
    assert usable_of_label(100_000) == 97_500 * MIB
    assert usable_of_label(8_192) == (8_192 - 560) * MIB
    assert usable_of_label(100) == 0


@given(st.text(max_size=60))
def test_no_name_breaks_the_search(name: str) -> None:
    gpu = find_product(name)
    assert gpu is None or (gpu.usable_bytes or 0) > 0


@given(
    st.sampled_from([(product.name, product) for product in TABLE]),
    st.sampled_from(["-", "_", " ", "  "]),
    st.sampled_from(["", "nvidia-", "NVIDIA "]),
    st.sampled_from([str.lower, str.upper, str.title]),
)
def test_case_separators_and_a_vendor_change_nothing(
    row: tuple[str, object], mark: str, start: str, case: object
) -> None:
    assert callable(case)
    name = row[0]
    plain, written = find_product(name), find_product(case(start + name.replace(" ", mark)))
    assert plain is not None
    assert written is not None
    assert (written.product, written.usable_bytes) == (plain.product, plain.usable_bytes)
