from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_trainer.contract.result import LanguageShare
from finetune_trainer.contract.run_spec import RunSpec
from finetune_trainer.stages.merge.card_metadata import base_license, front_matter
from huggingface_hub import ModelCard

from tests.support.results import PREPARE

Runs = Callable[..., RunSpec]


def read(lines: list[str]) -> dict[str, Any]:
    assert (lines[0], lines[-1]) == ("---", "---")
    document: dict[str, Any] = yaml.safe_load("\n".join(lines[1:-1]))
    return document


def hub_run(make_run: Runs, repository: str = "org/base") -> RunSpec:
    return make_run(
        model={
            "source": {"kind": "HuggingFace", "repository": repository, "revision": "main"},
            "chatTemplateArguments": {},
        },
        dataset={
            "source": {"kind": "HuggingFace", "repository": "org/rows", "revision": "main"},
            "validation": {"source": {"kind": "HuggingFace", "repository": "org/rows", "revision": "main"}},
            "reasoning": "Keep",
            "rejectedRows": {"maximumFraction": 0.01},
        },
    )


def test_the_head_has_what_the_hub_shows(make_run: Runs) -> None:
    languages = (LanguageShare(code="en", fraction=0.9), LanguageShare(code="de", fraction=0.01))
    prepared = PREPARE.model_copy(
        update={"dataset": PREPARE.dataset.model_copy(update={"languages": languages})}
    )
    lines = front_matter(hub_run(make_run), "Adapter", prepared, {"license": "mit"})
    assert read(lines) == {
        "base_model": "org/base",
        "base_model_relation": "adapter",
        "license": "mit",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "datasets": ["org/rows"],
        "language": ["en"],
        "tags": ["lora", "qlora", "sft"],
    }
    card = ModelCard("\n".join([*lines, "# text"]))
    found = vars(card.data)
    assert (found["license"], found["base_model"]) == ("mit", "org/base")


def test_the_base_as_trained_names_neither_data_nor_relation(make_run: Runs) -> None:
    found = read(front_matter(hub_run(make_run), "BaseAsTrained", PREPARE, {}))
    assert found.keys() == {"base_model", "library_name", "pipeline_tag"}


@pytest.mark.parametrize("name", ["my model", "a\n---\nlicense: mit", "<b>", "../x", "a/b/c"])
def test_a_base_without_a_name_of_the_hub_is_left_out(make_run: Runs, name: str) -> None:
    """The hub refuses a card with such a value."""
    assert "base_model" not in read(front_matter(hub_run(make_run, name), "Merged", PREPARE, {}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\n# Model", {"license": "apache-2.0"}),
        (
            "---\nlicense: other\nlicense_name: my license\nlicense_link: https://example.com/LICENSE\n---\n",
            {"license": "other", "license_name": "my license", "license_link": "https://example.com/LICENSE"},
        ),
        ("---\nlicense: other\nlicense_link: javascript:alert(1)\n---\n", {"license": "other"}),
        ("---\nlicense: [mit]\n---\n", {}),
        ("---\nlicense_name: x\n---\n", {}),
        ("---\n- a\n---\n", {}),
        ("---\na: [\n---\n", {}),
        ("---\n" + "[" * 5000 + "\n---\n", {}),
        ("# Model\n---\nlicense: mit\n---\n", {}),
        ("", {}),
        (None, {}),
    ],
)
def test_the_license_comes_from_the_head_of_the_bases_card(
    tmp_path: Path, text: str | None, expected: dict[str, str]
) -> None:
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    assert base_license(tmp_path) == expected
