"""Every template of the matrix with every conversation, judged without the engine's code."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from finetune_trainer.data.chat_template.template import ChatTemplate, load_tokenizer
from finetune_trainer.data.conversations.conversation import parse_conversation
from finetune_trainer.data.masking.example import Example
from finetune_trainer.data.masking.masking import Masker
from finetune_trainer.data.rows.rejection import RowReason, RowRejected

from tests.support.chat_templates import matrix
from tests.support.chat_templates.adversarial_templates import adversarial_templates
from tests.support.chat_templates.conversations import Sample, conversations
from tests.support.chat_templates.other_families import other_families
from tests.support.chat_templates.real_tokenizers import RealTokenizers
from tests.support.chat_templates.shapes import Case
from tests.support.chat_templates.templates import TRL_TEMPLATES, cases

if TYPE_CHECKING:
    from pathlib import Path

_ACCEPTED_SHARE = 0.97
# How a row may be refused for what its template does with it.
_TEMPLATE_REASONS = {
    RowReason.TEMPLATE_REFUSED,
    RowReason.CONTENT_NOT_RENDERED,
    RowReason.MASK_UNPROVABLE,
}
_ODD = {**other_families(), **adversarial_templates()}.keys()
# Neighbours share a vocabulary and tokens, so that a worker builds few tokenizers.
_NAMES = sorted(cases(), key=lambda name: (cases()[name].vocabulary, name.replace("_training", "")))


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> RealTokenizers:
    return RealTokenizers(tmp_path_factory.mktemp("tokenizers"))


def masker_for(tokenizers: RealTokenizers, case: Case) -> tuple[Any, Masker]:
    tokenizer = matrix.fit(tokenizers, case)
    template = ChatTemplate(tokenizer, arguments=case.arguments)
    return tokenizer, Masker(template, maximum_length=100_000, eos_ids=matrix.stop_ids(tokenizer, case))


def outcome(masker: Masker, row: dict[str, Any]) -> list[Example] | RowRejected:
    (result,) = masker.examples([parse_conversation(row, "Keep")])
    return result


def same_text(
    judge: matrix.Judge, template: ChatTemplate, messages: list[dict[str, Any]], tools: Any
) -> bool:
    """Whether the engine renders what transformers renders, or both refuse."""
    for generation in (True, False):
        try:
            wanted: str | None = judge.render(messages, tools, generation=generation)
        except matrix.RENDER_ERRORS:
            wanted = None
        try:
            found: str | None = template.render(messages, tools, generation=generation)
        except RowRejected:
            found = None
        if found != wanted:
            return False
    return True


def _conversations(name: str) -> list[tuple[str, Sample]]:
    """Every conversation; a part of them, another for each name, where other templates of its kind have the rest.

    A template that trl patches for training serves as the original does, and odd shapes are many.
    """
    everything = list(conversations().items())
    share = 3 if name.endswith("_training") else 2 if name in _ODD else 1
    return everything[_NAMES.index(name) % share :: share]


@pytest.mark.parametrize("name", _NAMES)
def test_what_a_template_renders_is_accepted_and_nothing_is_accepted_wrong(
    tokenizers: RealTokenizers, name: str
) -> None:
    """At least 97 % of what it renders is accepted; of what is accepted, everything is right.

    The engine's own rendering is held equal to transformers' on the way.
    """
    case = cases()[name]
    tokenizer, masker = masker_for(tokenizers, case)
    judge = matrix.Judge(tokenizer, case)
    counts: Counter[str] = Counter()
    wrong, refused = {}, {}
    for title, sample in _conversations(name):
        messages = parse_conversation(sample.row, "Keep").messages
        assert same_text(judge, masker.template, messages, sample.tools), (
            f"{title}: not as transformers renders it"
        )
        result = outcome(masker, sample.row)
        rendered = judge.renderable(messages, sample.tools)
        counts["rendered"] += rendered
        if not isinstance(result, RowRejected):
            counts["accepted"] += rendered
            if faults := judge.faults(messages, result, sample.tools):
                wrong[title] = faults
        else:
            assert result.reason in _TEMPLATE_REASONS, f"{title}: {result}"
            if rendered:
                refused[title] = str(result)
    print(f"\n{name}: {counts['accepted']} of {counts['rendered']} accepted, {len(wrong)} wrong")
    assert wrong == {}
    if case.faithful:
        assert counts["rendered"] > 0
        assert counts["accepted"] >= _ACCEPTED_SHARE * counts["rendered"], refused


def test_the_matrix_holds_every_template_that_trl_ships() -> None:
    shipped = {f"trl:{path.stem}" for path in TRL_TEMPLATES.glob("*.jinja")}
    assert len(shipped) > 50
    assert shipped <= set(cases())


def test_a_mistral_system_prompt_and_two_turns_learn_exactly_the_answers_and_their_ends(
    tokenizers: RealTokenizers,
) -> None:
    """The template moves the system prompt to the last user turn: each turn becomes an example of its own."""
    tokenizer, masker = masker_for(tokenizers, cases()["mistral_v03"])
    examples = outcome(masker, conversations()["system multi"].row)
    assert not isinstance(examples, RowRejected)
    learned = [tokenizer.decode([label for label in example.labels if label != -100]) for example in examples]
    assert [text.strip() for text in learned] == ["Say ARONE now.</s>", "Say ARTWO.</s>"]
    assert all("SYONE" in tokenizer.decode(example.input_ids) for example in examples)


def test_turns_are_folded_into_one_sequence_where_they_are_token_identical(
    tokenizers: RealTokenizers,
) -> None:
    _, masker = masker_for(tokenizers, cases()["chatml"])
    examples = outcome(masker, conversations()["multi"].row)
    assert not isinstance(examples, RowRejected)
    assert len(examples) == 1


@pytest.mark.parametrize(
    ("name", "reasoning"),
    [
        ("chatml", "plain"),
        ("mistral_v03", "plain"),
        ("trl:qwen3_instruct_2507", "plain"),
        ("trl:qwen3:thinking=False", "plain"),
        ("trl:qwen3", "served"),
        ("r1", "served"),
        ("trl:gptoss", "served"),
        ("reasoning_field", "served"),
    ],
)
def test_a_template_that_takes_no_notice_of_reasoning_is_known(
    tokenizers: RealTokenizers, name: str, reasoning: str
) -> None:
    """Also one whose arguments turn thinking off: its prompt closes the block before the model writes."""
    _, masker = masker_for(tokenizers, cases()[name])
    assert masker.reasoning_is_plain_text is (reasoning == "plain")


@pytest.mark.parametrize(
    ("name", "title", "reason"),
    [
        ("drops_system", "echo", RowReason.CONTENT_NOT_RENDERED),
        ("only_last_user", "repeated", RowReason.CONTENT_NOT_RENDERED),
        ("history_summarised", "template words", RowReason.CONTENT_NOT_RENDERED),
        ("length_in_answer", "single", RowReason.MASK_UNPROVABLE),
        ("lowering", "single", RowReason.CONTENT_NOT_RENDERED),
        ("trl:gemma", "system", RowReason.TEMPLATE_REFUSED),
        ("mistral_v03", "two questions in a row", RowReason.TEMPLATE_REFUSED),
        ("chatml", "answer first", RowReason.TEMPLATE_REFUSED),
    ],
)
def test_a_template_that_leaves_out_or_rewrites_text_costs_the_row_with_its_reason(
    tokenizers: RealTokenizers, name: str, title: str, reason: RowReason
) -> None:
    """Even where the text that it leaves out stands elsewhere in the conversation by coincidence."""
    _, masker = masker_for(tokenizers, cases()[name])
    result = outcome(masker, conversations()[title].row)
    assert isinstance(result, RowRejected)
    assert result.reason is reason


def test_earlier_turns_that_were_left_out_for_the_length_are_counted(tokenizers: RealTokenizers) -> None:
    case = cases()["chatml"]
    tokenizer = matrix.fit(tokenizers, case)
    messages = conversations()["many turns"].messages
    long = Masker(ChatTemplate(tokenizer), maximum_length=45)
    result = outcome(long, {"messages": messages})
    assert not isinstance(result, RowRejected)
    assert max(len(example.input_ids) for example in result) <= 45
    assert result[0].dropped_turns == 0
    assert result[-1].dropped_turns > 0
    assert "a says 5." in tokenizer.decode([label for label in result[-1].labels if label != -100])


def test_the_real_models_own_template_is_learned(real_model: Path) -> None:
    tokenizer = load_tokenizer(real_model)
    masker = Masker(ChatTemplate(tokenizer), maximum_length=100_000)
    judge = matrix.Judge(tokenizer, Case(tokenizer.chat_template, "SmolLM2", "its own"))
    for title, sample in conversations().items():
        messages = parse_conversation(sample.row, "Keep").messages
        result = outcome(masker, sample.row)
        if isinstance(result, RowRejected):
            assert not judge.renderable(messages, sample.tools), f"{title}: {result}"
        else:
            assert judge.faults(messages, result, sample.tools) == [], title
