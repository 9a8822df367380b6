"""The table of docs/masks.md from the mask matrix. `python -m tests.support.chat_templates.coverage_table` writes it."""

from __future__ import annotations

from tests.support.chat_templates.templates import cases
from tests.support.repository import ROOT

PAGE = ROOT / "docs" / "masks.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
_VOCABULARIES = {
    "mistral v1": "Mistral SentencePiece v1 (mistral-common)",
    "mistral v2": "Mistral SentencePiece v2 (mistral-common)",
    "mistral v3": "Mistral SentencePiece v3 (mistral-common)",
    "tekken": "Mistral Tekken (mistral-common)",
    "qwen": "Qwen (dashscope)",
    "llama 3": "Llama 3 (llama-models)",
    "byt5": "ByT5 bytes, no fast backend (transformers)",
}
# The names of families with a vocabulary in a package start with these words.
_OWN = {
    "mistral v1": ("Mistral v0.1", "mistral-common v1"),
    "mistral v2": ("Mistral v0.2", "mistral-common v2"),
    "mistral v3": ("Mistral v0.3", "mistral-common v3"),
    "tekken": ("Mistral Nemo", "mistral-common"),
    "qwen": ("trl qwen", "ChatML"),
    "llama 3": ("Llama 3", "trl llama3", "trl deepseek_r1_distill"),
    "byt5": ("ChatML",),
}


def table() -> str:
    """Return the table as Markdown: one line per template, without those that trl patches for training."""
    lines = ["| template | vocabulary | belongs to the family |", "|---|---|---|"]
    for name, case in sorted(cases().items(), key=lambda item: item[1].family.lower()):
        if name.endswith("_training") or name.startswith("trl:qwen3:") or ":thinking=" in name:
            continue
        own = case.family.startswith(_OWN[case.vocabulary])
        fit = "yes" if own else "closest, with the family's control tokens"
        lines.append(f"| {case.family} | {_VOCABULARIES[case.vocabulary]} | {fit} |")
    return "\n".join(lines)


def page_with_table(page: str) -> str:
    """Return the page with its table regenerated."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
