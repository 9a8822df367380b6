"""Lets base and tuned model answer held-out rows and sample prompts, and judges the answers.

Nothing here ends a run but a request to stop: what cannot be answered is not measured, and the reason says why.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract.bounds import shorten
from finetune_trainer.contract.run_spec import DEFAULT_GENERATED_ROWS
from finetune_trainer.data.chat_template.encoding import Encoder
from finetune_trainer.data.chat_template.template import ChatTemplate, load_tokenizer
from finetune_trainer.data.rows.rejection import RowRejected
from finetune_trainer.errors import StageError
from finetune_trainer.evaluation import generation
from finetune_trainer.evaluation.generation import AnswerPair, Limits, answer_pairs
from finetune_trainer.evaluation.questions import Question, answer_limit, choose_questions
from finetune_trainer.evaluation.task_metrics import METRICS, AnsweredRow, measure, unmeasured

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from finetune_trainer.contract.run_spec import RunSpec
    from finetune_trainer.contract.train_result import MetricResult
    from finetune_trainer.data.masking.example import Example

_log = logging.getLogger(__name__)
SAMPLE_TOKENS = 256
"""Tokens of an answer to a sample prompt."""
MAXIMUM_REASON = 128
_SHOWN_ROWS = 3
_NO_ROOM = "there was too little time or GPU memory"


@dataclass(frozen=True)
class AnswerText:
    """The text of an answer with its control tokens, and whether it ended before the limit of tokens."""

    text: str
    ended: bool


@dataclass(frozen=True)
class Sample:
    """A prompt and both answers as text. `row` is the number of a held-out row, None for a prompt of the job.

    `reason` says why there are no answers.
    """

    prompt: str
    row: int | None = None
    reference: str | None = None
    base: AnswerText | None = None
    tuned: AnswerText | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Answers:
    """The metrics, the samples to show to people, and all answered rows."""

    metrics: tuple[MetricResult, ...] = ()
    samples: tuple[Sample, ...] = ()
    rows: tuple[Sample, ...] = ()


@dataclass(frozen=True)
class Asking:
    """What a run asks with: the model in evaluation mode, its tokenizer's folder and the tokens that end an answer.

    `progress` gets (prompts answered, prompts in all) at every token and may raise StageError to stop;
    `out_of_memory` tells an error of a full device. `agreed` is that of `generation.Limits`.
    """

    model: Any
    tokenizer: Path
    stops: tuple[int, ...]
    progress: Callable[[int, int], None]
    out_of_memory: Callable[[BaseException], bool]
    agreed: Callable[[bool], bool] = bool


def ask(run: RunSpec, asking: Asking, examples: Sequence[Example]) -> Answers:
    """Generate and judge the answers that the run asks for. Raises StageError only if `asking.progress` does."""
    evaluation = run.evaluation
    if not evaluation.generated_rows and not evaluation.sample_prompts:
        return Answers(unmeasured(evaluation.metrics or (), "evaluation.generatedRows is 0"))
    try:
        tokenizer = load_tokenizer(asking.tokenizer)
    except StageError as error:  # it ends no run at this point
        return _failed(run, reason_of("the tokenizer cannot be loaded", error))
    try:
        return _ask(run, asking, tokenizer, examples)
    except StageError:
        raise
    except Exception as error:  # noqa: BLE001 -- an architecture may fail in any way, and the adapter is trained already
        _log.warning("the answers could not be generated", exc_info=True)
        return _failed(run, reason_of("the model could not generate", error))


def reason_of(what: str, error: BaseException) -> str:
    """Return what failed and the first line of the error, in the length that a result allows."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return shorten(f"{what}: {first}", MAXIMUM_REASON)


def _failed(run: RunSpec, reason: str) -> Answers:
    evaluation = run.evaluation
    return Answers(
        unmeasured(evaluation.metrics or METRICS[:1], reason),
        tuple(Sample(prompt, reason=reason) for prompt in evaluation.sample_prompts),
    )


