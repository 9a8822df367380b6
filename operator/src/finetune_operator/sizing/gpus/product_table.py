"""GPU products: the memory on their label, and the part of it that one process can allocate.

`label_mib` is the total that nvidia-smi and GPU feature discovery show (NVML, MiB). `usable_mib` is the total that CUDA
or HIP shows to a process; the driver keeps the rest, and newer drivers keep more. It is the smallest value that public
out-of-memory messages of PyTorch ("GPU 0 has a total capacity of ...") report for cards of this memory. Without such a
message it is None, and products.py derives it from the label. Compute capabilities are those that NVIDIA publishes.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_operator.sizing.gpus.gpu import Vendor, Version


@dataclass(frozen=True)
class Product:
    """One row: a product with one amount of memory.

    `models` are its normalized names (products.py normalizes a name). `sizes` are the amounts in GB that its names
    contain, the advertised one first.
    """

    name: str
    models: tuple[str, ...]
    sizes: tuple[int, ...]
    label_mib: int
    usable_mib: int | None
    compute_capability: Version | None
    vendor: Vendor = "Nvidia"


_TURING = (7, 5)
_AMPERE = (8, 0)
_GA10X = (8, 6)
_ADA = (8, 9)
_HOPPER = (9, 0)
_BLACKWELL = (10, 0)
_BLACKWELL_ULTRA = (10, 3)
_GB20X = (12, 0)

# Totals of memory sizes that many cards share, as PyTorch reports them (GiB in the comment).
_OF_10G = 9 * 1024 + 768  # 9.75
_OF_16G_GDDR6 = 15820  # 15.45
_OF_24G_GDDR6X = 24084  # 23.52
_OF_24G_ECC = 22476  # 21.95
_OF_48G_ECC = 45404  # 44.34
_OF_48G = 48404  # 47.27


DATA_CENTER: tuple[Product, ...] = (
    Product("NVIDIA P4", ("p4",), (8,), 7680, None, (6, 1)),
    Product("NVIDIA M60", ("m60",), (8,), 7680, None, (5, 2)),
    Product("NVIDIA K80", ("k80",), (12,), 11441, None, (3, 7)),
    Product("NVIDIA P100 12GB", ("p100",), (12,), 12288, None, (6, 0)),
    Product("NVIDIA P100 16GB", ("p100",), (16,), 16384, 16271, (6, 0)),
    Product("NVIDIA P40", ("p40",), (24,), 24576, 22911, (6, 1)),
    Product("NVIDIA V100 16GB", ("v100",), (16,), 16384, 16128, (7, 0)),
    Product("NVIDIA V100 32GB", ("v100",), (32,), 32768, 32491, (7, 0)),
    Product("NVIDIA T4", ("t4",), (16,), 15360, 14909, _TURING),
    Product("NVIDIA T4G", ("t4g",), (16,), 15360, 14909, _TURING),
    Product("NVIDIA A2", ("a2",), (16,), 15356, 14909, _GA10X),
    Product("NVIDIA A16", ("a16",), (16,), 15356, 14909, _GA10X),
    Product("NVIDIA A10", ("a10",), (24,), 23028, _OF_24G_ECC, _GA10X),
    Product("NVIDIA A10G", ("a10g",), (24,), 23028, _OF_24G_ECC, _GA10X),
    Product("NVIDIA A30", ("a30",), (24,), 24576, 24064, _AMPERE),
    Product("NVIDIA A40", ("a40",), (48,), 46068, _OF_48G_ECC, _GA10X),
    Product("NVIDIA A100 40GB", ("a100",), (40,), 40960, 40325, _AMPERE),
    Product("NVIDIA A100 80GB", ("a100",), (80,), 81920, 81039, _AMPERE),
    Product("NVIDIA A800 40GB", ("a800",), (40,), 40960, 40325, _AMPERE),
    Product("NVIDIA A800 80GB", ("a800",), (80,), 81920, 81039, _AMPERE),
    Product("NVIDIA L2", ("l2",), (24,), 23034, _OF_24G_ECC, _ADA),
    Product("NVIDIA L4", ("l4",), (24,), 23034, _OF_24G_ECC, _ADA),
    Product("NVIDIA L20", ("l20",), (48,), 46068, _OF_48G_ECC, _ADA),
    Product("NVIDIA L40", ("l40",), (48,), 46068, _OF_48G_ECC, _ADA),
    Product("NVIDIA L40G", ("l40g",), (24,), 23034, _OF_24G_ECC, _ADA),
    Product("NVIDIA L40S", ("l40s",), (48,), 46068, _OF_48G_ECC, _ADA),
    Product("NVIDIA H100 80GB", ("h100",), (80,), 81559, 81039, _HOPPER),
    Product("NVIDIA H100 94GB", ("h100", "h100l"), (94,), 95830, 95252, _HOPPER),
    Product("NVIDIA H100 96GB", ("h100",), (96,), 97871, 96768, _HOPPER),
    Product("NVIDIA H100 NVL", ("h100 nvl",), (94,), 95830, 95252, _HOPPER),
    Product("NVIDIA H800", ("h800",), (80,), 81559, 81039, _HOPPER),
    Product("NVIDIA H20", ("h20",), (96,), 97871, 96768, _HOPPER),
    Product("NVIDIA H20 141GB", ("h20", "h20 3e"), (141,), 143771, 143073, _HOPPER),
    Product("NVIDIA GH200", ("gh200",), (96, 120, 480), 97871, 96768, _HOPPER),
    Product("NVIDIA GH200 144GB", ("gh200",), (144,), 147456, None, _HOPPER),
    Product("NVIDIA H200", ("h200", "h200 nvl"), (141, 144), 143771, 143073, _HOPPER),
    Product("NVIDIA B200", ("b200",), (180, 179, 183, 192), 183359, 182630, _BLACKWELL),
    Product("NVIDIA GB200", ("gb200",), (186, 185, 189, 192), 189471, None, _BLACKWELL),
    Product("NVIDIA B300", ("b300",), (288, 262, 268, 269, 270), 275040, 274114, _BLACKWELL_ULTRA),
    Product("NVIDIA GB300", ("gb300",), (288, 277, 279), 275040, 274114, _BLACKWELL_ULTRA),
)

WORKSTATION: tuple[Product, ...] = (
    Product("NVIDIA RTX A2000", ("a2000",), (6,), 6138, None, _GA10X),
    Product("NVIDIA RTX A2000 12GB", ("a2000",), (12,), 12282, None, _GA10X),
    Product("NVIDIA RTX A4000", ("a4000",), (16,), 16376, _OF_16G_GDDR6, _GA10X),
    Product("NVIDIA RTX A4500", ("a4500",), (20,), 20470, None, _GA10X),
    Product("NVIDIA RTX A5000", ("a5000",), (24,), 24564, _OF_24G_GDDR6X, _GA10X),
    Product("NVIDIA RTX A5500", ("a5500",), (24,), 24564, _OF_24G_GDDR6X, _GA10X),
    Product("NVIDIA RTX A6000", ("a6000",), (48,), 49140, _OF_48G, _GA10X),
    Product("Quadro RTX 4000", ("4000",), (8,), 8192, None, _TURING),
    Product("Quadro RTX 5000", ("5000",), (16,), 16384, None, _TURING),
    Product("Quadro RTX 6000", ("6000",), (24,), 24576, 22600, _TURING),
    Product("Quadro RTX 8000", ("8000",), (48,), 49152, 45404, _TURING),
    Product("NVIDIA RTX 2000 Ada", ("2000 ada",), (16,), 16380, _OF_16G_GDDR6, _ADA),
    Product("NVIDIA RTX 4000 Ada", ("4000 ada", "4000 sff ada"), (20,), 20475, None, _ADA),
    Product("NVIDIA RTX 4500 Ada", ("4500 ada",), (24,), 24570, _OF_24G_GDDR6X, _ADA),
    Product("NVIDIA RTX 5000 Ada", ("5000 ada",), (32,), 32760, None, _ADA),
    Product("NVIDIA RTX 5880 Ada", ("5880 ada",), (48,), 49140, _OF_48G, _ADA),
    Product("NVIDIA RTX 6000 Ada", ("6000 ada",), (48,), 49140, _OF_48G, _ADA),
    Product("NVIDIA RTX PRO 2000", ("pro 2000", "pro 2000 blackwell"), (16,), 16311, _OF_16G_GDDR6, _GB20X),
    Product(
        "NVIDIA RTX PRO 4000",
        ("pro 4000", "pro 4000 blackwell", "pro 4000 sff blackwell", "pro 4000 blackwell sff"),
        (24,),
        24467,
        None,
        _GB20X,
    ),
    Product("NVIDIA RTX PRO 4500", ("pro 4500", "pro 4500 blackwell"), (32,), 32623, None, _GB20X),
    Product("NVIDIA RTX PRO 5000", ("pro 5000", "pro 5000 blackwell"), (48,), 48935, None, _GB20X),
    Product("NVIDIA RTX PRO 5000 72GB", ("pro 5000", "pro 5000 blackwell"), (72,), 73415, None, _GB20X),
    Product(
        "NVIDIA RTX PRO 6000",
        ("pro 6000", "pro 6000 blackwell", "pro 6000 blackwell max q", "pro 6000 max q"),
        (96,),
        97887,
        97239,
        _GB20X,
    ),
)

CONSUMER: tuple[Product, ...] = (
    Product("NVIDIA RTX 2060", ("2060",), (6,), 6144, None, _TURING),
    Product("NVIDIA RTX 2070", ("2070", "2070 super"), (8,), 8192, None, _TURING),
    Product("NVIDIA RTX 2080", ("2080", "2080 super"), (8,), 8192, None, _TURING),
    Product("NVIDIA RTX 2080 Ti", ("2080 ti",), (11,), 11264, None, _TURING),
    Product("NVIDIA TITAN RTX", ("titan",), (24,), 24576, _OF_24G_GDDR6X, _TURING),
    Product("NVIDIA RTX 3060", ("3060",), (12,), 12288, None, _GA10X),
    Product("NVIDIA RTX 3060 Ti", ("3060 ti",), (8,), 8192, None, _GA10X),
    Product("NVIDIA RTX 3070", ("3070", "3070 ti"), (8,), 8192, None, _GA10X),
    Product("NVIDIA RTX 3080", ("3080",), (10,), 10240, _OF_10G, _GA10X),
    Product("NVIDIA RTX 3080 12GB", ("3080",), (12,), 12288, None, _GA10X),
    Product("NVIDIA RTX 3080 Ti", ("3080 ti",), (12,), 12288, None, _GA10X),
    Product("NVIDIA RTX 3090", ("3090",), (24,), 24576, _OF_24G_GDDR6X, _GA10X),
    Product("NVIDIA RTX 3090 Ti", ("3090 ti",), (24,), 24564, _OF_24G_GDDR6X, _GA10X),
    Product("NVIDIA RTX 4060", ("4060",), (8,), 8188, None, _ADA),
    Product("NVIDIA RTX 4060 Ti", ("4060 ti",), (8,), 8188, None, _ADA),
    Product("NVIDIA RTX 4060 Ti 16GB", ("4060 ti",), (16,), 16380, _OF_16G_GDDR6, _ADA),
    Product("NVIDIA RTX 4070", ("4070", "4070 super", "4070 ti"), (12,), 12282, None, _ADA),
    Product("NVIDIA RTX 4070 Ti SUPER", ("4070 ti super",), (16,), 16376, _OF_16G_GDDR6, _ADA),
    Product("NVIDIA RTX 4080", ("4080", "4080 super"), (16,), 16376, _OF_16G_GDDR6, _ADA),
    Product("NVIDIA RTX 4090", ("4090", "4090 d", "4090d"), (24,), 24564, _OF_24G_GDDR6X, _ADA),
    Product("NVIDIA RTX 5060", ("5060",), (8,), 8151, None, _GB20X),
    Product("NVIDIA RTX 5060 Ti", ("5060 ti",), (8,), 8151, None, _GB20X),
    Product("NVIDIA RTX 5060 Ti 16GB", ("5060 ti",), (16,), 16311, _OF_16G_GDDR6, _GB20X),
    Product("NVIDIA RTX 5070", ("5070",), (12,), 12227, None, _GB20X),
    Product("NVIDIA RTX 5070 Ti", ("5070 ti",), (16,), 16303, _OF_16G_GDDR6, _GB20X),
    Product("NVIDIA RTX 5080", ("5080",), (16,), 16303, _OF_16G_GDDR6, _GB20X),
    Product("NVIDIA RTX 5090", ("5090",), (32,), 32607, 32112, _GB20X),
    Product("NVIDIA RTX 5090 D", ("5090 d", "5090d"), (32,), 32607, 32112, _GB20X),
)

AMD: tuple[Product, ...] = (
    Product("AMD Radeon Pro V520", ("v520", "pro v520"), (8,), 8176, None, None, "Amd"),
    Product("AMD Radeon RX 7900 XT", ("7900 xt",), (20,), 20464, None, None, "Amd"),
    Product("AMD Radeon RX 7900 XTX", ("7900 xtx",), (24,), 24560, None, None, "Amd"),
    Product("AMD Radeon RX 9070 XT", ("9070 xt", "9070"), (16,), 16304, None, None, "Amd"),
    Product("AMD Radeon AI PRO R9700", ("ai pro r9700", "r9700"), (32,), 32624, None, None, "Amd"),
    Product("AMD Radeon PRO W7800", ("pro w7800", "w7800"), (32,), 32752, None, None, "Amd"),
    Product("AMD Radeon PRO W7900", ("pro w7900", "w7900"), (48,), 49136, None, None, "Amd"),
    Product("AMD Instinct MI50", ("mi50",), (16,), 16368, None, None, "Amd"),
    Product("AMD Instinct MI50 32GB", ("mi50", "mi60"), (32,), 32752, None, None, "Amd"),
    Product("AMD Instinct MI100", ("mi100",), (32,), 32752, None, None, "Amd"),
    Product("AMD Instinct MI210", ("mi210",), (64,), 65520, None, None, "Amd"),
    # Two dies, each a separate device with half of the card's 128 GB.
    Product("AMD Instinct MI250X", ("mi250x", "mi250"), (64, 128), 65520, None, None, "Amd"),
    Product("AMD Instinct MI300A", ("mi300a",), (128,), 131072, None, None, "Amd"),
    Product("AMD Instinct MI300X", ("mi300x", "mi300"), (192,), 196592, 196290, None, "Amd"),
    Product("AMD Instinct MI308X", ("mi308x",), (192,), 196592, 196290, None, "Amd"),
    Product("AMD Instinct MI325X", ("mi325x", "mi325"), (256,), 262128, None, None, "Amd"),
    Product("AMD Instinct MI350X", ("mi350x", "mi350"), (288,), 294896, None, None, "Amd"),
    Product("AMD Instinct MI355X", ("mi355x", "mi355"), (288,), 294896, None, None, "Amd"),
)

TABLE: tuple[Product, ...] = DATA_CENTER + WORKSTATION + CONSUMER + AMD
