"""Chat templates of the families from Qwen to StepFun, rewritten in their shape."""

from __future__ import annotations

from typing import Any

from tests.support.chat_templates.shapes import CHATML_PROMPT, IM, ROLE_TOKENS, WIDE, Case

_REST = (
    "{% set own = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% set rest = messages[1:] if messages[0].role == 'system' else messages %}"
)
# `ns.last` is the index of the last question that is no tool response.
_LAST_QUESTION = (
    "{% set ns = namespace(last=messages | length - 1, found=false) %}{% for m in messages[::-1] %}"
    "{% if m.role == 'user' and not ns.found and not (m.content.startswith('<tool_response>')"
    " and m.content.endswith('</tool_response>')) %}"
    "{% set ns.found = true %}{% set ns.last = messages | length - 1 - loop.index0 %}{% endif %}{% endfor %}"
)
_TRACE_AND_TEXT = (
    "{% set text = m.content %}{% set trace = '' %}"
    "{% if m.reasoning_content is string %}{% set trace = m.reasoning_content %}{% elif '</think>' in text %}"
    "{% set trace = text.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
)
_JSON_TOOLS = (
    "{{ '# Tools\n\n<tools>' }}{% for t in tools %}{{ '\n' + t | tojson }}{% endfor %}"
    "{{ '\n</tools>\n\nCall a function within <tool_call></tool_call>.<|im_end|>\n' }}"
)
_TOOL_TURN = (
    "{% elif m.role == 'tool' %}"
    "{% if loop.first or loop.previtem.role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{% if loop.last or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
)
# No newline stands between the turns.
_QWEN1 = (
    "{% for m in messages %}{% if loop.first %}{{ '<|im_start|>system\n' }}"
    "{{ (m.content if m.role == 'system' else 'You are a helpful assistant.') + '<|im_end|>\n' }}{% endif %}"
    "{% if m.role in ['user', 'assistant'] %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}" + CHATML_PROMPT
)
# Calls replace the content: one opening tag has several closing tags, and a quote stands in the wrong place.
_QWEN15 = (
    "{{ '<|im_start|>system\n' }}{% if tools %}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}"
    "{{ '# Tools\n\n<tools> ' }}{% for t in tools %}{{ t | tojson + ('' if loop.last else '\n') }}"
    "{% endfor %}"
    "{{ ' </tools>Call a function within <tool_call></tool_call>.' }}"
    "{% elif messages[0].role == 'system' %}{{ messages[0].content }}"
    "{% else %}{{ 'You are a helpful assistant.' }}{% endif %}{{ '<|im_end|>\n' }}"
    "{% for m in messages %}"
    "{% if m.role == 'user' or m.role == 'system' and not loop.first"
    " or m.role == 'assistant' and m.tool_calls is not defined %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n<tool_call>\n' }}{% for c in m.tool_calls %}"
    "{{ '{\"name\": \"' + c.function.name + ', \"arguments\": ' + c.function.arguments | tojson + '\"}' }}"
    "{{ '\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% elif m.role == 'tool' %}"
    "{% if m.name is not defined %}{{ raise_exception('a tool response needs a name') }}{% endif %}"
    "{{ '<|im_start|>user\n<tool_response>\n' + {'name': m.name, 'content': m.content} | tojson }}"
    "{{ '\n</tool_response><|im_end|>\n' }}{% endif %}{% endfor %}" + CHATML_PROMPT
)
# Spaces stand where the family has newlines, also at the end of the prompt.
_QWEN2_AUDIO = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
    "{{ '<|im_start|>system You are a helpful assistant.<|im_end|> ' }}{% endif %}"
    "{{ '<|im_start|>' + m.role + ' ' }}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'audio' %}"
    "{{ 'Audio: <|audio_bos|><|AUDIO|><|audio_eos|> ' }}{% elif 'text' in part %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant ' }}{% endif %}"
)
_QWEN3_THINKING = (
    "{% if tools %}{{ '<|im_start|>system\n' }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}"
    + _JSON_TOOLS
    + "{% elif messages[0].role == 'system' %}"
    "{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}"
    + _LAST_QUESTION
    + "{% for m in messages %}{% if m.role == 'user' or m.role == 'system' and not loop.first %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}"
    + _TRACE_AND_TEXT
    + "{{ '<|im_start|>assistant\n' }}{% if loop.index0 > ns.last and (loop.last or trace) %}"
    "{{ '<think>\n' + trace.strip('\n') + '\n</think>\n\n' + text.lstrip('\n') }}"
    "{% else %}{{ text }}{% endif %}"
    "{% for c in m.tool_calls or [] %}{{ '\n' if text or not loop.first else '' }}{{ '<tool_call>\n' }}"
    "{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson + '\n</tool_call>' }}"
    "{% endfor %}"
    "{{ '<|im_end|>\n' }}" + _TOOL_TURN + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
# Tools and calls are nested tags; a turn with calls has its own white space around trimmed content.
_QWEN3_CODER = (
    _REST + "{% if own or rest | length < messages | length or tools %}{{ '<|im_start|>system\n' }}"
    "{{ own if rest | length < messages | length else 'You are Qwen.' }}"
    "{% if tools %}{{ '\n\nFunctions:\n\n<tools>' }}{% for t in tools %}{% set f = t.function %}"
    "{{ '\n<function>\n<name>' + f.name + '</name>' }}"
    "{{ '\n<description>' + f.description | trim + '</description>' }}"
    "{{ '\n<parameters>' }}{% for key, p in f.parameters.properties | items %}"
    "{{ '\n<parameter>\n<name>' + key + '</name>\n<type>' + p.type + '</type>' }}"
    "{{ '\n<description>' + p.description | trim + '</description>\n</parameter>' }}{% endfor %}"
    "{% for key, value in f.parameters | items if key not in ['type', 'properties'] %}"
    "{{ '\n<' ~ key ~ '>' ~ value ~ '</' ~ key ~ '>' }}{% endfor %}{{ '\n</parameters>\n</function>' }}"
    "{% endfor %}"
    "{{ '\n</tools>\n\nReply with <tool_call>.' }}{% endif %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% for m in rest %}{% if m.role == 'assistant' and m.tool_calls %}{{ '<|im_start|>assistant' }}"
    "{% if m.content | trim %}{{ '\n' + m.content | trim + '\n' }}{% endif %}"
    "{% for c in m.tool_calls %}{{ '\n<tool_call>\n<function=' + c.function.name + '>\n' }}"
    "{% for key, value in c.function.arguments | items %}"
    "{{ '<parameter=' ~ key ~ '>\n' ~ (value | tojson if value is mapping else value) ~ '\n</parameter>\n' }}"
    "{% endfor %}{{ '</function>\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% elif m.role == 'tool' %}"
    "{% if not loop.first and loop.previtem.role != 'tool' %}{{ '<|im_start|>user\n' }}{% endif %}"
    "{{ '<tool_response>\n' + m.content + '\n</tool_response>\n' }}"
    "{% if loop.last or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    + CHATML_PROMPT
)
# Every answer has a block, empty without reasoning; a trace inside the content stays behind an empty block.
_QWEN38_MAX = (
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ raise_exception('thinking cannot be disabled') }}{% endif %}"
    "{% set effort = reasoning_effort | default('xhigh') %}"
    "{% if effort not in ('xhigh', 'medium', 'low') %}{{ raise_exception('unknown effort') }}{% endif %}"
    "{% set note = '' if effort == 'medium' else 'Reasoning effort is set to ' + effort + '.' %}"
    "{% set own = messages[0].content | trim if messages[0].role == 'system' else '' %}"
    "{% if tools %}{{ '<|im_start|>system\n' + (note + '\n\n' if note else '') + '# Tools\n\n<tools>' }}"
    "{% for t in tools %}{{ '\n' + t | tojson }}{% endfor %}{{ '\n</tools>\n\nReply with <tool_call>.' }}"
    "{{ ('\n\n' + own if own else '') + '<|im_end|>\n' }}"
    "{% elif own or note %}"
    "{{ '<|im_start|>system\n' + [note, own] | select | join('\n\n') + '<|im_end|>\n' }}{% endif %}"
    + _LAST_QUESTION.replace("m.content.", "(m.content | trim).")
    + "{% if not ns.found %}{{ raise_exception('no user query') }}{% endif %}"
    "{% for m in messages %}{% set text = m.content | trim %}{% if m.role == 'system' %}"
    "{% if not loop.first %}{{ raise_exception('the system message must be first') }}{% endif %}"
    "{% elif m.role == 'user' %}{{ '<|im_start|>user\n' + text + '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% if preserve_thinking is undefined or preserve_thinking is true or loop.index0 > ns.last %}"
    "{{ '<think>\n' + (m.reasoning_content or '') | trim + '\n</think>\n\n' }}{% endif %}{{ text }}"
    "{% for c in m.tool_calls or [] %}{{ ('\n\n' if text else '') if loop.first else '\n' }}"
    "{{ '<tool_call>\n<function=' + c.function.name + '>\n' }}"
    "{% for key, value in c.function.arguments | items %}"
    "{{ '<parameter=' + key + '>\n' + (value if value is string else value | tojson) + '\n</parameter>\n' }}"
    "{% endfor %}{{ '</function>\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}"
    + _TOOL_TURN.replace("m.content", "text").replace("loop.first or", "not loop.first and")
    + "{% else %}{{ raise_exception('unexpected role') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
