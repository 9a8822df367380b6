from __future__ import annotations

import datetime
import pickle

import pytest
from finetune_trainer.data.chat_template.template import ChatTemplate
from finetune_trainer.errors import Reason, StageError

from tests.support.chat_templates.real_tokenizers import RealTokenizers
from tests.support.tiny_models import tiny_tokenizer


def test_an_encoder_and_a_template_are_the_same_in_another_process(tokenizers: RealTokenizers) -> None:
    tokenizer = tokenizers.load("mistral v3")
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[INST] {{ m.content }}[/INST]{% endfor %}"
    )
    template = ChatTemplate(tokenizer)
    copy = pickle.loads(pickle.dumps(template))  # noqa: S301 -- written on the same line
    messages = [{"role": "user", "content": "Hello"}]
    text = template.render(messages, None, generation=True)
    assert copy.render(messages, None, generation=True) == text
    assert copy.encode([text]) == template.encode([text])
    assert copy.decode(copy.encode([text])[0]) == template.decode(template.encode([text])[0])


def test_the_default_date_is_the_present() -> None:
    template = ChatTemplate(
        tiny_tokenizer(), "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    now = datetime.datetime.now().astimezone()
    text = template.render([{"role": "user", "content": "Hello"}], None, generation=False)
    assert text in {f"{year}Hello" for year in (now.year, now.year - 1)}


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt"])
def test_an_argument_with_a_reserved_name_is_an_error(name: str) -> None:
    with pytest.raises(StageError, match=name) as caught:
        ChatTemplate(tiny_tokenizer(), arguments={name: 1})
    assert caught.value.reason is Reason.CHAT_TEMPLATE_UNPROVABLE


@pytest.mark.parametrize("source", ["{% for m in %}", "{{ x | nosuchfilter }}", "{% endif %}"])
def test_a_template_that_does_not_compile_is_an_error(source: str) -> None:
    with pytest.raises(StageError) as caught:
        ChatTemplate(tiny_tokenizer(), source)
    assert caught.value.reason is Reason.CHAT_TEMPLATE_UNPROVABLE
