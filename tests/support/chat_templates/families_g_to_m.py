"""Chat templates of families with G, rewritten in their shape."""

from __future__ import annotations

from typing import Any

from tests.support.chat_templates.shapes import WIDE, Case

_ALTERNATE = "{{ raise_exception('roles must alternate') }}"
_NO_TURN_END = ("<|user|>", "<|observation|>")
_GLM = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "[gMASK]", "<sop>")
_GLM_TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>",
             "<arg_value>", "</arg_value>", "<tool_response>", "</tool_response>")  # fmt: skip

# Arguments lack a comma between them: the flag that asks for it is set in the loop and lost there.
_GEMMA3_PYTHONIC = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest | rejectattr('role', 'equalto', 'tool') | selectattr('tool_calls', 'undefined') %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}" + _ALTERNATE + "{% endif %}{% endfor %}"
    "{% for m in rest %}"
    "{% set role = {'assistant': 'model', 'tool': 'user'}.get(m.role, m.role) %}"
    "{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}"
    "{% if loop.first and tools is not none %}"
    "{{ 'Call tools as a python list: [name(key=value)]\n' + tools | tojson(indent=4) + '\n\n' }}{% endif %}"
    "{% if 'tool_calls' in m %}{{ '[' }}{% for call in m.tool_calls %}{{ call.function.name + '(' }}"
    "{% for key, value in call.function.arguments.items() %}{{ key + '=' + value | tojson }}{% endfor %}"
    "{{ ')' + ('' if loop.last else ', ') }}{% endfor %}{{ ']' }}{% endif %}"
    "{{ '<tool_response>\n' if m.role == 'tool' }}{{ m.content | trim }}"
    "{{ '</tool_response>' if m.role == 'tool' }}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Answers follow tool results inside one turn, which stays open until the answer.
