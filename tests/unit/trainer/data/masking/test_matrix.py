"""Every template of the matrix with its conversations, judged without the engine's code.

`make test` gives each template a covering set: one conversation of every kind, and all of the kinds on which the template
branches. Every pair of a template feature and a conversation occurs in some template. The other pairs differ from
these only in words or length; `make test-full` renders the whole product.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from finetune_trainer.data.chat_template.template import ChatTemplate, load_tokenizer
from finetune_trainer.data.conversations.conversation import parse_conversation
from finetune_trainer.data.masking.masking import Masker
from finetune_trainer.data.rows.rejection import RowReason, RowRejected

from tests.support.chat_templates import matrix
from tests.support.chat_templates.acceptance import (
    ACCEPTED_SHARE,
    TEMPLATE_REASONS,
    examine,
    masker_for,
    outcome,
)
from tests.support.chat_templates.conversations import conversations
from tests.support.chat_templates.covering import KINDS, covering_set, features
from tests.support.chat_templates.real_tokenizers import RealTokenizers
from tests.support.chat_templates.shapes import Case
from tests.support.chat_templates.templates import TRL_TEMPLATES, cases

if TYPE_CHECKING:
    from pathlib import Path

# Templates with one vocabulary come together, so that few vocabularies are in use at a time.
_NAMES = sorted(cases(), key=lambda name: (cases()[name].vocabulary, name.replace("_training", "")))


@pytest.mark.slow
@pytest.mark.parametrize("name", _NAMES)
def test_rendered_rows_are_accepted_and_accepted_rows_are_right(
    tokenizers: RealTokenizers, name: str
) -> None:
    """Accept at least 97 % of the covering set's rendered rows, and every accepted row is right.

    The engine's own rendering is compared with transformers' on the way.
    """
    require_right(tokenizers, name, covering_set()[name])


@pytest.mark.full
@pytest.mark.parametrize("name", _NAMES)
def test_every_conversation_with_every_template_is_accepted_and_right(
    tokenizers: RealTokenizers, name: str
) -> None:
    require_right(tokenizers, name, tuple(conversations()))


def require_right(tokenizers: RealTokenizers, name: str, titles: tuple[str, ...]) -> None:
    found = examine(tokenizers, name, titles)
    print(f"\n{name}: {found.accepted} of {found.rendered} accepted, {len(found.wrong)} wrong")
    assert found.differently_rendered == []
    assert found.wrong == {}
    assert set(found.reasons) <= TEMPLATE_REASONS
    if cases()[name].faithful:
        assert found.rendered > 0
        assert found.accepted >= ACCEPTED_SHARE * found.rendered, found.rejected


@pytest.mark.parametrize("name", [name for name in _NAMES if cases()[name].right is not None])
def test_exactly_the_text_that_a_person_found_right_is_learned(tokenizers: RealTokenizers, name: str) -> None:
    tokenizer, masker = masker_for(tokenizers, cases()[name])
    examples = outcome(masker, conversations()["single"].row)
    assert not isinstance(examples, RowRejected), examples
    (example,) = examples
    learned = tokenizer.decode([label for label in example.labels if label != -100])
    # A decoder drops the space at the beginning of a text.
    assert learned.lstrip(" ") == str(cases()[name].right).lstrip(" ")


def test_every_conversation_is_of_one_kind() -> None:
    assert Counter(title for titles in KINDS.values() for title in titles) == Counter(list(conversations()))


def test_the_covering_set_holds_every_kind_for_every_template() -> None:
    assert covering_set().keys() == cases().keys()
    for name, titles in covering_set().items():
        missing = [kind for kind, members in KINDS.items() if not set(members) & set(titles)]
        assert not missing, name


def test_the_covering_set_holds_every_pair_of_feature_and_conversation() -> None:
    found = {
        (feature, title)
        for name, titles in covering_set().items()
        for feature in features(name, cases()[name])
        for title in titles
    }
    wanted = {feature for name, case in cases().items() for feature in features(name, case)}
    assert found == {(feature, title) for feature in wanted for title in conversations()}


def test_a_template_that_branches_on_reasoning_or_tools_sees_every_such_conversation() -> None:
    for name, case in cases().items():
        titles = set(covering_set()[name])
        for word, kinds in (("think", ("inline reasoning", "reasoning field")), ("tool", ("tools",))):
            if word in case.source:
                assert titles.issuperset(title for kind in kinds for title in KINDS[kind]), name


def test_a_fresh_tokenizer_is_the_one_that_transformers_loads(tokenizers: RealTokenizers) -> None:
    fresh, loaded = tokenizers.load("mistral v3"), tokenizers.load_from_files("mistral v3")
    fresh_again = tokenizers.load("mistral v3")
    assert fresh.backend_tokenizer.to_str() == loaded.backend_tokenizer.to_str()
    fresh.add_tokens(["<|new|>"])
    assert fresh_again.backend_tokenizer.to_str() == loaded.backend_tokenizer.to_str()
    assert fresh_again.special_tokens_map == loaded.special_tokens_map


def test_the_matrix_holds_every_template_that_trl_ships() -> None:
    shipped = {f"trl:{path.stem}" for path in TRL_TEMPLATES.glob("*.jinja")}
    assert len(shipped) > 50
    assert shipped <= set(cases())


def test_a_mistral_system_prompt_and_two_turns_learn_exactly_the_answers(
    tokenizers: RealTokenizers,
) -> None:
    """The template moves the system prompt to the last user turn, so each turn becomes a separate example."""
    tokenizer, masker = masker_for(tokenizers, cases()["mistral_v03"])
    examples = outcome(masker, conversations()["system multi"].row)
    assert not isinstance(examples, RowRejected)
    learned = [tokenizer.decode([label for label in example.labels if label != -100]) for example in examples]
    assert [text.strip() for text in learned] == ["Say ARONE now.</s>", "Say ARTWO.</s>"]
    assert all("SYONE" in tokenizer.decode(example.input_ids) for example in examples)


def test_turns_with_identical_tokens_are_joined_into_one_sequence(
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
def test_a_template_that_ignores_reasoning_is_recognized(
    tokenizers: RealTokenizers, name: str, reasoning: str
) -> None:
    """If arguments turn thinking off, the prompt closes the block before the model writes."""
    _, masker = masker_for(tokenizers, cases()[name])
    assert masker.reasoning_is_plain_text is (reasoning == "plain")


@pytest.mark.parametrize(
    ("name", "title", "reason"),
    [
        ("drops_system", "echo", RowReason.CONTENT_NOT_RENDERED),
        ("only_last_user", "repeated", RowReason.CONTENT_NOT_RENDERED),
        ("history_summarized", "template words", RowReason.CONTENT_NOT_RENDERED),
        ("length_in_answer", "single", RowReason.MASK_UNPROVABLE),
        ("lowering", "single", RowReason.CONTENT_NOT_RENDERED),
        ("trl:gemma", "system", RowReason.TEMPLATE_REFUSED),
        ("mistral_v03", "two questions in a row", RowReason.TEMPLATE_REFUSED),
        ("mistral_v03", "answer first", RowReason.TEMPLATE_REFUSED),
    ],
)
def test_a_template_that_leaves_out_or_rewrites_text_rejects_the_row(
    tokenizers: RealTokenizers, name: str, title: str, reason: RowReason
) -> None:
    """Even if the missing text occurs elsewhere in the conversation by coincidence."""
    _, masker = masker_for(tokenizers, cases()[name])
    result = outcome(masker, conversations()[title].row)
    assert isinstance(result, RowRejected)
    assert result.reason is reason


def test_earlier_turns_dropped_for_the_length_are_counted(tokenizers: RealTokenizers) -> None:
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


def test_the_template_of_the_real_model_is_learned(real_model: Path) -> None:
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
