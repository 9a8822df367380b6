"""Chat templates of known families, rewritten in their shape.

The shape is the place of the system prompt, trimming, the end of a turn, and omissions from history.
"""

from __future__ import annotations

from tests.support.chat_templates.shapes import CHATML_PROMPT, CHATML_TURN, IM, ROLE_TOKENS, WIDE, Case, loop

_MISTRAL_SYSTEM_LAST = (
    "{{% if messages[0].role == 'system' %}}{{% set system = messages[0].content %}}{"
    "{% set rest = messages[1:] %}}"
    "{{% else %}}{{% set rest = messages %}}{{% endif %}}{{{{ bos_token }}}}{"
    "{% for m in rest %}}"
    "{{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}}{{"
    "{{ raise_exception('roles must alternate') }}}}{{% endif %}}"
    "{{% if m.role == 'user' %}}{{% if loop.last and system is defined %}}{{"
    "{{ '{open}' + system + '\n\n' + m.content + '{close}' }}}}"
    "{{% else %}}{{{{ '{open}' + m.content + '{close}' }}}}{{% endif %}}"
    "{{% else %}}{{{{ '{lead}' + m.content{trim} + eos_token }}}}{{% endif %}}{{% endfor %}}"
)
_LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
    "{% set system = messages[0].content %}"
    "{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}{% for m in rest %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' }}{% if loop.first and system %}"
    "{{ '<<SYS>>\n' + system + '\n<</SYS>>\n\n' }}{% endif %}"
    "{{ m.content.strip() + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content.strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
