from __future__ import annotations

from typing import Any

import pytest
from finetune_trainer.data.chat_template.template import ChatTemplate
from finetune_trainer.data.conversations.conversation import Conversation
from finetune_trainer.data.masking.grammar import Grammar, contexts_of, learn_grammar
from finetune_trainer.data.masking.masking import Masker
from finetune_trainer.errors import Reason, StageError

from tests.support.tiny_models import CHATML, tiny_tokenizer


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, Reason.CHAT_TEMPLATE_MISSING),
        ("hello", Reason.CHAT_TEMPLATE_UNPROVABLE),
        ("{% for", Reason.CHAT_TEMPLATE_UNPROVABLE),
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
            Reason.CHAT_TEMPLATE_UNPROVABLE,
        ),
    ],
)
def test_an_unprovable_template_fails_before_the_first_row(template: str | None, expected: Reason) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(StageError) as caught:
        Masker(ChatTemplate(tokenizer), 64)
    assert caught.value.reason is expected


def grammar(template: str, **arguments: Any) -> Grammar:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return learn_grammar(ChatTemplate(tokenizer, arguments=arguments))


_TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}"
_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def test_the_text_around_an_answer_is_learned_from_chatml() -> None:
    found = grammar(CHATML)
    assert (found.prefix, found.suffix, found.generation_prompt) == (
        "",
        "<|im_end|>",
        "<|im_start|>assistant\n",
    )
    assert found.stop_texts == ("<|im_end|>",)
    assert found.endings.appended is None
    assert not found.trims
    assert found.headers == {"<|im_start|>", "<|im_end|>"}


def test_a_template_that_trims_answers_is_recognized() -> None:
    assert grammar(CHATML.replace("message.content", "message.content | trim")).trims


def test_text_before_an_answer_is_its_prefix() -> None:
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}final: {% endif %}{{ m.content }}<|im_end|>\n{% endfor %}" + _PROMPT
    )
    assert grammar(source).prefix == "final: "


def test_reasoning_that_a_template_renders_has_its_surroundings() -> None:
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>{{ m.reasoning_content }}"
        "</think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}" + _PROMPT
    )
    found = grammar(source)
    assert (found.reasoning_prefix, found.reasoning_end) == ("<think>", "</think>")
    assert not found.reasoning_is_plain_text


def test_a_template_that_ignores_reasoning_writes_it_as_plain_text() -> None:
    assert grammar(CHATML).reasoning_is_plain_text


def test_the_contexts_of_samples_are_tools_and_system_prompts() -> None:
    plain = Conversation([{"role": "user", "content": "q"}])
    tooled = Conversation(
        [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], [{"type": "function"}]
    )
    assert contexts_of([plain, plain]) == []
    assert [(bool(context.tools), context.system) for context in contexts_of([plain, tooled, tooled])] == [
        (True, True),
        (True, False),
        (False, True),
    ]


@pytest.mark.parametrize("needed", ["not tools", "messages[0].role != 'system'"])
def test_a_template_that_needs_more_gets_what_the_rows_have(needed: str) -> None:
    tokenizer = tiny_tokenizer()
    source = f"{{% if {needed} %}}{{{{ raise_exception('more') }}}}{{% endif %}}{CHATML}"
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    row = Conversation(
        [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a"},
        ],
        [tool],
    )
    with pytest.raises(StageError, match="more"):
        Masker(ChatTemplate(tokenizer, source), 64)
    (outcome,) = Masker(ChatTemplate(tokenizer, source), 64, samples=[row]).examples([row])
    assert isinstance(outcome, list)


@pytest.mark.parametrize(
    ("named", "remedy"), [(True, "use the model's own"), (False, "name another template")]
)
def test_the_remedy_never_names_the_template_in_use(named: bool, remedy: str) -> None:  # noqa: FBT001 -- a case of the table
    tokenizer = tiny_tokenizer()
    source = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}BOT SAYS{% endif %}"
    )
    tokenizer.chat_template = source
    template = ChatTemplate(tokenizer, source if named else None)
    with pytest.raises(StageError) as caught:
        Masker(template, 64)
    assert remedy in caught.value.message
    assert ("own" in caught.value.message) is named
    assert "BOT SAYS" in caught.value.message
