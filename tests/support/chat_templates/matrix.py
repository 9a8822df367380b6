"""Tokenizers for the mask matrix, and a judge that shares no code with the masks."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import TYPE_CHECKING, Any

import jinja2
from tokenizers import AddedToken

from tests.support.chat_templates.shapes import WIDE, Case

if TYPE_CHECKING:
    from tests.support.chat_templates.real_tokenizers import RealTokenizers

Messages = list[dict[str, Any]]
# Each of these words occurs in one message.
WORDS = re.compile(r"[A-Z]{2}(?:ONE|TWO|THREE|FOUR)")
_CONTROL = re.compile(
    rf"<\|[^|<>\s'\"{{}}]+\|?>|<[a-z_]+\|>|<{WIDE}[^{WIDE}]+{WIDE}>|</?s>|<(?:start|end)_of_(?:turn|utterance)>|<bos>|<eos>"
)
_REASONING_TAG = re.compile(
    r"</?(?:seed:)?(?:think|thought|reasoning)>|\[/?THINK\]|<\|(?:START|END)_THINKING\|>"
)
_OPENING = re.compile(r"<[a-z:]+>\Z")
_EMPTY_BLOCK = re.compile(r"\A(?:<[a-z:]+>)?</[a-z:]+>")
_CLOSING = re.compile(r"</[a-z:]+>")
# Templates raise these for a conversation that they do not support.
RENDER_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


def fit(tokenizers: RealTokenizers, case: Case) -> Any:
    """Return a tokenizer with the template and the tokens that its family has."""
    special = set(case.special) | set(case.stops) | set(_CONTROL.findall(case.source))
    special.update(token for token in (case.eos, case.bos) if token)
    plain = set(case.plain) | {tag for tag in ("<think>", "</think>") if tag in case.source}
    tokenizer = tokenizers.load(case.vocabulary)
    tokens = [
        AddedToken(text, special=text not in plain, normalized=False, rstrip=text in case.strips)
        for text in (*sorted(special), *sorted(plain))
        if text in case.strips or not _knows(tokenizer, text)
    ]
    tokenizer.add_tokens(tokens)
    tokenizer.init_kwargs.setdefault("bos_token", None)
    tokenizer.eos_token = case.eos or tokenizer.init_kwargs["eos_token"]
    tokenizer.bos_token = case.bos or tokenizer.init_kwargs["bos_token"]
    if tokenizer.bos_token is None and "bos_token" in case.source:
        tokenizer.bos_token = "<|endoftext|>"
    tokenizer.chat_template = case.source
    return tokenizer


def _knows(tokenizer: Any, text: str) -> bool:
    # A dictionary of all tokens would take half a second to make.
    if tokenizer.is_fast:
        return tokenizer.backend_tokenizer.token_to_id(text) is not None
    return text in tokenizer.get_vocab()


def learned_turns(messages: Messages) -> list[int]:
    """Return the positions of the answers that are learned: an answer before the first question is context."""
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    asked = next((i for i, message in enumerate(messages) if message["role"] in {"user", "tool"}), 0)
    return [index for index in answers if index > asked] or answers


def stop_ids(tokenizer: Any, case: Case) -> list[int]:
    """Return the ids that the family's generation config would name."""
    return [tokenizer.convert_tokens_to_ids(token) for token in (*case.stops, tokenizer.eos_token)]


