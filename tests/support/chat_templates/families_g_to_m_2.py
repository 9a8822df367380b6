"""Chat templates of families from H to K, rewritten in their shape."""

from __future__ import annotations

from typing import Any

from tests.support.chat_templates.shapes import IM, WIDE, Case

# The tools' text has no header and nothing between its end token and the next header. An answer with calls loses its text.
_HERMES = (
    "{{ bos_token }}{% if tools %}{{ 'You call functions: <tools> ' }}{% for tool in tools %}{% set f = tool.function %}"
    '{{ \'{"type": "function", "function": {"name": "\' + f.name + \'", "description": "\' + f.name + \'(\' }}'
    "{% for key, field in f.parameters.properties.items() %}{{ key + ': str' + ('' if loop.last else ', ') }}"
    "{% endfor %}{{ ') - ' + f.description + '\n\n    Args:\n' }}"
    "{% for key, field in f.parameters.properties.items() %}"
    "{{ '        ' + key + '(str): ' + field.description }}{% endfor %}"
    "{{ '\", \"parameters\": ' + f.parameters | tojson + '}' + ('' if loop.last else '\n') }}{% endfor %}"
    "{{ ' </tools>Answer with <tool_call>.<|im_end|>' }}{% endif %}{% for m in messages %}"
    "{% if m.role in ['user', 'system'] or (m.role == 'assistant' and m.tool_calls is not defined) %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant' }}{% for call in m.tool_calls %}"
    "{{ '\n<tool_call>\n{ \"arguments\": ' + call.function.arguments | tojson }}"
    "{{ ', \"name\": \"' + call.function.name + '\"}\n</tool_call> ' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% elif m.role == 'tool' %}{% if not m.name is defined %}{{ raise_exception('a result without name') }}{% endif %}"
    '{{ \'<|im_start|>tool\n<tool_response>\n{"name": "\' + m.name + \'", "content": \' }}'
    "{{ m.content | tojson + '}\n</tool_response> <|im_end|>\n' }}{% endif %}{% endfor %}"
    "{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
)
# A token that no turn contains ends every text that is no prompt.
_HUNYUAN_MT = (
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
    "{{ '<Why_begin▁of▁sentenceW>' + messages[0].content + '<Why_place▁holder▁no▁3W>' }}"
    "{% else %}{% set rest = messages %}{{ '<Why_begin▁of▁sentenceW>' }}{% endif %}{% for m in rest %}"
    "{% if m.role == 'user' %}{{ '<Why_UserW>' + m.content }}{% elif m.role == 'assistant' %}"
    "{{ '<Why_AssistantW>' + m.content + '<Why_place▁holder▁no▁2W>' }}{% endif %}{% endfor %}"
    "{{ '<Why_AssistantW>' if add_generation_prompt else '<Why_place▁holder▁no▁8W>' }}"
).replace("W", WIDE)
# There is no generation prompt, an empty block also follows the last answer, and answers begin with a word if tools exist.
_HUNYUAN_A13B = (
    "{% if tools %}{% set now = strftime_now('%Y-%m-%d') %}"
    "{% set told = '<|startoftext|>Call as <tool_calls>[...]</tool_calls>.\n' + tools | tojson + '\n' %}"
    "{% for m in messages %}{% if loop.first and m.role == 'system' %}"
    "{{ told + 'Also:\n' + m.content + '\nNow: ' + now + '<|extra_4|>' }}"
    "{% elif m.role == 'user' %}{{ told + 'Now: ' + now + '<|extra_4|>' if loop.first }}"
    "{{ '用户\uff1a' + m.content + '<|extra_0|>' }}{% elif m.role == 'assistant' and not loop.first %}"
    "{% if m.tool_calls is defined %}{{ m.content + '<tool_calls>[' }}{% for call in m.tool_calls %}"
    "{{ '{\"name\": \"' + call.function.name + '\", \"arguments\": ' + call.function.arguments | tojson + '}' }}"
    "{{ ', ' if not loop.last }}{% endfor %}{{ ']</tool_calls>' }}{% else %}{{ '助手\uff1a' + m.content }}{% endif %}"
    "{{ '<|eos|>' }}{% elif m.role == 'tool' %}"
    "{{ '<tool_response>' + m.content + '</tool_response><|extra_0|>' }}{% else %}{{ m.content }}{% endif %}"
    "{% endfor %}{% else %}{% for m in messages %}{% set text = m.content %}"
    "{% if loop.first and m.role == 'system' %}"
    "{% set text = '<|startoftext|>' + text + '<|extra_4|>' %}{% endif %}{% if m.role == 'user' %}"
    "{{ ('' if loop.index0 == 1 else '<|startoftext|>') + text + '<|extra_0|>' }}"
    "{% else %}{{ text + {'assistant': '<|eos|>', 'tool': '<|extra_0|>'}.get(m.role, '') }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<think>\n\n</think>\n' if enable_thinking is defined and enable_thinking is false }}"
)
# The prompt leaves its header open: the answer begins with the rest of the header, and a trace is a turn of its own.
_HYPERCLOVAX = (
    "{{ '<|im_start|>tool_list\n' }}{% if tools %}{{ '[' }}{% for tool in tools %}"
    '{{ \'{"name": "\' + tool.function.name + \'", "description": "\' + tool.function.description }}'
    "{{ '\", \"parameters\": ' + tool.function.parameters | tojson + '}' + ('' if loop.last else ', ') }}{% endfor %}"
    "{{ ']' }}{% endif %}{{ '<|im_end|>\n' }}{% set s = namespace(asked=messages | length - 1, found=false) %}"
    "{% for m in messages[::-1] %}{% if not s.found and m.role in ['user', 'tool'] %}{% set s.found = true %}"
    "{% set s.asked = messages | length - loop.index %}{% endif %}{% endfor %}{% for m in messages %}"
    "{{ '<|im_start|>system\n<|im_end|>\n' if loop.first and m.role != 'system' }}{% if m.role == 'assistant' %}"
    "{% if loop.index0 > s.asked and m.reasoning_content %}"
    "{{ '<|im_start|>assistant/think\n' + m.reasoning_content.strip('\n') + '<|im_end|>\n' }}{% endif %}"
    "{% if m.content %}{{ '<|im_start|>assistant\n' + m.content.strip('\n') + '<|im_end|>' }}"
    "{{ '\n' if m.tool_calls else '<|endofturn|>\n' }}{% endif %}"
    "{% if m.tool_calls %}{{ '<|im_start|>assistant -> tool/function_call\n[' }}{% for call in m.tool_calls %}"
    "{{ '{\"name\": \"' + call.function.name + '\", \"arguments\": ' + call.function.arguments | tojson + '}' }}"
    "{{ ', ' if not loop.last }}{% endfor %}{{ ']<|im_end|><|stop|>\n' }}{% endif %}"
    "{% else %}{% set role = 'tool/function_call' if m.role == 'tool' else m.role %}"
    "{{ '<|im_start|>' + role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}"
    "{{ '/think\n' if force_reasoning else '\n' if skip_reasoning }}{% endif %}"
)
_INTERNLM_TOOLS = (
    "{% set given = messages[0].role == 'system' %}{{ bos_token }}"
    "{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' if given }}"
    "{% if tools is not none %}{{ '<|im_start|>system name=<|plugin|>\n[' }}{% for tool in tools %}"
    "{{ tool.function | tojson + (']' if loop.last else ', ') }}{% endfor %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% for m in (messages[1:] if given else messages) %}{% if m.role == 'user' %}"
    "{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.tool_calls is defined and m.tool_calls is not none %}{{ '<|im_start|>assistant\n' + m.content }}"
    "{% for call in m.tool_calls %}{{ '<|action_start|><|plugin|>\n{\"name\": \"' + call.function.name + '\", ' }}"
    "{{ '\"arguments\": ' + call.function.arguments | string + '}<|action_end|>' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.role == 'tool' %}{{ '<|im_start|>environment name=<|plugin|>\n' + m.content + '<|im_end|>\n' }}"
    "{% else %}{{ raise_exception('unknown role') }}{% endif %}{% endfor %}"
    "{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
)
# The last system message stands first. The prompt lacks the newline that history has before an answer's header.
_INKBOT = (
    "{% set systems = messages | selectattr('role', 'equalto', 'system') | list %}"
    "{{ bos_token + '<#meta#>\n- Date: \n- Task: \n<#system#>\n' }}"
    "{{ (systems | last).content | trim if systems }}{{ '\n<#chat#>\n' }}{% for m in messages %}"
    "{% if m.role in ['user', 'assistant', 'user_context'] %}"
    "{{ '<#' + ('bot' if m.role == 'assistant' else m.role) + '#>\n' + m.content | trim }}"
    "{{ '\n' if not loop.last }}{% endif %}{% endfor %}"
    "{{ '<#bot#>\n' if add_generation_prompt and messages[-1].role != 'assistant' }}"
)
# One token begins questions and ends answers.
_JAIS = (
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ bos_token + '###Input: [|Human|] ' + m.content + '\n###Response: [|AI|]' }}"
    "{% elif m.role == 'system' %}{{ '### Instruction: ' + m.content }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# The end token stands before each message, and behind the last one only if the text is no prompt.
