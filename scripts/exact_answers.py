"""Let a model folder answer held-out prompts with plain transformers, and count the exact answers.

Prints one JSON line: `{"rows": 32, "exact": 27, "prompt": ..., "expected": ..., "answer": ...}`. The script blocks the
import of bitsandbytes, because a merged artifact must not need it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def answers(folder: Path, prompts: list[list[dict[str, str]]], batch: int = 16) -> list[str]:
    """Return the greedy answers of the model in `folder` to chat prompts, with at most 96 new tokens each."""
    import torch  # noqa: PLC0415 -- after bitsandbytes is blocked
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    found: list[str] = []
    for start in range(0, len(prompts), batch):
        texts = [
            tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            for prompt in prompts[start : start + batch]
        ]
        inputs = tokenizer(
            texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
        )
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=96, do_sample=False)
        width = inputs["input_ids"].shape[1]
        found += tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
    return found


def main() -> None:
    """Count exact answers on the first rows of a messages JSONL file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--rows", type=int, default=32)
    arguments = parser.parse_args()
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # the documented way to forbid an import
    lines = arguments.dataset.read_text(encoding="utf-8").splitlines()[: arguments.rows]
    rows = [json.loads(line)["messages"] for line in lines]
    found = answers(arguments.model, [row[:-1] for row in rows])
    expected = [row[-1]["content"] for row in rows]
    exact = sum(one == other for one, other in zip(found, expected, strict=True))
    print(
        json.dumps(
            {
                "rows": len(rows),
                "exact": exact,
                "prompt": rows[0][-2]["content"],
                "expected": expected[0],
                "answer": found[0],
            },
            ensure_ascii=False,
        )
    )


if __name__ == "__main__":
    main()
