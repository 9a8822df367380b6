"""Chat templates of families from L to M, rewritten in their shape."""

from __future__ import annotations

from typing import Any

from tests.support.chat_templates.shapes import Case

THINK_SPLIT = (
    "{% set trace = '' %}{% set text = m.content %}{% if m.reasoning_content is string %}"
    "{% set trace = m.reasoning_content %}{% elif '</think>' in text %}"
    "{% set trace = text.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
)
ASKED = (
    "{% set s = namespace(asked=messages | length - 1, found=false) %}{% for m in messages[::-1] %}"
    "{% if not s.found and m.role == 'user' and not (m.content.startswith('<tool_response>')"
    " and m.content.endswith('</tool_response>')) %}{% set s.found = true %}"
    "{% set s.asked = messages | length - loop.index %}{% endif %}{% endfor %}"
)
_RESULT = (
    "{% elif m.role == 'tool' %}{{ HEAD if loop.first or loop.previtem.role != 'tool' }}"
    "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{{ TAIL if loop.last or loop.nextitem.role != 'tool' }}{% endif %}{% endfor %}"
)
CHATML_RESULT = _RESULT.replace("HEAD", "'<|im_start|>user'").replace("TAIL", "'<|im_end|>\n'")
_LING_RESULT = _RESULT.replace("HEAD", "'<role>OBSERVATION</role>'").replace("TAIL", "'<|role_end|>'")
# The roles are text in upper case, and nothing ends a turn.
_BAILING = (
    "{% for m in messages %}{% set role = 'HUMAN' if m.role == 'user' else m.role | upper %}"
    "{{ '<role>' + role + '</role>' + m.content }}{% endfor %}"
    "{{ '<role>ASSISTANT</role>' if add_generation_prompt }}"
)
_LING3 = (
    "{% set option = 'on' if enable_thinking is not defined or enable_thinking else 'off' %}"
    "{% set given = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% set told = 'detailed thinking on' in given or 'detailed thinking off' in given %}"
    "{{ '<role>SYSTEM</role>' + given }}{{ '\n' if messages[0].role == 'system' and (tools or not told) }}"
    "{% if tools %}{{ '# Tools\n<tools>' }}{% for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}"
    "{{ '\n</tools>\n' }}{% endif %}{{ ('' if told else 'detailed thinking ' + option) + '<|role_end|>' }}"
    "{% for m in messages %}{% if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "{{ '<role>' + ('HUMAN' if m.role == 'user' else 'SYSTEM') + '</role>' + m.content + '<|role_end|>' }}"
    "{% elif m.role == 'assistant' %}"
    + THINK_SPLIT.replace("is string", "")
    + "{{ '<role>ASSISTANT</role>\n<think>' + trace.strip('\n') + '</think>' }}"
    "{{ text.lstrip('\n') if trace else text }}{% for call in m.tool_calls or [] %}"
    "{{ '\n' if text or not loop.first }}{{ '<tool_call>' + call.function.name + '\n' }}"
    "{% for key, value in call.function.arguments.items() %}{{ '<arg_key>' + key + '</arg_key>\n<arg_value>' }}"
    "{{ (value if value is string else value | tojson) + '</arg_value>' }}{% endfor %}{{ '\n</tool_call>' }}"
    "{% endfor %}{{ '<|role_end|>' }}"
    + _LING_RESULT
    + "{{ '<role>ASSISTANT</role>\n<think>' + ('' if option == 'on' else '</think>') if add_generation_prompt }}"
)
_LLAMA32_HEAD = (
    "{{ bos_token }}{% set system = messages[0].content | trim if messages[0].role == 'system' else DEFAULT %}"
    "{% set messages = messages[1:] if messages[0].role == 'system' else messages %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\n' }}{{ 'Environment: ipython\n' if tools is not none }}"
    "{{ 'Cutting Knowledge Date: December 2023\nToday Date: ' + strftime_now('%d %b %Y') + '\n\n' }}"
)
_LLAMA32_PLAIN = "not (m.role in ['ipython', 'tool'] or 'tool_calls' in m)"
# A call is Python without quotes, and several share a list.
_LLAMA32_PYTHONIC = (
    _LLAMA32_HEAD.replace("DEFAULT", "'You can call tools.'")
    + "{% if tools is not none %}{{ 'Call as [name(key=value)].\n\n' }}{% for tool in tools %}"
    "{{ tool | tojson(indent=4) + '\n\n' }}{% endfor %}{% endif %}{{ system + '<|eot_id|>' }}{% for m in messages %}"
    "{% if " + _LLAMA32_PLAIN + " %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}"
    "{% elif 'tool_calls' in m %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n[' }}"
    "{% for call in m.tool_calls %}{{ call.function.name + '(' }}"
    "{% for key, value in call.function.arguments.items() %}{{ key ~ '=' ~ value ~ ('' if loop.last else ', ') }}"
    "{% endfor %}{{ ')' + ('' if loop.last else ', ') }}{% endfor %}{{ ']<|eot_id|>' }}{% else %}"
    "{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' + {'output': m.content} | tojson + '<|eot_id|>' }}"
    "{% endif %}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' if add_generation_prompt }}"
)
# With tools, the first question is trimmed; other contents are not. One call per message, or the template refuses.
_LLAMA32_VISION = (
    _LLAMA32_HEAD.replace("DEFAULT", "''") + "{{ system + '<|eot_id|>' }}{% if tools is not none %}"
    "{{ '<|start_header_id|>user<|end_header_id|>\n\nAnswer with JSON for a call.\n\n' }}{% for tool in tools %}"
    "{{ tool | tojson(indent=4) + '\n\n' }}{% endfor %}{{ messages[0].content | trim + '<|eot_id|>' }}"
    "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}{% if " + _LLAMA32_PLAIN + " %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for part in m.content %}"
    "{{ '<|image|>' if part.type == 'image' else part.text }}{% endfor %}{% endif %}{{ '<|eot_id|>' }}"
    "{% elif 'tool_calls' in m %}"
    "{% if m.tool_calls | length != 1 %}{{ raise_exception('only one call') }}{% endif %}"
    "{% set f = m.tool_calls[0].function %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{{ '{\"name\": \"' + f.name + '\", \"parameters\": ' + f.arguments | tojson + '}<|eot_id|>' }}{% else %}"
    "{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' + m.content | tojson + '<|eot_id|>' }}"
    "{% endif %}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' if add_generation_prompt }}"
)
# Tools that a request offers are announced but not listed.
_LLAMA4_PYTHONIC = (
    "{{ bos_token }}{% set given = messages[0].role == 'system' %}"
    "{% set system = messages[0].content | trim if given else 'Call functions.' if tools is not none else '' %}"
    "{% if system %}{{ '<|header_start|>system<|header_end|>\n\n' + system }}"
    "{{ '\nHere is a list of functions.\n' if given and tools }}{{ '<|eot|>' }}{% endif %}"
    "{% for m in (messages[1:] if given else messages) %}{% if m.role in ['ipython', 'tool'] %}"
    "{{ '<|header_start|>ipython<|header_end|>\n\n' + m.content | tojson + '<|eot|>' }}{% else %}"
    "{{ '<|header_start|>' + m.role + '<|header_end|>\n\n' + m.content }}{% if m.tool_calls %}{{ '[' }}"
    "{% for call in m.tool_calls %}{{ call.function.name + '(' }}"
    "{% for key, value in call.function.arguments.items() %}"
    "{{ key ~ '=\"' ~ value ~ '\"' ~ ('' if loop.last else ', ') }}{% endfor %}"
    "{{ ')' + ('' if loop.last else ', ') }}{% endfor %}{{ ']' }}{% endif %}{{ '<|eot|>' }}{% endif %}{% endfor %}"
    "{{ '<|header_start|>assistant<|header_end|>\n\n' if add_generation_prompt }}"
)
# A word of the system prompt turns thinking off. Answers lose their traces, also the last one.
_NEMOTRON_SUPER = (
    "{% macro head(role) %}{{ '<|start_header_id|>' + role + '<|end_header_id|>\n\n' }}{% endmacro %}"
    "{% set think = true %}{{ '<|begin_of_text|>' + head('system') }}"
    "{% if messages[0].role == 'system' and messages[0].content != '' %}{% set system = messages[0].content %}"
    "{% if '/no_think' in system %}{% set think = false %}{% set system = system.replace('/no_think', '') | trim %}"
    "{% elif '/think' in system %}{% set system = system.replace('/think', '') | trim %}{% endif %}"
    "{{ system + '\n\n' }}{% endif %}{% if tools %}{{ 'Tools:\n<AVAILABLE_TOOLS>[' }}{% for tool in tools %}"
    "{{ tool.function | tojson + ('' if loop.last else ', ') }}{% endfor %}{{ ']</AVAILABLE_TOOLS>' }}{% endif %}"
    "{{ '<|eot_id|>' }}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ head('user') + m.content + '<|eot_id|>' }}{% elif m.role == 'assistant' %}{% set text = m.content %}"
    "{% if '</think>' in text %}{% set text = text.split('</think>')[-1].lstrip() %}{% endif %}"
    "{{ head('assistant') + text }}{% if m.tool_calls %}{{ '<TOOLCALL>[' }}{% for call in m.tool_calls %}"
    "{{ '{\"name\": \"' + call.function.name + '\", \"arguments\": ' + call.function.arguments | tojson + '}' }}"
    "{{ ', ' if not loop.last }}{% endfor %}{{ ']</TOOLCALL>' }}{% endif %}{{ '<|eot_id|>' }}"
    "{% elif m.role == 'tool' %}"
    "{{ head('tool') + '<TOOL_RESPONSE>[' if loop.first or loop.previtem.role != 'tool' }}{{ m.content }}"
    "{{ ']</TOOL_RESPONSE><|eot_id|>' if loop.last or loop.nextitem.role != 'tool' else ', ' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ head('assistant') + ('' if think else '<think>\n\n</think>\n\n') }}{% endif %}"
)
# A space ends each turn, the answers too; there is no token.
_LLAVA = (
    "{% for m in messages %}{{ m.role.upper() + ': ' if m.role != 'system' }}{% if m.content is string %}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + ' ' }}{% endgeneration %}"
    "{% else %}{{ m.content + ' ' }}{% endif %}{% else %}"
    "{% for part in m.content if part.type == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in m.content if part.type == 'text' %}{{ part.text + ' ' }}{% endfor %}{% endif %}{% endfor %}"
    "{{ 'ASSISTANT:' if add_generation_prompt }}"
)
_MEGREZ = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
    "{{ '<|role_start|>system<|role_end|>You are Megrez.<|turn_end|>' }}{% endif %}"
    "{{ '<|role_start|>' + m.role + '<|role_end|>' + m.content + '<|turn_end|>' }}{% endfor %}"
    "{{ '<|role_start|>assistant<|role_end|>' if add_generation_prompt }}"
)
# One end token behind everything; other answers end where the next header begins.
_METHARME = (
    "{% set given = messages[0].role == 'system' %}"
    "{{ bos_token + '<|system|>' + (messages[0].content if given else 'Enter RP mode.') }}"
    "{% for m in (messages[1:] if given else messages) if m.role in ['user', 'assistant'] %}"
    "{{ ('<|user|>' if m.role == 'user' else '<|model|>') + m.content.strip() }}{% endfor %}"
    "{{ '<|model|>' if add_generation_prompt else eos_token }}"
)


