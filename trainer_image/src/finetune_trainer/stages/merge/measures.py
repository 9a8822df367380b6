"""The numbers of a comparison between the trained and the merged model, from what both predict for the same rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from finetune_trainer.evaluation.recording import Effect, Record
from finetune_trainer.evaluation.scoring import kl_divergence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from finetune_trainer.stages.merge.streamed_model import Scores


@dataclass(frozen=True)
class RowMeasure:
    """Divergences of one row, each the mean over its recorded positions in nats.

    `effect` is KL(trained || base), `divergence` KL(trained || merged), `rounding` KL(exact || rounded once more), and
    `arithmetic` KL(trained || trained in float32): 0 if the training computed in float32, NaN if it is not known.
    """

    row: int
    positions: int
    effect: float
    divergence: float
    rounding: float
    arithmetic: float


@dataclass(frozen=True)
class Slope:
    """The slope of log p(model) - log p(base) on log p(trained) - log p(base), through the origin, over all tokens.

    `noise` is the standard error that rounding and arithmetic cause, see `_noise`.
    """

    value: float
    noise: float


@dataclass(frozen=True)
class Measures:
    """All numbers of one comparison. Losses are nats per supervised token.

    `slope` is that of the merged model. The last four are root mean squares over the tokens, in nats: `change` of
    log p(trained) - log p(base), `rounding` of what a second rounding changes, `arithmetic` of what float32 changes in
    log p(trained), and `deviation` of log p(exact) - log p(trained), where exact weights are those before they are
    rounded. The trained numbers are those in float32 if the record has them. `deviation` is NaN if the training used
    another arithmetic that was not measured.
    """

    rows: tuple[RowMeasure, ...]
    tokens: int
    trained_loss: float
    merged_loss: float
    exact_loss: float
    slope: Slope
    change: float
    rounding: float
    arithmetic: float
    deviation: float

    @property
    def mean(self) -> RowMeasure:
        """The means over all positions of all rows."""
        positions = sum(row.positions for row in self.rows)

        def over_rows(member: str) -> float:
            return math.fsum(row.positions * float(getattr(row, member)) for row in self.rows) / positions

        return RowMeasure(
            0,
            positions,
            over_rows("effect"),
            over_rows("divergence"),
            over_rows("rounding"),
            over_rows("arithmetic"),
        )


def measure(record: Record, written: Scores, exact: Scores, second: Scores) -> Measures:
    """Compare the scores of three variants with the record, for an artifact merged onto the weights of the training.

    The record must know the effect of the adapter. Raises ValueError if it does not.
    """
    effects = [_effect(row.effect) for row in record.rows]
    tokens = [row.loss.tokens for row in record.rows]
    positions = [len(row.positions) for row in record.rows]
    trained = torch.cat([row.log_probabilities for row in record.rows])
    divergence = kl_divergence(trained, written.logits).split(positions)
    rounding = kl_divergence(exact.logits, second.logits).split(positions)
    rows = tuple(
        RowMeasure(
            row.example.row,
            len(row.positions),
            _mean(effect.base_divergence),
            _mean(divergence[index]),
            _mean(rounding[index]),
            _arithmetic(record, effect),
        )
        for index, (row, effect) in enumerate(zip(record.rows, effects, strict=True))
    )
    reference = torch.cat([_or(effect.trained_float32, effect.trained) for effect in effects]).double()
    base = torch.cat([_or(effect.base_float32, effect.base) for effect in effects]).double()
    changes = (reference - base).split(tokens)
    noises = (second.log_probabilities - exact.log_probabilities).double().split(tokens)
    residuals = (exact.log_probabilities.double() - reference).split(tokens)

    merged = (written.log_probabilities.double() - base).split(tokens)
    # Without any change there is no slope, and the divergences alone tell.
    slope = _slope(changes, merged) if _squares(changes) else 1.0
    known = record.arithmetic != "Unknown"
    if not known:
        # Then only the scatter around the line tells how large the noise is.
        noises = tuple(y - slope * x for x, y in zip(changes, merged, strict=True))
    return Measures(
        rows=rows,
        tokens=sum(tokens),
        trained_loss=math.fsum(row.loss.nats for row in record.rows) / sum(tokens),
        merged_loss=-float(written.log_probabilities.double().mean()),
        exact_loss=-float(exact.log_probabilities.double().mean()),
        slope=Slope(slope, _noise(changes, noises)),
        change=_root_mean_square(changes),
        rounding=_root_mean_square(
            (second.log_probabilities - exact.log_probabilities).double().split(tokens)
        ),
        arithmetic=_root_mean_square(
            [(_or(effect.trained_float32, effect.trained) - effect.trained).double() for effect in effects]
        ),
        deviation=_root_mean_square(residuals) if known else math.nan,
    )


def measure_on_original(
    record: Record,
    variants: Sequence[Scores],
    *,
    comparable: bool,
) -> Measures:
    """Compare the scores of five variants, for an artifact merged onto other weights than those of the training.

    The variants are written, exact, rounded once more, the base without update, and the weights of the training with
    it. What counts as trained here is the adapter on the artifact's base, before any rounding. Only the last variant is
    comparable with the record: `deviation` is its own, or NaN if the artifact's other tensors are not `comparable` with
    those of the training.
    """
    written, exact, second, base, trained = variants
    found = measure(_on_original(record, exact, base), written, exact, second)
    deviation = math.nan
    if comparable and record.knows_effect and record.arithmetic != "Unknown":
        effects = [_effect(row.effect) for row in record.rows]
        reference = torch.cat([_or(effect.trained_float32, effect.trained) for effect in effects])
        deviation = _root_mean_square([(trained.log_probabilities - reference).double()])
        native = torch.cat([effect.trained for effect in effects])
        found = replace(found, arithmetic=_root_mean_square([(reference - native).double()]))
    return replace(found, deviation=deviation)


def _on_original(record: Record, exact: Scores, base: Scores) -> Record:
    """Return the record that a training on the artifact's own base would have written."""
    tokens = [row.loss.tokens for row in record.rows]
    positions = [len(row.positions) for row in record.rows]
    rows = []
    for row, with_update, without, logits, base_logits in zip(
        record.rows,
        exact.log_probabilities.split(tokens),
        base.log_probabilities.split(tokens),
        exact.logits.split(positions),
        base.logits.split(positions),
        strict=True,
    ):
        effect = Effect(with_update, without, kl_divergence(logits, base_logits))
        rows.append(replace(row, log_probabilities=logits, effect=effect))
    return Record(tuple(rows), "Float32", record.tokenization)


