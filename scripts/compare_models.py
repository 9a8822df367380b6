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

# The 4-bit weights are expanded once for each batch, which takes most of the time.
BATCH = 8


def _tokens(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[list[int], int]:
    """Return the tokens of a row, and the position of its answer's first one."""
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    text = prompt + messages[-1]["content"] + tokenizer.eos_token
    encoded = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (prompt, text)]
    return encoded[1], len(encoded[0])


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
    lines = options.dataset.read_text("utf-8").splitlines()[: options.rows]
    rows = [_tokens(tokenizer, json.loads(line)["messages"]) for line in lines]
    divergence = trained_loss = merged_loss = 0.0
    tokens = 0
    for first in range(0, len(rows), BATCH):
        batch = rows[first : first + BATCH]
        # Padding on the right changes nothing before it, because attention is causal.
        inputs = tokenizer.pad(
            {"input_ids": [ids for ids, _ in batch]}, padding_side="right", return_tensors="pt"
        )
        with torch.inference_mode():
            ours, theirs = (model(**inputs).logits for model in (trained, merged))
        for row, (ids, start) in enumerate(batch):
            one, other = (
                torch.log_softmax(logits[row, start - 1 : len(ids) - 1].float(), dim=-1)
                for logits in (ours, theirs)
            )
            targets = torch.tensor(ids[start:])[:, None]
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
