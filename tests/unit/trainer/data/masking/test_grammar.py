from __future__ import annotations

import pytest
from finetune_trainer.data.chat_template.template import ChatTemplate
from finetune_trainer.data.masking.masking import Masker
from finetune_trainer.errors import Reason, StageError

from tests.support.tiny_models import tiny_tokenizer


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