_GEMMA4 = (
    "{% set q = '<|\"|>' %}{% macro strip(text) %}{% set ns = namespace(text='') %}"
    "{% for part in text.split('<channel|>') %}"
    "{% set ns.text = ns.text + part.split('<|channel>')[0] %}{% endfor %}{{ ns.text | trim }}{% endmacro %}"
    "{% macro write(value) %}{{ q + value + q if value is string else value | tojson }}{% endmacro %}"
    "{% macro declare(tool) %}"
    "{{ 'declaration:' + tool.name + '{description:' + q + tool.description + q + ',parameters:{properties:{' }}"
    "{% for key, field in tool.parameters.properties | dictsort %}{{ ',' if not loop.first }}"
    "{{ key + ':{description:' + q + field.description + q + ',type:' + q + field.type | upper + q + '}' }}"
    "{% endfor %}{{ '},required:[' + q + tool.parameters.required | join(q + ',' + q) + q + '],' }}"
    "{{ 'type:' + q + tool.parameters.type | upper + q + '}}' }}{% endmacro %}"
    "{% set thinking = enable_thinking is defined and enable_thinking %}"
    "{% set given = messages[0].role in ['system', 'developer'] %}"
    "{% set rest = messages[1:] if given else messages %}"
    "{% if given or thinking or tools %}{{ '<|turn>system\n' + ('<|think|>\n' if thinking else '') }}"
    "{{ messages[0].content | trim if given }}"
    "{% for tool in tools or [] %}{{ '<|tool>' + declare(tool.function) + '<tool|>' }}{% endfor %}"
    "{{ '<turn|>\n' }}{% endif %}"
    "{% set s = namespace(turns=0, calls=false, answered=false, asked=-1, next=none) %}"
    "{% for m in rest %}{% if m.role == 'user' %}{% set s.asked = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in rest %}{% if m.role != 'tool' %}{% set on = m.role == 'assistant' and s.calls %}"
    "{% if not on %}{% if (m.role == 'user') != (s.turns % 2 == 0) %}" + _ALTERNATE + "{% endif %}"
    "{% set s.turns = s.turns + 1 %}"
    "{{ '<|turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}{% endif %}"
    "THOUGHT{% set s.calls = m.get('tool_calls') %}{% if s.calls %}{% for call in s.calls %}"
    "{{ '<|tool_call>call:' + call.function.name + '{' }}"
    "{% for key, value in call.function.arguments | dictsort %}"
    "{{ (',' if not loop.first else '') + key + ':' + write(value) }}{% endfor %}{{ '}<tool_call|>' }}"
    "{% endfor %}{% set s.answered = false %}{% set s.next = none %}"
    "{% for result in rest[loop.index:] %}"
    "{% if result.role != 'tool' %}{% set s.next = result.role %}{% break %}{% endif %}"
    "{{ '<|tool_response>response:' + result.name + '{value:' + write(result.content) + '}<tool_response|>' }}"
    "{% set s.answered = true %}{% endfor %}{% endif %}"
    "{% set text = strip(m.content) if m.role == 'assistant' else m.content | trim %}{{ text }}"
    "{% if not s.calls %}{{ '<turn|>\n' }}{% elif not s.answered %}{{ '<|tool_response>' }}"
    "{% elif s.next != 'assistant' and (text or s.next) %}{{ '<turn|>\n' }}{% set s.calls = false %}{% endif %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{% if not s.calls %}"
    "{{ '<|turn>model\n' + ('' if thinking else '<|channel>thought\n<channel|>') }}"
    "{% elif s.answered and thinking %}{{ '<|channel>thought\n' }}{% endif %}{% endif %}"
)
_GEMMA4_THOUGHT = (
    "{% if m.role == 'assistant' %}{% set trace = m.get('reasoning') or m.get('reasoning_content') %}"
    "{% if trace and loop.index0 > s.asked %}{{ '<|channel>thought\n' + trace + '\n<channel|>' }}"
    "{% elif not thinking and not on %}{{ '<|channel>thought\n<channel|>' }}{% endif %}{% endif %}"
)
_TYPESCRIPT = (
    "{% macro namespace_of(tools) %}{{ 'namespace functions {\n' }}{% for tool in tools %}"
    "{{ '// ' + tool.function.description + '\ntype ' + tool.function.name + ' = (_: {\n' }}"
    "{% for key, field in tool.function.parameters.properties.items() %}"
    "{{ '  // ' + field.description + '\n  ' + key + ('' if key in tool.function.parameters.required else '?') }}"
    "{{ ': ' + field.type + ',\n' }}{% endfor %}{{ '}) => any;\n\n' }}{% endfor %}"
    "{{ '} // namespace functions\n\n' }}{% endmacro %}"
    "{% macro turn(role, text) %}{{ role + '<|role_sep|>\n' + text + '<|message_sep|>\n\n' }}{% endmacro %}"
)
# A call is a turn of its own behind the answer; further calls of a message are left out.
_GIGACHAT3 = (
    _TYPESCRIPT + "{{ bos_token + turn('developer system', 'A dialog follows.') }}"
    "{% if messages[0].role == 'system' %}{{ turn('system', messages[0].content) }}"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% if tools %}{{ turn('function descriptions', namespace_of(tools)) }}{% endif %}"
    "{% for m in messages %}{{ turn('function result' if m.role == 'tool' else m.role, m.content or '') }}"
    "{% if m.role == 'assistant' and m.tool_calls %}{% set call = m.tool_calls[0].function %}"
    "{% set text = '{\"name\": \"' + call.name + '\", \"arguments\": ' + call.arguments | tojson + '}' %}"
    "{{ turn('function call', text) }}{% endif %}"
    "{% if loop.last and add_generation_prompt and m.role != 'assistant' %}{{ 'assistant<|role_sep|>\n' }}"
    "{% endif %}{% endfor %}"
)
# The last answer ends with another token than those before it, and a list of functions follows each question.
# The index of the last question counts the system message, those of the loop do not.
_GIGACHAT35 = (
    _TYPESCRIPT + "{% macro call(c) %}"
    "{{ '<WGCMLWinvoke name=\"' + c.function.name + '\">\n' }}{% for key, value in c.function.arguments.items() %}"
    "{{ '<WGCMLWparameter name=\"' + key + '\" string=\"' + ('true' if value is string else 'false') + '\">' }}"
    "{{ value if value is string else value | tojson }}{{ '</WGCMLWparameter>\n' }}{% endfor %}"
    "{{ '</WGCMLWinvoke>\n' }}{% endmacro %}"
    "{% set names = tools | map(attribute='function.name') | list if tools else [] %}"
    "{% set s = namespace(asked=-1, calls=[], told=false, results=[]) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set s.asked = loop.index0 %}{% endif %}{% endfor %}"
    "{{ bos_token + turn('developer system', 'Made from GigaChat.') }}"
    "{% if messages[0].role == 'system' %}{{ turn('system', messages[0].content) }}"
    "{% set messages = messages[1:] %}{% else %}{{ turn('system', '') }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}"
    "{% if not s.calls %}{{ raise_exception('a result without calls') }}{% endif %}"
    "{% if messages[loop.index0 - 1].role != 'tool' %}{% set s.results = [] %}{% endif %}"
    "{% set s.results = s.results + [m.content] %}{% if loop.last or loop.nextitem.role != 'tool' %}"
    "{% if s.results | length != s.calls | length %}{{ raise_exception('results and calls differ') }}{% endif %}"
    "{{ 'function result<|role_sep|>\n' }}{% for text in s.results %}{{ '\n' if not loop.first }}"
    "{{ '<function_response name=\"' + s.calls[loop.index0].function.name + '\">' + text }}"
    "{{ '</function_response>' }}{% endfor %}{{ '<|message_sep|>\n\n' }}"
    "{{ turn('available functions', names | tojson) }}{% endif %}"
    "{% elif m.role == 'user' %}{% if tools and not s.told %}"
    "{{ turn('function descriptions', namespace_of(tools)) }}{% set s.told = true %}{% endif %}"
    "{{ turn('user', m.content) + turn('available functions', names | tojson) }}"
    "{% elif m.role == 'assistant' %}{% set think = m.reasoning_content is defined and loop.index0 >= s.asked %}"
    "{% set blocks = ['<think>' + m.reasoning_content + '</think>'] if think else [] %}"
    "{% set blocks = blocks + [m.content] if m.content else blocks %}"
    "{% if m.tool_calls %}{% set s.calls = m.tool_calls %}{% set text %}{{ '<WGCMLWtool_calls>\n' }}"
    "{% for c in m.tool_calls %}{{ call(c) }}{% endfor %}{{ '</WGCMLWtool_calls>' }}{% endset %}"
    "{% set blocks = blocks + [text] %}"
    "{% elif think and not m.content %}{{ raise_exception('only a trace') }}{% endif %}"
    "{{ 'assistant<|role_sep|>\n' + blocks | join('\n\n') }}"
    "{{ eos_token if loop.last and not add_generation_prompt else '<|message_sep|>\n\n' }}"
    "{% else %}{{ turn(m.role, m.content) }}{% endif %}"
    "{% if loop.last and add_generation_prompt and m.role != 'assistant' %}"
    "{{ 'assistant<|role_sep|>\n' + ('<think>' if reasoning else '') }}{% endif %}{% endfor %}"
).replace("W", WIDE)
# All system messages come first; tools and their calls are not written.
_GLM4_0414 = (
    "{{ '[gMASK]<sop>' }}{% if tools %}{{ '<|system|>\n# 可用工具' }}{% for tool in tools %}"
    "{{ '\n\n## ' + tool.function.name + '\n\n' + tool.function | tojson(indent=4) + '\n请使用 Json 格式。' }}"
    "{% endfor %}{% endif %}{% for m in messages if m.role == 'system' %}{{ '<|system|>\n' + m.content }}"
    "{% endfor %}{% for m in messages if m.role in ['user', 'assistant', 'observation'] %}"
    "{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}{{ '<|assistant|>' if add_generation_prompt }}"
)
# Spaces stand around headers and contents, and one behind the last answer.
_GLM41V = (
    "{{ '[gMASK]<sop>' }}{% for m in messages %}{% if m.role == 'system' %}{{ ' <|system|> ' + m.content }}"
    "{% elif m.role == 'user' %}{{ ' <|user|>\n ' }}{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}"
    "{% elif m.role == 'assistant' %}{{ ' <|assistant|> ' + m.content }}{% endif %}{% endfor %}"
    "{{ ' ' + ('<|assistant|> ' if add_generation_prompt else '') }}"
)
_GLM_SPLIT = (
    "{% set trace = '' %}{% set text = m.content %}{% if m.reasoning_content is string %}"
    "{% set trace = m.reasoning_content %}{% elif '</think>' in text %}"
    "{% set trace = text.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
)
_GLM_TOOLS = (
    "{{ '[gMASK]<sop>' }}{% if tools %}{{ '<|system|>\n# Tools\n<tools>\n' }}{% for tool in tools %}"
    "{{ tool | tojson + '\n' }}{% endfor %}{{ '</tools>\nCall as <tool_call>name</tool_call>' }}{% endif %}"
    "{% set ns = namespace(asked=-1, traced='', here=false) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set ns.asked = loop.index0 %}"
    "{% elif m.role == 'assistant' and m.reasoning_content is string %}"
    "{% set ns.traced = ns.traced ~ ',' ~ ns.asked ~ ',' %}{% endif %}{% endfor %}"
)
_GLM_RESULT = (
    "{{ '<|observation|>' if loop.first or loop.previtem.role != 'tool' }}"
    "{{ line + '<tool_response>' + line + m.content + line + '</tool_response>' }}"
)
_GLM_ARGUMENTS = (
    "{% for key, value in call.function.arguments.items() %}"
    "{{ '<arg_key>' + key + '</arg_key>' + gap + '<arg_value>' }}"
    "{{ (value if value is string else value | tojson) + '</arg_value>' + gap }}{% endfor %}"
    "{{ '</tool_call>' }}"
)
_GLM46 = (
    "{% set line = '\n' %}" + _GLM_TOOLS + "{% for m in messages %}{% if m.role == 'user' %}"
    "{% set off = enable_thinking is defined and not enable_thinking and not m.content.endswith('/nothink') %}"
    "{{ '<|user|>' + gap + m.content + ('/nothink' if off else '') }}{% elif m.role == 'assistant' %}"
    + _GLM_SPLIT
    + "{% set shown = loop.index0 > ns.asked and trace %}"
    "{{ '<|assistant|>\n<think>' + (trace.strip() if shown else '') + '</think>' }}"
    "{{ '\n' + text.strip() if text.strip() }}{% for call in m.tool_calls or [] %}"
    "{{ '\n<tool_call>' + call.function.name + gap }}" + _GLM_ARGUMENTS + "{% endfor %}"
    "{% elif m.role == 'tool' %}"
    + _GLM_RESULT
    + "{% elif m.role == 'system' %}{{ '<|system|>' + gap + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|assistant|>' + ('\n<think></think>' if enable_thinking is defined and not enable_thinking else '') }}"
    "{% endif %}"
)
# History and a prompt without thinking close a block that nothing opens.
_GLM47 = (
    "{% set line = '' %}{% set gap = '' %}" + _GLM_TOOLS + "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '<|user|>' + m.content }}{% set ns.here = (',' ~ loop.index0 ~ ',') in ns.traced %}"
    "{% elif m.role == 'assistant' %}BLOCK{{ text.strip() }}{% for call in m.tool_calls or [] %}"
    "{{ '<tool_call>' + call.function.name }}" + _GLM_ARGUMENTS + "{% endfor %}"
    "{% elif m.role == 'tool' %}"
    + _GLM_RESULT
    + "{% elif m.role == 'system' %}{{ '<|system|>' + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|assistant|>' + ('</think>' if enable_thinking is defined and not enable_thinking else '<think>') }}"
    "{% endif %}"
)
_GLM_KEPT = "((clear_thinking is defined and not clear_thinking) or loop.index0 > ns.asked)"
_GLM47_BLOCK = (
    _GLM_SPLIT + "{% set shown = " + _GLM_KEPT + " and trace %}"
    "{{ '<|assistant|>' + ('<think>' + trace.strip() if shown else '') + '</think>' }}"
)
# An answer without a trace has an empty block if others of its question have one.
_GLM51_BLOCK = (
    "{% set text = m.content %}{% set trace = none %}{% if m.reasoning_content is string %}"
    "{% set trace = m.reasoning_content %}{% elif '</think>' in text %}"
    "{% set trace = text.split('</think>')[0].split('<think>')[-1] %}{% set text = text.split('</think>')[-1] %}"
    "{% elif loop.index0 > ns.asked and not (enable_thinking is defined and not enable_thinking) %}"
    "{% set trace = '' %}{% elif loop.index0 < ns.asked and ns.here %}{% set trace = '' %}{% endif %}"
    "{{ '<|assistant|>' + ('<think>' + trace if "
    + _GLM_KEPT
    + " and trace is not none else '') + '</think>' }}"
)
_GPT_SW3 = (
    "{{ eos_token + bos_token }}{% for m in messages %}"
    "{{ ('User: ' if m.role == 'user' else 'Bot: ') + m.content + bos_token }}{% endfor %}{{ 'Bot:' }}"
)
# The header of the prompt holds settings that headers of history lack; calls are left out.
_GRANITE33 = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = \"Today's Date: \" + strftime_now('%B %d, %Y') + '.' %}"
    "{% set rest = messages %}{% endif %}"
    "{{ '<|start_of_role|>system<|end_of_role|>' + system + '<|end_of_text|>\n' }}{% if tools %}"
    "{{ '<|start_of_role|>available_tools<|end_of_role|>' + tools | tojson(indent=4) + '<|end_of_text|>\n' }}"
    "{% endif %}{% for m in rest %}"
    "{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\n' }}"
    "{% if loop.last and add_generation_prompt %}{{ '<|start_of_role|>assistant' }}"
    "{{ ' ' + controls | tojson if controls }}{{ '<|end_of_role|>' }}{% endif %}{% endfor %}"
)
_GRANITE4 = (
    "{% set given = messages[0].content if messages[0].role == 'system' else '' %}{% set listed %}{% if tools %}"
    "{{ 'Tools in <tools></tools>:\n<tools>' }}{% for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}"
    "{{ '\n</tools>\n\nAnswer with <tool_call></tool_call>.' }}{% endif %}{% endset %}"
    "{% set system = given + ('\n\n' if given and listed else '') + listed or 'You are a helpful assistant.' %}"
    "{{ '<|start_of_role|>system<|end_of_role|>' + system + '<|end_of_text|>\n' }}{% for m in messages %}"
    "{% if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|start_of_role|>assistant<|end_of_role|>' + m.content }}"
    "{% for call in m.tool_calls or [] %}{{ '\n' if m.content or not loop.first }}"
    '{{ \'<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{ call.function.arguments | tojson + '}\n</tool_call>' }}{% endfor %}{{ '<|end_of_text|>\n' }}"
    "{% elif m.role == 'tool' %}"
    "{{ '<|start_of_role|>user<|end_of_role|>' if loop.first or loop.previtem.role != 'tool' }}"
    "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{{ '<|end_of_text|>\n' if loop.last or loop.nextitem.role != 'tool' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
)
# The prompt ends with a newline that headers of history lack, and the loop rejects the system message that it wrote.
_GRANITE_20B = (
    "{% set given = messages[0].role == 'system' %}"
    "{{ bos_token + '\nSYSTEM: ' + (messages[0].content if given else 'You call functions.') + '\n' }}"
    "{% if tools %}{{ '<|function_call_library|>\n' }}{% for tool in tools %}"
    '{{ \'{"name": "\' + tool.function.name + \'", "description": "\' + tool.function.description }}'
    "{{ ', \"parameters\": ' + tool.function.parameters | tojson + '}' + ('' if loop.last else '\n') }}{% endfor %}"
    "{{ 'If none is relevant, say so.' }}{% endif %}{{ '\n\n\n' }}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '\nUSER: ' + m.content + '\n' }}"
    "{% elif m.role == 'assistant' and m.tool_calls is defined %}{{ '\nASSISTANT:\n' }}"
    "{% for call in m.tool_calls %}{% set text = {'name': call.function.name, 'arguments': call.function.arguments} %}"
    "{{ '<function_call> ' + text | tojson + ('' if loop.last else '\n') }}{% endfor %}{{ '<|endoftext|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ '\nASSISTANT: ' + m.content + ' <|endoftext|>\n' }}"
    "{% elif m.role == 'tool' %}{{ '<function_response> ' + m.content }}"
    "{% else %}{{ raise_exception('unexpected role') }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '\nASSISTANT: \n' }}{% endif %}{% endfor %}"
)


