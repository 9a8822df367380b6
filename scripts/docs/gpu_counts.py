"""Write how many GPUs popular models need into a table of docs/training.md, as the operator's estimate says.

With --check, compare only.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from finetune_operator.api.quantities import GIB
from finetune_operator.api.spec import FineTuneJobSpec
from finetune_operator.contract.memory_trace import MemoryTrace
from finetune_operator.sizing.decision import Feasible, decide_training
from finetune_operator.sizing.gpus.gpu import Offer
from finetune_operator.sizing.gpus.products import find_product
from finetune_operator.sizing.memory.shape import model_shape
from finetune_operator.sizing.request import SizingRequest

ROOT = Path(__file__).resolve().parents[2]
PAGE = Path("docs/training.md")
BEGIN, END = "<!-- gpu counts: written by scripts/docs/gpu_counts.py -->", "<!-- gpu counts: end -->"
PRODUCTS = {24: "NVIDIA L4", 40: "NVIDIA A100 40GB", 80: "NVIDIA H100 80GB"}
COUNTS = (1, 2, 4, 8)
TOKENS, ROWS = 2048, 16
NAMES = (
    "Llama 3.1 8B",
    "Qwen3 8B",
    "Qwen3 14B",
    "Mistral Small 3.1 24B",
    "Gemma 2 27B",
    "Qwen3 32B",
    "Llama 3.3 70B",
    "Qwen2.5 72B",
    "Mistral Large 2 123B",
    "Llama 3.1 405B",
)
MIXTURES = (
    "Qwen3 30B A3B",
    "Mixtral 8x7B",
    "Qwen3 Next 80B A3B",
    "GLM 4.5 Air",
    "gpt-oss 120B",
    "Mixtral 8x22B",
    "MiniMax M2",
    "Qwen3 235B A22B",
    "GLM 4.5",
)
_KEPT = json.loads((ROOT / "benchmarks/models/results.json").read_text(encoding="utf-8"))
MODELS: dict[str, dict[str, Any]] = {
    **{name: _KEPT["formula"][name] for name in NAMES},
    **{name: _KEPT["sizes"][name] for name in MIXTURES},
}
"""The sizes of each published config.json, or its trace, which docs/models.md also uses."""


def cell(model: dict[str, Any], memory: int, gpus: int) -> str:
    """Return how so many GPUs of `memory` GB train a model, and the GiB that it needs on each."""
    product = find_product(PRODUCTS[memory])
    if product is None:
        raise ValueError(f"the product table must have {PRODUCTS[memory]}, found no such product")
    claim = {"persistentVolumeClaim": {"claimName": "assets", "path": "rows.jsonl"}}
    spec = FineTuneJobSpec.parse(
        {
            "model": {"source": claim},
            "dataset": {"source": claim},
            "output": {"destination": {"persistentVolumeClaim": {"claimName": "assets"}}},
            "training": {"effectiveBatchSize": ROWS},
            "resources": {"gpus": gpus},
        }
    )
    if "trace" in model:
        request = SizingRequest(spec, None, TOKENS, trace=MemoryTrace.model_validate(model["trace"]))
    else:
        request = SizingRequest(spec, model_shape(model), TOKENS)
    found = decide_training(request, [Offer(product, spec.resources.gpu_resource_name, gpus)])
    if not isinstance(found, Feasible):
        return "-"
    size = f"{found.estimate.device_bytes / GIB:.0f}"
    mark = "?" if found.borderline else ""
    return f"{'part' if found.layout.parallelism == 'FullyShard' else 'whole'} {size}{mark}"


def section() -> str:
    """Return the text between the two marks of the page, with them."""
    columns = [(memory, gpus) for memory in PRODUCTS for gpus in COUNTS]
    named = ", ".join(f"{memory} GB is an {product}" for memory, product in PRODUCTS.items())
    lines = [
        BEGIN,
        "",
        f"Rows have {TOKENS:,} tokens, a step has {ROWS} of them, and everything else has its default.",
        f"{named}.",
        "`whole` is a replica on each GPU, and `part` a part of the frozen weights.",
        "The number is the estimated memory on each GPU in GiB; the ladder uses room that a GPU has.",
        "With `?` it fits without margin, and `-` does not fit.",
        "Mixtures of experts are sized by their traces, with adapters on all experts.",
        "",
        f"| model | {' | '.join(f'{gpus} x {memory} GB' for memory, gpus in columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for name, model in MODELS.items():
        lines.append(f"| {name} | {' | '.join(cell(model, *column) for column in columns)} |")
    return "\n".join([*lines, "", END])


def document(root: Path) -> str:
    """Return the content of the page below `root`."""
    before, rest = (root / PAGE).read_text(encoding="utf-8").split(BEGIN, maxsplit=1)
    return before + section() + rest.split(END, maxsplit=1)[1]


def main() -> int:
    """Write the page, or compare it. Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only, and fail if the page differs")
    check = parser.parse_args().check
    text = document(ROOT)
    if (ROOT / PAGE).read_text(encoding="utf-8") == text:
        return 0
    if check:
        print(f"{PAGE} must follow the estimate; run scripts/docs/gpu_counts.py")
        return 1
    (ROOT / PAGE).write_text(text, encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
