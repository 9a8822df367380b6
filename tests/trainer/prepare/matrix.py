"""Chat templates, tokenizers and conversations for the mask matrix, and a judge that shares no code with the masks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import trl
from tokenizers import AddedToken

_WORDS = re.compile(r"[ASTUR]R(?:ONE|TWO|THREE)|SYONE|TRONE|ARGONE")
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
# The bar of DeepSeek's control tokens is U+FF5C, written as an escape because it looks like another one.
_WIDE = "\uff5c"
_CONTROL = re.compile(
    rf"<\|[^|<>\s'\"{{}}]+\|?>|<[a-z_]+\|>|<{_WIDE}[^{_WIDE}]+{_WIDE}>|</?s>|<(?:start|end)_of_turn>|<bos>|<eos>"
)

# End-of-turn token per family, as each model's own tokenizer names it.
_EOS = {
    "gemma": "<eos>",
    "gemma3": "<eos>",
    "phi3": "<|endoftext|>",
    "phi3_5": "<|endoftext|>",
    "llama3": "<|eot_id|>",
    "gptoss": "<|return|>",
    "deepseek": f"<{_WIDE}end▁of▁sentence{_WIDE}>",
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "llava": "</s>",
}

WRITTEN_OUT = {
    "mistral_v03": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] "
        "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}"
        "{{ m.content }}[/INST]{% elif m.role == 'assistant' %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "llama2": (
        "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0].content %}"
        "{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}{% for m in rest %}"
        "{% if m.role == 'user' %}{{ bos_token + '[INST] ' }}{% if loop.first and system %}"
        "{{ '<<SYS>>\n' + system + '\n<</SYS>>\n\n' }}{% endif %}{{ m.content.strip() + ' [/INST]' }}"
        "{% elif m.role == 'assistant' %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "zephyr": (
        "{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>\n' + m.content + eos_token }}"
        "{% elif m.role == 'system' %}{{ '<|system|>\n' + m.content + eos_token }}"
        "{% elif m.role == 'assistant' %}{{ '<|assistant|>\n' + m.content + eos_token }}{% endif %}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}\n{% endfor %}"
    ),
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "vicuna": (
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + ' ' }}"
        "{% elif m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
        "{% else %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
    "alpaca": (
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\n\n' }}"
        "{% elif m.role == 'user' %}{{ '### Instruction:\n' + m.content + '\n\n' }}"
        "{% else %}{{ '### Response:\n' + m.content + '\n\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
    ),
    "next_role_ends": (
        "[gMASK]<sop>{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "no_generation_prompt": (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    ),
}


def sources() -> dict[str, str]:
    """Return every template by name."""
    shipped = {
        path.stem: path.read_text()
        for path in TEMPLATES.glob("*.jinja")
        if not path.stem.endswith("_training")
    }
    return {**shipped, **WRITTEN_OUT}


def fit_tokenizer(tokenizer: Any, name: str, source: str) -> Any:
    """Give a real vocabulary the special tokens that the template `name` writes."""
    special = sorted(set(_CONTROL.findall(source)))
    if name == "next_role_ends":
        special = ["<|user|>", "<|assistant|>", "<|system|>"]
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tags = [tag for tag in ("<think>", "</think>") if tag in source]
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    eos = next((token for key, token in _EOS.items() if name.startswith(key)), None)
    if eos is not None:
        tokenizer.add_tokens([AddedToken(eos, special=True, normalized=False)])
        tokenizer.eos_token = eos
    if tokenizer.bos_token is None and "bos_token" in source:
        tokenizer.add_tokens([AddedToken("<s>", special=True, normalized=False)])
        tokenizer.bos_token = "<s>"
    tokenizer.chat_template = source
    return tokenizer


def conversations() -> dict[str, list[dict[str, Any]]]:
    """Return conversations whose every message holds a word of its own."""
    user, second, third = "Ask URONE please?", "Now URTWO, then.", "Finally URTHREE"
    system = "Obey SYONE always."
    call = {
        "type": "function",
        "id": "abcdefghi",
        "function": {"name": "lookup", "arguments": {"key": "ARGONE"}},
    }
    return {
        "single": _chat(u=user, a="Say ARONE now."),
        "system": _chat(s=system, u=user, a="Say ARONE now."),
        "multi": _chat(u=user, a="Say ARONE now.", u2=second, a2="Say ARTWO.", u3=third, a3="ARTHREE"),
        "system multi": _chat(s=system, u=user, a="Say ARONE now.", u2=second, a2="Say ARTWO."),
        "think": _chat(u=user, a="<think>\nWhy RRONE\n</think>\n\nSay ARONE."),
        "think multi": _chat(
            u=user,
            a="<think>\nRRONE\n</think>\n\nSay ARONE.",
            u2=second,
            a2="<think>\nRRTWO\n</think>\n\nARTWO",
        ),
        "whitespace": _chat(u="  Ask URONE \n", a="\n  Say ARONE\n indented. \n"),
        "repeated": _chat(u="Say ARONE", a="Say ARONE", u2="Say ARONE", a2="Say ARONE"),
        "short": _chat(u="a", a="b"),
        "code": _chat(u=user, a="```python\nprint('ARONE')  # x < y > z [0]\n```"),
        "unicode": _chat(u="naïve 你好 URONE", a="ARONE größer 你好 🙂"),
        "reasoning field": [
            {"role": "user", "content": user},
            {"role": "assistant", "content": "Say ARONE.", "reasoning_content": "Why RRONE"},
        ],
        "tools": [
            {"role": "user", "content": user},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "name": "lookup", "tool_call_id": "abcdefghi", "content": "TRONE"},
            {"role": "assistant", "content": "Say ARONE."},
        ],
    }


def _chat(**turns: str) -> list[dict[str, Any]]:
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[key[0]], "content": text} for key, text in turns.items()]


def judge(tokenizer: Any, messages: list[dict[str, Any]], examples: list[Any]) -> list[str]:
    """Say what is wrong with the examples of one conversation: nothing, if they are as they must be."""
    runs = [run for example in examples for run in _runs(list(example.input_ids), list(example.labels))]
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if len(runs) != len(turns):
        return [f"{len(turns)} answers, {len(runs)} learned"]
    faults = []
    for (before, learned), index in zip(runs, turns, strict=True):
        served = tokenizer.apply_chat_template(messages[:index], add_generation_prompt=True, tokenize=False)
        if before != tokenizer(served, add_special_tokens=False)["input_ids"]:
            faults.append(f"turn {index}: context differs from the served prompt")
        faults += [
            f"turn {index}: {fault}" for fault in _faults_of_answer(tokenizer, messages, index, learned)
        ]
    return faults


def _runs(ids: list[int], labels: list[int]) -> list[tuple[list[int], list[int]]]:
    """Split an example into (all ids before, learned ids) per unbroken run of labels."""
    starts = [i for i, label in enumerate(labels) if label != -100 and (i == 0 or labels[i - 1] == -100)]
    runs = []
    for start in starts:
        end = next((i for i in range(start, len(labels)) if labels[i] == -100), len(labels))
        runs.append((ids[:start], labels[start:end]))
    return runs


def _faults_of_answer(
    tokenizer: Any, messages: list[dict[str, Any]], index: int, learned: list[int]
) -> list[str]:
    text = tokenizer.decode(learned)
    message = messages[index]
    wanted = [message["content"], message.get("reasoning_content", "")]
    if "</think>" in message["content"]:
        wanted = list(message["content"].removeprefix("<think>").split("</think>"))
    wanted += [call["function"]["arguments"]["key"] for call in message.get("tool_calls", [])]
    faults = [f"{part!r} not learned" for part in wanted if part.strip() not in text]
    foreign = [other for other in messages if other is not message]
    words = {word for other in foreign for word in _WORDS.findall(str(other))} - set(
        _WORDS.findall(str(message))
    )
    faults += [f"{word} learned" for word in sorted(words) if word in text]
    last = tokenizer.convert_ids_to_tokens(learned[-1])
    if learned[-1] not in tokenizer.added_tokens_decoder and last != tokenizer.eos_token:
        faults.append(f"ends with {last!r}")
    return faults
