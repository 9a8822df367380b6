"""A loader: a process that loads artifacts with one version of transformers, and answers prompts with them.

It reads one request a line from its input, and writes one line of JSON for each. It runs in an environment of its own, so it
imports only what that environment holds. bitsandbytes is blocked, because an artifact must not need it.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

if __name__ == "__main__":
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # the documented way to forbid an import

import numpy as np
import torch


def greedy(
    model: Any, prompts: list[list[int]], new_tokens: int, pad: int, **settings: Any
) -> list[tuple[list[int], list[float], list[int]]]:
    """Return the greedy answer to each prompt: its tokens, and for each the lead of its logit and the next best token.

    An answer has at most `new_tokens` tokens, and includes the stop token. `settings` go to `generate`.
    """
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=pad,
            output_logits=True,
            return_dict_in_generate=True,
            **settings,
        )
    best = torch.stack([logits.float().topk(2, dim=-1).values for logits in output.logits], dim=1)
    rivals = torch.stack([logits.topk(2, dim=-1).indices[:, 1] for logits in output.logits], dim=1)
    stops = settings.get("eos_token_id", model.generation_config.eos_token_id)
    stops = stops if isinstance(stops, list) else [stops]
    answers = []
    for number, said in enumerate(output.sequences[:, width:].tolist()):
        end = next((place for place, token in enumerate(said, start=1) if token in stops), len(said))
        leads = best[number, :end, 0] - best[number, :end, 1]
        answers.append((said[:end], leads.tolist(), rivals[number, :end].tolist()))
    return answers


def row_logits(model: Any, rows: list[list[int]]) -> Any:
    """Return the float32 logits at all positions of the rows, joined: (positions, vocabulary)."""
    with torch.inference_mode():
        parts = [model(input_ids=torch.tensor([row]), use_cache=False).logits[0].float() for row in rows]
    return torch.cat(parts).numpy()


def save_base(request: dict[str, Any]) -> dict[str, Any]:
    """Write a base model with random weights and its tokenizer, as this version of transformers writes them."""
    import transformers  # noqa: PLC0415 -- the environment decides which version

    torch.manual_seed(request["seed"])
    config = getattr(transformers, request["config_class"])(**request["config"])
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        # Biases begin at zero. Others make a loader that drops them fail.
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(request["folder"], max_shard_size=request["shard"])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=request["tokenizer"], eos_token=request["eos"], pad_token=request["pad"]
    )
    tokenizer.chat_template = request["template"]
    tokenizer.save_pretrained(request["folder"])
    return {}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Load a model, with its adapter if there is one; answer the conversations and write the logits of the rows."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig  # noqa: PLC0415 -- as above

    model: Any = AutoModelForCausalLM.from_pretrained(
        request["model"], dtype=torch.float32, local_files_only=True
    )
    folder = request["adapter"] or request["model"]
    if request["adapter"]:
        from peft import PeftModel  # noqa: PLC0415 -- as above

        model = PeftModel.from_pretrained(model, folder)
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model.eval()
    np.save(request["logits"], row_logits(model, request["rows"]))
    tokenizer: Any = AutoTokenizer.from_pretrained(request["tokenizer"] or folder, local_files_only=True)
    texts = [
        tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        for conversation in request["conversations"]
    ]
    prompts = tokenizer(texts, add_special_tokens=False)["input_ids"]
    found = greedy(model, prompts, request["new_tokens"], tokenizer.pad_token_id)
    return {"prompts": prompts, "answers": [tokens for tokens, _leads, _rivals in found]}


def complete(request: dict[str, Any]) -> dict[str, Any]:
    """Load a model, complete prompts of equal length, given as tokens, and write the logits of the prompts."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 -- as above

    model: Any = AutoModelForCausalLM.from_pretrained(
        request["model"], dtype=torch.float32, local_files_only=True
    )
    model.eval()
    np.save(request["logits"], row_logits(model, request["prompts"]))
    found = greedy(model, request["prompts"], request["new_tokens"], request["pad"])
    return {"answers": [tokens for tokens, _leads, _rivals in found]}


def read_tokenizer(request: dict[str, Any]) -> dict[str, Any]:
    """Read the tokenizer of a folder."""
    from transformers import AutoTokenizer  # noqa: PLC0415 -- as above

    AutoTokenizer.from_pretrained(request["folder"], local_files_only=True)
    return {}


def versions(_request: dict[str, Any]) -> dict[str, Any]:
    """Return the versions that this process imported."""
    import peft  # noqa: PLC0415 -- as above
    import transformers  # noqa: PLC0415 -- as above

    return {"transformers": transformers.__version__, "peft": peft.__version__}


ACTIONS = {
    "save_base": save_base,
    "answer": answer,
    "complete": complete,
    "read_tokenizer": read_tokenizer,
    "versions": versions,
}


def main() -> None:
    """Serve requests until the input ends."""
    torch.set_num_threads(1)
    # Libraries may print. Only answers belong to the output.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as output:
        os.dup2(2, 1)
        for line in sys.stdin:
            request = json.loads(line)
            try:
                found = ACTIONS[request["action"]](request)
            except Exception as error:  # noqa: BLE001 -- the test decides what an error means
                found = {"error": f"{type(error).__name__}: {error}"}
            output.write(json.dumps(found) + "\n")
            output.flush()


if __name__ == "__main__":
    main()
