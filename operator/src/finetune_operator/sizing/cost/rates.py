"""Published speeds of GPU products: dense bfloat16 products and memory bandwidth.

The figures are those of the vendors: tensor operations without sparsity, with sums in float32. A product that comes with
several connectors has those of the fastest one. GeForce cards sum in float32 at half of the speed, which counts.

Their sources are the data sheets of the products, and for GeForce the white papers of their architectures. If a sheet only
has operations with sparsity or of smaller numbers, the speed follows from these: half without sparsity, and a quarter of
FP8 operations with sparsity. Blackwell's cards are sold by "AI TOPS", operations of FP4 with sparsity: an eighth of them
counts for RTX PRO, and a sixteenth for GeForce. So the RTX 5090 D, with 2,375 of them, has less than the RTX 5090, with
3,352. Cards of a special size that no sheet lists, such as H100 96GB, have the speed of their sibling.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType

_MIG = re.compile(r"^(?P<whole>.+) MIG (?:\dc\.)?(?P<slices>\d)g\.")
_MIG_SLICES = 7


@dataclass(frozen=True)
class Rates:
    """What a device can do at most: operations and bytes of its memory, each per second."""

    operations: float
    bytes: float

    def part(self, share: float) -> Rates:
        """A share of the device."""
        return Rates(self.operations * share, self.bytes * share)


def _published(teraflops: float, gigabytes: float) -> Rates:
    return Rates(teraflops * 1e12, gigabytes * 1e9)


_PUBLISHED = MappingProxyType(
    {
        name: _published(teraflops, gigabytes)
        for name, teraflops, gigabytes in (
            # Data centers
            ("NVIDIA A2", 18, 200),
            ("NVIDIA A16", 17.9, 200),
            ("NVIDIA A10", 125, 600),
            ("NVIDIA A10G", 70, 600),
            ("NVIDIA A30", 165, 933),
            ("NVIDIA A40", 149.7, 696),
            ("NVIDIA A100 40GB", 312, 1555),
            ("NVIDIA A100 80GB", 312, 2039),
            ("NVIDIA A800 40GB", 312, 1555),
            ("NVIDIA A800 80GB", 312, 2039),
            ("NVIDIA L2", 96.5, 300),
            ("NVIDIA L4", 121, 300),
            ("NVIDIA L20", 119.5, 864),
            ("NVIDIA L40", 181, 864),
            ("NVIDIA L40S", 362, 864),
            ("NVIDIA H100 80GB", 989, 3350),
            ("NVIDIA H100 94GB", 835, 3900),
            ("NVIDIA H100 NVL", 835, 3900),
            ("NVIDIA H100 96GB", 989, 3350),
            ("NVIDIA H800", 989, 3350),
            ("NVIDIA H20", 148, 4000),
            ("NVIDIA H20 141GB", 148, 4800),
            ("NVIDIA GH200", 989, 4000),
            ("NVIDIA GH200 144GB", 989, 4900),
            ("NVIDIA H200", 989, 4800),
            ("NVIDIA B200", 2250, 7700),
            ("NVIDIA GB200", 2500, 8000),
            ("NVIDIA B300", 2250, 8000),
            ("NVIDIA GB300", 2500, 8000),
            # Workstations
            ("NVIDIA RTX A2000", 31.9, 288),
            ("NVIDIA RTX A2000 12GB", 31.9, 288),
            ("NVIDIA RTX A4000", 76.7, 448),
            ("NVIDIA RTX A4500", 94.6, 640),
            ("NVIDIA RTX A5000", 111, 768),
            ("NVIDIA RTX A5500", 136, 768),
            ("NVIDIA RTX A6000", 155, 768),
            ("NVIDIA RTX 2000 Ada", 48, 224),
            ("NVIDIA RTX 4000 Ada", 107, 360),
            ("NVIDIA RTX 4500 Ada", 158, 432),
            ("NVIDIA RTX 5000 Ada", 261, 576),
            ("NVIDIA RTX 5880 Ada", 277, 960),
            ("NVIDIA RTX 6000 Ada", 364, 960),
            ("NVIDIA RTX PRO 2000", 68, 288),
            ("NVIDIA RTX PRO 4000", 161, 672),
            ("NVIDIA RTX PRO 4500", 200, 896),
            ("NVIDIA RTX PRO 5000", 268, 1344),
            ("NVIDIA RTX PRO 5000 72GB", 268, 1344),
            ("NVIDIA RTX PRO 6000", 500, 1792),
            # Consumers
            ("NVIDIA RTX 3060", 25, 360),
            ("NVIDIA RTX 3060 Ti", 32, 448),
            ("NVIDIA RTX 3070", 40.6, 448),
            ("NVIDIA RTX 3080", 59.5, 760),
            ("NVIDIA RTX 3080 12GB", 61, 912),
            ("NVIDIA RTX 3080 Ti", 68, 912),
            ("NVIDIA RTX 3090", 71, 936),
            ("NVIDIA RTX 3090 Ti", 80, 1008),
            ("NVIDIA RTX 4060", 30, 272),
            ("NVIDIA RTX 4060 Ti", 44, 288),
            ("NVIDIA RTX 4060 Ti 16GB", 44, 288),
            ("NVIDIA RTX 4070", 58, 504),
            ("NVIDIA RTX 4070 Ti SUPER", 88, 672),
            ("NVIDIA RTX 4080", 97.5, 717),
            ("NVIDIA RTX 4090", 165, 1008),
            ("NVIDIA RTX 5060", 38, 448),
            ("NVIDIA RTX 5060 Ti", 47, 448),
            ("NVIDIA RTX 5060 Ti 16GB", 47, 448),
            ("NVIDIA RTX 5070", 61.7, 672),
            ("NVIDIA RTX 5070 Ti", 87.9, 896),
            ("NVIDIA RTX 5080", 112.6, 960),
            ("NVIDIA RTX 5090", 209.5, 1792),
            ("NVIDIA RTX 5090 D", 148.4, 1792),
            # AMD
            ("AMD Radeon RX 7900 XTX", 122.8, 960),
            ("AMD Radeon PRO W7900", 122.6, 864),
            ("AMD Instinct MI100", 92.3, 1229),
            ("AMD Instinct MI210", 181, 1638),
            ("AMD Instinct MI250X", 191.5, 1638),
            ("AMD Instinct MI300A", 980, 5300),
            ("AMD Instinct MI300X", 1307, 5300),
            ("AMD Instinct MI325X", 1307, 6000),
            ("AMD Instinct MI350X", 2300, 8000),
            ("AMD Instinct MI355X", 2500, 8000),
        )
    }
)
CPU = _published(0.2, 40)
"""A node without a GPU, for `trainer.device: cpu`: eight cores of a server, and four channels of memory."""
UNLISTED = _published(100, 100 * 1e3 * 9 / (512 * 4))
"""The scale of a measured speed for a product without published figures.

A pass then costs as much as 512 tokens beyond its own, which is what the ladder assumes for every GPU.
"""


def published_rates(product: str) -> Rates | None:
    """The published speeds of a product by its name in the product table; None if they are not known.

    A MIG slice has its sevenths of both.
    """
    found = _PUBLISHED.get(product)
    if found is not None:
        return found
    mig = _MIG.match(product)
    if mig is None or mig["whole"] not in _PUBLISHED:
        return None
    return _PUBLISHED[mig["whole"]].part(min(int(mig["slices"]), _MIG_SLICES) / _MIG_SLICES)
