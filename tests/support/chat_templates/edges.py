"""Small templates with one edge of real ones each: where an answer begins, and where its turn ends."""

from __future__ import annotations

from tests.support.chat_templates.shapes import IM, Case


def _chatml(answer: str, prompt: str = "", after: str = "") -> str:
    """Return a ChatML template with these texts around an answer, at the end of its prompt and of a conversation."""
    return (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if m.role == 'assistant' %}"
        + answer
        + "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n"
        + prompt
        + "' }}{% else %}"
        + after
        + "{% endif %}"
    )


_PLAIN = "{{ m.content }}"
_THINK = ("<think>", "</think>")
_RESPONSE = ("<|START_RESPONSE|>", "<|END_RESPONSE|>")
_THINKING = ("<|START_THINKING|>", "<|END_THINKING|>")
_SAID = "Say ARONE now."


def edge_templates() -> dict[str, Case]:
    """Return the templates by name."""
    return {
        "closed_by_a_special_tag": Case(
            _chatml("{{ '<|START_RESPONSE|>' + m.content + '<|END_RESPONSE|>' }}"),
            "answer closed by a special tag", "mistral v1", eos="<|im_end|>", special=(*IM, *_RESPONSE),
            right=f"<|START_RESPONSE|>{_SAID}<|END_RESPONSE|><|im_end|>",
        ),
        "closed_by_a_plain_tag": Case(
            _chatml("{{ '<answer>' + m.content + '</answer>' }}"),
            "answer closed by an ordinary tag", "mistral v1", eos="<|im_end|>", special=IM, plain=("<answer>", "</answer>"),
            right=f"<answer>{_SAID}</answer><|im_end|>",
        ),
        "history_writes_only_the_closing_tag": Case(
            _chatml("{{ '</think>' + m.content }}", "<think>"),
            "history writes only the closing tag", "mistral v1", eos="<|im_end|>", special=IM, plain=_THINK,
            right=f"</think>{_SAID}<|im_end|>",
        ),
        "prompt_closes_an_empty_block": Case(
            _chatml(_PLAIN, r"<think>\n\n</think>\n\n"),
            "prompt closes an empty block", "mistral v1", eos="<|im_end|>", special=IM, plain=_THINK,
            right=f"{_SAID}<|im_end|>",
        ),
        "prompt_closes_an_unnamed_block": Case(
            _chatml(_PLAIN, "<plan></plan>"),
            "prompt closes a block of unknown name", "mistral v1", eos="<|im_end|>", special=IM, plain=("<plan>", "</plan>"),
            right=f"{_SAID}<|im_end|>",
        ),
        "closing_tag_at_the_prompts_end": Case(
            _chatml("{{ '<|START_RESPONSE|>' + m.content }}", "<|START_THINKING|><|END_THINKING|>"),
            "closing tag at the prompt's end", "mistral v1", eos="<|im_end|>", special=(*IM, *_THINKING, *_RESPONSE),
            right=f"<|START_RESPONSE|>{_SAID}<|im_end|>",
        ),
        "vocabulary_of_line_breaks": Case(
            "{% for m in messages %}{% if m.role == 'user' %}{{ '### Instruction:\n' + m.content + '\n\n' }}"
            "{% elif m.role == 'assistant' %}{{ '### Response:\n' + m.content + '\n\n' }}"
            "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}",
            "line breaks as tokens of the vocabulary", "mistral v3", eos="<eos>",
            plain=("\n", "\n\n", "\n\n\n", "<table>", "</table>"), right=f"{_SAID}<eos>",
        ),
        "prompt_with_more_white_space": Case(
            "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '\n<|im_start|>assistant\n' }}{% endif %}",
            "prompt with more white space", "mistral v1", eos="<|im_end|>", special=IM, right=f"{_SAID}<|im_end|>",
        ),
        "arguments_as_text": Case(
            _chatml(
                "{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
                "{{ c.function.name + '|' + c.function.arguments }}{% endfor %}"
            ),
            "tool arguments as text", "mistral v1", eos="<|im_end|>", special=IM, right=f"{_SAID}<|im_end|>",
        ),
        "end_of_sequence_behind_the_turn": Case(
            _chatml(_PLAIN, after="{{ eos_token }}"),
            "end of sequence behind the turn's end", "mistral v1", eos="</s>", special=IM, stops=("<|im_end|>",),
            right=f"{_SAID}<|im_end|>",
        ),
        "header_behind_every_conversation": Case(
            _chatml(_PLAIN).replace("{% if add_generation_prompt %}", "").replace("{% else %}{% endif %}", ""),
            "header behind every conversation", "mistral v1", eos="</s>", special=IM, right=f"{_SAID}<|im_end|>",
        ),
    }  # fmt: skip
