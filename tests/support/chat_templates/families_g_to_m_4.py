"""Chat templates of more families with M, rewritten in their shape."""

from __future__ import annotations

from typing import Any

from tests.support.chat_templates.families_g_to_m_3 import ASKED, CHATML_RESULT, THINK_SPLIT
from tests.support.chat_templates.shapes import IM, Case

_CHATML_OTHER = (
    "{% if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
)
# Calls are Python, and a tool's result has a turn of its own role.
_MINICPM3 = (
    "{% set given = messages[0].role == 'system' %}{% set system = messages[0].content if given else '' %}"
    "{% if system or tools %}{{ '<|im_start|>system\n' + system }}{% if tools %}"
    "{{ '\n# Functions\n```python\n' }}{% for tool in tools %}{% set f = tool.function %}"
    "{{ '\n\ndef ' + f.name + '(' + f.parameters.properties | join(', ') + '):\n    \"\"\"' + f.description }}"
    "{{ '\n\n    Args:\n' }}{% for key, field in f.parameters.properties.items() %}"
    "{{ '        ' + key + ': str = Field(..., description=' + field.description | tojson + ')\n' }}{% endfor %}"
    "{{ '    \"\"\"\n' }}{% endfor %}{{ '\n```' }}{% endif %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% for m in (messages[1:] if given else messages) %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and m.thought %}"
    "{{ '<|thought_start|>\n' + m.thought + '\n<|thought_end|>\n' }}{% endif %}"
    "{% if m.role == 'assistant' and m.tool_calls %}{{ '<|tool_call_start|>\n```python\n' }}"
    "{% for call in m.tool_calls %}{{ call.function.name + '(' }}"
    "{% for key, value in call.function.arguments.items() %}"
    "{{ key + '=' + value | tojson + ('' if loop.last else ',') }}{% endfor %}{{ ')\n' }}{% endfor %}"
    "{{ '```\n<|tool_call_end|>\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
)
# A prompt opens a block, closes an empty one or does neither; history has blocks only where answers have traces.
_MINICPM5 = (
    "{% macro write(call) %}{{ '<function name=\"' + call.function.name + '\">' }}"
    "{% for key, value in call.function.arguments.items() %}{{ '<param name=\"' + key + '\">' }}"
    "{% if value is string and ('<' in value or '&' in value or '\n' in value) %}"
    "{{ '<![CDATA[' + value + ']]>' }}{% else %}{{ value }}{% endif %}{{ '</param>' }}{% endfor %}"
    "{{ '</function>' }}{% endmacro %}{{ bos_token }}"
    "{% set given = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% if tools %}{{ '<|im_start|>system\n' + given + ('\n\n' if messages[0].role == 'system' else '') }}"
    "{{ '# Tools\n\n<tools>' }}{% for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}"
    "{{ '\n</tools><|im_end|>\n' }}{% elif messages[0].role == 'system' %}"
    "{{ '<|im_start|>system\n' + given + '<|im_end|>\n' }}{% endif %}"
    + ASKED
    + "{% for m in messages %}"
    + _CHATML_OTHER
    + "{% elif m.role == 'assistant' %}"
    + THINK_SPLIT
    + "{{ '<|im_start|>assistant\n' }}{% if loop.index0 > s.asked and trace %}"
    "{{ '<think>\n' + trace.strip('\n') + '\n</think>\n\n' + text.lstrip('\n') }}{% else %}{{ text }}{% endif %}"
    "{% for call in m.tool_calls or [] %}{{ ('\n' if text or not loop.first else '') + write(call) }}{% endfor %}"
    "{{ '<|im_end|>\n' }}" + CHATML_RESULT + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined %}{{ '<think>\n' + ('' if enable_thinking else '\n</think>\n\n') }}{% endif %}"
    "{% endif %}"
)
_MINIMAX_M1 = (
    "{% macro turn(head, text) %}"
    "{{ '<beginning_of_sentence>' + head + '\n' + text + '<end_of_sentence>\n' }}{% endmacro %}"
    "{{ '<begin_of_document>' }}{% set given = messages[0].role == 'system' %}"
    "{% set system = messages[0].content | trim if given else 'You are MiniMax-M1.' %}"
    "{% if system %}{{ turn('system ai_setting=MiniMax AI', system) }}{% endif %}"
    "{% if tools is not none %}{% set listed %}{% for tool in tools %}{{ tool | tojson + '\n' }}{% endfor %}"
    "{% endset %}{{ turn('system tool_setting=tools', '<tools>\n' + listed + '</tools>') }}{% endif %}"
    "{% for m in (messages[1:] if given else messages) %}{% if 'tool_calls' in m %}{% set listed %}"
    '{% for call in m.tool_calls %}{{ \'{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{ call.function.arguments | tojson + '}\n' }}{% endfor %}{% endset %}"
    "{{ turn('ai name=MiniMax AI', '<tool_calls>\n' + listed + '</tool_calls>') }}{% elif m.role == 'tool' %}"
    "{{ turn('tool name=tools', 'tool result: ' + m.content + '\n\n') }}{% elif m.role == 'user' %}"
    "{{ turn('user name=user', m.content | trim) }}{% elif m.role == 'assistant' %}"
    "{{ turn('ai name=MiniMax AI', m.content | trim) }}{% endif %}{% endfor %}"
    "{{ '<beginning_of_sentence>ai name=MiniMax AI\n' if add_generation_prompt }}"
)
_MINIMAX_RESULT = (
    "{% elif m.role == 'tool' %}"
    "{% if not s.called %}{{ raise_exception('a result without a call') }}{% endif %}"
    "{{ ']~b]tool' if loop.first or loop.previtem.role != 'tool' }}"
    "{{ '\n<response>' + m.content + '</response>' }}"
    "{{ '[e~[\n' if loop.last or loop.nextitem.role != 'tool' }}{% elif m.role == 'user' %}"
    "{{ ']~b]user\n' + m.content + '[e~[\n' }}{% endif %}{% endfor %}"
)
_MINIMAX_TOOLS = (
    "{% if tools %}{{ '\n\n# Tools\n<tools>\n' }}{% for tool in tools %}"
    "{{ '<tool>' + tool.function | tojson + '</tool>\n' }}{% endfor %}{{ '</tools>' }}{% endif %}{{ '[e~[\n' }}"
)
# The prompt opens a block that history lacks where an answer has no trace.
_MINIMAX_M25 = (
    "{% set given = messages[0].role == 'system' %}{% set rest = messages[1:] if given else messages %}"
    "{% set s = namespace(asked=-1, called=false) %}"
    "{% for m in rest %}{% if m.role == 'user' %}{% set s.asked = loop.index0 %}{% endif %}{% endfor %}"
    "{{ ']~!b[]~b]system\n' + ((messages[0].content if given else '') or 'You are MiniMax-M2.5.') }}"
    + _MINIMAX_TOOLS
    + "{% for m in rest %}{% if m.role == 'assistant' %}"
    "{% set trace = '' %}{% set text = m.content %}"
    "{% if m.reasoning_content is string %}{% set trace = m.reasoning_content %}{% elif '</think>' in text %}"
    "{% set trace = text.split('</think>')[0].strip('\n').split('<think>')[-1].strip('\n') %}"
    "{% set text = text.split('</think>')[-1].strip('\n') %}{% endif %}"
    "{% set shown = trace and loop.index0 > s.asked %}"
    "{{ ']~b]ai\n' + ('<think>\n' + trace + '\n</think>\n\n' if shown else '') + text }}"
    "{% set s.called = m.tool_calls %}{% if s.called %}{{ '\n<minimax:tool_call>\n' }}"
    "{% for call in m.tool_calls %}{{ '<invoke name=\"' + call.function.name + '\">\n' }}"
    "{% for key, value in call.function.arguments.items() %}{{ '<parameter name=\"' + key + '\">' }}"
    "{{ (value if value is string else value | tojson) + '</parameter>\n' }}{% endfor %}{{ '</invoke>\n' }}"
    "{% endfor %}{{ '</minimax:tool_call>' }}{% endif %}{{ '[e~[\n' }}"
    + _MINIMAX_RESULT
    + "{{ ']~b]ai\n<think>\n' if add_generation_prompt }}"
)
# An answer without a trace begins with the tag that closes a block. The system message is the developer's.
_MINIMAX_M3 = (
    "{% set given = messages[0].role in ['system', 'developer'] %}{% set ns = ']<]minimax[>[' %}"
    "{% set mode = thinking_mode if thinking_mode is defined else 'adaptive' %}"
    "{% set s = namespace(called=false) %}"
    "{{ ']~!b[]~b]system\nYou are MiniMax-M3.\nThinking: ' + mode + '[e~[\n' }}"
    "{{ ']~b]developer\n' + ((messages[0].content if given else '') or 'You are a helpful assistant.') }}"
    + _MINIMAX_TOOLS
    + "{% for m in (messages[1:] if given else messages) %}{% if m.role == 'assistant' %}"
    "{% set trace = '' %}{% set text = m.content %}{% if m.reasoning_content is string %}"
    "{% set trace = m.reasoning_content %}{% elif '</mm:think>' in text %}"
    "{% set trace = text.split('</mm:think>')[0].strip('\n').split('<mm:think>')[-1].strip('\n') %}"
    "{% set text = text.split('</mm:think>')[-1].strip('\n') %}{% endif %}"
    "{{ ']~b]ai\n' + ('<mm:think>' + trace if trace else '') + '</mm:think>' + text }}"
    "{% set s.called = m.tool_calls %}{% if s.called %}{{ ns + '<tool_call>\n' }}{% for call in m.tool_calls %}"
    "{{ ns + '<invoke name=\"' + call.function.name + '\">' }}"
    "{% for key, value in call.function.arguments.items() %}{{ ns + '<' + key + '>' }}{{ value }}"
    "{{ ns + '</' + key + '>' }}{% endfor %}{{ ns + '</invoke>\n' }}{% endfor %}{{ ns + '</tool_call>' }}"
    "{% endif %}{{ '[e~[\n' }}" + _MINIMAX_RESULT + "{% if add_generation_prompt %}{{ ']~b]ai\n' }}"
    "{{ {'enabled': '<mm:think>', 'disabled': '</mm:think>'}.get(thinking_mode, '') }}{% endif %}"
)
# Every answer has a block, also in history, but the prompt does not open it. Results are questions.
_MIROTHINKER = (
    "{% set given = messages[0].role == 'system' %}"
    "{{ '<|im_start|>system\n' + (messages[0].content if given else 'You use tools.') }}{% if tools %}"
    "{{ '\n## Server name: generic-extras\n' }}{% for tool in tools %}"
    "{{ '### Tool name: ' + tool.function.name + '\nDescription: ' + tool.function.description }}"
    "{{ '\nInput JSON schema: ' + tool.function.parameters | tojson + '\n\n' }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% for m in (messages[1:] if given else messages) %}{% if m.role == 'assistant' %}"
    + THINK_SPLIT
    + "{{ '<|im_start|>assistant\n<think>\n' + trace.strip('\n') + '\n</think>\n\n' }}"
    "{{ text.lstrip('\n') }}{% if m.tool_calls %}{{ '\n<use_mcp_tool>' }}{% for call in m.tool_calls %}"
    "{{ '\n<server_name>generic-extras</server_name>\n<tool_name>' + call.function.name + '</tool_name>' }}"
    "{{ '\n<arguments>\n' + call.function.arguments | tojson + '\n</arguments>' }}{% endfor %}"
    "{{ '\n</use_mcp_tool>' }}{% endif %}{{ '<|im_end|>\n' }}{% else %}"
    "{{ '<|im_start|>' + ('user' if m.role == 'tool' else m.role) + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endif %}{% endfor %}{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
)
_MISTRAL_LISTED = (
    "{% if tools is not none and m == users[-1] %}{{ '[AVAILABLE_TOOLS]GAP[' }}{% for tool in tools %}"
    '{{ \'{"type": "function", "function": {\' }}{% for key, value in tool.function.items() %}'
    "{{ '\"' + key + '\": ' }}{{ '\"' + value + '\"' if value is string else value | tojson }}"
    "{{ ', ' if not loop.last }}{% endfor %}{{ '}}' + (']' if loop.last else ', ') }}{% endfor %}"
    "{{ '[/AVAILABLE_TOOLS]' }}{% endif %}"
)
_MISTRAL_CALLS = (
    "{% elif m.tool_calls is defined and m.tool_calls is not none %}{{ '[TOOL_CALLS]GAP[' }}"
    "{% for call in m.tool_calls %}{% if call.id | length < 9 %}{{ raise_exception('short id') }}{% endif %}"
    "{{ (call.function | tojson)[:-1] + ', \"id\": \"' + call.id[-9:] + '\"}' + (']' if loop.last else ', ') }}"
    "{% endfor %}{{ END }}{% elif m.role == 'assistant' %}{{ LEAD + m.content + END }}{% elif m.role == 'tool' %}"
    "{{ '[TOOL_RESULTS]GAP{\"content\": ' + m.content + ', \"call_id\": \"' + m.tool_call_id[-9:] + '\"}' }}"
    "{{ '[/TOOL_RESULTS]' }}{% else %}{{ raise_exception('unknown role') }}{% endif %}{% endfor %}"
)
_MISTRAL_USERS = "{% set users = rest | selectattr('role', 'equalto', 'user') | list %}"
_MISTRAL_ALTERNATE = (
    "{% set s = namespace(index=0) %}{% for m in rest %}{% if m.role != 'tool' and not m.tool_calls %}"
    "{% if (m.role == 'user') != (s.index % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set s.index = s.index + 1 %}{% endif %}{% endfor %}"
)
_MISTRAL_REST = (
    "{% set given = messages[0].role == 'system' %}{% set rest = messages[1:] if given else messages %}"
    "{% set system = messages[0].content if given else '' %}" + _MISTRAL_USERS
)
# Tools stand before each question that equals the last one; the system prompt exists only in prompts.
_MISTRAL_LARGE = (
    _MISTRAL_REST
    + _MISTRAL_ALTERNATE
    + "{{ '<s>' }}{% for m in rest %}{% if m.role == 'user' %}"
    + _MISTRAL_LISTED
    + "{{ '[INST]' + (system + '\n\n' if loop.last and given else '') + m.content + '[/INST]' }}"
    + _MISTRAL_CALLS
)
# A system prompt always exists, whether tools do or not.
_MISTRAL_PARALLEL = (
    _MISTRAL_REST
    + "{% set system = 'You call tools.' + ('\n\n' + system if given else '') %}"
    + _MISTRAL_ALTERNATE
    + "{{ bos_token }}{% for m in rest %}{% if m.role == 'user' %}"
    + _MISTRAL_LISTED
    + "{{ '[INST] ' + (system + '\n\n' if loop.last else '') + m.content + '[/INST]' }}"
    + _MISTRAL_CALLS
)
_MISTRAL_SMALL = (
    _MISTRAL_REST + "{% set system = system if given else 'You are Mistral Small 3. Today is '"
    " + strftime_now('%Y-%m-%d') + '.' %}"
    "{{ bos_token + '[SYSTEM_PROMPT]' + ('You call tools.\n\n' if tools is not none else '') + system }}"
    "{{ '[/SYSTEM_PROMPT]' }}{% for m in rest %}{% if m.role == 'user' %}"
    + _MISTRAL_LISTED
    + "{{ '[INST]' + m.content + '[/INST]' }}"
    + _MISTRAL_CALLS
)
# Each turn begins with the begin-of-sequence token.
_MONARCH = (
    "{% for m in messages %}{{ bos_token + m.role + '\n' + m.content + eos_token + '\n' }}{% endfor %}"
    "{{ bos_token + 'assistant\n' if add_generation_prompt }}"
)
_MOONLIGHT = (
    "{{ '<|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|>' if messages[0].role != 'system' }}"
    "{% for m in messages %}{{ '<|im_' + m.role + '|>' if m.role in ['system', 'user', 'assistant'] }}"
    "{{ m.role + '<|im_middle|>' + m.content + '<|im_end|>' }}{% endfor %}"
    "{{ '<|im_assistant|>assistant<|im_middle|>' if add_generation_prompt }}"
)


