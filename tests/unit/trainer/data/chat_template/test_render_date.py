from __future__ import annotations

import datetime
from pathlib import Path

from finetune_trainer.data.chat_template.render_date import pin_render_date
from finetune_trainer.data.chat_template.template import ChatTemplate

from tests.support.tiny_models import tiny_tokenizer

_DATED = "{% for m in messages %}{{ strftime_now('%d %b %Y') + ': ' + m.content + eos_token }}{% endfor %}"


def test_the_date_in_prompts_is_always_the_date_of_the_first_rendering(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    yesterday = ChatTemplate(
        tiny_tokenizer(), _DATED, render_date=datetime.datetime(2026, 3, 1, 23, 59, tzinfo=datetime.UTC)
    )
    text = pin_render_date(yesterday, tmp_path).render(messages, None, generation=False)
    assert text.startswith("01 Mar 2026: Hello")
    today = ChatTemplate(
        tiny_tokenizer(), _DATED, render_date=datetime.datetime(2026, 3, 2, 0, 1, tzinfo=datetime.UTC)
    )
    assert pin_render_date(today, tmp_path).render(messages, None, generation=False) == text


def test_a_template_without_a_date_writes_no_file(tmp_path: Path) -> None:
    template = ChatTemplate(tiny_tokenizer())
    assert pin_render_date(template, tmp_path) is template
    assert list(tmp_path.iterdir()) == []
