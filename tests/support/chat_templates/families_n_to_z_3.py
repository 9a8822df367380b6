"""Chat templates of the families from TeleChat to Yi, rewritten in their shape."""

from __future__ import annotations

from tests.support.chat_templates.shapes import CHATML_PROMPT, IM, Case

# The last system message stands first, without anything around it.
_TELECHAT = (
    "{{ (messages | selectattr('role', 'equalto', 'system') | list | last).content | trim"
    " if 'system' in messages | map(attribute='role') else '' }}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<_user>' + m.content + '<_bot>' }}"
    "{% elif m.role == 'assistant' %}{{ m.content + '<_end>' }}{% endif %}{% endfor %}"
)
# The indentation of the source is part of the text; nothing ends an answer; system messages are left out.
_TELEFLM = (
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '        <_user>' + m.content.strip() + '<_bot>\n' }}"
    "{% elif m.role == 'system' %}{{ '        \n' }}"
    "{% elif m.role == 'assistant' %}{{ '        ' + m.content + '\n' }}{% endif %}{{ ' \n' }}{% endfor %}"
)
# The prompt stands behind every conversation; the values of a call's arguments have a letter too many.
_TOOLACE = (
    "{% set open = '<|start_header_id|>' %}{% set close = '<|end_header_id|>\n\n' %}"
    "{% if messages[0].role == 'system' %}{% set own = messages[0].content | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set own = 'You call tools.' %}{% endif %}"
    "{{ bos_token ~ open ~ 'system' ~ close }}"
    "{% if tools is not none and not tools_in_user_message %}{{ 'You compose functions.\n' }}"
    "{% for t in tools %}{{ t | tojson(indent=4) + '\n\n' }}{% endfor %}{{ '\n' }}{% endif %}"
    "{{ own + '<|eot_id|>' }}{% for m in messages %}{% if 'tool_calls' in m %}"
    "{{ open ~ 'assistant' ~ close ~ '[' }}{% for c in m.tool_calls %}{{ c.function.name + '(' }}"
    "{% for key in c.function.arguments %}"
    "{{ key + '=' + '%sr' | format(c.function.arguments[key]) + ('' if loop.last else ', ') }}{% endfor %}"
    "{{ ')' if loop.last else '), ' }}{% endfor %}{{ ']<|eot_id|>' }}"
    "{% elif m.role in ['tool', 'ipython'] %}"
    "{{ open ~ 'ipython' ~ close ~ {'output': m.content} | tojson ~ '<|eot_id|>' }}"
    "{% else %}{{ open ~ m.role ~ close ~ m.content | trim ~ '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{{ open ~ 'assistant' ~ close }}"
)


def _plain_roles(user: str, assistant: str, prompt: str) -> str:
    return (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ messages[0].content + '\n' }}"
        "{% set messages = messages[1:] %}{% else %}{{ 'A chat.\n' }}{% endif %}"
        f"{{% for m in messages %}}{{% if m.role == 'user' %}}{{{{ '{user}' + m.content + '\n' }}}}"
        f"{{% elif m.role == 'assistant' %}}{{{{ '{assistant}' + m.content + eos_token + '\n' }}}}"
        "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ '{prompt}' }}}}{{% endif %}}"
    )


