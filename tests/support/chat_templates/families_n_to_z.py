"""Chat templates of the families from Nemotron to Phi, rewritten in their shape."""

from __future__ import annotations

from tests.support.chat_templates.shapes import IM, ROLE_TOKENS, Case, loop

# The last turn is written apart from the others: behind the opening tag of the prompt, without a closing tag.
_NEMOTRON_NANO = (
    "{% set ns = namespace(think=true, own='', text='', calls=[]) %}"
    "{% for m in messages %}{% if m.role in ['user', 'system'] %}"
    "{% if '/think' in m.content %}{% set ns.think = true %}"
    "{% elif '/no_think' in m.content %}{% set ns.think = false %}{% endif %}{% endif %}{% endfor %}"
    "{% if messages[0].role == 'system' %}"
    "{% set ns.own = messages[0].content.replace('/think', '').replace('/no_think', '').strip() %}"
    "{% set messages = messages[1:] %}{% endif %}"
    "{{ '<SPECIAL_10>System\n' + ns.own }}"
    "{% if tools %}{{ ('\n\n' if ns.own else '') + 'Tools:\n<AVAILABLE_TOOLS>[' }}"
    "{% for t in tools %}{{ t.function | tojson + ('' if loop.last else ', ') }}{% endfor %}"
    "{{ ']</AVAILABLE_TOOLS>' }}{% endif %}{{ '\n\n' }}"
    "{% if messages[-1].role == 'assistant' %}{% set ns.text = messages[-1].content.strip() %}"
    "{% set ns.calls = messages[-1].tool_calls or [] %}{% set messages = messages[:-1] %}{% endif %}"
    "{% macro write(calls) %}{{ '<TOOLCALL>[' }}{% for c in calls %}"
    "{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}"
    "{{ '' if loop.last else ', ' }}"
    "{% endfor %}{{ ']</TOOLCALL>' }}{% endmacro %}"
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '<SPECIAL_11>User\n' + m.content.replace('/think', '').replace('/no_think', '').strip() + '\n' }}"
    "{% elif m.role == 'tool' %}"
    "{% if loop.first or loop.previtem.role != 'tool' %}{{ '<SPECIAL_11>User\n<TOOL_RESPONSE>[' }}{% endif %}"
    "{{ m.content }}{% if not loop.last and loop.nextitem.role == 'tool' %}{{ ', ' }}"
    "{% else %}{{ ']</TOOL_RESPONSE>\n\n' }}{% endif %}"
    "{% elif m.role == 'assistant' %}{% set text = m.content %}"
    "{% if '</think>' in text %}{% set text = text.split('</think>')[1] %}{% endif %}"
    "{{ '<SPECIAL_11>Assistant\n' + text.strip() }}"
    "{% if m.tool_calls %}{{ ('\n\n' if text.strip() else '') + write(m.tool_calls) }}{% endif %}"
    "{{ '\n<SPECIAL_12>\n\n' }}{% endif %}{% endfor %}"
    "{% set start = '<SPECIAL_11>Assistant\n' + ('<think>\n\n' if ns.think else '<think></think>') %}"
    "{% if add_generation_prompt %}{{ start + ns.text }}{% else %}"
    "{% if ns.text %}{{ start + ns.text + '\n<SPECIAL_12>\n\n' }}{% endif %}"
    "{% if ns.calls %}{{ '<SPECIAL_11>Assistant\n' + write(ns.calls) + '\n<SPECIAL_12>\n\n' }}{% endif %}"
    "{% endif %}"
)
# The system turn exists without a system message; `/no_think` in it closes the block in the prompt.
_NEMOTRON_SUPER = (
    "{% set open = '<|start_header_id|>' %}{% set close = '<|end_header_id|>\n\n' %}"
    "{% set ns = namespace(think=true) %}{{ '<|begin_of_text|>' ~ open ~ 'system' ~ close }}"
    "{% if messages[0].role == 'system' and messages[0].content %}{% set own = messages[0].content %}"
    "{% if '/no_think' in own %}{% set ns.think = false %}{% set own = own.replace('/no_think', '') | trim %}"
    "{% elif '/think' in own %}{% set own = own.replace('/think', '') | trim %}{% endif %}"
    "{{ own + '\n\n' }}{% endif %}"
    "{% if tools %}{{ 'Tools:\n<AVAILABLE_TOOLS>[' }}{% for t in tools %}"
    "{{ t.function | tojson + ('' if loop.last else ', ') }}{% endfor %}{{ ']</AVAILABLE_TOOLS>' }}"
    "{% endif %}"
    "{{ '<|eot_id|>' }}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ open ~ 'user' ~ close ~ m.content ~ '<|eot_id|>' }}"
    "{% elif m.role == 'assistant' %}{% set text = m.content %}"
    "{% if '</think>' in text %}{% set text = text.split('</think>')[-1].lstrip() %}{% endif %}"
    "{{ open ~ 'assistant' ~ close ~ text }}"
    "{% if m.tool_calls %}{{ '<TOOLCALL>[' }}{% for c in m.tool_calls %}"
    "{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}"
    "{{ '' if loop.last else ', ' }}"
    "{% endfor %}{{ ']</TOOLCALL>' }}{% endif %}{{ '<|eot_id|>' }}"
    "{% elif m.role == 'tool' %}"
    "{% if loop.previtem.role != 'tool' %}{{ open ~ 'tool' ~ close ~ '<TOOL_RESPONSE>[' }}{% endif %}"
    "{{ m.content }}{% if not loop.last and loop.nextitem.role == 'tool' %}{{ ', ' }}"
    "{% else %}{{ ']</TOOL_RESPONSE><|eot_id|>' }}{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ open ~ 'assistant' ~ close ~ ('' if ns.think else '<think>\n\n</think>\n\n') }}{% endif %}"
)
# Every system message moves to the front; nothing but the header of the next turn ends a turn.
_NEMOTRON_MINI = (
    "{{ '<extra_id_0>System' }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ '\n' + m.content.strip() + ('\n' if tools else '') }}{% endif %}{% endfor %}"
    "{% for t in tools or [] %}{{ '\n<tool> ' + t | tojson + ' </tool>' }}{% endfor %}{{ '\n\n' }}"
    "{% for m in messages %}{% if m.role in ['user', 'assistant', 'tool'] %}"
    "{{ '<extra_id_1>' + m.role | capitalize + '\n' + m.content.strip() + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<extra_id_1>Assistant\n' }}{% endif %}"
)
# The end token begins the text.
_OLMO = (
    "{{ eos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>\n' + m.content + '\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|assistant|>\n' + m.content + eos_token + '\n' }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
# The end token ends the last answer, `<|im_end|>` all others.
_OLMO3 = (
    "{% if 'system' not in messages | map(attribute='role') %}{{ '<|im_start|>system\nYou are Olmo. ' }}"
    "{% if tools %}{{ 'Call functions.<functions>' + tools | tojson + '</functions>' }}"
    "{% else %}{{ 'You have no functions. <functions></functions>' }}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endif %}"
    "{% for m in messages %}{% if m.role == 'system' %}{{ '<|im_start|>system\n' + m.content }}"
    "{% if tools is not none %}{{ '<functions>' + tools | tojson + '</functions>' }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% elif m.role == 'user' %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' + m.content }}"
    "{% if m.tool_calls %}{{ '<function_calls>' }}{% for c in m.tool_calls %}{{ c.function.name + '(' }}"
    "{% for key, value in c.function.arguments.items() %}"
    "{{ key ~ '=' ~ value | tojson ~ ('' if loop.last else ', ') }}{% endfor %}"
    "{{ ')' if loop.last else ')\n' }}{% endfor %}{{ '</function_calls>' }}{% endif %}"
    "{{ eos_token if loop.last else '<|im_end|>\n' }}"
    "{% elif m.role in ['tool', 'environment'] %}"
    "{{ '<|im_start|>environment\n' + m.content + '<|im_end|>\n' }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}{% endfor %}"
)
# A call replaces the content, and its strings are quoted without escapes.
_OLMO3_PYTHONIC = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set own = messages[0].content | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set own = 'You call functions.' %}{% endif %}"
    "{{ '<|im_start|>system\n' + own }}{% if tools %}{{ '\n\nFunctions:\n<functions>\n' }}"
    "{% for t in tools %}"
    "{{ t.function | tojson + ('' if loop.last else '\n') }}{% endfor %}{{ '\n</functions>' }}"
    "{% else %}{{ '\nYou have no functions.' }}{% endif %}{{ '<|im_end|>\n' }}"
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '<|im_start|>user\n' + m.content | trim + '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% if m.tool_calls %}{{ '<function_calls>\n' }}{% for c in m.tool_calls %}{{ c.function.name + '(' }}"
    "{% for key, value in c.function.arguments.items() %}{{ key + '=' }}"
    '{% if value is string %}{{ "\'" + value + "\'" }}{% else %}{{ value | tojson }}{% endif %}'
    "{{ '' if loop.last else ', ' }}{% endfor %}{{ ')\n' }}{% endfor %}{{ '</function_calls>' }}"
    "{% else %}{{ m.content | trim }}{% endif %}{{ '<|im_end|>\n' }}"
    "{% elif m.role == 'tool' %}{{ '<|im_start|>tool\n' }}"
    "{% if m.name is defined %}{{ 'Function ' + m.name + ' returned:\n' }}{% endif %}"
    "{{ m.content | trim + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The prompt opens the block without a newline, and history is written as it is.
_OLMO3_THINK = (
    "{% if 'system' not in messages | map(attribute='role') %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'system' %}"
    "{{ '<|im_start|>system\n' + m.content + ' You have no functions. <functions></functions><|im_end|>\n' }}"
    "{% elif m.role == 'user' %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' + m.content }}"
    "{{ eos_token if loop.last else '<|im_end|>\n' }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|im_start|>assistant\n<think>' }}{% endif %}"
    "{% endfor %}"
)
_OPENCHAT36 = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role in ['user', 'assistant'] %}{% set name = 'GPT4 Correct ' + m.role.title() %}"
    "{% elif m.role == 'system' %}{% set name = 'System' %}"
    "{% else %}{{ raise_exception('only user, assistant and system') }}{% endif %}"
    "{{ '<|start_header_id|>' + name + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>GPT4 Correct Assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# A system message begins the text again wherever it stands.
