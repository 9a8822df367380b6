"""Let vLLM answer conversations greedily with a model folder, and with an adapter on it if there is one.

It runs in vLLM's own environment, reads one JSON request from its input and writes the answers into the request's file.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

# The engine would reserve most of the memory, and bind its threads to cores that other tests use.
os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}


def main() -> None:
    """Answer the conversations of one request."""
    from vllm import LLM, SamplingParams  # noqa: PLC0415 -- after the environment is set
    from vllm.lora.request import LoRARequest  # noqa: PLC0415 -- as above

    request: dict[str, Any] = json.load(sys.stdin)
    adapter = request["adapter"]
    engine = LLM(
        model=request["model"],
        dtype=request["dtype"],
        max_model_len=512,
        max_num_seqs=16,
        enforce_eager=True,
        enable_lora=adapter is not None,
        max_lora_rank=16,
    )
    found = engine.chat(
        request["conversations"],
        SamplingParams(temperature=0.0, max_tokens=request["new_tokens"]),
        lora_request=LoRARequest("adapter", 1, adapter) if adapter else None,
        use_tqdm=False,
    )
    answers = {
        "prompts": [list(one.prompt_token_ids) for one in found],
        "answers": [list(one.outputs[0].token_ids) for one in found],
    }
    Path(request["output"]).write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    main()