_JAMBA = (
    "{% set given = messages[0].role == 'system' %}{% set system = messages[0].content if given else '' %}"
    "{{ '<|startoftext|><|bom|><|system|> ' + system }}{% if tools %}{{ '\n\n' if system }}"
    "{{ '<tool_definitions>\n# Tools\n\n## Functions' }}{% for tool in tools %}"
    "{{ '\n\n' + tool.function | tojson(indent=2) }}{% endfor %}{{ '\n</tool_definitions>' }}{% endif %}"
    "{% for m in (messages[1:] if given else messages) %}"
    "{{ '<|eom|><|bom|><|' + m.role + '|> ' + ('(' + m.name + ')' if m.name is defined else '') + m.content }}"
    "{% if m.role == 'assistant' and m.tool_calls %}{{ '<tool_calls>[\n' }}{% for call in m.tool_calls %}"
    "{{ '    {\"name\": \"' + call.function.name + '\", \"arguments\": ' + call.function.arguments | tojson + '}' }}"
    "{{ ',\n' if not loop.last }}{% endfor %}{{ '\n]</tool_calls>' }}{% endif %}{% endfor %}"
    "{{ '<|eom|>' + ('<|bom|><|assistant|>' if add_generation_prompt else '') }}"
)
# The prompt opens a block of its own; earlier answers are cut down to the text behind the last block.
_KAT_V1 = (
    "{% if tools %}{{ '<|im_start|>system\n' + (messages[0].content if messages[0].role == 'system' else '') }}"
    "{{ '\n\n# Tools\n\n<tools>' }}{% for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}"
    "{{ '\n</tools><|im_end|>\n' }}{% elif messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}{% for m in messages %}"
    "{% if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% elif m.role == 'assistant' %}"
    "{% set text = m.content %}{% if not loop.last %}{% set blocks = text.split('<answer>\n') %}"
    "{% if blocks | length > 1 and '\n</answer>' in blocks[-1] %}{% set text = blocks[-1].split('\n</answer>')[0] %}"
    "{% else %}{% set text = text.split('<think_off>')[-1].lstrip('\n').split('</think>')[-1].lstrip('\n') %}"
    "{% endif %}{% endif %}"
    "{{ '<|im_start|>assistant' + ('\n' + text if m.content or not m.tool_calls else '') }}"
    '{% for call in m.tool_calls or [] %}{{ \'\n<tool_call>\n{"name": "\' + call.function.name }}'
    "{{ '\", \"arguments\": ' + call.function.arguments | tojson + '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% elif m.role == 'tool' %}{{ '<|im_start|>user' if loop.first or loop.previtem.role != 'tool' }}"
    "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{{ '<|im_end|>\n' if loop.last or loop.nextitem.role != 'tool' }}{% endif %}{% endfor %}"
    "{{ '<|im_start|>assistant\n<judge>\n' if add_generation_prompt }}"
)
# Traces are dropped up to the last answer without calls, and thus also from an answer that ends the conversation.
_KIMI = (
    "{% set s = namespace(last=-1) %}{% for m in messages %}"
    "{% if m.role == 'assistant' and not m.tool_calls %}{% set s.last = loop.index0 %}{% endif %}{% endfor %}"
    "BEFORE{% for m in messages %}{% set kind = m.role if m.role in ['user', 'assistant'] else 'system' %}"
    "{{ '<|im_' + kind + '|>' + (m.name or m.role) + '<|im_middle|>' }}{% if m.role == 'assistant' %}"
    "{% set kept = loop.index0 > s.last and not (thinking is defined and thinking is false) %}"
    "{{ '<think>' + (m.reasoning_content or '' if kept else '') + '</think>' + m.content }}"
    "{% if m.tool_calls %}{{ '<|tool_calls_section_begin|>' }}{% for call in m.tool_calls %}"
    "{{ '<|tool_call_begin|>' + call.id + '<|tool_call_argument_begin|>' }}"
    "{{ call.function.arguments | tojson + '<|tool_call_end|>' }}{% endfor %}{{ '<|tool_calls_section_end|>' }}"
    "{% endif %}{% else %}{{ '## Return of ' + m.tool_call_id + '\n' if m.role == 'tool' }}{{ m.content }}{% endif %}"
    "{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_assistant|>assistant<|im_middle|>' }}PROMPT{% endif %}"
)
_KIMI_K2_BEFORE = (
    "{{ '<|im_system|>tool_declare<|im_middle|>' + tools | tojson + '<|im_end|>' if tools }}"
    "{{ '<|im_system|>system<|im_middle|>You are Kimi.<|im_end|>' if messages[0].role != 'system' }}"
)
_KIMI_K25_BEFORE = (
    "{% if tools %}{{ '<|im_system|>tool_declare<|im_middle|>' + tools | tojson(separators=(',', ':')) }}"
    "{{ '<|im_end|>' }}{% endif %}"
)
_KIMI_K25_PROMPT = "{{ '<think></think>' if thinking is defined and thinking is false else '<think>' }}"
# Tags of three tokens around everything; two of them close between a trace and its answer, two more before the end.
_KIMI_K3 = (
    "{% macro opened(tag) %}{{ '<|open|>' + tag + '<|sep|>' }}{% endmacro %}"
    "{% macro closed(tag) %}{{ '<|close|>' + tag + '<|sep|>' }}{% endmacro %}"
    "{% macro told(kind, text) %}{{ opened('message role=\"system\" type=\"' + kind + '\"') + text }}"
    "{{ closed('message') + '<|end_of_msg|>' }}{% endmacro %}"
    "{% set think = true if thinking is undefined else thinking %}"
    "{% if tools %}{% set listed = tools | tojson(sort_keys=true, separators=(',', ':')) %}"
    "{{ told('tool-declare', '# Tools\n\n```json\n' + listed + '\n```') }}{% endif %}"
    "{{ told('thinking-effort', 'The system is invoked with `thinking_effort=max`.') if think }}"
    "{% set s = namespace(index=0) %}{% for m in messages %}{% if m.role in ['user', 'system'] %}"
    "{{ opened('message role=\"' + m.role + '\"') + m.content + closed('message') + '<|end_of_msg|>' }}"
    "{% elif m.role == 'assistant' %}{% set s.index = 0 %}{{ opened('message role=\"assistant\"') }}"
    "{% if think %}{{ opened('think') + (m.reasoning_content or '') + closed('think') }}{% endif %}"
    "{{ opened('response') + m.content + closed('response') }}"
    "{% if m.tool_calls %}{{ opened('tools') }}{% for call in m.tool_calls %}"
    "{{ opened('call tool=\"' + call.function.name + '\" index=\"' ~ loop.index ~ '\"') }}"
    "{% for key, value in call.function.arguments.items() %}"
    "{{ opened('argument key=\"' + key + '\" type=\"' + ('string' if value is string else 'number') + '\"') }}"
    "{{ (value if value is string else value | tojson) + closed('argument') }}{% endfor %}"
    "{{ closed('call') }}{% endfor %}{{ closed('tools') }}{% endif %}{{ closed('message') + '<|end_of_msg|>' }}"
    "{% elif m.role == 'tool' %}{% set s.index = s.index + 1 %}"
    "{{ opened('message role=\"tool\" tool=\"' + m.name + '\" index=\"' ~ s.index ~ '\"') }}"
    "{{ m.content + closed('message') + '<|end_of_msg|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ opened('message role=\"assistant\"') + opened('think' if think else 'response') }}{% endif %}"
)