_QWQ = (
    "{% if tools %}"
    "{{ '<|im_start|>system\n' + (messages[0].content if messages[0].role == 'system' else '') + '\n\n' }}"
    + _JSON_TOOLS
    + "{% elif messages[0].role == 'system' %}"
    "{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' or m.role == 'system' and not loop.first %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{% set text = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{{ '<|im_start|>assistant' }}{% if m.content or not m.tool_calls %}{{ '\n' + text }}{% endif %}"
    "{% for c in m.tool_calls or [] %}{{ '\n<tool_call>\n' }}"
    "{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson + '\n</tool_call>' }}"
    "{% endfor %}"
    "{{ '<|im_end|>\n' }}" + _TOOL_TURN + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
_REKA_FLASH3 = (
    _REST + "{% for m in rest %}{% if m.role == 'user' %}"
    "{{ 'human: ' + (own + ' ' if own and loop.first else '') + m.content + ' <sep> ' }}"
    "{% elif m.role == 'assistant' %}"
    "{{ 'assistant: ' + m.content.split('</reasoning>')[-1].strip() + ' <sep> ' }}"
    "{% else %}{{ raise_exception('unknown role') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: <reasoning>\n' }}{% endif %}"
)
# The prompt ends before the space of history; the last system message stands first.
_RWKV_WORLD = (
    "{% set ns = namespace(own='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.own = m.content %}{% endif %}{% endfor %}{{ bos_token }}"
    "{% if ns.own %}{{ 'System: ' + ns.own + '\n\n' }}{% endif %}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ 'User: ' + m.content | trim + '\n\n' }}"
    "{% elif m.role == 'assistant' and m.content is not none %}"
    "{{ 'Assistant: ' + m.content.split('</think>')[-1] | trim + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% if enable_thinking is defined %}"
    "{{ ' <think>' if enable_thinking else ' <think>\n</think>' }}{% endif %}{% endif %}"
)
_SAILOR = (
    "{% set names = {'user': 'question', 'assistant': 'answer', 'system': 'system'} %}"
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + names[m.role] + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>answer\n' }}{% endif %}"
)
# A question always brings the header of its answer.
_SEALLM = (
    "{% set own = messages[0].content if messages[0].role == 'system' else 'You are a helpful assistant.' %}"
    "{{ '<|im_start|>system\n' + own + '<|im_end|>\n' }}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n<|im_start|>assistant\n' }}"
    "{% elif m.role == 'assistant' %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)
# The budget is a second system turn without a newline; an empty answer has neither newline nor end token.
_SEED_OSS = (
    _REST + "{% set bos = '<seed:bos>' %}{% set eos = '<seed:eos>' %}"
    "{% if own or rest | length < messages | length or tools %}"
    "{{ bos + 'system\n' + (own if rest | length < messages | length else 'You are Doubao.') }}"
    "{% for t in tools or [] %}{{ 'Function:' + t.function | tojson }}{% endfor %}"
    "{% if tools %}{{ 'Format:\n<seed:tool_call>\n</seed:tool_call>\n' }}{% endif %}{{ eos }}{% endif %}"
    "{% set budget = thinking_budget | default(-1) %}"
    "{% if budget == 0 %}{{ bos + 'systemSkip the thinking process.' + eos }}"
    "{% elif budget != -1 %}{{ bos ~ 'systemThink within ' ~ budget ~ ' tokens.' ~ eos }}{% endif %}"
    "{% for m in rest %}{% if m.role == 'assistant' %}{{ bos + 'assistant' }}"
    "{% if m.reasoning_content is string and m.reasoning_content | trim %}"
    "{{ '\n<seed:think>' + m.reasoning_content | trim + '</seed:think>' }}{% endif %}"
    "{% if m.content is string and m.content | trim %}"
    "{{ '\n' + m.content | trim + ('\n' if m.tool_calls else eos) }}{% endif %}"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}"
    "{{ '\n<seed:tool_call>\n<function=' + c.function.name + '>\n' }}"
    "{% for key, value in c.function.arguments | items %}"
    "{{ '<parameter=' ~ key ~ '>' ~ value ~ '</parameter>\n' }}{% endfor %}"
    "{{ '</function>\n</seed:tool_call>' }}{% endfor %}{{ eos }}{% endif %}"
    "{% else %}{{ bos + m.role + '\n' + m.content + eos }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ bos + 'assistant\n' }}{% if budget == 0 %}"
    "{{ '<seed:think>\n<seed:cot_budget_reflect>The current thinking budget is 0.' }}"
    "{{ '</seed:cot_budget_reflect>' }}"
    "{{ '\n</seed:think>' }}{% endif %}{% endif %}"
)
# An empty system turn is always there, and the prompt ends before the newline that history has.
_STARCHAT = (
    "{% if messages[0].role != 'system' %}{{ '<|system|>\n<|end|>\n' }}{% endif %}{% for m in messages %}"
    "{% if m.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('unknown role') }}{% endif %}"
    "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# The end token begins the text, and the prompt stands behind every conversation.
_STARCODER2 = (
    "{{ bos_token + 'You are an intelligent coding assistant.\n\n' }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system messages') }}"
    "{% elif m.role == 'user' %}{{ '### Instruction\n' + m.content + '\n\n' }}"
    "{% else %}{{ '### Response\n' + m.content + eos_token + '\n\n' }}{% endif %}{% endfor %}"
    "{{ '### Response\n' }}"
)
# Results have a role of their own, and no white space separates an answer, its calls or the results.
_STEPFUN = (
    "{{ bos_token }}"
    "{% set note = 'Reasoning: ' + reasoning_effort + '\n\n' if reasoning_effort is defined else '' %}"
    "{% set first = messages[0].role == 'system' %}"
    "{% if tools %}{{ '<|im_start|>system\n' + note + (messages[0].content + '\n\n' if first else '') }}"
    + _JSON_TOOLS
    + "{% elif first or note %}"
    "{{ '<|im_start|>system\n' + note + (messages[0].content if first else '') + '<|im_end|>\n' }}{% endif %}"
    + _LAST_QUESTION
    + "{% for m in messages %}{% if m.role == 'user' or m.role == 'system' and not loop.first %}"
    "{% set role = 'observation' if m.role == 'system' and m.name == 'observation' else m.role %}"
    "{{ '<|im_start|>' + role + '\n' }}"
    "{{ m.content + '<|im_end|>\n' }}{% elif m.role == 'assistant' %}"
    + _TRACE_AND_TEXT
    + "{{ '<|im_start|>assistant\n' }}{% if loop.index0 > ns.last or preserve_thinking %}"
    "{{ '<think>\n' + trace + '\n</think>\n' }}{% endif %}{{ text }}{% for c in m.tool_calls or [] %}"
    "{{ '<tool_call>\n<function=' + c.function.name + '>\n' }}"
    "{% for key, value in c.function.arguments | items %}"
    "{{ '<parameter=' + key + '>\n' + (value if value is string else value | tojson) + '\n</parameter>\n' }}"
    "{% endfor %}{{ '</function>\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% elif m.role == 'tool' %}"
    "{% if loop.first or loop.previtem.role != 'tool' %}{{ '<|im_start|>tool_response\n' }}{% endif %}"
    "{{ '<tool_response>' + m.content + '</tool_response>' }}"
    "{% if loop.last or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)


def families_n_to_z_2() -> dict[str, Case]:
    """Return the templates of the families from Qwen to StepFun by name."""
    text, stop = "<|endoftext|>", "Say ARONE now.<|im_end|>"
    rwkv = "<|rwkv_tokenizer_end_of_text|>"
    chatml: dict[str, Any] = {"vocabulary": "qwen", "stops": (text,), "special": IM}
    seed: dict[str, Any] = {
        "vocabulary": "qwen", "eos": "<seed:eos>", "bos": "<seed:bos>",
        "plain": tuple(
            f"<{slash}seed:{tag}>"
            for tag in ("think", "tool_call", "cot_budget_reflect")
            for slash in ("", "/")
        ),
    }  # fmt: skip
    end = ("<|end|>",)
    return {
        "qwen1": Case(
            _QWEN1, "Qwen", "qwen", eos=text, stops=("<|im_end|>", "<|im_start|>"), special=IM, right=stop
        ),
        "qwen1_5": Case(_QWEN15, "Qwen 1.5", **chatml, right=stop),
        "qwen2_audio": Case(_QWEN2_AUDIO, "Qwen2-Audio", **chatml, right=stop),
        "qwen3_thinking": Case(
            _QWEN3_THINKING, "Qwen3 Thinking 2507", **chatml, right="\n</think>\n\nSay ARONE now.<|im_end|>"
        ),
        "qwen3_coder": Case(_QWEN3_CODER, "Qwen3-Coder", **chatml, right=stop),
        "qwen3_8_max": Case(
            _QWEN38_MAX, "Qwen3.8 Max", **chatml, arguments={"reasoning_effort": "low"},
            right="\n</think>\n\nSay ARONE now.<|im_end|>",
        ),
        # History has no block, and the template writes a closing tag nowhere: no rule gives its white space.
        "qwq_tools": Case(_QWQ, "QwQ with tools", **chatml, right=None),
        # The prompt opens a block that history never has, and `<sep>` is ordinary text, no token: servers
        # stop at it as a string. No rule decides.
        "reka_flash3": Case(_REKA_FLASH3, "Reka Flash 3", "llama 3", eos=text, right=None),
        "rwkv_world": Case(
            _RWKV_WORLD, "RWKV World", "qwen", eos=rwkv, bos=rwkv, right=f" Say ARONE now.{rwkv}"
        ),
        "rwkv_world_no_thinking": Case(
            _RWKV_WORLD, "RWKV World", "qwen", eos=rwkv, bos=rwkv, arguments={"enable_thinking": False},
            right=f"Say ARONE now.{rwkv}",
        ),
        "sailor": Case(
            _SAILOR, "Sailor", "qwen", eos=text, stops=("<|im_end|>",), special=IM, right=stop
        ),
        "seallm3": Case(_SEALLM, "SeaLLM v3", **chatml, right=stop),
        "seed_oss": Case(
            _SEED_OSS, "Seed-OSS with a budget", **seed, arguments={"thinking_budget": 512},
            right="Say ARONE now.<seed:eos>",
        ),
        # The block in the prompt is not empty, and history has a newline behind `</seed:think>`: no rule
        # decides whether the model writes that newline.
        "seed_oss_no_budget": Case(
            _SEED_OSS, "Seed-OSS with a budget", **seed, arguments={"thinking_budget": 0}, right=None
        ),
        # Servers stop at `<|flush|>`, which the template never writes: the token that it always writes is
        # `<|end|>`.
        "starchat": Case(
            _STARCHAT, "StarChat", "qwen", eos=text, stops=end, special=(*ROLE_TOKENS, *end),
            right="\nSay ARONE now.<|end|>",
        ),
        "starcoder2": Case(
            _STARCODER2, "StarCoder2 Instruct", "qwen", eos=text, bos=text,
            right="Say ARONE now.<|endoftext|>",
        ),
        "stepfun3": Case(
            _STEPFUN, "StepFun 3", "llama 3", eos="<|im_end|>", bos=f"<{WIDE}begin▁of▁sentence{WIDE}>",
            special=IM, right="\n</think>\nSay ARONE now.<|im_end|>",
            plain=("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
        ),
    }  # fmt: skip
