"""Chat templates of families from D to F, typed after their shape."""

from __future__ import annotations

from dataclasses import replace

from tests.support.chat_templates.shapes import IM, WIDE, Case


def _wide(name: str) -> str:
    return f"<{WIDE}{name}{WIDE}>"


_USER, _ASSISTANT, _SENTENCE_END = _wide("User"), _wide("Assistant"), _wide("end▁of▁sentence")
_CALLS, _CALLS_END = _wide("tool▁calls▁begin"), _wide("tool▁calls▁end")
_CALL, _CALL_END, _SEP = _wide("tool▁call▁begin"), _wide("tool▁call▁end"), _wide("tool▁sep")
_OUTPUTS, _OUTPUTS_END = _wide("tool▁outputs▁begin"), _wide("tool▁outputs▁end")
_OUTPUT, _OUTPUT_END = _wide("tool▁output▁begin"), _wide("tool▁output▁end")
_DEEPSEEK_TOOLS = (
    _CALLS, _CALLS_END, _CALL, _CALL_END, _SEP, _OUTPUTS, _OUTPUTS_END, _OUTPUT, _OUTPUT_END
)  # fmt: skip
_ALL_SYSTEM = (
    "{% set own = messages | selectattr('role', 'equalto', 'system') | map(attribute='content') |"
    " join('\n\n') %}"
)
_DBRX = (
    "{% set own = messages[0].role == 'system' %}"
    "{% set system = messages[0].content if own else 'You are DBRX.\nYou give short answers.' %}"
    "{% for m in (messages[1:] if own else messages) %}"
    "{{ '<|im_start|>system\n' + system | trim + '<|im_end|>\n' if loop.first else '\n' }}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}"
    "{% if add_generation_prompt and loop.last %}{{ '\n<|im_start|>assistant\n' }}{% endif %}{% endfor %}"
)
_CODER = (
    "{{ bos_token }}{% if not messages | selectattr('role', 'equalto', 'system') | list %}"
    "{{ 'You are DeepSeek Coder, a programming assistant.\n' }}{% endif %}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}{{ '### Instruction:\n' + m.content + '\n' }}"
    "{% else %}{{ '### Response:\n' + m.content + '\n<|EOT|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
# Each system message adds spaces before the first token. Calls are written only for missing content, and
# their end only behind a second call.
_V25 = (
    "{% set ns = namespace(call=false, results=false, output=false, system='') %}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ '        ' }}{% set ns.system = m.content %}{% endif %}{% endfor %}"
    "{{ bos_token + ns.system }}{% for m in messages %}{% if m.role == 'user' %}{% set ns.results = false %}"
    f"{{{{ '{_USER}' + m.content }}}}{{% elif m.role == 'assistant' and m.content is none %}}"
    "{% set ns.results = false %}{% for call in m.tool_calls %}"
    f"{{{{ '\n' if ns.call else '{_ASSISTANT}{_CALLS}' }}}}{{{{ '{_CALL}' + call.type + '{_SEP}' }}}}"
    f"{{{{ call.function.name + '\n```json\n' + call.function.arguments + '\n```{_CALL_END}' }}}}"
    f"{{{{ '{_CALLS_END}{_SENTENCE_END}' if ns.call else '' }}}}{{% set ns.call = true %}}{{% endfor %}}"
    "{% elif m.role == 'assistant' %}"
    f"{{{{ ('{_OUTPUTS_END}' if ns.results else '{_ASSISTANT}') + m.content + '{_SENTENCE_END}' }}}}"
    "{% set ns.results = false %}{% elif m.role == 'tool' %}{% set ns.results = true %}"
    f"{{{{ ('\n' if ns.output else '{_OUTPUTS}') + '{_OUTPUT}' + m.content + '{_OUTPUT_END}' }}}}"
    "{% set ns.output = true %}{% endif %}{% endfor %}"
    f"{{% if ns.results %}}{{{{ '{_OUTPUTS_END}' }}}}"
    f"{{% elif add_generation_prompt %}}{{{{ '{_ASSISTANT}' }}}}{{% endif %}}"
)
# Spaces stand between all tags of the published template: more of them in the prompt than in history.
_V3_SPACED = (
    "{{ ' ' * (7 if tools else 2) }}{% for m in messages %}"
    f"{{{{ '  ' }}}}{{% if m.role == 'user' %}}{{{{ ' {_USER} ' }}}}{{% if tools and loop.last %}}"
    "{{ ' Answer with JSON for a function call.  ' }}{{ tools }}{{ ' ' }}{% endif %}"
    "{{ ' ' + m.content + ' ' }}"
    f"{{% if loop.last %}}{{{{ ' {_ASSISTANT} ' }}}}{{% endif %}}{{{{ ' ' }}}}"
    f"{{% elif m.role == 'assistant' %}}{{{{ ' {_ASSISTANT} ' }}}}"
    f"{{% if m.tool_calls %}}{{{{ ' {_CALLS} ' }}}}{{% for call in m.tool_calls %}}{{{{ ' {_CALL} ' }}}}"
    '{{ \'{"name": "\' + call.function.name + \'", "parameters": \' }}{{ call.function.arguments }}'
    f"{{{{ '}} {_CALL_END} ' }}}}{{% endfor %}}{{{{ ' {_CALLS_END} ' }}}}"
    "{% else %}{{ ' ' + m.content + ' ' }}"
    f"{{% if not loop.last %}}{{{{ ' {_SENTENCE_END} ' }}}}{{% endif %}}{{{{ ' ' }}}}{{% endif %}}"
    f"{{{{ ' ' }}}}{{% elif m.role == 'tool' %}}{{{{ ' {_OUTPUTS} {_OUTPUT} ' + m.content }}}}"
    f"{{{{ ' {_OUTPUT_END} {_OUTPUTS_END} ' }}}}{{% if loop.last %}}{{{{ ' {_ASSISTANT} ' }}}}{{% endif %}}"
    "{{ ' ' }}{% endif %}{{ ' ' }}{% endfor %}{{ ' ' }}"
)


def _reasoner(prompt: str, header: str, strip: str, arguments: str, tools: str = "") -> str:
    """Return the template of the R1-0528 generation: a user's turn may open the answer."""
    return (
        _ALL_SYSTEM + "{{ bos_token + own }}" + tools
        + "{% set ns = namespace(user=false, results=false, output=false) %}{% for m in messages %}"
        "{% set text = m.content %}{% if m.role == 'user' %}{% set ns.results = false %}"
        f"{{% set ns.user = true %}}{{{{ '{_USER}' + text }}}}{header}"
        f"{{% elif m.role == 'assistant' %}}{strip}{{% set ns.user = false %}}"
        f"{{{{ '{_OUTPUTS_END}' if ns.results else '' }}}}{{% set ns.results = false %}}"
        "{% if m.tool_calls is defined and m.tool_calls is not none %}{% set ns.output = false %}"
        f"{{% for call in m.tool_calls %}}{{{{ (text or '') + '{_CALLS}' if loop.first else '\n' }}}}"
        f"{{{{ '{_CALL}' + call.type + '{_SEP}' + call.function.name + '\n```json\n' }}}}"
        f"{{{{ {arguments} + '\n```{_CALL_END}' }}}}{{% endfor %}}{{{{ '{_CALLS_END}{_SENTENCE_END}' }}}}"
        f"{{% else %}}{{{{ text + '{_SENTENCE_END}' }}}}{{% endif %}}"
        "{% elif m.role == 'tool' %}{% set ns.user = false %}{% set ns.results = true %}"
        f"{{{{ ('\n' if ns.output else '{_OUTPUTS}') + '{_OUTPUT}' + text + '{_OUTPUT_END}' }}}}"
        "{% set ns.output = true %}{% endif %}{% endfor %}"
        f"{{% if ns.results %}}{{{{ '{_OUTPUTS_END}' }}}}"
        f"{{% elif {prompt} %}}{{{{ '{_ASSISTANT}' }}}}{{% endif %}}"
    )  # fmt: skip


_WITHOUT_TRACE = "{% if '</think>' in text %}{% set text = text.split('</think>')[-1] %}{% endif %}"
_PROVER = {
    "prompt": "add_generation_prompt and not ns.user",
    "header": f"{{{{ '{_ASSISTANT}' }}}}",
    "arguments": "call.function.arguments",
}
_R1_0528 = _reasoner(
    "add_generation_prompt",
    f"{{{{ '' if loop.last else '{_ASSISTANT}' }}}}",
    _WITHOUT_TRACE,
    "(call.function.arguments if call.function.arguments is string else call.function.arguments | tojson)",
    "{% if tools %}{{ ('\n\n' if own else '') + '## Tools\n\n### Function\n\n' }}{% for tool in tools %}"
    "{{ '\n```json\n' + tool | tojson + '\n```\n' }}{% endfor %}{% endif %}",
)


def _closed(arguments: str, prompt: str, tools: str = "", s: tuple[str, ...] = ("",) * 5) -> str:
    """Return the template of DeepSeek V3.1 and V3.2: history and prompt hold the closing tag alone.

    `s` are the spaces before header, tag and answer in history, and before header and tag in the prompt.
    """
    return (
        _ALL_SYSTEM + "{{ bos_token + own }}" + tools
        + "{% set ns = namespace(user=false, results=false) %}{% for m in messages %}"
        f"{{% if m.role == 'user' %}}{{{{ '{_USER}' + m.content }}}}{{% set ns.user = true %}}"
        "{% set ns.results = false %}"
        "{% elif m.role == 'assistant' %}{% if m.tool_calls is defined and m.tool_calls is not none %}"
        f"{{{{ '{s[0]}{_ASSISTANT}</think>' if ns.user else '' }}}}{{% for call in m.tool_calls %}}"
        f"{{{{ (m.content or '') + '{_CALLS}' if loop.first else '' }}}}"
        f"{{{{ '{_CALL}' + call.function.name + '{_SEP}' + {arguments} + '{_CALL_END}' }}}}{{% endfor %}}"
        f"{{{{ '{_CALLS_END}{_SENTENCE_END}' }}}}{{% else %}}"
        f"{{{{ '{s[0]}{_ASSISTANT}{s[1]}</think>' if ns.user else '' }}}}{{% set text = m.content %}}"
        "{% if '</think>' in text and not ns.results %}"
        "{% set text = text.split('</think>', 1)[1] %}{% endif %}"
        f"{{{{ '{s[2]}' + text + '{_SENTENCE_END}' }}}}{{% endif %}}"
        "{% set ns.user = false %}{% set ns.results = false %}{% elif m.role == 'tool' %}"
        f"{{{{ '{_OUTPUT}' + m.content + '{_OUTPUT_END}' }}}}{{% set ns.user = false %}}"
        "{% set ns.results = true %}{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt and {prompt} %}}"
        f"{{{{ '{s[3]}{_ASSISTANT}{s[4]}' + ('<think>' if thinking else '</think>') }}}}{{% endif %}}"
    )  # fmt: skip


_V31 = _closed(
    "call.function.arguments | tojson",
    "ns.user",
    "{% if tools %}{{ '\n\n## Tools\nYou have access to the following tools:\n' }}{% for tool in tools %}"
    "{{ '\n### ' + tool.function.name + '\nDescription: ' + tool.function.description + '\n\nParameters: ' }}"
    "{{ tool.function.parameters | tojson + '\n' }}{% endfor %}{{ '\nIMPORTANT: keep the format.\n' }}"
    "{% endif %}",
)
# The spaces are those of the published file: indentation before tags that print.
_V32_EXP = _closed("call.function.arguments", "not ns.results", "", tuple(" " * n for n in (6, 8, 6, 4, 6)))
_DEEPSEEK_VL2 = (
    "{% set own = messages[0].role == 'system' %}{{ bos_token + (messages[0].content if own else '') }}"
    "{% for m in (messages[1:] if own else messages) %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '<|User|>: ' + m.content + '\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|Assistant|>: ' + m.content + eos_token + '\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|>: \n' }}{% endif %}"
)
_DOTS = (
    "{% set own = messages[0].role == 'system' %}"
    "{{ '<|system|>' + (messages[0].content if own else 'You are helpful.') + '<|endofsystem|>' }}"
    "{% for m in (messages[1:] if own else messages) %}"
    "{% if m.role == 'user' %}{{ '<|userprompt|>' + m.content + '<|endofuserprompt|>' }}"
    "{% elif m.role == 'assistant' %}{{ '<|response|>' + m.content + '<|endofresponse|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt and messages[-1].role == 'user' %}{{ '<|response|>' }}{% endif %}"
)
_ERNIE = (
    "{{ cls_token | default('<|begin_of_sentence|>') }}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ 'User: ' + m.content + '\n' }}"
    "{% elif m.role == 'assistant' %}"
    "{{ 'Assistant: ' + m.content + sep_token | default('<|end_of_sentence|>') }}"
    "{% elif m.role == 'system' %}{{ m.content + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
_ERNIE_THINKING = (
    "{% set ns = namespace(query=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.query = loop.index0 %}{% endif %}{% endfor %}{{ '<|im_start|>system\n' }}"
    "{% if messages[0].role == 'system' %}"
    "{{ '<system_setting>\n' + messages[0].content + '\n</system_setting>\n\n' }}{% endif %}"
    "{{ '<global_setting>\nthink_mode=True\n</global_setting><|im_end|>\n\n' }}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% set text = m.content %}{% set trace = m.reasoning_content or '' %}{% if '</think>' in text %}"
    "{% set trace = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if trace and loop.index0 > ns.query %}{{ '<think>\n' + trace + '\n</think>\n\n' }}{% endif %}"
    "{{ '<response>\n' + text + '\n</response>\n<|im_end|>\n\n' }}{% endif %}{% endfor %}"
    "{{ '<|im_start|>assistant\n<think>\n' }}"
)
_EXAONE_4 = (
    "{% macro offer() %}{{ '# Available Tools\n' }}{% for tool in tools %}"
    "{{ '<tool>' + tool | tojson + '</tool>\n' }}{% endfor %}{{ '\nCall them in <tool_call> tags.' }}"
    "{% endmacro %}"
    "{% for m in messages %}{% if m.role not in ['user', 'assistant', 'system', 'tool'] %}"
    "{{ raise_exception('Unknown role') }}{% endif %}{% if loop.first and tools and m.role != 'system' %}"
    "{{ '[|system|]\n' + offer() + '[|endofturn|]\n' }}{% endif %}{% if m.role == 'assistant' %}"
    "{{ '[|assistant|]\n' }}{% set trace = m.reasoning_content %}{% set text = m.content %}"
    "{% if text and '</think>' in text %}"
    "{% set trace = trace or text.split('</think>')[0].strip().removeprefix('<think>').strip() %}"
    "{% set text = text.split('</think>')[-1].strip() %}{% endif %}"
    "{% if m.content and skip_think == false and loop.last and (trace or '</think>' in m.content) %}"
    "{{ '<think>\n' + trace + '\n</think>\n\n' }}"
    "{% elif m.content or m.tool_calls %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ text or '' }}"
    "{% for call in m.tool_calls or [] %}{{ '\n' if m.content or not loop.first else '' }}"
    '{{ \'<tool_call>{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{ call.function.arguments | tojson + '}</tool_call>' }}{% endfor %}{{ '[|endofturn|]\n' }}"
    "{% elif m.role == 'tool' %}"
    "{{ '' if loop.previtem and loop.previtem.role == 'tool' else '[|tool|]\n' }}"
    "{{ '<tool_result>{\"result\": ' + m.content | tojson + '}</tool_result>' }}"
    "{{ '\n' if not loop.last and loop.nextitem.role == 'tool' else '[|endofturn|]\n' }}"
    "{% else %}{{ '[|' + m.role + '|]\n' + m.content }}"
    "{{ '\n\n' + offer() if loop.first and tools and m.role == 'system' else '' }}{{ '[|endofturn|]\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "{{ '[|assistant|]\n<think>\n' + ('' if enable_thinking else '\n</think>\n\n') }}{% endif %}"
)
_EXAONE_DEEP = (
    "{% for m in messages %}"
    "{% if loop.first and m.role != 'system' %}{{ '[|system|][|endofturn|]\n' }}{% endif %}"
    "{% set text = m.content %}{% if '</thought>' in text %}"
    "{% set text = text.split('</thought>')[-1].lstrip('\n') %}{% endif %}{{ '[|' + m.role + '|]' + text }}"
    "{{ ('' if m.role == 'user' else '[|endofturn|]') + ('' if loop.last else '\n') }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n[|assistant|]<thought>\n' }}{% endif %}"
)
_FALCON_180B = (
    "{% for m in messages %}{% if m.role in ['system', 'user', 'assistant'] %}"
    "{{ {'system': 'System: ', 'user': 'User: ', 'assistant': 'Falcon: '}[m.role] + m.content }}{% endif %}"
    "{{ '\n' if add_generation_prompt or not loop.last else '' }}{% endfor %}"
    "{% if add_generation_prompt and messages[-1].role != 'assistant' %}{{ 'Falcon:' }}{% endif %}"
)
# With tools, nothing ends the system turn.
_FALCON_H1 = (
    "{{ bos_token }}{% if tools %}{{ '<|im_start|>system\n' }}{% if messages[0].role == 'system' %}"
    "{{ messages[0].content + '\n\n' }}{% endif %}{{ 'Call functions.\n<tools>\n' }}{% for tool in tools %}"
    "{{ '[' + tool | tojson + ']' }}{% endfor %}{{ '\n</tools>\nUse <tool_call> tags.\n' }}"
    "{% elif messages[0].role == 'system' %}"
    "{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}{% for m in messages %}"
    "{% if m.role != 'system' %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_FIREFUNCTION = (
    "{% for m in messages %}{% set role = m.role | lower %}"
    "{% if role not in ['system', 'user', 'assistant', 'tool'] %}"
    "{{ raise_exception('Invalid role') }}{% endif %}"
    "{% if loop.first %}{{ bos_token + '<|start_header_id|>system<|end_header_id|>\n\n' }}"
    "{{ m.content | trim if role == 'system' else 'You are a helpful assistant with access to functions.' }}"
    "{{ '\nAvailable functions as JSON spec:\n' + functions + '\nToday is ' + datetime + '.<|eot_id|>' }}"
    "{% endif %}"
    "{% if not loop.first or role != 'system' %}{{ '<|start_header_id|>' + role + '<|end_header_id|>\n\n' }}"
    "{{ m.content | default('', true) | trim }}{% if m.tool_calls %}{{ ' functools[' }}"
    "{% for call in m.tool_calls %}"
    "{{ '{\"name\": \"' + call.function.name + '\", \"arguments\": ' + call.function.arguments + '}' }}"
    "{{ '' if loop.last else ', ' }}{% endfor %}{{ ']' }}{% endif %}{{ '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)


def families_a_to_f_2() -> dict[str, Case]:
    """Return the templates by name; `families_a_to_f` has those from A to C."""
    deepseek = Case(
        _V25, "DeepSeek V2.5", "llama 3", eos=_SENTENCE_END, bos=_wide("begin▁of▁sentence"),
        plain=(_USER, _ASSISTANT, *_DEEPSEEK_TOOLS), right=f"Say ARONE now.{_SENTENCE_END}",
    )  # fmt: skip
    exaone = Case(
        _EXAONE_4, "EXAONE 4", "qwen", eos="[|endofturn|]",
        special=("[|system|]", "[|user|]", "[|assistant|]", "[|tool|]"),
        plain=("<tool_call>", "</tool_call>"), right="Say ARONE now.[|endofturn|]",
    )  # fmt: skip
    return {
        "dbrx": Case(
            _DBRX, "DBRX", "llama 3", eos="<|im_end|>", special=IM, right="Say ARONE now.<|im_end|>"
        ),
        "deepseek_coder_system": Case(
            _CODER, "DeepSeek Coder with a default system prompt", "llama 3", eos="<|EOT|>",
            bos=_wide("begin▁of▁sentence"), right="Say ARONE now.\n<|EOT|>",
        ),
        "deepseek_prover_v2": replace(
            deepseek, source=_reasoner(**_PROVER, strip=""), family="DeepSeek Prover V2"
        ),
        "deepseek_r1_0528_qwen3": replace(
            deepseek, source=_reasoner(**_PROVER, strip=_WITHOUT_TRACE), family="DeepSeek R1-0528 Qwen3",
            vocabulary="qwen",
        ),
        "deepseek_r1_0528": replace(deepseek, source=_R1_0528, family="DeepSeek R1-0528"),
        "deepseek_v2_5": deepseek,
        # The end token stands between turns only, behind two spaces; the system prompt is left out.
        "deepseek_v3_spaced": replace(
            deepseek, source=_V3_SPACED, family="DeepSeek V3 with spaces", faithful=False, right=None
        ),
        "deepseek_v3_1": replace(deepseek, source=_V31, family="DeepSeek V3.1"),
        "deepseek_v3_1_thinking": replace(
            deepseek, source=_V31, family="DeepSeek V3.1", arguments={"thinking": True},
            right=f"</think>Say ARONE now.{_SENTENCE_END}",
        ),
        "deepseek_v3_2_exp": replace(
            deepseek, source=_V32_EXP, family="DeepSeek V3.2-Exp",
            right=f"      Say ARONE now.{_SENTENCE_END}",
        ),
        "deepseek_vl2": replace(
            deepseek, source=_DEEPSEEK_VL2, family="DeepSeek VL2", special=("<|User|>", "<|Assistant|>"),
            plain=(),
        ),
        "dots_llm1": Case(
            _DOTS, "dots.llm1", "qwen", eos="<|endofresponse|>", right="Say ARONE now.<|endofresponse|>"
        ),
        # The end of an answer is the separator token, not the tokenizer's end token.
        "ernie_4_5": Case(
            _ERNIE, "ERNIE 4.5", "mistral v3", eos="</s>", right="Say ARONE now.<|end_of_sentence|>",
        ),
        "ernie_4_5_thinking": Case(
            _ERNIE_THINKING, "ERNIE 4.5 Thinking", "mistral v3", eos="</s>", special=IM,
            stops=("<|im_end|>",), plain=("<response>", "</response>"),
            right="\n</think>\n\n<response>\nSay ARONE now.\n</response>\n<|im_end|>",
        ),
        "exaone_4": exaone,
        "exaone_4_thinking": replace(
            exaone, arguments={"enable_thinking": True, "skip_think": False},
            right="\n</think>\n\nSay ARONE now.[|endofturn|]",
        ),
        # The white space around the closing tag is written nowhere.
        "exaone_deep": replace(
            exaone, source=_EXAONE_DEEP, family="EXAONE Deep", plain=("<thought>", "</thought>"), right=None
        ),
        "falcon_180b": Case(
            _FALCON_180B, "Falcon 180B", "qwen", eos="<|endoftext|>", right=" Say ARONE now.<|endoftext|>"
        ),
        "falcon_h1": Case(
            _FALCON_H1, "Falcon H1", "qwen", eos="<|end_of_text|>", bos="<|begin_of_text|>", special=IM,
            stops=("<|im_end|>",), right="Say ARONE now.<|im_end|>",
        ),
        "firefunction_v2": Case(
            _FIREFUNCTION, "FireFunction V2", "llama 3", eos="<|eot_id|>", bos="<|begin_of_text|>",
            special=("<|start_header_id|>", "<|end_header_id|>"),
            arguments={"functions": "[]", "datetime": "2026-01-02"}, right="Say ARONE now.<|eot_id|>",
        ),
    }  # fmt: skip
