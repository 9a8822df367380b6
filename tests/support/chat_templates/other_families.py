"""Chat templates of more families, rewritten in their shape."""

from __future__ import annotations

from tests.support.chat_templates.shapes import IM, Case, loop


def other_families() -> dict[str, Case]:
    """Return the templates by name."""
    return {
        "orion": Case(
            loop(
                "'Human: ' + m.content + '\n\nAssistant: ' + eos_token",
                "m.content + eos_token",
                before="{{ bos_token }}",
            ),
            "end token inside the prompt",
            "mistral v2",
        ),
        "kimi": Case(
            (
                "{% for m in messages %}"
                "{{ '<|im_' + m.role + '|>' + m.role + '<|im_middle|>' + m.content + '<|im_end|>' }}"
                "{% endfor %}{% if add_generation_prompt %}"
                "{{ '<|im_assistant|>assistant<|im_middle|>' }}{% endif %}"
            ),
            "Kimi K2",
            "qwen",
            eos="<|im_end|>",
            special=("<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>"),
        ),
        "minimax": Case(
            (
                "{% for m in messages %}{% if m.role=='assistant' %}"
                "{{ ']~b]ai\n' + m.content + '[e~[\n' }}{% else %}"
                "{{ ']~b]' + m.role + '\n' + m.content + '[e~[\n' }}{% endif %}{% endfor %}"
                "{% if add_generation_prompt %}{{ ']~b]ai\n<think>\n' }}{% endif %}"
            ),
            "MiniMax",
            "qwen",
            eos="[e~[",
            special=("]~b]",),
        ),
        "hunyuan": Case(
            (
                "{% for m in messages %}{% if m.role=='user' %}{{ '<|hy_User|>' + m.content }}"
                "{% elif m.role=='system' %}{{ m.content + '<|hy_sep|>' }}{% else %}"
                "{% set t=m.content %}{% if '</think>' in t %}"
                "{% set t = t.split('</think>')[-1].strip() %}{% endif %}"
                "{{ '<|hy_Assistant|><think>\n\n</think>\n<answer>\n' + t + '\n</answer><|hy_eos|>' }}"
                "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|hy_Assistant|>' }}"
                "{% endif %}"
            ),
            "Hunyuan",
            "qwen",
            eos="<|hy_eos|>",
            special=("<|hy_User|>", "<|hy_Assistant|>", "<|hy_sep|>"),
        ),
        "functionary": Case(
            (
                "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
                "{% if m.role=='assistant' %}{{ '>>>all\n' }}{% endif %}{{ m.content + '<|eot_id|>' }}"
                "{% endfor %}{% if add_generation_prompt %}"
                "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n>>>' }}{% endif %}"
            ),
            "Functionary",
            "llama 3",
            special=("<|start_header_id|>", "<|end_header_id|>"),
        ),
        "longcat": Case(
            (
                "{% set ns=namespace(r=0) %}{% for m in messages %}{% if m.role=='system' %}"
                "{{ 'SYSTEM:' + m.content }}{% elif m.role=='user' %}"
                "{{ (' ' if loop.index0>0 else '') ~ '[Round ' ~ ns.r ~ '] USER:' ~ m.content ~ ' ASSISTANT:' }}"
                "{% set ns.r=ns.r+1 %}{% else %}{{ m.content ~ '</longcat_s>' }}{% endif %}"
                "{% endfor %}"
            ),
            "LongCat",
            "qwen",
            eos="</longcat_s>",
        ),
        "seed": Case(
            (
                "{% for m in messages %}{{ '<seed:bos>' + m.role + '\n' + m.content + '<seed:eos>' }}"
                "{% endfor %}{% if add_generation_prompt %}{{ '<seed:bos>assistant\n<seed:think>' }}"
                "{% endif %}"
            ),
            "Seed-OSS",
            "qwen",
            eos="<seed:eos>",
            special=("<seed:bos>",),
            plain=("<seed:think>", "</seed:think>"),
        ),
        "phi2": Case(
            loop(
                "'Instruct: ' + m.content + '\n'",
                "'Output: ' + m.content + '\n'",
                "m.content + '\n'",
                "'Output:'",
            ),
            "Phi-2",
            "qwen",
            eos="<|endoftext|>",
        ),
        "qwq": Case(
            (
                "{% for m in messages %}{% if m.role=='assistant' %}"
                "{{ '<|im_start|>assistant\n' + m.content.split('</think>')[-1].lstrip('\n') + '<|im_end|>\n' }}"
                "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
                "{% endif %}{% endfor %}{% if add_generation_prompt %}"
                "{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
            ),
            "QwQ",
            "qwen",
            special=IM,
        ),
        "cohere_thinking": Case(
            (
                "{% for m in messages %}{% if m.role=='assistant' %}{{ '<|CHATBOT|>' }}"
                "{% if m.reasoning_content %}"
                "{{ '<|START_THINKING|>' + m.reasoning_content + '<|END_THINKING|>' }}{% endif %}"
                "{{ '<|START_RESPONSE|>' + m.content + '<|END_RESPONSE|><|END_OF_TURN|>' }}{% else %}"
                "{{ '<|USER|>' + m.content + '<|END_OF_TURN|>' }}{% endif %}{% endfor %}"
                "{% if add_generation_prompt %}{{ '<|CHATBOT|><|START_THINKING|>' }}{% endif %}"
            ),
            "Command A reasoning",
            "tekken",
            eos="<|END_OF_TURN|>",
        ),
        "harmony_like": Case(
            (
                "{% for m in messages %}{% if m.role=='assistant' %}"
                "{% if m.reasoning_content and loop.last %}"
                "{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.reasoning_content + '<|end|>' }}"
                "{% endif %}"
                "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + ('<|return|>' if loop.last else '<|end|>') }}"
                "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}"
                "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}"
                "{% endif %}"
            ),
            "harmony, shortened",
            "tekken",
            eos="<|return|>",
        ),
        "llama4": Case(
            (
                "{{ bos_token }}{% for m in messages %}"
                "{{ '<|header_start|>' + m.role + '<|header_end|>\n\n' }}{% if m.content is string %}"
                "{{ m.content }}{% else %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endif %}"
                "{{ '<|eot|>' }}{% endfor %}{% if add_generation_prompt %}"
                "{{ '<|header_start|>assistant<|header_end|>\n\n' }}{% endif %}"
            ),
            "Llama 4",
            "llama 3",
            eos="<|eot|>",
        ),
    }
