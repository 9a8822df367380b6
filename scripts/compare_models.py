"""Compare a merged model with the trained model, which is the adapter on the 4-bit base in a run's workspace.

Prints one JSON line with KL(trained || merged) and both losses, as means over the answer tokens of held-out rows. It is
independent of the trainer's verification: it uses plain peft and transformers, and finds the answer by rendering.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Measure rows of a messages JSONL file. The last message of a row is the answer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workspace", type=Path)
    parser.add_argument("merged", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--rows", type=int, default=32)
    options = parser.parse_args()
    tokenizer: Any = AutoTokenizer.from_pretrained(options.merged)
    base: Any = AutoModelForCausalLM.from_pretrained(options.workspace / "model", dtype=torch.bfloat16)
    for module in base.modules():
        # bitsandbytes 0.50 repacks weights in place on AVX512-BF16 processors and then computes garbage.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    trained: Any = PeftModel.from_pretrained(base, options.workspace / "train" / "adapter").eval()
    merged: Any = AutoModelForCausalLM.from_pretrained(options.merged, dtype=torch.bfloat16).eval()
    divergence = trained_loss = merged_loss = 0.0
    tokens = 0
    for line in options.dataset.read_text("utf-8").splitlines()[: options.rows]:
        messages = json.loads(line)["messages"]
        prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        text = prompt + messages[-1]["content"] + tokenizer.eos_token
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            one, other = (
                torch.log_softmax(model(input_ids=ids).logits[0, start - 1 : -1].float(), dim=-1)
                for model in (trained, merged)
            )
        targets = ids[0, start:, None]
        divergence += float((one.exp() * (one - other)).sum())
        trained_loss -= float(one.gather(1, targets).sum())
        merged_loss -= float(other.gather(1, targets).sum())
        tokens += len(targets)
    figures = {
        "klDivergence": divergence / tokens,
        "trainedLoss": trained_loss / tokens,
        "mergedLoss": merged_loss / tokens,
        "tokens": tokens,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
