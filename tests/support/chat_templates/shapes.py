"""The case of the mask matrix, and the parts of its templates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# DeepSeek's control tokens contain the bar U+FF5C; the escape distinguishes it from similar characters.
WIDE = "\uff5c"


@dataclass(frozen=True)
class Case:
    """One template with the vocabulary that it is tested with.

    `special` and `plain` are added tokens that the vocabulary lacks. `stops` are the stop tokens of the generation config.
    `strips` are added tokens that absorb the white space after them. `parts` are the roles whose content the template
    reads as a list of parts. `faithful` is False for a template that rewrites or leaves out content. `right` is the text
    that must be learned from the conversation "single", determined by hand; None if it is not.
    """

    source: str
    family: str
    vocabulary: str
    eos: str | None = None
    bos: str | None = None
    special: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()
    strips: tuple[str, ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict)
    parts: frozenset[str] = frozenset()
    faithful: bool = True
    right: str | None = None


CHATML_TURN = "'<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n'"
CHATML_PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
IM = ("<|im_start|>", "<|im_end|>")
EVERY_ROLE = frozenset({"system", "user", "assistant", "tool", "developer"})
ROLE_TOKENS = ("<|user|>", "<|assistant|>", "<|system|>")


def loop(user: str, assistant: str, system: str | None = None, prompt: str = "''", before: str = "") -> str:
    """Return a template of Jinja expressions for the three roles; it rejects a role without expression."""
    other = f"{{{{ {system} }}}}" if system else "{{ raise_exception('only user and assistant') }}"
    return (
        f"{before}{{% for m in messages %}}{{% if m.role == 'user' %}}{{{{ {user} }}}}"
        f"{{% elif m.role == 'assistant' %}}{{{{ {assistant} }}}}"
        f"{{% elif m.role == 'system' %}}{other}"
        "{% else %}{{ raise_exception('unknown role') }}{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ {prompt} }}}}{{% endif %}}"
    )