def families_g_to_m_2() -> dict[str, Case]:
    """Return the templates of families from H to K by name."""
    plain = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
    end = f"<{WIDE}hy_place▁holder▁no▁2{WIDE}>"
    hunyuan: dict[str, Any] = {"eos": "<|eos|>", "special": ("<|startoftext|>", "<|extra_0|>", "<|extra_4|>")}
    hyperclovax: dict[str, Any] = {"eos": "<|endofturn|>", "special": IM, "stops": ("<|stop|>",)}
    kimi: dict[str, Any] = {
        "eos": "[EOS]",
        "special": tuple(f"<|im_{name}|>" for name in ("user", "assistant", "system", "middle")),
        "stops": ("<|im_end|>",),
    }
    k2 = _KIMI.replace("BEFORE", _KIMI_K2_BEFORE).replace("PROMPT", "")
    k25 = _KIMI.replace("BEFORE", _KIMI_K25_BEFORE).replace("PROMPT", _KIMI_K25_PROMPT)
    k3: dict[str, Any] = {"eos": "<|end_of_msg|>", "special": ("<|open|>", "<|close|>", "<|sep|>")}
    k3_end = "<|close|>response<|sep|><|close|>message<|sep|><|end_of_msg|>"
    return {
        "hermes_functions": Case(
            _HERMES, "Hermes with function schemas", "llama 3", eos="<|im_end|>", special=IM, plain=plain,
            right="Say ARONE now.<|im_end|>",
        ),
        "hunyuan_mt": Case(_HUNYUAN_MT, "Hunyuan MT", "qwen", eos=end, right=f"Say ARONE now.{end}"),
        "hunyuan_a13b": Case(
            _HUNYUAN_A13B, "Hunyuan A13B", "qwen", **hunyuan, right="Say ARONE now.<|eos|>"
        ),
        # The prompt closes an empty block, which history has in no answer, but behind the last one.
        "hunyuan_a13b_no_thinking": Case(
            _HUNYUAN_A13B, "Hunyuan A13B", "qwen", **hunyuan, arguments={"enable_thinking": False},
            right="Say ARONE now.<|eos|>",
        ),
        "hyperclovax": Case(
            _HYPERCLOVAX, "HyperCLOVA X SEED Think", "qwen", **hyperclovax,
            right="\nSay ARONE now.<|im_end|><|endofturn|>",
        ),
        "hyperclovax_skip_reasoning": Case(
            _HYPERCLOVAX, "HyperCLOVA X SEED Think", "qwen", **hyperclovax, arguments={"skip_reasoning": True},
            right="Say ARONE now.<|im_end|><|endofturn|>",
        ),
        # The prompt opens a turn for the trace; no rule says how a model without one leaves it.
        "internlm2_tools": Case(
            _INTERNLM_TOOLS, "InternLM 2.5 with plugins", "mistral v3", eos="</s>", stops=("<|im_end|>",),
            special=(*IM, "<|plugin|>", "<|action_start|>", "<|action_end|>"), right="Say ARONE now.<|im_end|>",
        ),
        "inkbot": Case(_INKBOT, "Inkbot", "mistral v1", right="Say ARONE now.</s>"),
        "jais": Case(
            _JAIS, "Jais", "qwen", eos="<|endoftext|>", bos="<|endoftext|>",
            right=" Say ARONE now. <|endoftext|>",
        ),
        "jamba": Case(
            _JAMBA, "Jamba 1.5", "mistral v3", eos="<|endoftext|>", bos="<|startoftext|>",
            special=("<|bom|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"), stops=("<|eom|>",),
            right=" Say ARONE now.<|eom|>",
        ),
        # The prompt opens <judge>, a block whose end the template never writes.
        "kat_v1": Case(
            _KAT_V1, "KAT-V1", "qwen", special=IM, stops=("<|endoftext|>",),
            plain=("<judge>", "</judge>", "<think_off>", "<think_on>", "<answer>", "</answer>"), right=None,
        ),
        "kimi_k2_thinking": Case(
            k2, "Kimi K2 Thinking", "qwen", **kimi, right="<think></think>Say ARONE now.<|im_end|>"
        ),
        "kimi_k25": Case(k25, "Kimi K2.5", "qwen", **kimi, right="</think>Say ARONE now.<|im_end|>"),
        "kimi_k25_instant": Case(
            k25, "Kimi K2.5", "qwen", **kimi, arguments={"thinking": False}, right="Say ARONE now.<|im_end|>"
        ),
        "kimi_k3": Case(
            _KIMI_K3, "Kimi K3", "qwen", **k3,
            right=f"<|close|>think<|sep|><|open|>response<|sep|>Say ARONE now.{k3_end}",
        ),
        "kimi_k3_no_thinking": Case(
            _KIMI_K3, "Kimi K3", "qwen", **k3, arguments={"thinking": False}, right=f"Say ARONE now.{k3_end}"
        ),
    }  # fmt: skip
