"""A tokenizer with its chat template: text as a server renders it, token ids as a server feeds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jinja2
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from finetune_trainer.data.rows import RowReason, RowRefused
from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

# What templates raise for a conversation they do not take: their own raise_exception, and whatever Python
# says when a template indexes or concatenates a value that is not there.
_RENDER_ERRORS = (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError)


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer in `folder` without network, remote code or mistral-common's own backend.

    Raises StageError(InvalidModel) if there is none that transformers can read.
    """
    try:
        return AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, mistral_format=False
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError) as error:
        # transformers has no common base class for a tokenizer that it cannot load.
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise StageError(
            Reason.INVALID_MODEL,
            f"the model folder must hold a tokenizer that transformers reads: {first_line}",
        ) from error


class ChatTemplate:
    """Renders and encodes conversations for one tokenizer, one template and one set of arguments."""

    def __init__(
        self, tokenizer: Any, template: str | None = None, arguments: Mapping[str, Any] | None = None
    ) -> None:
        """Raise StageError(ChatTemplateMissing) if neither tokenizer nor `template` gives a chat template."""
        if template is None and not tokenizer.chat_template:
            raise StageError(
                Reason.CHAT_TEMPLATE_MISSING,
                "the tokenizer must have a chat template, found none; name one in model.chatTemplate",
            )
        self.tokenizer = tokenizer
        self._template = template
        self._arguments = {**tokenizer.special_tokens_map, **(arguments or {})}
        self._backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()
        added: dict[int, Any] = tokenizer.added_tokens_decoder
        self.added_tokens = {token_id: str(token.content) for token_id, token in added.items()}
        self.special_ids = {token_id for token_id, token in added.items() if token.special}
        self.special_ids.update(tokenizer.all_special_ids)
        self.eos_token: str | None = tokenizer.eos_token
        self.bos_token: str | None = tokenizer.bos_token
        self.bos_id: int | None = tokenizer.bos_token_id

    def source(self, *, tools: bool = False) -> str:
        """Return the Jinja source used with or without tools."""
        return str(self.tokenizer.get_chat_template(self._template, [{}] if tools else None))

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Any, *, generation: bool) -> str:
        """Render messages as a server does; `generation` adds the prompt for the assistant's next turn.

        Raises RowRefused(TemplateRefused) with the template's own message.
        """
        try:
            # Annotated as text, the function returns the texts and the spans that it calls generated.
            outcome: Any = render_jinja_template(
                conversations=[[dict(message) for message in messages]],
                tools=tools,
                chat_template=self.tokenizer.get_chat_template(self._template, tools),
                add_generation_prompt=generation,
                **self._arguments,
            )
        except _RENDER_ERRORS as error:
            first_line = (str(error) or type(error).__name__).splitlines()[0][:200]
            raise RowRefused(RowReason.TEMPLATE_REFUSED, "messages", first_line) from error
        return str(outcome[0][0])

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of rendered texts; nothing is added, since the template writes its own tokens."""
        if self._backend is not None:
            encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
            return [encoding.ids for encoding in encodings]
        return [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, control tokens included, spaces as they are."""
        text: str = self.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def normalise(self, text: str) -> str:
        """Text as the tokenizer sees it, for comparing what was written with what was encoded."""
        normaliser = self._backend.normalizer if self._backend is not None else None
        if normaliser is not None:
            text = normaliser.normalize_str(text)
        return text.replace("\u2581", " ").strip()


class ControlText:
    """Finds control tokens in a message's text: there they would let content pose as the template."""

    def __init__(self, template: ChatTemplate, enders: Iterable[str], headers: Iterable[str]) -> None:
        tokens = {template.added_tokens.get(token_id) for token_id in template.special_ids}
        tokens.update(str(template.tokenizer.convert_ids_to_tokens(i)) for i in template.special_ids)
        tokens.update(enders)
        tokens.update(headers)
        sources = template.source() + template.source(tools=True)
        self._tokens = sorted(token for token in tokens if token)
        # Tags around reasoning are written by answers and templates alike, even where they are special tokens.
        self._answer_tokens = [
            token for token in self._tokens if not (_is_reasoning_tag(token) and token in sources)
        ]
        self._first_characters = {token[0] for token in self._tokens}

    def find(self, text: str, *, answer: bool) -> str | None:
        """Return a control token in `text`, or None; reasoning tags may stand in an answer."""
        if not any(character in text for character in self._first_characters):
            return None
        tokens = self._answer_tokens if answer else self._tokens
        return next((token for token in tokens if token in text), None)


def _is_reasoning_tag(token: str) -> bool:
    return "think" in token.lower() or "reason" in token.lower()