_ZEPHYR = (
    "{% for m in messages %}\n{% if m.role == 'user' %}\n"
    "{{ '<|user|>\n' + m.content + eos_token }}\n"
    "{% elif m.role == 'system' %}\n{{ '<|system|>\n' + m.content + eos_token }}\n"
    "{% elif m.role == 'assistant' %}\n{{ '<|assistant|>\n' + m.content + eos_token }}\n"
    "{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
    "{% endfor %}"
)
_GENERATION_TAGS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    f"{{% else %}}{{{{ {CHATML_TURN} }}}}{{% endif %}}{{% endfor %}}{CHATML_PROMPT}"
)
_SYSTEM_IN_FIRST_USER = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{% set first = messages[0].content | trim + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}"
    "{% endif %}"
    "{% for m in rest %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') + m.content | trim + '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_SMOLLM3 = (
    "{% set today = strftime_now('%d %B %Y') %}"
    "{% set think = enable_thinking | default(true) %}"
    "{% set rest = messages[1:] if messages[0].role == 'system' else messages %}"
    "{% set own = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% if '/no_think' in own %}{% set think = false %}{% endif %}"
    "{{ '<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: ' + today + '\n' }}"
    "{{ 'Reasoning Mode: ' + ('/think' if think else '/no_think') + '\n\n## Custom Instructions\n\n' }}"
    "{{ own | replace('/no_think', '') | trim or 'You are a helpful assistant.' }}"
    "{% if tools %}{{ '\n\n### Tools\n\n<tools>' }}{% for tool in tools %}"
    "{{ '\n' + tool | tojson }}{% endfor %}{{ '\n</tools>' }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% for m in rest %}{% if m.role == 'user' %}"
    "{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{% set text = m.content %}"
    "{{ '<|im_start|>assistant\n' + ('' if think else '<think>\n\n</think>\n') + text.lstrip('\n') + '<|im_end|>\n' }}"
    "{% elif m.role == 'tool' %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' + ('' if think else '<think>\n\n</think>\n') }}"
    "{% endif %}"
)
_REASONING_FIELD = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}{% set text = m.content %}"
    "{% set trace = m.reasoning_content or '' %}"
    "{% if '</think>' in text %}"
    "{% set trace = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>assistant\n' }}{% if loop.index0 > ns.last and trace %}"
    "{{ '<think>\n' + trace + '\n</think>\n\n' }}{% endif %}"
    "{{ text + '<|im_end|>\n' }}{% else %}{{ " + CHATML_TURN + " }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n<think>\n' if open_thinking else '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}"
    f"{{{{ '<{WIDE}User{WIDE}>' + m.content }}}}{{% else %}}{{% set text = m.content %}}"
    "{% if '</think>' in text %}{% set text = text.split('</think>')[-1] %}{% endif %}"
    f"{{{{ '<{WIDE}Assistant{WIDE}>' + text + '<{WIDE}end▁of▁sentence{WIDE}>' }}}}"
    f"{{% endif %}}{{% endfor %}}"
    f"{{% if add_generation_prompt %}}{{{{ '<{WIDE}Assistant{WIDE}><think>\n' }}}}"
    f"{{% endif %}}"
)
_HERMES_TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% if messages[0].role == 'system' %}"
    "{{ messages[0].content + '\n\n' }}{% endif %}"
    "{{ 'Functions:\n<tools>' }}{% for tool in tools %}{{ '\n' + tool | tojson }}"
    "{% endfor %}{{ '\n</tools><|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'system' and tools and loop.first %}"
    "{% elif m.role == 'tool' %}"
    "{% if loop.previtem.role != 'tool' %}{{ '<|im_start|>tool\n' }}{% endif %}"
    "{{ '<tool_response>\n' + m.content + '\n</tool_response>\n' }}"
    "{% if loop.last or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% elif m.tool_calls %}{{ '<|im_start|>assistant\n' + m.content }}"
    "{% for call in m.tool_calls %}"
    "{{ '\n<tool_call>\n' + {'name': call.function.name, 'arguments': call.function.arguments} | tojson + '\n</tool_call>' }}"
    "{% endfor %}{{ '<|im_end|>\n' }}"
    "{% else %}{{ " + CHATML_TURN + " }}{% endif %}{% endfor %}" + CHATML_PROMPT
)
_PARTS_FOR_USERS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'user' %}"
    "{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% else %}{{ '<image>' }}{% endif %}"
    "{% endfor %}"
    "{% else %}{{ m.content | trim }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}" + CHATML_PROMPT
)
_PARTS_OR_STRING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if 'text' in part %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}" + CHATML_PROMPT
)
_ROUNDS = (
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ m.content + '\n\n' }}{% elif m.role == 'user' %}{% set ns.n = ns.n + 1 %}"
    "{{ '[Round ' ~ ns.n ~ ']\n\nQ: ' + m.content + '\n\nA:' }}{% else %}"
    "{{ ' ' + m.content + '\n\n' }}{% endif %}{% endfor %}"
)
_PHI4 = loop(
    "'<|im_start|>user<|im_sep|>' + m.content + '<|im_end|>'",
    "'<|im_start|>assistant<|im_sep|>' + m.content + '<|im_end|>'",
    "'<|im_start|>system<|im_sep|>' + m.content + '<|im_end|>'",
    "'<|im_start|>assistant<|im_sep|>'",
)
_PHI4_MINI = (
    "{% for m in messages %}"
    "{% if m.role == 'system' and 'tools' in m and m.tools is not none %}"
    "{{ '<|' + m.role + '|>' + m.content + '<|tool|>' + m.tools + '<|/tool|><|end|>' }}"
    "{% else %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)
_GRANITE = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set rest = messages[1:] %}{% else %}"
    "{% set system = \"Knowledge Cutoff Date: April 2024.\nToday's Date: \" + strftime_now('%B %d, %Y') + '.\nYou are Granite.' %}"
    "{% set rest = messages %}{% endif %}"
    "{{ '<|start_of_role|>system<|end_of_role|>' + system + '<|end_of_text|>\n' }}"
    "{% if tools %}"
    "{{ '<|start_of_role|>tools<|end_of_role|>' + tools | tojson(indent=4) + '<|end_of_text|>\n' }}"
    "{% endif %}"
    "{% for m in rest %}"
    "{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\n' }}"
    "{% if loop.last and add_generation_prompt %}"
    "{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}{% endfor %}"
)


