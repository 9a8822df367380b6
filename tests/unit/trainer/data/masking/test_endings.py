from __future__ import annotations

import pytest
from finetune_trainer.data.chat_template.template import ChatTemplate
from finetune_trainer.data.masking.endings import Endings
from finetune_trainer.data.masking.grammar import learn_grammar
from tokenizers import AddedToken

from tests.support.tiny_models import CHATML, tiny_tokenizer

_TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}"
_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
_CHATML = "{% for m in messages %}" + _TURN + "<|im_end|>\n{% endfor %}"
_OPEN = "{% for m in messages %}" + _TURN + "\n{% endfor %}"


def endings(source: str, *special: str, eos: str = "<|im_end|>", stops: tuple[str, ...] = ()) -> Endings:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer.eos_token = eos
    template = ChatTemplate(tokenizer, source)
    stop_ids: list[int] = [tokenizer.added_tokens_encoder[text] for text in stops]
    return learn_grammar(template, stop_ids).endings


def learned(source: str, *special: str, eos: str = "<|im_end|>", stops: tuple[str, ...] = ()) -> str | None:
    """Return what is learned from the answer "a" in rendered text."""
    return endings(source, *special, eos=eos, stops=stops).cut(
        ChatTemplate(tiny_tokenizer(), source)
        .render(
            [{"role": "user", "content": "q"}, {"role": "assistant", "content": "ANSWER"}],
            None,
            generation=False,
        )
        .partition("ANSWER")[2],
        0,
    )


def test_a_turn_ends_with_the_first_token_at_which_a_server_stops() -> None:
    source = _CHATML.replace("<|im_end|>", "<|close|><|im_end|><|more|>") + _PROMPT
    assert learned(source, "<|close|>", "<|more|>") == "<|close|><|im_end|>"


def test_an_end_that_no_configuration_names_is_learned() -> None:
    found = endings(_CHATML + _PROMPT, "<|eos|>", eos="<|eos|>")
    assert found.texts == ("<|eos|>", "<|im_end|>")
    assert found.cut("a<|im_end|>\n", 0) == "a<|im_end|>"


def test_the_last_control_token_behind_the_answer_is_the_end() -> None:
    source = _CHATML.replace("<|im_end|>", "<|close|><|im_end|>") + _PROMPT
    assert learned(source, "<|close|>", "<|eos|>", eos="<|eos|>") == "<|close|><|im_end|>"


def test_a_configured_end_leaves_nothing_to_learn() -> None:
    assert endings(CHATML).texts == ("<|im_end|>",)


@pytest.mark.parametrize("separator", ["\n", ""])
def test_the_header_of_the_next_turn_never_belongs_to_an_answer(separator: str) -> None:
    """The template writes it behind every conversation, and no configuration names the end."""
    source = (_CHATML + "{{ '<|im_start|>assistant\n' }}").replace("<|im_end|>\n", "<|im_end|>" + separator)
    found = endings(source, "<|eos|>", eos="<|eos|>")
    assert found.next_header.strip() == "<|im_start|>assistant"
    assert learned(source, "<|eos|>", eos="<|eos|>") == "<|im_end|>"


@pytest.mark.parametrize("end", ["{{ '\n' }}", ""])
def test_a_header_of_words_is_not_learned_before_an_appended_end(end: str) -> None:
    source = "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}### assistant:" + end
    assert endings(source).next_header.strip() == "### assistant:"
    assert learned(source) == "<|im_end|>"


def test_an_answer_that_the_template_leaves_open_gets_the_end_of_sequence() -> None:
    found = endings(_OPEN + _PROMPT)
    assert found.appended == "<|im_end|>"
    assert found.cut("an answer  ", 0) == "an answer<|im_end|>"


def test_an_open_answer_ends_with_the_next_header_if_servers_stop_there() -> None:
    source = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
    source = source.replace("<|assistant|>", "{% if add_generation_prompt %}<|assistant|>{% endif %}")
    found = endings(source, "<|user|>", "<|assistant|>", stops=("<|user|>",))
    assert found.appended == "<|user|>"


def test_an_open_call_ends_with_the_token_of_its_result() -> None:
    source = (
        "{% for m in messages %}<|{{ 'observation' if m.role == 'tool' else m.role }}|>{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    found = endings(source, "<|user|>", "<|assistant|>", "<|observation|>", stops=("<|user|>",))
    assert (found.appended, found.appended_to_call) == ("<|user|>", "<|observation|>")
    assert found.texts == ("<|im_end|>", "<|observation|>", "<|user|>")


def test_text_is_cut_after_the_first_end_token_from_a_position() -> None:
    found = endings(CHATML)
    text = "a<|im_end|>b<|im_end|>"
    assert found.cut(text, 0) == "a<|im_end|>"
    assert found.cut(text, 2) == text
    assert found.cut("no end", 0) is None


def test_line_breaks_of_the_vocabulary_are_text() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("\n", "\n\n")])
    source = "{% for m in messages %}{{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
    found = learn_grammar(ChatTemplate(tokenizer, source)).endings
    assert found.texts == ("<|im_end|>",)