def families_g_to_m_3() -> dict[str, Case]:
    """Return the templates of families from L to Me by name."""
    ling: dict[str, Any] = {
        "eos": "<|role_end|>",
        "special": ("<role>", "</role>"),
        "plain": ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    }
    llama: dict[str, Any] = {
        "special": ("<|start_header_id|>", "<|end_header_id|>"), "stops": ("<|end_of_text|>", "<|eom_id|>"),
    }  # fmt: skip
    return {
        "ling_lite": Case(
            _BAILING, "Ling lite", "qwen", eos="<|endoftext|>", right="Say ARONE now.<|endoftext|>"
        ),
        "ling3": Case(_LING3, "Ling 3", "qwen", **ling, right="</think>Say ARONE now.<|role_end|>"),
        "ling3_off": Case(
            _LING3, "Ling 3", "qwen", **ling, arguments={"enable_thinking": False},
            right="Say ARONE now.<|role_end|>",
        ),
        "llama32_pythonic": Case(
            _LLAMA32_PYTHONIC, "Llama 3.2 with pythonic calls", "llama 3", **llama,
            right="Say ARONE now.<|eot_id|>",
        ),
        "llama32_vision": Case(
            _LLAMA32_VISION, "Llama 3.2 Vision", "llama 3", **llama, right="Say ARONE now.<|eot_id|>"
        ),
        "llama4_pythonic": Case(
            _LLAMA4_PYTHONIC, "Llama 4 with pythonic calls", "llama 3", eos="<|eot|>",
            stops=("<|end_of_text|>", "<|eom|>"), right="Say ARONE now.<|eot|>",
        ),
        "nemotron_super": Case(
            _NEMOTRON_SUPER, "Llama 3.3 Nemotron Super", "llama 3", **llama, right="Say ARONE now.<|eot_id|>"
        ),
        "llava": Case(_LLAVA, "LLaVA 1.5", "mistral v1", right=" Say ARONE now.</s>"),
        "megrez": Case(
            _MEGREZ, "Megrez", "qwen", eos="<|turn_end|>", special=("<|role_start|>",),
            right="Say ARONE now.<|turn_end|>",
        ),
        "metharme": Case(
            _METHARME, "Metharme", "mistral v1", special=("<|system|>", "<|user|>", "<|model|>"),
            right="Say ARONE now.</s>",
        ),
    }  # fmt: skip