_PANGU = (
    "{% set names = {'user': '用户', 'assistant': '助手', 'tool': '工具', 'function': '方法'} %}"
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}{{ '<s>[unused9]系统\uff1a[unused10]' }}"
    "{% endif %}"
    "{% if m.role == 'system' %}{{ '<s>[unused9]系统\uff1a' + m.content + '[unused10]' }}"
    "{% elif m.role in names %}{{ '[unused9]' + names[m.role] + '\uff1a' + m.content + '[unused10]' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '[unused9]助手\uff1a' }}{% endif %}"
)
# A question always brings the header of its answer.
_PHI3_MINI = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ '<|system|>\n' + m.content + '<|end|>\n' }}"
    "{% elif m.role == 'user' %}{{ '<|user|>\n' + m.content + '<|end|>\n<|assistant|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ m.content + '<|end|>\n' }}{% endif %}{% endfor %}"
)
_PHI4_REASONING = (
    "{% set own = 'You are Phi. Write <think> {Thought section} </think> {Solution section}.' %}"
    "{% if messages[0].role == 'system' %}{% set own = messages[0].content %}"
    "{% set messages = messages[1:] %}{% endif %}{{ '<|im_start|>system<|im_sep|>' + own + '<|im_end|>' }}"
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '<|im_start|>user<|im_sep|>' + m.content + '<|im_end|>' }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant<|im_sep|>' }}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
# The prompt stands behind every conversation, and arguments are written as Python writes a dictionary.
_PHI4_MINI_FUNCTOOLS = (
    "{% if messages[0].role == 'system' %}{% set own = messages[0].content | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set own = 'You are a helpful assistant.' %}{% endif %}"
    "{{ '<|system|>\n' + own }}{% if tools %}{{ 'You can call functions as functools[...].' }}"
    "{% for t in tools %}{{ t | tojson(indent=4) + '\n\n' }}{% endfor %}{% endif %}{{ '<|end|>' }}"
    "{% for m in messages %}{% if m.role != 'system' %}{{ '<|' + m.role + '|>' }}"
    "{% if m.content and m.role == 'tools' %}{{ '{\"result\": ' ~ m.content ~ '}' }}"
    "{% elif m.content %}{{ m.content }}{% elif m.tool_calls %}{% for c in m.tool_calls %}"
    "{{ '{\"name\": \"' ~ c.function.name ~ '\", \"arguments\": ' ~ c.function.arguments ~ '}' }}"
    "{{ '' if loop.last else ',' }}{% endfor %}{% endif %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{{ '<|assistant|>' }}"
)
# Calls and results have tokens of their own; a result is a JSON string.
_PHI4_MINI_TOOL_TOKENS = (
    "{% if messages[0].role == 'system' %}{% set own = messages[0].content %}"
    "{% elif tools %}{% set own = '' %}{% endif %}"
    "{% if own is defined %}{{ '<|system|>' + own }}{% if tools %}{% for t in tools %}"
    "{{ '<|tool|>' + t.function | tojson + '<|/tool|>' }}{% endfor %}"
    "{% if '<|tool_call|>' not in own %}{{ 'Answer with <|tool_call|>{}<|/tool_call|>' }}{% endif %}"
    "{% endif %}"
    "{{ '<|end|>' }}{% endif %}{% for m in messages %}{% if m.role == 'tool' %}"
    "{{ '<|tool_response|>' + m.content | tojson + '<|end|>' }}{% elif m.role != 'system' %}"
    "{{ '<|' + m.role + '|>' + m.content }}{% for c in m.tool_calls or [] %}"
    "{{ '<|tool_call|>' + c.function | tojson + '<|/tool_call|>' }}{% endfor %}{{ '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{{ '<|assistant|>' if add_generation_prompt else eos_token }}"
)
_PHI = (*ROLE_TOKENS, "<|end|>")


