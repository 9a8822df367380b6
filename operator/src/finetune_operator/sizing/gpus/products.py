"""Finds the GPU that a name means, as written by a driver, a node label, a cloud, an autoscaler or a person."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from finetune_operator.api.quantities import MIB
from finetune_operator.sizing.gpus.gpu import Gpu
from finetune_operator.sizing.gpus.product_table import TABLE, Product

USABLE_PER_MILLE = 975
DRIVER_RESERVE_MIB = 560
"""If only the NVML total is known, a process gets 97.5 % of it, and at least 560 MiB less than it.

The table's measured cards lose 449 (T4) to 881 MiB (A100 80 GB), which is more than 2.5 % of those below 22 GiB.
"""

# Words without information about the amount of memory: vendors, brands, connectors, memory kinds, editions.
_NOISE = frozenset(
    [
        *(
            "nvidia",
            "amd",
            "ati",
            "tesla",
            "geforce",
            "quadro",
            "rtx",
            "instinct",
            "radeon",
            "rx",
            "corporation",
        ),
        *("graphics", "gpu", "tensor", "core", "card", "accelerator", "shared"),
        *(
            "pcie",
            "sxm",
            "sxm2",
            "sxm3",
            "sxm4",
            "sxm5",
            "sxm6",
            "oam",
            "hbm2",
            "hbm2e",
            "hbm3",
            "hbm3e",
            "gddr6",
        ),
        *("ac", "mega", "dgxs", "lsb", "server", "workstation", "edition", "generation"),
    ]
)
_MIG = re.compile(r"(?:^|[ _-])mig[ _-]?(?:(?P<compute>\d)c\.)?(?P<slices>\d)g\.(?P<gb>\d+)gb(?P<rest>.*)$")
_BARE_MIG = re.compile(r"^(?:(?P<compute>\d)c\.)?(?P<slices>\d)g\.(?P<gb>\d+)gb(?P<rest>.*)$")
_SIZE = re.compile(r"^(\d+)(?:g|gb|gib)$")
_SPLIT_SIZE = re.compile(r"(\d+)[ ]+(g|gb|gib)\b")


@dataclass(frozen=True)
class Match:
    """A row of the table that a name means; `note` states an assumption, or is empty."""

    product: Product
    note: str = ""


def find_product(name: str) -> Gpu | None:
    """Return the GPU that `name` means, or None if the product is unknown.

    Any common spelling works: "NVIDIA L4", "nvidia-tesla-t4", "A10G", "NVIDIA-A100-SXM4-80GB", "H100 80GB HBM3",
    "AMD_Instinct_MI300X_OAM", or a MIG slice ("NVIDIA-A100-SXM4-80GB-MIG-3g.40gb"). A name that several sizes share,
    such as "A100", means the smallest, and `source` says so. An unknown word makes the name unknown: an "RTX 4090
    Laptop GPU" is not an RTX 4090.
    """
    base, profile = split_mig(name)
    match = match_product(base)
    if match is None:
        return None
    return product_gpu(match) if profile is None else mig_gpu(match, profile)


@lru_cache(maxsize=1024)
def match_product(name: str, memory_mib: int | None = None) -> Match | None:
    """Find the row that `name` means; `memory_mib`, a label's total, decides between sizes of one name."""
    model, size = _normalize(name)
    rows = _ROWS.get(model, ())
    if size is not None:
        rows = tuple(row for row in rows if size in row.sizes)
    if not rows:
        return None
    if len(rows) == 1:
        return Match(rows[0])
    if memory_mib is not None:
        return Match(min(rows, key=lambda row: (abs(row.label_mib - memory_mib), row.label_mib)))
    sizes = ", ".join(str(row.sizes[0]) for row in rows)
    return Match(rows[0], f"{name.strip()} comes with {sizes} GB, the smallest is assumed")


def product_gpu(match: Match) -> Gpu:
    """Return the GPU of a row."""
    product = match.product
    return Gpu(
        product=product.name,
        vendor=product.vendor,
        usable_bytes=usable_of_product(product),
        compute_capability=product.compute_capability,
        source=match.note or "product table",
    )