def _mistral(source: str, gap: str, lead: str, end: str) -> str:
    return source.replace("GAP", gap).replace("LEAD + ", lead).replace("END", end)


def families_g_to_m_4() -> dict[str, Case]:
    """Return the templates of families from MiniCPM to Moonlight by name."""
    marks = ("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
             "[TOOL_CALLS]")  # fmt: skip
    minicpm: dict[str, Any] = {"eos": "</s>", "bos": "<s>", "special": IM, "stops": ("<|im_end|>",)}
    minimax: dict[str, Any] = {"eos": "[e~[", "special": ("]~!b[", "]~b]")}
    m3 = {**minimax, "plain": ("<mm:think>", "</mm:think>", "]<]minimax[>[", "<tool_call>", "</tool_call>")}
    return {
        "minicpm3": Case(
            _MINICPM3, "MiniCPM 3", "mistral v3", **minicpm, right="Say ARONE now.<|im_end|>",
            plain=("<|thought_start|>", "<|thought_end|>", "<|tool_call_start|>", "<|tool_call_end|>"),
        ),
        "minicpm5": Case(_MINICPM5, "MiniCPM 5", "mistral v3", **minicpm, right="Say ARONE now.<|im_end|>"),
        # History has no block without a trace; the others end with two newlines.
        "minicpm5_thinking": Case(
            _MINICPM5, "MiniCPM 5", "mistral v3", **minicpm, arguments={"enable_thinking": True},
            right="\n</think>\n\nSay ARONE now.<|im_end|>",
        ),
        "minimax_m1": Case(
            _MINIMAX_M1, "MiniMax M1", "qwen", eos="<end_of_sentence>",
            special=("<begin_of_document>", "<beginning_of_sentence>"), right="Say ARONE now.<end_of_sentence>",
        ),
        "minimax_m25": Case(
            _MINIMAX_M25, "MiniMax M2.5", "qwen", **minimax,
            plain=("<minimax:tool_call>", "</minimax:tool_call>"), right="\n</think>\n\nSay ARONE now.[e~[",
        ),
        "minimax_m3": Case(_MINIMAX_M3, "MiniMax M3", "qwen", **m3, right="</mm:think>Say ARONE now.[e~["),
        "minimax_m3_enabled": Case(
            _MINIMAX_M3, "MiniMax M3", "qwen", **m3, arguments={"thinking_mode": "enabled"},
            right="</mm:think>Say ARONE now.[e~[",
        ),
        "minimax_m3_disabled": Case(
            _MINIMAX_M3, "MiniMax M3", "qwen", **m3, arguments={"thinking_mode": "disabled"},
            right="Say ARONE now.[e~[",
        ),
        "mirothinker": Case(
            _MIROTHINKER, "MiroThinker", "qwen", special=IM, stops=("<|endoftext|>",),
            right="<think>\n\n</think>\n\nSay ARONE now.<|im_end|>",
        ),
        "mistral_large": Case(
            _mistral(_MISTRAL_LARGE, "", "", "'</s>'"), "Mistral Large 2407 with tools", "mistral v3",
            special=marks, right="Say ARONE now.</s>",
        ),
        "mistral_parallel": Case(
            _mistral(_MISTRAL_PARALLEL, " ", "' ' + ", "eos_token"), "Mistral 7B with parallel calls",
            "mistral v3", special=marks, right=" Say ARONE now.</s>",
        ),
        "mistral_small31": Case(
            _mistral(_MISTRAL_SMALL, " ", "", "eos_token"), "Mistral Small 3.1", "tekken",
            special=(*marks, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"), right="Say ARONE now.</s>",
        ),
        "monarch": Case(_MONARCH, "AlphaMonarch", "mistral v1", right="Say ARONE now.</s>"),
        "moonlight": Case(
            _MOONLIGHT, "Moonlight", "qwen", eos="<|im_end|>", right="Say ARONE now.<|im_end|>",
            special=("<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>"),
        ),
    }  # fmt: skip
