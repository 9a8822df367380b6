"""Renders text and encodes token ids exactly as a server does, with one tokenizer and its chat template."""

from __future__ import annotations

import copy
import datetime
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.chat_template.content_parts import learn_part_roles, with_parts
from finetune_trainer.data.chat_template.encoding import Encoder
from finetune_trainer.data.chat_template.rendering import (
    RENDER_ERRORS,
    RESERVED_ARGUMENTS,
    Renderer,
    refusal,
)
from finetune_trainer.data.chat_template.tool_arguments import needs_text_arguments, with_text_arguments
from finetune_trainer.data.rows.rejection import RowReason, RowRejected
from finetune_trainer.errors import Reason, StageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer in `folder` without network, remote code or mistral-common's own backend.

    Raises StageError(InvalidModel) if there is none that transformers can read.
    """
    from transformers import AutoTokenizer  # noqa: PLC0415 -- processes that only prove rows do not need it

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
    """Renders and encodes conversations for one tokenizer, one template and one set of arguments.

    It keeps no tokenizer object and can be sent to another process, which compiles the template again.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        render_date: datetime.datetime | None = None,
    ) -> None:
        """Compile the template. It sees `render_date` as the current time; the default is the present.

        Raises StageError(ChatTemplateMissing) if neither tokenizer nor `template` provides a chat template, and
        StageError(ChatTemplateUnprovable) if the template does not compile or an argument has a reserved name.
        """
        if template is None and not tokenizer.chat_template:
            raise StageError(
                Reason.CHAT_TEMPLATE_MISSING,
                "the tokenizer must have a chat template, found none; name one in model.chatTemplate",
            )
        reserved = sorted(RESERVED_ARGUMENTS.intersection(arguments or {}))
        if reserved:
            raise StageError(
                Reason.CHAT_TEMPLATE_UNPROVABLE,
                "model.chatTemplateArguments must not contain names that rendering itself passes, "
                f"found {reserved[0]}; remove it",
            )
        self._is_named = template is not None
        self.render_date = render_date or datetime.datetime.now().astimezone().replace(tzinfo=None)
        self._arguments = {**tokenizer.special_tokens_map, **(arguments or {})}
        try:
            self._sources = (
                str(tokenizer.get_chat_template(template, None)),
                str(tokenizer.get_chat_template(template, [{}])),
            )
        except ValueError as error:
            # A tokenizer may have several named templates and none called default.
            raise StageError(
                Reason.CHAT_TEMPLATE_MISSING,
                "the tokenizer must have a default chat template, found only named ones: "
                f"{str(error).splitlines()[0][:200]}; name one in model.chatTemplate",
            ) from error
        self._renderers = self._compile()
        self.encoder = Encoder(tokenizer)
        added: dict[int, Any] = tokenizer.added_tokens_decoder
        self.added_tokens = {token_id: str(token.content) for token_id, token in added.items()}
        self.special_ids = {token_id for token_id, token in added.items() if token.special}
        self.special_ids.update(tokenizer.all_special_ids)
        self.eos_token: str | None = tokenizer.eos_token
        self.eos_id: int | None = tokenizer.eos_token_id
        self.bos_token: str | None = tokenizer.bos_token
        self.bos_id: int | None = tokenizer.bos_token_id
        self.part_roles = frozenset[str]()
        self.text_arguments = False
        self.part_roles = learn_part_roles(self.render)
        self.text_arguments = needs_text_arguments(self.render)
        if self.text_arguments:
            self.part_roles = learn_part_roles(self.render)

    @property
    def remedy(self) -> str:
        """What a user can do about a template that cannot be proven."""
        if self._is_named:
            return "name another template in model.chatTemplate, or remove it to use the model's own"
        return "name another template in model.chatTemplate"

    @property
    def writes_date(self) -> bool:
        """True if the template reads the current time, so that its text depends on `render_date`."""
        return any("strftime_now" in source for source in self._sources)

    def at(self, render_date: datetime.datetime) -> ChatTemplate:
        """Return the same template with another render date."""
        other = copy.copy(self)
        other.render_date = render_date
        other._renderers = other._compile()  # noqa: SLF001 -- a copy of this object
        return other

    def source(self, *, tools: bool = False) -> str:
        """Return the Jinja source used with or without tools."""
        return self._sources[tools]

    def token_text(self, token_id: int) -> str | None:
        """Return a control token as the template writes it; None for an id that the tokenizer lacks."""
        return self.added_tokens.get(token_id) or self.encoder.token(token_id)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of rendered texts; nothing is added, because the template writes all tokens."""
        return self.encoder.encode(texts)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, with control tokens and unchanged spaces."""
        return self.encoder.decode(ids)

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Any, *, generation: bool) -> str:
        """Render messages as a server does; `generation` adds the prompt for the assistant's next turn.

        Raises RowRejected(TemplateRefused) with the template's own message if it has one.
        """
        if self.part_roles:
            messages = with_parts(messages, self.part_roles)
        if self.text_arguments:
            messages = with_text_arguments(messages)
        try:
            return self._renderers[bool(tools)].render(messages, tools, generation=generation)
        except RENDER_ERRORS as error:
            raise RowRejected(RowReason.TEMPLATE_REFUSED, "messages", refusal(error)) from error

    def _compile(self) -> tuple[Renderer, Renderer]:
        try:
            plain = Renderer(self._sources[0], self._arguments, self.render_date)
            if self._sources[1] == self._sources[0]:
                return plain, plain
            return plain, Renderer(self._sources[1], self._arguments, self.render_date)
        except RENDER_ERRORS as error:
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise StageError(
                Reason.CHAT_TEMPLATE_UNPROVABLE,
                f"the chat template must be Jinja that compiles, found: {first_line}; {self.remedy}",
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_renderers"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._renderers = self._compile()


class ControlText:
    """Finds control tokens in a message's text, where they would let content pose as the template."""

    def __init__(
        self,
        template: ChatTemplate,
        stop_texts: Iterable[str],
        headers: Iterable[str],
        is_reasoning: Callable[[str], bool],
    ) -> None:
        tokens = {template.added_tokens.get(token_id) for token_id in template.special_ids}
        tokens.update(template.token_text(token_id) for token_id in template.special_ids)
        tokens.update(stop_texts)
        tokens.update(headers)
        sources = template.source() + template.source(tools=True)
        self._tokens = sorted(token for token in tokens if token)
        # Both answers and templates write the tags around reasoning, even if they are special tokens.
        self._answer_tokens = [
            token for token in self._tokens if not (is_reasoning(token) and token in sources)
        ]
        self._first_characters = {token[0] for token in self._tokens}

    def find(self, text: str, *, answer: bool) -> str | None:
        """Return a control token in `text`, or None. Answers may contain reasoning tags."""
        if not any(character in text for character in self._first_characters):
            return None
        tokens = self._answer_tokens if answer else self._tokens
        return next((token for token in tokens if token in text), None)