def families_g_to_m() -> dict[str, Case]:
    """Return the templates of families with G by name."""
    gemma: dict[str, Any] = {"eos": "<eos>", "bos": "<bos>"}
    gemma4 = ("<|turn>", "<|channel>", "<channel|>", "<|think|>", "<|tool>", "<tool|>", "<|tool_call>",
              "<tool_call|>", "<tool_response|>", '<|"|>')  # fmt: skip
    ends4 = ("<turn|>", "<|tool_response>")
    empty = _GEMMA4.replace("THOUGHT", _GEMMA4_THOUGHT)
    glm: dict[str, Any] = {"eos": "<|endoftext|>", "special": _GLM, "plain": _GLM_TAGS, "stops": _NO_TURN_END}
    gigachat: dict[str, Any] = {"eos": "</s>", "bos": "<s>", "special": ("<|role_sep|>",)}
    gigachat["stops"] = ("<|message_sep|>",)
    granite: dict[str, Any] = {"eos": "<|end_of_text|>", "special": ("<|start_of_role|>", "<|end_of_role|>")}
    glm51 = _GLM47.replace("BLOCK", _GLM51_BLOCK).replace("tool | tojson", "tool.function | tojson")
    return {
        "gemma3_pythonic": Case(
            _GEMMA3_PYTHONIC, "Gemma 3 with pythonic calls", "mistral v3", **gemma,
            special=("<start_of_turn>",), stops=("<end_of_turn>",), right="Say ARONE now.<end_of_turn>",
        ),
        "gemma4_empty_thought": Case(
            empty, "Gemma 4 with empty thoughts in history", "mistral v3", **gemma,
            special=gemma4, stops=ends4, right="Say ARONE now.<turn|>",
        ),
        "gemma4_empty_thought_on": Case(
            empty, "Gemma 4 with empty thoughts in history", "mistral v3", **gemma,
            special=gemma4, stops=ends4, arguments={"enable_thinking": True}, right="Say ARONE now.<turn|>",
        ),
        # The prompt closes an empty thought that history does not have.
        "gemma4_no_thought": Case(
            _GEMMA4.replace("THOUGHT", ""), "Gemma 4 without thoughts in history", "mistral v3", **gemma,
            special=gemma4, stops=ends4, right="Say ARONE now.<turn|>",
        ),
        "gigachat3": Case(
            _GIGACHAT3, "GigaChat 3", "tekken", **gigachat, right="Say ARONE now.<|message_sep|>"
        ),
        "gigachat35": Case(_GIGACHAT35, "GigaChat 3.5", "tekken", **gigachat, right="Say ARONE now.</s>"),
        # The trace's block and the answer are joined with an empty line.
        "gigachat35_reasoning": Case(
            _GIGACHAT35, "GigaChat 3.5", "tekken", **gigachat, arguments={"reasoning": True},
            right="</think>\n\nSay ARONE now.</s>",
        ),
        "glm4_0414": Case(
            _GLM4_0414, "GLM-4-0414", "qwen", **glm, right="\nSay ARONE now.<|user|>"
        ),
        "glm41v": Case(_GLM41V, "GLM-4.1V", "qwen", **glm, right="Say ARONE now.<|user|>"),
        "glm45": Case(
            "{% set gap = '' %}" + _GLM46, "GLM-4.5, headers without newline", "qwen", **glm,
            right="\n<think></think>\nSay ARONE now.<|user|>",
        ),
        "glm46_no_thinking": Case(
            "{% set gap = '\n' %}" + _GLM46, "GLM-4.6 without thinking", "qwen", **glm,
            arguments={"enable_thinking": False}, right="\nSay ARONE now.<|user|>",
        ),
        "glm47": Case(
            _GLM47.replace("BLOCK", _GLM47_BLOCK), "GLM-4.7", "qwen", **glm, right="</think>Say ARONE now.<|user|>"
        ),
        "glm47_no_thinking": Case(
            _GLM47.replace("BLOCK", _GLM47_BLOCK), "GLM-4.7", "qwen", **glm,
            arguments={"enable_thinking": False}, right="Say ARONE now.<|user|>",
        ),
        "glm51": Case(glm51, "GLM-5.1", "qwen", **glm, right="</think>Say ARONE now.<|user|>"),
        "glm51_keeps_thinking": Case(
            glm51, "GLM-5.1", "qwen", **glm, arguments={"clear_thinking": False},
            right="</think>Say ARONE now.<|user|>",
        ),
        # Turns end with the begin-of-sequence token, and the prompt's header is always written.
        "gpt_sw3": Case(
            _GPT_SW3, "GPT-SW3", "mistral v1", eos="<|endoftext|>", bos="<s>", right=" Say ARONE now.<s>"
        ),
        "granite33_controls": Case(
            _GRANITE33, "Granite 3.3 with controls", "qwen", **granite,
            arguments={"controls": {"length": "short"}}, right="Say ARONE now.<|end_of_text|>",
        ),
        "granite4": Case(_GRANITE4, "Granite 4", "qwen", **granite, right="Say ARONE now.<|end_of_text|>"),
        # The prompt ends with a newline more than the header in history, so the answer follows it.
        "granite_20b_functions": Case(
            _GRANITE_20B, "Granite 20B function calling", "qwen", eos="<|endoftext|>", bos="<|endoftext|>",
            plain=("<function_call>", "<function_response>"), right="Say ARONE now. <|endoftext|>",
        ),
    }  # fmt: skip
