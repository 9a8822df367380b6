from __future__ import annotations

from finetune_trainer.data.chat_template.template import ChatTemplate
from finetune_trainer.data.masking.markup import Markup
from tokenizers import AddedToken

from tests.support.tiny_models import tiny_tokenizer


def markup(*plain: str, source: str | None = None) -> Markup:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in plain])
    return Markup(ChatTemplate(tokenizer, source))


def texts(found: Markup, text: str) -> list[str]:
    return [marker.text for marker in found.find(text)]


def test_control_tokens_and_markup_are_found_in_order() -> None:
    text = "<|im_start|>a [INST] b </think> c <|channel>thought <channel|> \u25c1think\u25b7"
    assert texts(markup(), text) == [
        "<|im_start|>", "[INST]", "</think>", "<|channel>", "<channel|>", "\u25c1think\u25b7",
    ]  # fmt: skip


def test_a_token_of_another_form_is_found_if_the_template_writes_it() -> None:
    source = "{% for m in messages %}]~b]{{ m.content }}{% endfor %}"
    assert texts(markup("]~b]", source=source), "]~b]x") == ["]~b]"]
    assert texts(markup("]~b]"), "]~b]x") == []


def test_line_breaks_and_words_of_the_vocabulary_are_no_control_tokens() -> None:
    found = markup("\n", "\n\n", "<table>", "word")
    assert not {"\n", "\n\n", "<table>", "word"} & found.control.keys()
    assert "<|im_end|>" in found.control


def test_first_and_last_special_token_of_a_text() -> None:
    found = markup()
    text = "a<|im_end|>\n<|im_start|>b"
    assert found.first_special(text) == found.control["<|im_end|>"]
    assert found.last_special(text) == found.control["<|im_start|>"]
    assert found.first_special("nothing") is None


def test_markers_near_the_end_keep_their_positions_in_the_whole_text() -> None:
    text = "x" * 1000 + "<think>\n"
    (marker,) = markup().at_end(text)
    assert text[marker.start : marker.end] == marker.text == "<think>"


def test_the_last_marker_has_to_stand_at_the_end() -> None:
    last = markup().last("<a> b <think>\n")
    assert last is not None
    assert last.text == "<think>"
    assert markup().last("<think>" + "x" * 100) is None


def test_a_marker_is_known_from_the_source_or_the_vocabulary() -> None:
    found = markup("</plan>")
    assert found.first_known(["</other>", "</plan>"]) == "</plan>"
    assert found.first_known(["</other>"]) is None