# Calls are one JSON list in place of the content.
_XLAM_LLAMA = (
    "{% set open = '<|start_header_id|>' %}{% set close = '<|end_header_id|>\n\n' %}"
    "{{ bos_token ~ open ~ 'system' ~ close }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content | trim + '\n' }}"
    "{% set messages = messages[1:] %}{% else %}{{ 'You are xLAM.\n' }}"
    "{{ 'Call tools in a JSON array.\n\n' if tools is not none else '' }}{% endif %}"
    "{% for t in tools or [] %}{{ t | tojson(indent=4) + '\n\n' }}{% endfor %}{{ '<|eot_id|>' }}"
    "{% for m in messages %}{% if m.role in ['tool', 'ipython'] %}"
    "{{ open ~ 'ipython' ~ close ~ (m.content if m.content is string else m.content | tojson) }}"
    "{{ '<|eot_id|>' }}"
    "{% elif 'tool_calls' in m %}{{ open ~ 'assistant' ~ close }}{% if m.tool_calls %}{{ '[' }}"
    "{% for c in m.tool_calls %}"
    "{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}"
    "{{ '' if loop.last else ', ' }}"
    "{% endfor %}{{ ']' }}{% elif m.content %}{{ m.content | trim }}{% else %}{{ '[]\n' }}{% endif %}"
    "{{ '<|eot_id|>' }}{% else %}{{ open ~ m.role ~ close ~ m.content | trim ~ '<|eot_id|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ open ~ 'assistant' ~ close }}{% endif %}"
)
_XLAM_QWEN = (
    "{{ '<|im_start|>system\n' }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content | trim + '\n' }}"
    "{% set messages = messages[1:] %}{% else %}{{ 'You are xLAM.\n' }}"
    "{{ 'Call tools in a JSON array.\n\n' if tools is not none else '' }}{% endif %}"
    "{% for t in tools or [] %}{{ t | tojson(indent=4) + '\n\n' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% for m in messages %}{{ '<|im_start|>' + ('assistant' if 'tool_calls' in m else m.role) + '\n' }}"
    "{% if m.role == 'tool' %}{{ m.content if m.content is string else m.content | tojson }}"
    "{% elif m.tool_calls %}{{ '[' }}{% for c in m.tool_calls %}"
    "{{ c.function | tojson + ('' if loop.last else ', ') }}{% endfor %}{{ ']' }}"
    "{% elif 'tool_calls' in m and not m.content %}{{ '[]\n' }}"
    "{% else %}{{ m.content | trim }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}" + CHATML_PROMPT
)
# A question always brings the header of its answer; the system prompt has nothing around it.
_YI15 = (
    "{{ messages[0].content if messages[0].role == 'system' else '' }}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n<|im_start|>assistant\n' }}"
    "{% elif m.role == 'assistant' %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)


def families_n_to_z_3() -> dict[str, Case]:
    """Return the templates of the families from TeleChat to Yi by name."""
    tele = ("<_user>", "<_bot>")
    return {
        "telechat": Case(
            _TELECHAT, "TeleChat", "qwen", eos="<_end>", stops=("<_start>",), special=tele,
            right="Say ARONE now.<_end>",
        ),
        "teleflm": Case(
            _TELEFLM, "Tele-FLM", "qwen", eos="<_end>", special=tele, faithful=False,
            right="        Say ARONE now.<_end>",
        ),
        "toolace": Case(_TOOLACE, "ToolACE", "llama 3", right="Say ARONE now.<|eot_id|>"),
        "unsloth": Case(
            _plain_roles(">>> User: ", ">>> Assistant: ", ">>> Assistant: "), "Unsloth", "mistral v2",
            right="Say ARONE now.</s>",
        ),
        "vicuna_old": Case(
            _plain_roles("### Human: ", "### Assistant: ", "### Assistant:"), "Vicuna v0", "mistral v1",
            right=" Say ARONE now.</s>",
        ),
        "xlam_llama": Case(_XLAM_LLAMA, "xLAM on Llama", "llama 3", right="Say ARONE now.<|eot_id|>"),
        "xlam_qwen": Case(
            _XLAM_QWEN, "xLAM on Qwen", "qwen", stops=("<|endoftext|>",), special=IM,
            right="Say ARONE now.<|im_end|>",
        ),
        # No rendering shows how an answer follows `[SEP]`, so no rule decides.
        "yi1_5": Case(
            _YI15, "Yi 1.5", "mistral v2", eos="<|im_end|>", special=IM, right="Say ARONE now.<|im_end|>"
        ),
    }  # fmt: skip
