"""Cloud instance types with one kind of GPU: the last resort if no label names the GPU.

Families are listed with their published GPU. Types with a fraction of a GPU (g6f, gr6f, NVadsA10) are not listed: their
size differs by type, so only the driver or a label knows it.
"""

from __future__ import annotations

import re
from functools import lru_cache

_AWS = {
    "g3": "M60",
    "g3s": "M60",
    "g4dn": "T4",
    "g4ad": "Radeon Pro V520",
    "g5": "A10G",
    "g5g": "T4G",
    "g6": "L4",
    "gr6": "L4",
    "g6e": "L40S",
    "g7e": "RTX PRO 6000",
    "p2": "K80",
    "p3": "V100 16GB",
    "p3dn": "V100 32GB",
    "p4d": "A100 40GB",
    "p4de": "A100 80GB",
    "p5": "H100 80GB",
    "p5e": "H200",
    "p5en": "H200",
    "p6-b200": "B200",
    "p6-b300": "B300",
    "p6e-gb200": "GB200",
}
_GOOGLE = {
    "a2-highgpu": "A100 40GB",
    "a2-megagpu": "A100 40GB",
    "a2-ultragpu": "A100 80GB",
    "a3-edgegpu": "H100 80GB",
    "a3-highgpu": "H100 80GB",
    "a3-megagpu": "H100 80GB",
    "a3-ultragpu": "H200",
    "a4-highgpu": "B200",
    "a4x-highgpu": "GB200",
    "g2-standard": "L4",
    "g4-standard": "RTX PRO 6000",
}
_AZURE = {
    "a10_v4": "A10",
    "a100_v4": "A100 80GB",
    "h100_v5": "H100 80GB",  # the NC series has NVL cards of 94 GB; sources disagree, so the smaller size counts
    "h200_v5": "H200",
    "ndr_gb200_v6": "GB200",
    "mi300x_v5": "MI300X",
    "t4_v3": "T4",
}
_AZURE_TYPE = re.compile(r"^standard_n([cdv])(\d+)([a-z]*)_(.+)$")
_ALIBABA = {
    "gn6i": "T4",
    "gn6v": "V100 16GB",
    "gn6e": "V100 32GB",
    "gn7": "A100 40GB",
    "gn7e": "A100 80GB",
    "gn7i": "A10",
    "gn8is": "L20",
}
_ORACLE = {
    "gpu2": "P100 16GB",
    "gpu3": "V100 16GB",
    "gpu4": "A100 40GB",
    "gpu.a10": "A10",
    "gpu.a100": "A100 80GB",
    "gpu.l40s": "L40S",
    "gpu.h100": "H100 80GB",
    "gpu.h200": "H200",
    "gpu.b200": "B200",
    "gpu.mi300x": "MI300X",
}


@lru_cache(maxsize=1024)
def instance_gpu(instance_type: str) -> str | None:
    """Return the name of an instance type's GPU; None if it has no GPU or is not listed."""
    kind = instance_type.strip().lower()
    if kind.startswith("standard_n"):
        return _azure_gpu(kind)
    if kind.startswith("ecs."):
        return _ALIBABA.get(kind.split(".")[1].split("-")[0])
    if kind.startswith(("vm.", "bm.")):
        family = re.sub(r"[.](\d.*)$", "", kind[3:])
        return _ORACLE.get(re.sub(r"-v\d$", "", family))
    if "." in kind:
        return _AWS.get(kind.removeprefix("ml.").split(".")[0])
    return _GOOGLE.get("-".join(kind.split("-")[:2]))


def _azure_gpu(kind: str) -> str | None:
    found = _AZURE_TYPE.match(kind)
    if found is None:
        return None
    series, cores, _, rest = found.groups()
    if series == "d" and rest == "v4" and cores == "96":
        return "A100 40GB"  # ND96asr_v4; ND96amsr_A100_v4 has 80 GB
    if series == "c" and rest == "v3" and cores in {"6", "12", "24"}:
        return "V100 16GB"  # NC6s_v3 and its siblings
    if series == "d" and rest == "v2" and cores == "40":
        return "V100 32GB"  # ND40rs_v2
    return _AZURE.get(rest)