def _effect(effect: Effect | None) -> Effect:
    if effect is None:
        raise ValueError("the record must have the base's numbers: an older trainer wrote none")
    return effect


def _or(first: torch.Tensor | None, second: torch.Tensor) -> torch.Tensor:
    return second if first is None else first


def _arithmetic(record: Record, effect: Effect) -> float:
    if effect.arithmetic_divergence is not None:
        return _mean(effect.arithmetic_divergence)
    return 0.0 if record.arithmetic == "Float32" else math.nan


def _mean(values: torch.Tensor) -> float:
    return float(values.double().mean())


def _slope(changes: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> float:
    """Least squares through the origin: sum(x y) / sum(x^2)."""
    products = math.fsum(float(x @ y) for x, y in zip(changes, found, strict=True))
    return _ratio(products, _squares(changes))


def _noise(changes: Sequence[torch.Tensor], noises: Sequence[torch.Tensor]) -> float:
    """Standard error of the slope if every y has such a noise: sqrt(sum over rows (sum x n)^2) / sum(x^2).

    Tokens of one row share their noise, so the rows are the clusters (Liang and Zeger 1986). With few rows the sum over
    tokens, sqrt(sum (x n)^2), can be larger; the larger one counts.
    """
    clustered = math.fsum(float(x @ n) ** 2 for x, n in zip(changes, noises, strict=True))
    single = math.fsum(float((x * n).square().sum()) for x, n in zip(changes, noises, strict=True))
    return _ratio(math.sqrt(max(clustered, single)), _squares(changes))


def _root_mean_square(parts: Sequence[torch.Tensor]) -> float:
    return math.sqrt(_squares(parts) / sum(part.numel() for part in parts))


def _squares(parts: Sequence[torch.Tensor]) -> float:
    return math.fsum(float(part.square().sum()) for part in parts)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0
