"""Chat templates that mislead engines which search for markers or compare prefixes."""

from __future__ import annotations

from tests.support.chat_templates.shapes import CHATML_PROMPT, EVERY_ROLE, IM, Case, loop


def adversarial_templates() -> dict[str, Case]:
    """Return the templates by name; those that leave out or rewrite content are not `faithful`."""
    return {
        "upper_roles": Case(
            "{% for m in messages %}{{ m.role | upper + ': ' + m.content | trim + '\n' }}"
            "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}",
            "turns that end with a newline",
            "mistral v3",
        ),
        "eos_at_the_very_end": Case(
            loop(
                "'Human: ' + m.content + '\n'",
                "'Bot: ' + m.content + '\n'",
                "m.content + '\n'",
                "'Bot:'",
            ).replace(
                "{% if add_generation_prompt %}",
                "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}{% if add_generation_prompt %}",
            ),
            "end token once, behind everything",
            "llama 3",
        ),
        "separator_between_turns": Case(
            "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
            "{% if not loop.last %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_end|>\n<|im_start|>assistant\n' }}{% endif %}",
            "end token between turns only",
            "qwen",
            special=IM,
        ),
        "drops_system": Case(
            (
                "{% for m in messages %}{% if m.role != 'system' %}"
                "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}"
                "{% endfor %}"
            )
            + CHATML_PROMPT,
            "system prompt left out",
            "qwen",
            special=IM,
            faithful=False,
        ),
        "indexed": Case(
            (
                "{% for m in messages %}"
                "{{ '<turn id=' ~ loop.index0 ~ ' role=' ~ m.role ~ '>' ~ m.content ~ '</turn>\n' }}"
                "{% endfor %}{% if add_generation_prompt %}"
                "{{ '<turn id=' ~ messages|length ~ ' role=assistant>' }}{% endif %}"
            ),
            "turn numbers in headers",
            "mistral v3",
        ),
        "reread": Case(
            (
                "{% for m in messages %}{% if m.role=='user' %}"
                "{{ 'Q: ' + m.content + '\nRead the question again: ' + m.content + '\n' }}"
                "{% elif m.role=='assistant' %}{{ 'A: ' + m.content + eos_token + '\n' }}{% else %}"
                "{{ m.content + '\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'A:' }}"
                "{% endif %}"
            ),
            "question written twice",
            "mistral v2",
        ),
        "reminder": Case(
            (
                "{% set s = messages[0].content if messages[0].role=='system' else '' %}"
                "{% for m in messages %}{% if m.role!='system' %}"
                "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}"
                "{% endfor %}{% if s %}{{ '<|im_start|>system\nReminder: ' + s + '<|im_end|>\n' }}"
                "{% endif %}"
            )
            + CHATML_PROMPT,
            "system prompt behind the last message",
            "qwen",
            special=IM,
        ),
        "prefilled": Case(
            (
                "{% for m in messages %}{% if m.role=='assistant' %}"
                "{{ '<|im_start|>assistant\nAnswer: ' + m.content + '<|im_end|>\n' }}{% else %}"
                "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}"
                "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\nAnswer:' }}"
                "{% endif %}"
            ),
            "prompt that begins the answer",
            "qwen",
            special=IM,
        ),
        "merges_same_role": Case(
            (
                "{% for m in messages %}{% if loop.first or loop.previtem.role != m.role %}"
                "{{ '<|im_start|>' + m.role + '\n' }}{% endif %}{{ m.content }}"
                "{% if loop.last or loop.nextitem.role != m.role %}{{ '<|im_end|>\n' }}{% else %}"
                "{{ '\n' }}{% endif %}{% endfor %}"
            )
            + CHATML_PROMPT,
            "turns of one role merged",
            "qwen",
            special=IM,
        ),
        "answer_tags_last_only": Case(
            (
                "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
                "{% if m.role=='assistant' and loop.last %}{{ '<answer>' + m.content + '</answer>' }}"
                "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
            )
            + CHATML_PROMPT,
            "tags around the last answer only",
            "qwen",
            special=IM,
        ),
        "history_summarized": Case(
            (
                "{% for m in messages %}{% if m.role=='assistant' and not loop.last %}"
                "{{ '<|im_start|>assistant\n(earlier answer)<|im_end|>\n' }}{% else %}"
                "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}"
                "{% endfor %}"
            )
            + CHATML_PROMPT,
            "earlier answers left out",
            "qwen",
            special=IM,
            faithful=False,
        ),
        "only_last_user": Case(
            (
                "{% set q = messages|selectattr('role','equalto','user')|list %}"
                "{{ 'Q: ' + q[-1].content + '\nA:' }}{% if messages[-1].role=='assistant' %}"
                "{{ ' ' + messages[-1].content + eos_token }}{% endif %}"
            ),
            "last question only",
            "mistral v2",
            faithful=False,
        ),
        "tojson": Case(
            (
                "{% for m in messages %}{{ m | tojson }}\n{% endfor %}{% if add_generation_prompt %}"
                '{{ \'{"role": "assistant", "content": "\' }}{% endif %}'
            ),
            "messages as JSON",
            "qwen",
            faithful=False,
        ),
        "truncating": Case(
            (
                "{% for m in messages %}"
                "{{ '<|im_start|>' + m.role + '\n' + m.content[:12] + '<|im_end|>\n' }}{% endfor %}"
            )
            + CHATML_PROMPT,
            "content cut short",
            "qwen",
            special=IM,
            faithful=False,
        ),
        "lowering": Case(
            (
                "{% for m in messages %}"
                "{{ '<|im_start|>' + m.role + '\n' + m.content|lower + '<|im_end|>\n' }}{% endfor %}"
            )
            + CHATML_PROMPT,
            "content in lower case",
            "qwen",
            special=IM,
            faithful=False,
        ),
        "collapsing": Case(
            (
                "{% for m in messages %}"
                "{{ '<|im_start|>' + m.role + '\n' + m.content.split()|join(' ') + '<|im_end|>\n' }}"
                "{% endfor %}"
            )
            + CHATML_PROMPT,
            "white space collapsed",
            "qwen",
            special=IM,
            faithful=False,
        ),
        "clock": Case(
            (
                "{% for m in messages %}"
                "{{ '<|im_start|>' + m.role + strftime_now(' %H:%M') + '\n' + m.content + '<|im_end|>\n' }}"
                "{% endfor %}{% if add_generation_prompt %}"
                "{{ '<|im_start|>assistant' + strftime_now(' %H:%M') + '\n' }}{% endif %}"
            ),
            "time of day in headers",
            "qwen",
            special=IM,
        ),
        "unconditional_prompt": Case(
            (
                "{% for m in messages %}"
                "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
                "{{ '<|im_start|>assistant\n' }}"
            ),
            "generation prompt always written",
            "qwen",
            special=IM,
        ),
        "slow_tokenizer": Case(
            (
                "{% for m in messages %}"
                "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
            )
            + CHATML_PROMPT,
            "ChatML on a slow tokenizer",
            "byt5",
            eos="<|im_end|>",
            special=IM,
        ),
        "reasoning_opened_by_space": Case(
            (
                "{% for m in messages %}"
                "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}{% endfor %}"
                "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think> ' }}{% endif %}"
            ),
            "reasoning opened with a space",
            "qwen",
            special=IM,
            plain=("<think>", "</think>"),
        ),
        "end_token_twice": Case(
            (
                "{% for m in messages %}"
                "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
            )
            + CHATML_PROMPT
            + "{% if not add_generation_prompt %}{{ '<|endoftext|>' }}{% endif %}",
            "end token behind the last turn too",
            "qwen",
            special=IM,
        ),
        "content_first_char": Case(
            (
                "{% for m in messages %}"
                "{{ '<|im_start|>' + m.role + ('\n' if m.content[0] != '{' else ' json\n') + m.content + '<|im_end|>\n' }}"
                "{% endfor %}"
            )
            + CHATML_PROMPT,
            "header that depends on content",
            "qwen",
            special=IM,
        ),
        "length_header": Case(
            (
                "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
                "{% if m.role!='assistant' %}{{ '(' ~ m.content|length ~ ') ' }}{% endif %}"
                "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
            )
            + CHATML_PROMPT,
            "lengths in other headers",
            "qwen",
            special=IM,
        ),
        "length_in_answer": Case(
            (
                "{% for m in messages %}"
                "{{ '<|im_start|>' + m.role + '\n(' ~ m.content|length ~ ') ' + m.content + '<|im_end|>\n' }}"
                "{% endfor %}"
            )
            + CHATML_PROMPT,
            "length before the answer",
            "qwen",
            special=IM,
            faithful=False,
        ),
        "parts_only": Case(
            (
                "{% for m in messages %}{% if m.content is string %}"
                "{{ raise_exception('parts only') }}{% endif %}{{ '<|im_start|>' + m.role + '\n' }}"
                "{% for c in m.content %}{{ c['text'] }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
            )
            + CHATML_PROMPT,
            "parts only, strings rejected",
            "qwen",
            special=IM,
            parts=EVERY_ROLE,
        ),
        "system_parts_only": Case(
            (
                "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role=='system' %}"
                "{{ m.content[0].text }}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}"
                "{% endfor %}"
            )
            + CHATML_PROMPT,
            "parts for the system prompt only",
            "qwen",
            special=IM,
            parts=frozenset({"system"}),
        ),
        "newline_ends_trimmed": Case(
            (
                "{% for m in messages %}{% if m.role=='user' %}{{ '[U] ' + m.content + '\n[A]' }}"
                "{% elif m.role=='system' %}{{ m.content }}{% else %}"
                "{{ ' ' + m.content | trim + '\n' }}{% endif %}{% endfor %}"
            ),
            "turns that end with a newline, trimmed",
            "mistral v1",
        ),
    }
