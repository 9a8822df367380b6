"""What must change so that the trainer runs on a torch that is older than the project supports.

A machine with a GPU may have no other one. Nothing here is part of the product.
"""

from __future__ import annotations

import inspect
from typing import Any

from finetune_trainer.model import packed_attention


def adapt() -> list[str]:
    """Change the loaded trainer for this torch, and return what was changed; empty for a torch that is supported."""
    changes = []
    names = vars(packed_attention)
    if "enable_gqa" not in inspect.signature(names["varlen_attn"]).parameters:
        names["varlen_attn"] = without_shared_heads_argument(names["varlen_attn"])
        changes.append("attention of rows of varying length is called without enable_gqa")
    return changes


def without_shared_heads_argument(kernel: Any) -> Any:
    """Return a kernel that takes `enable_gqa` and drops it.

    Before torch 2.12 the argument does not exist, and the same kernel computes heads that share keys and values.
    """

    def adapted(*arguments: Any, enable_gqa: bool = False, **settings: Any) -> Any:  # noqa: ARG001 -- dropped on purpose
        return kernel(*arguments, **settings)

    return adapted
