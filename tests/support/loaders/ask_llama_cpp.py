"""Let llama.cpp answer prompts of tokens greedily with a GGUF file.

It runs in llama.cpp's own environment, reads one JSON request from its input and writes the answers into the request's file.
"""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any


def main() -> None:
    """Answer the prompts of one request."""
    import llama_cpp  # noqa: PLC0415 -- only llama.cpp's environment has it

    request: dict[str, Any] = json.load(sys.stdin)
    model = llama_cpp.Llama(
        request["model"],
        n_ctx=512,
        n_threads=request["threads"],
        n_threads_batch=request["threads"],
        # The cache keeps what the model computed. Its default of 16 bits would add noise.
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        flash_attn=False,
        verbose=False,
    )
    answers = []
    for prompt in request["prompts"]:
        answer = []
        for token in islice(model.generate(prompt, temp=0.0, reset=True), request["new_tokens"]):
            answer.append(int(token))
            if llama_cpp.llama_vocab_is_eog(model._model.vocab, token):
                break
        answers.append(answer)
    texts = [model.tokenize(text.encode(), add_bos=False, special=True) for text in request["texts"]]
    template = model.metadata.get("tokenizer.chat_template")
    found = {"answers": answers, "tokens": texts, "template": template}
    Path(request["output"]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