class Judge:
    """Finds faults in the examples of one conversation with only the tokenizer and the template."""

    def __init__(self, tokenizer: Any, case: Case) -> None:
        self._tokenizer = tokenizer
        self._case = case
        self._wants_text: bool | None = None
        self._rendered: dict[str, str | Exception] = {}

    def render(self, messages: Messages, tools: Any, *, generation: bool) -> str:
        """Return the text as a server renders it. Raises the errors of transformers."""
        key = json.dumps([messages, tools, generation], sort_keys=True)
        found = self._rendered.get(key)
        if found is None:
            found = self._rendered[key] = self._outcome_of_rendering(messages, tools, generation=generation)
        if isinstance(found, Exception):
            raise found
        return found

    def _outcome_of_rendering(self, messages: Messages, tools: Any, *, generation: bool) -> str | Exception:
        if self._spells_python(messages):
            messages = [_with_json_arguments(message) for message in messages]
        shaped = [
            {**m, "content": [{"type": "text", "text": m["content"]}]}
            if m["role"] in self._case.parts and isinstance(m.get("content"), str)
            else m
            for m in messages
        ]
        try:
            text: str = self._tokenizer.apply_chat_template(
                shaped, tools=tools, add_generation_prompt=generation, tokenize=False, **self._case.arguments
            )
        except RENDER_ERRORS as error:
            return error
        return text

    def _spells_python(self, messages: Messages) -> bool:
        """Return True if the template fails on a call's object or writes it as Python does: it wants JSON text."""
        if not any(message.get("tool_calls") for message in messages):
            return False
        if self._wants_text is None:
            call = {"type": "function", "id": "abcdefghi", "function": {"name": "n", "arguments": {"k": "v"}}}
            probe: Messages = [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
            ]
            outcomes = []
            for form in (probe, [_with_json_arguments(message) for message in probe]):
                try:
                    outcomes.append(
                        self._tokenizer.apply_chat_template(form, tokenize=False, **self._case.arguments)
                    )
                except RENDER_ERRORS:
                    outcomes.append("")
            self._wants_text = (not outcomes[0] or "{'k'" in outcomes[0]) and '{"k": "v"}' in outcomes[1]
        return self._wants_text

    def renderable(self, messages: Messages, tools: Any = None) -> bool:
        """Return True if the template accepts the conversation and writes all of its text.

        Reasoning in history may be left out; reasoning and calls of a turn that is learned may not.
        """
        for index in learned_turns(messages):
            message = messages[index]
            try:
                prompt = self.render(messages[:index], tools, generation=True)
                full = self.render(messages[: index + 1], tools, generation=False)
            except RENDER_ERRORS:
                return False
            context = [text for m in messages[:index] for text in _texts_of(m, history=True)]
            if not all(_occurs(text, prompt) for text in context):
                return False
            # A trace that only this rendering drops can still be learned if the prompt opens it.
            said = _texts_of(message, history="<think>" in prompt[-12:])
            if not all(_occurs(text, full) for text in said):
                return False
            if self._stops_before_its_end(messages, index, prompt, full, said):
                return False
            # The names of functions also occur among the tools.
            names = [call["function"]["name"] for call in message.get("tool_calls") or []]
            if any(full.count(name) <= prompt.count(name) for name in names):
                return False
        return self._writes_every_message(messages, tools)

    def _stops_before_its_end(
        self, messages: Messages, index: int, prompt: str, full: str, said: list[str]
    ) -> bool:
        """Return True if an end token stands inside the answer: a server never writes what stands behind it."""
        asked = str(messages[index - 1].get("content") or "").strip() if index else ""
        if full.startswith(prompt):
            behind, headers = full[len(prompt) :], ""
        elif asked in prompt and asked in full:
            behind = full[full.rindex(asked) + len(asked) :]
            headers = prompt[prompt.rindex(asked) + len(asked) :]
        else:
            return False
        stops = [stop for stop in (self._tokenizer.eos_token, *self._case.stops) if stop]
        for stop in stops:
            # The end of the question and the answer's header come before the answer.
            rest = behind.split(stop, headers.count(stop) + 1)[headers.count(stop) + 1 :]
            if rest and any(part in rest[0] for part in said[-1:]):
                return True
        return False

    def _writes_every_message(self, messages: Messages, tools: Any) -> bool:
        """Return True if words in place of the messages are all written: texts may occur by coincidence."""
        probes = [
            {**m, "content": f"Probe{number}Q"} if (m.get("content") or "").strip() else m
            for number, m in enumerate(messages)
        ]
        last = max(index for index, m in enumerate(messages) if m["role"] == "assistant")
        try:
            prompt = self.render(probes[:last], tools, generation=True)
        except RENDER_ERRORS:
            return False
        return all(m["content"] in prompt for m in probes[:last] if m["content"].startswith("Probe"))

    def faults(self, messages: Messages, examples: list[Any], tools: Any = None) -> list[str]:
        """Return the faults of the examples, an empty list if there are none."""
        runs = [run for example in examples for run in _runs(list(example.input_ids), list(example.labels))]
        turns = learned_turns(messages)
        if len(runs) != len(turns):
            return [f"{len(turns)} answers, {len(runs)} learned"]
        faults = []
        for (before, learned), index in zip(runs, turns, strict=True):
            try:
                served = self.render(messages[:index], tools, generation=True)
            except RENDER_ERRORS as error:
                return [f"turn {index} cannot be served: {error}"]
            if before != self._tokenizer(served, add_special_tokens=False)["input_ids"]:
                faults.append(f"turn {index}: context differs from the served prompt")
            faults += [
                f"turn {index}: {fault}"
                for fault in self._faults_of_answer(messages, index, learned, served, tools)
            ]
        return faults

    def _faults_of_answer(
        self, messages: Messages, index: int, learned: list[int], served: str, tools: Any
    ) -> list[str]:
        tokenizer, message = self._tokenizer, messages[index]
        text = tokenizer.decode(learned)
        faults = []
        place = 0
        for part in _texts_of(message, history=False):
            # A template may write the arguments of a call before its name.
            found = _find(part, text, 0 if message.get("tool_calls") else place)
            if found is None:
                faults.append(f"{part!r} not learned in order")
            else:
                place = found
        foreign = {
            word
            for other in messages if other is not message
            for word in WORDS.findall(json.dumps(other, ensure_ascii=False))
        } - set(WORDS.findall(json.dumps(message, ensure_ascii=False)))  # fmt: skip
        faults += [f"{word} learned" for word in sorted(foreign) if word in text]
        last = tokenizer.convert_ids_to_tokens(learned[-1])
        ends = {tokenizer.eos_token, *self._case.stops, *self._case.special, *tokenizer.all_special_tokens}
        if learned[-1] not in tokenizer.added_tokens_decoder and last not in ends:
            faults.append(f"ends with {last!r}")
        asked = str(messages[index - 1].get("content") or "").strip()
        faults += self._faults_of_tags(served, text, asked, _texts_of(message, history=False))
        stops = stop_ids(tokenizer, self._case)
        if any(token_id in stops for token_id in learned[:-1]):
            faults.append(f"goes on behind the end of the turn: {text!r}")
        # If the template renders the conversation as it prompts, exactly its text must be learned.
        full = self.render(messages[: index + 1], tools, generation=False)
        if full.startswith(served):
            faults += self._faults_of_text(messages[: index + 1], tools, served, full, text, str(last))
            if learned[-1] not in stops and any(
                stop in full[len(served) :] for stop in (tokenizer.eos_token, *self._case.stops) if stop
            ):
                faults.append(f"ends before the token at which a server stops: {text!r}")
        return faults

    def _faults_of_text(
        self, messages: Messages, tools: Any, served: str, full: str, text: str, last: str
    ) -> list[str]:
        """Return the faults of a learned text, if the template writes the answer of the last message behind the prompt."""
        faults = []
        written, spelled = _squeezed(full[len(served) :]), _squeezed(text)
        opened = _OPENING.search(served.rstrip())
        said = _texts_of(messages[-1], history=False)
        trace = said[0] if len(said) > len(_texts_of(messages[-1], history=True)) else ""
        if trace and _squeezed(trace) not in written:
            # The template has no place for a trace, so it is learned as the text that servers search for.
            block = _squeezed(f"{trace}</think>" if opened else f"<think>{trace}</think>")
            if spelled.count(block) != 1:
                faults.append("the trace is not learned as a separate block")
            spelled = spelled.replace(block, "")
            written = _EMPTY_BLOCK.sub("", written)
        written = self._with_one_block(messages, tools, served, written)
        if opened:
            # The template may repeat the tag that its prompt ends with.
            written = written.removeprefix(opened[0])
        closing = _CLOSING.match(spelled)
        if opened and closing and closing[0] not in written:
            # The template leaves the block open that its prompt opens.
            spelled = spelled[closing.end() :]
        end = _squeezed(last)
        if not written.startswith(spelled) and not (
            spelled.endswith(end) and written.startswith(spelled[: len(spelled) - len(end)])
        ):
            faults.append(f"learned {text!r} where the template writes {full[len(served) :]!r}")
        return faults

    def _with_one_block(self, messages: Messages, tools: Any, served: str, written: str) -> str:
        """Return what a template writes, without the empty block that it writes before a block in the content.

        A template that takes a trace in a field shows there how it writes the trace once.
        """
        empty = re.match(r"(?:<[a-z:]+>)?</[a-z:]+>(?=<think>)", written)
        if empty is None:
            return written
        said, text = _texts_of(messages[-1], history=False), _texts_of(messages[-1], history=True)
        trace = said[: len(said) - len(text)]
        field = {**messages[-1], "content": "".join(text), "reasoning_content": "".join(trace)}
        other = self.render([*messages[:-1], field], tools, generation=False)
        if other.startswith(served) and all(part in other[len(served) :] for part in trace):
            return _squeezed(other[len(served) :])
        return written[empty.end() :]

    def _faults_of_tags(self, served: str, text: str, asked: str, said: list[str]) -> list[str]:
        """Return the reasoning tags that the prompt's end and the answer write twice."""
        for part in said:
            text = text.replace(part, "")
        # A trace behind a block that the prompt has closed is ordinary text.
        behind = served[served.rfind(asked) + len(asked) :] if asked else ""
        block = text if re.search(r"</[a-z:]+>\s*\Z", behind) else behind + text
        return [
            f"{tag!r} is written twice: {block!r}"
            for tag in sorted(set(_REASONING_TAG.findall(self._case.source)))
            if block.count(tag) > 1
        ]


