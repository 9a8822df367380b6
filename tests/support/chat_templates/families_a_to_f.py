"""Chat templates of families from A to C, typed after their shape.

Prose of default system prompts is short. Control tokens, white space and branches are those of the published
templates.
"""

from __future__ import annotations

from dataclasses import replace

from tests.support.chat_templates.shapes import IM, ROLE_TOKENS, Case

_NO_PROMPT_AFTER_ANSWERS = "{% if add_generation_prompt and messages[-1].role != 'assistant' %}"
_LAST_SYSTEM = (
    "{% set systems = messages | selectattr('role', 'equalto', 'system') | list %}"
    "{{ (systems | last).content | trim if systems else '' }}"
)
_ALPACA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' and loop.first %}{{ m.content }}"
    "{% elif m.role == 'user' %}{{ '### Instruction:\n' + m.content }}"
    "{% elif m.role == 'assistant' %}{{ '### Response:\n' + m.content + eos_token }}{% endif %}"
    "{% if not loop.last %}{{ '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\n### Response:\n' }}{% endif %}"
)
_APERTUS_TOOLS = (
    "{% macro kind(p) %}{{ {'integer': 'number', 'number': 'number', 'string': 'string',"
    " 'boolean': 'boolean'}.get(p.type, 'any') }}{% endmacro %}"
    "{% macro listed(tools) %}{% for tool in tools %}{% set f = tool.function or tool %}"
    "{{ '// ' + f.description + '\ntype ' + f.name + ' = ' }}"
    "{% if f.parameters and f.parameters.properties %}{{ '(_: {\n' }}"
    "{% for key, p in f.parameters.properties.items() %}"
    "{% if p.description %}{{ '// ' + p.description + '\n' }}{% endif %}"
    "{{ key + ('' if key in (f.parameters.required or []) else '?') + ': ' + kind(p) }}"
    "{{ '\n' if loop.last else ',\n' }}{% endfor %}{{ '}) => any;' }}"
    "{% else %}{{ '() => any;' }}{% endif %}"
    "{{ '' if loop.last else '\n' }}{% endfor %}{% endmacro %}"
)
_APERTUS = (
    _APERTUS_TOOLS + "{{ bos_token }}{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
    "{{ '<|system_start|>' + messages[0].content + '<|system_end|>' }}{% else %}{% set rest = messages %}"
    "{{ '<|system_start|>You are Apertus.\nCurrent date: ' + strftime_now('%Y-%m-%d') + '<|system_end|>' }}"
    "{% endif %}{{ '<|developer_start|>Deliberation: ' }}"
    "{{ 'enabled\n' if enable_thinking else 'disabled\n' }}"
    "{{ 'Tool Capabilities:' + ('\n' + listed(tools) if tools else ' disabled') + '<|developer_end|>' }}"
    "{% set ns = namespace(open=false, results=false) %}{% for m in rest %}{% if m.role == 'user' %}"
    "{{ (']' if ns.results else '') + ('<|assistant_end|>' if ns.open else '') }}"
    "{% set ns.open = false %}{% set ns.results = false %}"
    "{{ '<|user_start|>' + m.content + '<|user_end|>' }}{% elif m.role == 'assistant' %}"
    "{{ '' if ns.open else '<|assistant_start|>' }}{% set ns.open = true %}"
    "{% if m.content is string %}{{ (']' if ns.results else '') + m.content }}{% set ns.results = false %}"
    "{% elif not m.tool_calls %}{{ raise_exception('no content') }}{% endif %}"
    "{% if m.tool_calls %}{{ '<|tools_prefix|>[' }}{% for call in m.tool_calls %}"
    "{{ '{\"' + call.function.name + '\": ' + call.function.arguments | tojson + '}' }}"
    "{{ '' if loop.last else ', ' }}{% endfor %}{{ ']<|tools_suffix|>' }}{% endif %}"
    "{% elif m.role == 'tool' %}{% if not ns.open %}{{ raise_exception('no turn') }}{% endif %}"
    "{{ (', ' if ns.results else '[') + m.content }}{% set ns.results = true %}"
    "{% else %}{{ raise_exception('invalid role') }}{% endif %}{% endfor %}{{ ']' if ns.results else '' }}"
    "{% if add_generation_prompt %}{{ '<|assistant_start|>' }}{% endif %}"
)
_APRIEL_CALL = (
    '{{ \'{"name": "\' + call.function.name + \'", "arguments": \' + call.function.arguments | FILTER }}'
    "{{ '' if last else ', \"id\": \"' + call.id + '\"' }}{{ '}' if loop.last else '}, ' }}"
)
_APRIEL_15 = (
    "{% set reason = 'Reason first. [BEGIN FINAL RESPONSE] ... [END FINAL RESPONSE].' %}{% set offer %}"
    "{% if tools %}{{ 'Call functions:\n<available_tools>\n' }}{% for tool in tools %}"
    "{{ tool | string + '\n' }}{% endfor %}{{ '</available_tools>' }}{% endif %}{% endset %}"
    "{{ bos_token }}{% if messages[0].role != 'system' and tools %}"
    "{{ '<|system|>\n' + reason + offer + '\nReturn calls in <tool_call></tool_call> tags\n<|end|>\n' }}"
    "{% endif %}{% if not messages | selectattr('role', 'equalto', 'system') | list %}"
    "{{ '<|system|>\n' + reason + '\n<|end|>\n' }}{% endif %}"
    "{% for m in messages %}{% set last = loop.last %}"
    "{% if m.role == 'user' %}{{ '<|user|>\n' + m.content + '\n<|end|>\n' }}{% elif m.role == 'system' %}"
    "{{ '<|system|>\n' + reason + m.content + ('\n' + offer if tools else '') + '\n<|end|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|assistant|>\n' + (m.content or '') }}{% if m.tool_calls %}"
    "{{ '\n<tool_calls>[' }}{% for call in m.tool_calls %}" + _APRIEL_CALL.replace("FILTER", "string")
    + "{% endfor %}{{ ']</tool_calls>' }}{% endif %}{{ '\n<|end|>\n' + eos_token }}"
    "{% elif m.role == 'tool' %}{{ '<|tool_result|>\n' + m.content | string + '\n<|end|>\n' }}{% endif %}"
    "{% if loop.last and add_generation_prompt and m.role != 'assistant' %}{{ '<|assistant|>\n' }}{% endif %}"
    "{% endfor %}"
)  # fmt: skip
_BAICHUAN_1 = (
    _LAST_SYSTEM + "{% for m in messages %}{% if m.role == 'user' %}{{ '<reserved_106>' + m.content }}"
    "{% elif m.role == 'assistant' %}{{ '<reserved_107>' + m.content }}{% endif %}{% endfor %}"
    + _NO_PROMPT_AFTER_ANSWERS + "{{ '<reserved_107>' }}{% endif %}"
)  # fmt: skip
_BAICHUAN_M2 = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% if messages[0].role == 'system' %}"
    "{{ messages[0].content + '\n\n' }}{% endif %}{{ '# Tools\n<tools>' }}{% for tool in tools %}"
    "{{ '\n' + tool | tojson }}{% endfor %}{{ '\n</tools><|im_end|>\n' }}"
    "{% elif messages[0].role == 'system' %}"
    "{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}"
    "{% set ns = namespace(query=messages | length - 1, found=false) %}{% for m in messages[::-1] %}"
    "{% if m.role == 'user' and not ns.found and not (m.content.startswith('<tool_response>') and"
    " m.content.endswith('</tool_response>')) %}{% set ns.found = true %}"
    "{% set ns.query = loop.revindex0 %}{% endif %}{% endfor %}{% for m in messages %}"
    "{% if m.role == 'user' or m.role == 'system' and not loop.first %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% elif m.role == 'assistant' %}"
    "{% set text = m.content %}{% set trace = m.reasoning_content or '' %}"
    "{% if m.reasoning_content is not string and '</think>' in text %}"
    "{% set trace = text.split('</think>')[0].split('<think>')[-1] %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}{{ '<|im_start|>assistant\n' }}"
    "{% if loop.index0 > ns.query and (loop.last or trace) %}"
    "{{ '<think>\n' + trace.strip('\n') + '\n</think>\n\n' + text.lstrip('\n') }}"
    "{% else %}{{ text }}{% endif %}"
    "{% for call in m.tool_calls or [] %}{{ '\n' if text or not loop.first else '' }}"
    '{{ \'<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{ call.function.arguments | tojson + '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% elif m.role == 'tool' %}"
    "{{ '' if loop.previtem and loop.previtem.role == 'tool' else '<|im_start|>user' }}"
    "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{{ '' if not loop.last and loop.nextitem.role == 'tool' else '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{{ {'on': '<think>\n', 'off': '<think>\n\n'}.get(thinking_mode, '') }}{% endif %}"
)
_CHATGLM_2 = (
    "{{ bos_token }}{% set ns = namespace(n=1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '[Round ' ~ ns.n ~ ']\n\n问\uff1a' + m.content }}{% set ns.n = ns.n + 1 %}"
    "{% elif m.role == 'assistant' %}{{ '\n\n答\uff1a' + m.content }}"
    "{{ '\n\n' if add_generation_prompt or not loop.last else '' }}{% endif %}{% endfor %}"
    + _NO_PROMPT_AFTER_ANSWERS + "{{ '\n\n答\uff1a' }}{% endif %}"
)  # fmt: skip
_CODE_LLAMA_70B = (
    "{% set start = 1 if messages[0].role == 'system' else 0 %}{% for m in messages %}"
    "{% if (m.role == 'user') != ((loop.index0 + start) % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ '<s>' if loop.first else '' }}"
    "{{ 'Source: ' + m.role + '\n\n ' + m.content.strip() + ' <step> ' }}{% endfor %}"
    "{{ 'Source: assistant\nDestination: user\n\n ' }}"
)
_CODEGEEX_4 = (
    "{% for m in messages %}{% if loop.first and m.role == 'system' %}{{ '<|system|>\n' + m.content }}"
    "{% elif loop.first %}{{ '<|system|>\n你是CodeGeeX。' }}{% endif %}"
    "{% if m.role == 'user' %}{{ '<|user|>\n' + m.content }}"
    "{% elif m.role == 'assistant' %}{{ '<|assistant|>\n' + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
_COHERE_SYSTEM = "{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' }}"
_COHERE_ANSWER = "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}"
_COHERE_END = "{{ '<|END_OF_TURN_TOKEN|>' }}"
_COMMAND_R_PLUS_TOOLS = (
    "{% macro kind(p) %}{{ {'string': 'str', 'number': 'float', 'integer': 'int', 'boolean': 'bool'}"
    ".get(p.type, 'Any') }}{% endmacro %}"
    "{{ bos_token }}{% set own = messages[0].role == 'system' %}"
    + _COHERE_SYSTEM + "{{ '# System Preamble\nCite your sources.\n\n# User Preamble\n' }}"
    "{{ messages[0].content if own else '## Task and Context\nYou help people.' }}"
    "{{ '\n\n## Available Tools\n\n' }}{% for tool in tools or [] %}{% set f = tool.function or tool %}"
    "{{ '' if loop.first else '\n\n' }}{{ '```python\ndef ' + f.name + '(' }}"
    "{% for key, p in f.parameters.properties | items %}"
    "{{ ('' if loop.first else ', ') + key + ': ' }}"
    "{{ kind(p) if key in f.parameters.required else 'Optional[' + kind(p) + '] = None' }}{% endfor %}"
    "{{ ') -> List[Dict]:\n    \"\"\"' + f.description }}"
    "{% for key, p in f.parameters.properties | items %}"
    "{{ '\n\n    Args:\n        ' if loop.first else '\n        ' }}{{ key + ' (' }}"
    "{{ kind(p) if key in f.parameters.required else 'Optional[' + kind(p) + ']' }}"
    "{{ '): ' + p.description }}{% endfor %}{{ '\n    \"\"\"\n    pass\n```' }}{% endfor %}"
    + _COHERE_END + "{% for m in (messages[1:] if own else messages) %}{% if m.role == 'user' %}"
    "{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + m.content | trim }}" + _COHERE_END
    + "{% elif m.role == 'system' %}" + _COHERE_SYSTEM + "{{ m.content | trim }}" + _COHERE_END
    + "{% elif m.role == 'assistant' and m.tool_calls is defined %}"
    + _COHERE_ANSWER + "{{ m.content | trim }}{{ '\nAction:\n```json\n[\n' }}{% for call in m.tool_calls %}"
    '{{ \'    {\n        "tool_name": "\' + call.function.name + \'",\n        "parameters": \' }}'
    "{{ call.function.arguments | tojson(indent=4) | indent(8) + '\n    }' + ('' if loop.last else ',\n') }}"
    "{% endfor %}{{ '\n]```\n' }}{% elif m.role == 'assistant' %}"
    + _COHERE_ANSWER + "{{ m.content | trim }}" + _COHERE_END + "{% elif m.role == 'tool' %}"
    + _COHERE_SYSTEM + "{{ '<results>\n' + m.content | trim + '</results>' }}" + _COHERE_END
    + "{% endif %}{% endfor %}" + _COHERE_SYSTEM
    + "{{ \"Write 'Action:' followed by a list of actions. Else use `directly-answer`.\" }}" + _COHERE_END
    + "{% if add_generation_prompt %}" + _COHERE_ANSWER + "{% endif %}"
)  # fmt: skip
_COMMAND_A_START = (
    "{{ bos_token }}{% set own = messages[0].content if messages[0].role | lower == 'system' else '' %}"
    + _COHERE_SYSTEM + "{{ '# System Preamble\nBe safe.\n' }}"
)  # fmt: skip
_COMMAND_A_TURNS = (
    "{{ '# Default Preamble\nYour name is Command.' }}"
    "{% if own %}{{ '\n\n# Developer Preamble\nThese come first.\n' + own }}{% endif %}" + _COHERE_END
    + "{% set ns = namespace(call=0, told=[]) %}{% for m in messages %}"
    "{% if m.role | lower == 'system' and not (loop.first and own) %}" + _COHERE_SYSTEM + "{{ m.content }}"
    + _COHERE_END + "{% elif m.role | lower == 'user' %}"
    "{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + m.content }}" + _COHERE_END
    + "{% elif m.role | lower in ['assistant', 'chatbot'] %}" + _COHERE_ANSWER
)  # fmt: skip
_COMMAND_A_ANSWER = "{{ '<|START_RESPONSE|>' + m.content + '<|END_RESPONSE|>' }}"
_COMMAND_A = (
    _COMMAND_A_START + "{{ '\n' }}" + _COMMAND_A_TURNS + _COMMAND_A_ANSWER + _COHERE_END
    + "{% endif %}{% endfor %}" + _COHERE_ANSWER
    + "{% if add_generation_prompt %}{{ '<|START_RESPONSE|>' }}{% endif %}"
)  # fmt: skip
_COMMAND_A_TOOLS = (
    "{% macro result(m) %}{% set all = messages | selectattr('tool_calls') | map(attribute='tool_calls') |"
    " sum(start=[]) | map(attribute='id') | list %}"
    '{{ \'    {\n        "tool_call_id": "\' }}'
    "{{ all.index(m.tool_call_id) if m.tool_call_id in all else '' }}"
    '{{ \'",\n        "results": {\n            "0": \' + m.content | tojson }}'
    '{{ \'\n        },\n        "is_error": null\n    }\' }}{% endmacro %}'
    + _COMMAND_A_START + "{% if tools %}{{ '\n## Available Tools\n```json\n[\n' }}{% for tool in tools %}"
    '{{ \'    {"name": "\' + tool.function.name + \'", "description": "\' + tool.function.description }}'
    '{{ \'", "parameters": \' + tool.function.parameters | tojson + \', "responses": null}\' }}'
    "{{ '\n' if loop.last else ',\n' }}{% endfor %}{{ ']\n```\n\n' }}{% endif %}"
    + _COMMAND_A_TURNS + "{% if m.tool_calls %}"
    "{{ '<|START_THINKING|>' + (m[plan] or '') + '<|END_THINKING|><|START_ACTION|>[\n' }}"
    "{% for call in m.tool_calls %}"
    '{{ \'    {"tool_call_id": "\' ~ ns.call ~ \'", "tool_name": "\' + call.function.name }}'
    '{{ \'", "parameters": \' + call.function.arguments | tojson + (\'}\n\' if loop.last else \'},\n\') }}'
    "{% set ns.call = ns.call + 1 %}{% endfor %}{{ ']<|END_ACTION|>' }}"
    "{% else %}" + _COMMAND_A_ANSWER + "{% endif %}" + _COHERE_END
    + "{% elif m.role | lower == 'tool' and m.tool_call_id not in ns.told %}"
    + _COHERE_SYSTEM + "{{ '<|START_TOOL_RESULT|>[\n' + result(m) }}{% for other in messages[loop.index:] %}"
    "{% if other.role | lower != 'tool' %}{% break %}{% endif %}{{ ',\n' + result(other) }}"
    "{% set ns.told = ns.told + [other.tool_call_id] %}{% endfor %}{{ '\n]<|END_TOOL_RESULT|>' }}"
    + _COHERE_END + "{% endif %}{% endfor %}" + _COHERE_ANSWER
)  # fmt: skip


def _headed(start: str, user: str, assistant: str) -> str:
    """Return a template with lines as headers and no end of a turn, not even before the prompt."""
    return (
        start + _LAST_SYSTEM
        + "{{ '\n\n' }}{% for m in messages %}{% if m.role in ['user', 'assistant'] %}"
        f"{{{{ '{user}\n' if m.role == 'user' else '{assistant}\n' }}}}"
        "{{ m.content | trim + ('' if loop.last else '\n\n') }}{% endif %}{% endfor %}"
        f"{_NO_PROMPT_AFTER_ANSWERS}{{{{ '{assistant}\n' }}}}{{% endif %}}"
    )  # fmt: skip


def families_a_to_f() -> dict[str, Case]:
    """Return the templates by name; `families_a_to_f_2` has those from D to F."""
    baichuan = ("<reserved_106>", "<reserved_107>")
    apriel = ("<|end|>", "<|tool_result|>", "<|content|>", *ROLE_TOKENS)
    qwen_tools = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
    m2 = Case(
        _BAICHUAN_M2, "Baichuan M2", "qwen", eos="<|im_end|>", special=IM, plain=qwen_tools,
        stops=("<|endoftext|>",),
    )  # fmt: skip
    command_a = Case(
        _COMMAND_A_TOOLS, "Command A with tools", "tekken", eos="<|END_OF_TURN_TOKEN|>", bos="<BOS_TOKEN>",
        arguments={"plan": "tool_plan"},
        right="<|START_RESPONSE|>Say ARONE now.<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    )  # fmt: skip
    return {
        "alpaca_separated": Case(
            _ALPACA, "Alpaca with blank lines between", "mistral v2", right="Say ARONE now.</s>"
        ),
        "alpaca_headed": Case(
            _headed("{{ bos_token }}", "### Instruction:", "### Response:"),
            "Alpaca without ends", "mistral v2", right="Say ARONE now.</s>",
        ),
        "apertus": Case(
            _APERTUS, "Apertus", "tekken", eos="<|assistant_end|>", bos="<s>",
            special=("<|inner_prefix|>", "<|inner_suffix|>"), right="Say ARONE now.<|assistant_end|>",
        ),
        "apriel_1_5": Case(
            _APRIEL_15, "Apriel 1.5 Thinker", "tekken", eos="</s>", bos="<s>", special=apriel,
            plain=("<tool_calls>", "</tool_calls>"), right="Say ARONE now.\n<|end|>\n</s>",
        ),
        "baichuan_untrimmed": Case(
            _BAICHUAN_1, "Baichuan", "mistral v2", special=baichuan, right="Say ARONE now.</s>"
        ),
        "baichuan_2": Case(
            _headed("", *baichuan), "Baichuan 2", "mistral v2", special=baichuan, right="Say ARONE now.</s>",
        ),
        "baichuan_m2": replace(m2, right="<think>\n\n</think>\n\nSay ARONE now.<|im_end|>"),
        "baichuan_m2_thinking": replace(
            m2, arguments={"thinking_mode": "on"}, right="\n</think>\n\nSay ARONE now.<|im_end|>",
        ),
        # Its prompt opens an empty block and leaves the closing tag to the model.
        "baichuan_m2_no_thinking": replace(
            m2, arguments={"thinking_mode": "off"}, right="</think>\n\nSay ARONE now.<|im_end|>"
        ),
        "chatglm2": Case(_CHATGLM_2, "ChatGLM 2", "mistral v3", faithful=False, right="Say ARONE now.</s>"),
        "chatglm3": Case(
            "{% for m in messages %}{{ '[gMASK]sop' if loop.first else '' }}"
            "{{ '<|' + m.role + '|>\n ' + m.content }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
            "ChatGLM 3", "mistral v2", special=(*ROLE_TOKENS, "<|observation|>", "[gMASK]"),
            right="\n Say ARONE now.</s>",
        ),
        "code_llama_70b": Case(
            _CODE_LLAMA_70B, "Code Llama 70B", "mistral v1", eos="<step>", right="Say ARONE now. <step>"
        ),
        # The server stops at the token that opens the next message.
        "codegeex4": Case(
            _CODEGEEX_4, "CodeGeeX 4", "qwen", eos="<|endoftext|>", stops=("<|user|>", "<|observation|>"),
            special=(*ROLE_TOKENS, "[gMASK]"), right="Say ARONE now.<|user|>",
        ),
        "command_r_plus_tools": Case(
            _COMMAND_R_PLUS_TOOLS, "Command R+ with tools", "tekken", eos="<|END_OF_TURN_TOKEN|>",
            bos="<BOS_TOKEN>", right="Say ARONE now.<|END_OF_TURN_TOKEN|>",
        ),
        "command_r7b_tools": replace(
            command_a, family="Command R7B with tools", arguments={"plan": "reasoning_content"}
        ),
        "command_a_tools": command_a,
        "command_a": replace(
            command_a, source=_COMMAND_A, family="Command A", arguments={},
            right="Say ARONE now.<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
        ),
    }  # fmt: skip