def _ask(run: RunSpec, asking: Asking, tokenizer: Any, examples: Sequence[Example]) -> Answers:
    evaluation = run.evaluation
    asked = max(1.0, evaluation.generated_rows / DEFAULT_GENERATED_ROWS)
    deadline = time.monotonic() + generation.MAXIMUM_SECONDS * asked
    encoder = Encoder(tokenizer)
    samples = _sample_answers(run, asking, tokenizer, deadline)
    if not evaluation.generated_rows:
        return Answers(unmeasured(evaluation.metrics or (), "evaluation.generatedRows is 0"), samples)
    context = getattr(asking.model.config.get_text_config(), "max_position_embeddings", None)
    questions = choose_questions(examples, evaluation.generated_rows, context)
    if not questions:
        return Answers(
            unmeasured(evaluation.metrics or METRICS[:1], "all reference answers or prompts are too long"),
            samples,
        )
    pairs = _pairs(asking, [question.prompt for question in questions], answer_limit(questions), deadline)
    rows = tuple(
        _answered(encoder, question, pair, asking.stops)
        for question, pair in zip(questions, pairs, strict=True)
    )
    judged = [
        AnsweredRow(row.reference or "", row.base.text, row.tuned.text)
        for row in rows
        if row.base is not None and row.tuned is not None
    ]
    metrics = (
        measure(judged, evaluation.metrics)
        if judged
        else unmeasured(evaluation.metrics or METRICS[:1], _NO_ROOM)
    )
    return Answers(metrics, samples or rows[:_SHOWN_ROWS], rows)


def _sample_answers(run: RunSpec, asking: Asking, tokenizer: Any, deadline: float) -> tuple[Sample, ...]:
    """Answer the job's own prompts, each as the only message of a user, rendered as a server does."""
    prompts = run.evaluation.sample_prompts
    if not prompts:
        return ()
    try:
        template = ChatTemplate(tokenizer, None, run.model.chat_template_arguments)
    except StageError as error:  # it ends no run at this point
        reason = reason_of("the chat template cannot be used", error)
        return tuple(Sample(prompt, reason=reason) for prompt in prompts)
    samples = [_rendered(template, prompt) for prompt in prompts]
    ids = {place: found for place, found in enumerate(samples) if not isinstance(found, Sample)}
    pairs = dict(zip(ids, _pairs(asking, list(ids.values()), SAMPLE_TOKENS, deadline), strict=True))
    return tuple(
        found if isinstance(found, Sample) else _shown(template.encoder, Sample(prompt), pairs[place])
        for place, (prompt, found) in enumerate(zip(prompts, samples, strict=True))
    )


def _rendered(template: ChatTemplate, prompt: str) -> list[int] | Sample:
    """Return the ids of a served prompt, or a sample that says why the template refuses it."""
    try:
        text = template.render([{"role": "user", "content": prompt}], None, generation=True)
    except RowRejected as error:
        return Sample(prompt, reason=reason_of("the chat template refuses the prompt", error))
    return template.encode([text])[0]


def _pairs(
    asking: Asking, prompts: Sequence[Sequence[int]], new_tokens: int, deadline: float
) -> list[AnswerPair | None]:
    limits = Limits(new_tokens, asking.stops, deadline, asking.agreed)
    return answer_pairs(asking.model, prompts, limits, asking.progress, asking.out_of_memory)


def _answered(encoder: Encoder, question: Question, pair: AnswerPair | None, stops: Sequence[int]) -> Sample:
    reference = question.reference
    if reference and reference[-1] in stops:
        reference = reference[:-1]
    sample = Sample(encoder.decode(question.prompt), question.row, encoder.decode(reference))
    return _shown(encoder, sample, pair)


def _shown(encoder: Encoder, sample: Sample, pair: AnswerPair | None) -> Sample:
    if pair is None:
        return Sample(sample.prompt, sample.row, sample.reference, reason=_NO_ROOM)
    base, tuned = (
        AnswerText(encoder.decode(answer.tokens), answer.ended) for answer in (pair.base, pair.tuned)
    )
    return Sample(sample.prompt, sample.row, sample.reference, base, tuned)