def _runs(ids: list[int], labels: list[int]) -> list[tuple[list[int], list[int]]]:
    """Split an example into (all ids before, learned ids) per unbroken run of labels."""
    starts = [i for i, label in enumerate(labels) if label != -100 and (i == 0 or labels[i - 1] == -100)]
    runs = []
    for start in starts:
        end = next((i for i in range(start, len(labels)) if labels[i] == -100), len(labels))
        runs.append((ids[:start], labels[start:end]))
    return runs


def _with_json_arguments(message: dict[str, Any]) -> dict[str, Any]:
    calls = [
        {
            **call,
            "function": {
                **call["function"],
                "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
            },
        }
        for call in message.get("tool_calls") or []
    ]
    return {**message, "tool_calls": calls} if calls else message


def _texts_of(message: dict[str, Any], *, history: bool) -> list[str]:
    """Return the texts of a message in order; without its reasoning if it is history."""
    content = message.get("content") or ""
    trace = message.get("reasoning_content") or ""
    if message["role"] == "assistant" and re.match(r"\s*<think>", content) and "</think>" in content:
        trace, content = content.lstrip().removeprefix("<think>").split("</think>", 1)
    texts = [content.strip()] if history else [trace.strip(), content.strip()]
    for call in message.get("tool_calls") or []:
        texts.append(call["function"]["name"])
        texts += [str(value) for value in call["function"]["arguments"].values()]
    return [text for text in texts if text]


def _find(text: str, rendered: str, start: int) -> int | None:
    """Return the position after `text` in `rendered`, ignoring white space and JSON escapes."""
    squeezed = _squeezed(rendered)
    for form in (text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1]):
        position = squeezed.find(_squeezed(form), start)
        if position >= 0:
            return position + len(_squeezed(form))
    return None


def _occurs(text: str, rendered: str) -> bool:
    return any(
        form in rendered
        for form in (text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1])
    )


def _squeezed(text: str) -> str:
    """Return text without white space, composed as most tokenizers' normalizers compose it."""
    return "".join(unicodedata.normalize("NFC", text).replace("\u2581", " ").split())