def families() -> dict[str, Case]:
    chatml = f"{{% for m in messages %}}{{{{ {CHATML_TURN} }}}}{{% endfor %}}"
    default_system = (
        "{% if messages[0].role != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful assistant named SmolLM.<|im_end|>\n' }}"
        "{% endif %}"
    )
    turn = "'<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>'"
    tulu = "{{ m.content + eos_token + '\n' if not loop.last else m.content + eos_token }}"
    space = {"open": "[INST] ", "close": " [/INST]", "lead": "", "trim": ""}
    nemo = {"open": "[INST]", "close": "[/INST]", "lead": "", "trim": ""}
    v03 = {"open": "[INST] ", "close": "[/INST]", "lead": " ", "trim": " | trim"}
    llama3 = ("<|start_header_id|>", "<|end_header_id|>")
    return {
        "mistral_v01": Case(_MISTRAL_SYSTEM_LAST.format(**space), "Mistral v0.1", "mistral v1"),
        "mistral_v02": Case(
            _MISTRAL_SYSTEM_LAST.format(**{**space, "lead": " "}), "Mistral v0.2", "mistral v2"
        ),
        "mistral_v03": Case(_MISTRAL_SYSTEM_LAST.format(**v03), "Mistral v0.3", "mistral v3"),
        "mistral_nemo": Case(_MISTRAL_SYSTEM_LAST.format(**nemo), "Mistral Nemo", "tekken"),
        "llama2": Case(_LLAMA2, "Llama 2", "mistral v1"),
        "llama3_trimmed": Case(
            loop(
                turn,
                turn,
                turn,
                "'<|start_header_id|>assistant<|end_header_id|>\n\n'",
                before="{{ '<|begin_of_text|>' }}",
            ),
            "Llama 3",
            "llama 3",
            special=llama3,
        ),
        "zephyr": Case(_ZEPHYR, "Zephyr", "mistral v2"),
        "chatml": Case(chatml + CHATML_PROMPT, "ChatML", "qwen", special=IM),
        "smollm2": Case(default_system + chatml + CHATML_PROMPT, "SmolLM2", "qwen", special=IM),
        "smollm3": Case(_SMOLLM3, "SmolLM3", "llama 3", eos="<|im_end|>", special=IM),
        "smollm3_no_thinking": Case(
            _SMOLLM3,
            "SmolLM3",
            "llama 3",
            eos="<|im_end|>",
            special=IM,
            arguments={"enable_thinking": False},
        ),
        "phi4": Case(_PHI4, "Phi-4", "qwen", special=(*IM, "<|im_sep|>")),
        "phi4_mini": Case(
            _PHI4_MINI, "Phi-4-mini", "qwen", eos="<|endoftext|>", special=(*ROLE_TOKENS, "<|end|>"), stops=("<|end|>",),
            strips=(*ROLE_TOKENS, "<|end|>"),
        ),
        "gemma_system": Case(
            _SYSTEM_IN_FIRST_USER,
            "Gemma with a folded system prompt",
            "mistral v3",
            eos="<eos>",
            bos="<bos>",
            special=("<start_of_turn>", "<end_of_turn>"),
        ),
        "granite": Case(
            _GRANITE,
            "Granite",
            "qwen",
            eos="<|end_of_text|>",
            special=("<|start_of_role|>", "<|end_of_role|>"),
        ),
        "r1": Case(
            _R1,
            "DeepSeek R1",
            "llama 3",
            eos=f"<{WIDE}end▁of▁sentence{WIDE}>",
            special=(f"<{WIDE}User{WIDE}>", f"<{WIDE}Assistant{WIDE}>"),
            plain=("<think>", "</think>"),
        ),
        "reasoning_field": Case(_REASONING_FIELD, "reasoning in a field", "qwen", special=IM),
        "reasoning_opened": Case(
            _REASONING_FIELD,
            "reasoning opened by the prompt",
            "qwen",
            special=IM,
            arguments={"open_thinking": True},
        ),
        "hermes_tools": Case(_HERMES_TOOLS, "Hermes tools", "qwen", special=IM),
        "generation_tags": Case(_GENERATION_TAGS, "generation tags", "qwen", special=IM),
        "vicuna": Case(
            loop(
                "'USER: ' + m.content + ' '",
                "'ASSISTANT: ' + m.content + eos_token",
                "m.content + ' '",
                "'ASSISTANT:'",
            ),
            "Vicuna",
            "mistral v1",
        ),
        "alpaca": Case(
            loop(
                "'### Instruction:\n' + m.content + '\n\n'",
                "'### Response:\n' + m.content + '\n\n'",
                "m.content + '\n\n'",
                "'### Response:\n'",
            ),
            "Alpaca",
            "mistral v2",
        ),
        "deepseek_coder": Case(
            loop(
                "'### Instruction:\n' + m.content + '\n'",
                "'### Response:\n' + m.content + '\n<|EOT|>\n'",
                "m.content",
                "'### Response:'",
                before="{{ bos_token }}",
            ),
            "DeepSeek Coder",
            "llama 3",
            eos="<|EOT|>",
        ),
        "deepseek_v2": Case(
            loop(
                "'User: ' + m.content + '\n\n'",
                "'Assistant: ' + m.content + eos_token",
                "m.content + '\n\n'",
                "'Assistant:'",
                before="{{ bos_token }}",
            ),
            "DeepSeek V2",
            "llama 3",
        ),
        "falcon": Case(
            loop(
                "'User: ' + m.content + '\n\n'",
                "'Assistant: ' + m.content + '\n\n'",
                "m.content + '\n\n'",
                "'Assistant:'",
            ),
            "Falcon",
            "qwen",
            eos="<|endoftext|>",
        ),
        "tulu": Case(
            "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|assistant|>\n' }}" + tulu
            + "{% else %}{{ '<|' + m.role + '|>\n' + m.content + '\n' }}{% endif %}"
            "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
"{% endfor %}",
            "Tulu and OLMo 2",
            "llama 3",
            eos="<|end_of_text|>",
        ),
        "openchat": Case(
            "{{ bos_token }}{% for m in messages %}"
"{{ 'GPT4 Correct ' + m.role | title + ': ' + m.content + '<|end_of_turn|>' }}"
"{% endfor %}"
            "{% if add_generation_prompt %}{{ 'GPT4 Correct Assistant:' }}{% endif %}",
            "OpenChat",
            "mistral v1",
            eos="<|end_of_turn|>",
        ),
        "solar": Case(
            loop(
                "'### User:\n' + m.content + '\n\n'",
                "'### Assistant:\n' + m.content + eos_token + '\n\n'",
                "'### System:\n' + m.content + '\n\n'",
                "'### Assistant:\n'",
            ),
            "Solar",
            "mistral v1",
        ),
        "internlm2": Case(
            "{{ bos_token }}" + chatml + CHATML_PROMPT,
            "InternLM 2",
            "mistral v3",
            eos="</s>",
            special=IM,
            stops=("<|im_end|>",),
        ),
        "yi": Case(chatml + CHATML_PROMPT, "Yi", "mistral v2", eos="<|im_end|>", special=IM),
        "minicpm": Case(
            "{% for m in messages %}{% if m.role == 'user' %}"
"{{ '<User>' + m.content.strip() + '<AI>' }}{% else %}{{ m.content.strip() }}"
"{% endif %}{% endfor %}",
            "MiniCPM",
            "mistral v2",
        ),
        "exaone": Case(
            "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
"{{ '[|system|][|endofturn|]\n' }}{% endif %}"
            "{{ '[|' + m.role + '|]' + m.content }}{% if not loop.last or m.role != 'user' %}"
"{{ '[|endofturn|]\n' if m.role != 'user' else '\n' }}{% else %}{{ '\n' }}{% endif %}"
"{% endfor %}"
            "{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}",
            "EXAONE",
            "qwen",
            eos="[|endofturn|]",
            special=("[|system|]", "[|user|]", "[|assistant|]"),
        ),
        "next_role_ends": Case(
            "[gMASK]<sop>{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
            "GLM-4",
            "qwen",
            eos="<|endoftext|>",
            special=(*ROLE_TOKENS, "<|observation|>", "[gMASK]", "<sop>"),
            stops=("<|user|>", "<|observation|>"),
        ),
        "rounds": Case(_ROUNDS, "numbered rounds", "mistral v2"),
        "no_generation_prompt": Case(chatml, "ChatML without a generation prompt", "qwen", special=IM),
        "parts_for_users": Case(
            _PARTS_FOR_USERS,
            "parts for users only",
            "qwen",
            special=IM,
            parts=frozenset({"user"}),
        ),
        "parts_or_string": Case(_PARTS_OR_STRING, "parts or a string", "qwen", special=IM),
    }  # fmt: skip
