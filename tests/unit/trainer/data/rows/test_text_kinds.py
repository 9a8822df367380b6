from __future__ import annotations

import time

import pytest
from finetune_trainer.data.rows.text_kinds import text_kind


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("from os import path\n\nx = 1\n", "Python source"),
        ("export default [{prompt: 'a'}]\n", "JavaScript source"),
        ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho<|im_end|>\n", "text that a chat template has already rendered"),
        ("### Instruction:\nadd\n### Response:\n3\n", "text that a chat template has already rendered"),
        ("**User**: hi\n**Assistant**: ho\n", "a written conversation"),
        ("Q: why?\nA: so\n", "a written conversation"),
        ("key: value\nother:\n  - item\n", "a YAML document"),
        ("- one\n- two\n", "a YAML document"),
        ("Title\n=====\n\nText.\n", "a Markdown document"),
        ("See [this](https://example.com).\n```json\n{}\n```\n", "a Markdown document"),
        ("(OrderedDict({'a': 1}))\n", None),
        ("{'a': 1, 'b': 'it''s'}\n", "Python's own notation, which is not JSON"),
        ("From me@example.com Mon\nSubject: x\n", "e-mail"),
        ("s3://bucket/rows.jsonl", "an address instead of the file itself"),
        ("hf://a\nhf://b\nhf://c\nhf://d\n", None),
        ("once upon a time there was a cat\nand it slept\n", None),
        ("class action suits are common\nfrom here on\nimport duties rise every year\n", None),
        ("Insert into the oven for ten minutes.\n", None),
        ("helloworld" * 20, None),
        ("", None),
        ("\n \n", None),
    ],
)  # fmt: skip
def test_a_text_is_named_by_its_lines(text: str, what: str | None) -> None:
    kind = text_kind(text)
    assert (None if kind is None else kind.what) == what


@pytest.mark.parametrize(
    "piece", ["'", "{'a", "[", "|", "a" * 50 + "|", "<title>", "- ", "\\'", "<Error>", "---\n", "import a, "]
)
def test_no_text_takes_long(piece: str) -> None:
    """A pattern that backtracks too much would take minutes for one of these."""
    start = time.process_time()
    text_kind(piece * (200_000 // len(piece)))
    text_kind((piece * 500 + "\n") * 400)
    assert time.process_time() - start < 2