def families_n_to_z() -> dict[str, Case]:
    """Return the templates of the families from Nemotron to Phi by name."""
    text = "<|endoftext|>"
    chatml = "'<|im_start|>{0}\n' + m.content + '<|im_end|>\n'"
    return {
        # History has no block, and `<think></think>` is the only place with a closing tag. The rendered
        # conversation alone would put the answer inside the open block.
        "nemotron_nano_v2": Case(
            _NEMOTRON_NANO, "Nemotron Nano v2", "tekken", eos="<SPECIAL_12>", stops=("</s>", "<SPECIAL_11>"),
            special=("<SPECIAL_10>", "<SPECIAL_11>"),
            # The template closes the block nowhere, so the spelling of the closing tag is the usual one.
            right="\n</think>\n\nSay ARONE now.\n<SPECIAL_12>",
            plain=("<TOOLCALL>", "</TOOLCALL>", "<TOOL_RESPONSE>", "</TOOL_RESPONSE>"),
        ),
        "nemotron_super_v1_5": Case(
            _NEMOTRON_SUPER, "Llama-3.3 Nemotron Super", "llama 3", stops=("<|end_of_text|>", "<|eom_id|>"),
            right="Say ARONE now.<|eot_id|>",
        ),
        "nemotron_mini": Case(
            _NEMOTRON_MINI, "Nemotron Mini", "mistral v3", eos="</s>",
            special=("<extra_id_0>", "<extra_id_1>"), right="Say ARONE now.</s>",
        ),
        "olmo": Case(_OLMO, "OLMo", "qwen", eos=text, right="Say ARONE now.<|endoftext|>"),
        "olmo3": Case(
            _OLMO3, "OLMo 3", "llama 3", eos=text, stops=("<|im_end|>",), special=IM,
            right="Say ARONE now.<|endoftext|>",
        ),
        "olmo3_pythonic": Case(
            _OLMO3_PYTHONIC, "OLMo 3 with pythonic calls", "llama 3", eos=text, bos=text,
            stops=("<|im_end|>",), special=IM, right="Say ARONE now.<|im_end|>",
        ),
        # The template writes a closing tag nowhere, so no rule gives the white space around it.
        "olmo3_think": Case(
            _OLMO3_THINK, "OLMo 3 Think", "llama 3", eos=text, stops=("<|im_end|>",), special=IM, right=None
        ),
        "openassistant": Case(
            loop(
                "'<|prompter|>' + m.content + eos_token",
                "'<|assistant|>' + m.content + eos_token",
                "'<|system|>' + m.content + eos_token",
                "'<|assistant|>'",
            ),
            "OpenAssistant", "qwen", eos=text, right="Say ARONE now.<|endoftext|>",
        ),
        "openchat36": Case(_OPENCHAT36, "OpenChat 3.6", "llama 3", right="Say ARONE now.<|eot_id|>"),
        # The prompt ends before the newline that history has.
        "orca2": Case(
            loop(
                chatml.format("user"),
                chatml.format("assistant"),
                chatml.format("system"),
                "'<|im_start|>assistant'",
            ),
            "Orca 2", "mistral v1", eos="</s>", stops=("<|im_end|>",), special=IM,
            right="\nSay ARONE now.<|im_end|>",
        ),
        "pangu": Case(
            _PANGU, "openPangu Embedded", "mistral v2", eos="[unused10]", special=("[unused9]",),
            right="Say ARONE now.[unused10]",
        ),
        "phi3_mini": Case(
            _PHI3_MINI, "Phi-3-mini, first version", "mistral v1", eos=text,
            stops=("<|assistant|>", "<|end|>"), special=_PHI, strips=_PHI, right="Say ARONE now.<|end|>",
        ),
        "phi4_reasoning": Case(
            _PHI4_REASONING, "Phi-4-reasoning", "qwen", special=(*IM, "<|im_sep|>"),
            right="Say ARONE now.<|im_end|>",
        ),
        "phi4_mini_functools": Case(
            _PHI4_MINI_FUNCTOOLS, "Phi-4-mini with functools", "qwen", eos=text, stops=("<|end|>",),
            special=_PHI, strips=_PHI, right="Say ARONE now.<|end|>",
        ),
        "phi4_mini_tool_tokens": Case(
            _PHI4_MINI_TOOL_TOKENS, "Phi-4-mini with tool tokens", "qwen", eos=text, stops=("<|end|>",),
            special=_PHI, strips=_PHI, right="Say ARONE now.<|end|>",
            plain=("<|tool|>", "<|/tool|>", "<|tool_call|>", "<|/tool_call|>", "<|tool_response|>"),
        ),
    }  # fmt: skip