def usable_of_product(product: Product) -> int:
    """Return the bytes that a process can allocate on a whole GPU of this product."""
    if product.usable_mib is not None:
        return product.usable_mib * MIB
    return usable_of_label(product.label_mib)


def usable_of_label(memory_mib: int) -> int:
    """Return the bytes that a process can allocate if only the NVML total is known."""
    return max(0, min(memory_mib * MIB * USABLE_PER_MILLE // 1000, (memory_mib - DRIVER_RESERVE_MIB) * MIB))


def split_mig(name: str) -> tuple[str, str | None]:
    """Split "NVIDIA-A100-SXM4-80GB-MIG-3g.40gb" into the GPU's name and the MIG profile, None for a whole GPU."""
    found = _MIG.search(name.lower())
    if found is None:
        return name, None
    profile = found.group()[found.start("slices") - found.start() :]
    compute = found["compute"]
    return name[: found.start()], _bare(f"{compute}c.{profile}" if compute else profile)


def mig_memory_mib(profile: str) -> int | None:
    """Return the MiB of a MIG profile such as "3g.40gb" by its name; None if it is not a MIG profile.

    The name is the profile's share of the card, rounded up to whole GB. If the card's size divides evenly (5, 6, 10, 20,
    24, 40, 80), at least 95 % of the name is usable: 4.75 GiB of 1g.5gb, 9.5 of 1g.10gb, 39.25 of 3g.40gb. Otherwise
    the rounding costs more: an H200's 1g.18gb has 16 GiB, an H100 NVL's 1g.12gb has 10.75. 88 % is less than both. Node
    labels have the exact size and come first (recognition.py).
    """
    found = _BARE_MIG.match(profile.lower())
    if found is None:
        return None
    gigabytes = int(found["gb"])
    percent = 95 if gigabytes in {5, 6, 10, 20, 24, 40, 80} else 88
    return gigabytes * 1024 * percent // 100


def mig_gpu(match: Match, profile: str) -> Gpu | None:
    """Return the slice `profile` of a row's GPU; None if `profile` is not a MIG profile."""
    memory = mig_memory_mib(profile)
    if memory is None:
        return None
    whole = product_gpu(match)
    usable = min(memory * MIB, usable_of_product(match.product))
    note = f"; {match.note}" if match.note else ""
    return Gpu(
        product=f"{whole.product} MIG {profile}",
        vendor=whole.vendor,
        usable_bytes=usable,
        compute_capability=whole.compute_capability,
        source=f"name of the MIG profile{note}",
    )


def _bare(profile: str) -> str:
    """Remove the text after the size: media extensions and -SHARED do not change the memory."""
    found = _BARE_MIG.match(profile)
    return profile if found is None else profile[: len(profile) - len(found["rest"])]


def _normalize(name: str) -> tuple[str, int | None]:
    """Reduce a name to its model and the size in GB that it contains, if any."""
    words = re.sub(r"[^a-z0-9]+", " ", name.lower()).strip()
    words = _SPLIT_SIZE.sub(r"\1\2", words)
    model, size = [], None
    for word in words.split():
        found = _SIZE.match(word)
        if found is not None:
            size = int(found[1])
        elif word not in _NOISE:
            model.append(word)
    return " ".join(model), size


def _rows() -> Mapping[str, tuple[Product, ...]]:
    rows: dict[str, list[Product]] = {}
    for product in TABLE:
        for model in product.models:
            rows.setdefault(model, []).append(product)
    return MappingProxyType(
        {model: tuple(sorted(found, key=usable_of_product)) for model, found in rows.items()}
    )


_ROWS = _rows()

PRODUCTS: tuple[Gpu, ...] = tuple(
    sorted(
        (product_gpu(Match(product)) for product in TABLE),
        key=lambda gpu: (gpu.usable_bytes or 0, gpu.product),
    )
)
"""Every known product, smallest usable memory first."""
