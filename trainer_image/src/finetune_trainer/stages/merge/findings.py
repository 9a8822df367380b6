"""Warnings about a merged model that passed: what a person should know before it is used."""

from __future__ import annotations

from finetune_trainer.contract.result import VerificationResult, WarningResult

LEAST_SURVIVAL = 0.9
"""Share of an update below which its loss is a finding. One rounding of a usual update keeps 0.97 and more."""


def with_findings(verification: VerificationResult) -> VerificationResult:
    """Return `verification` with its warnings; without any, the member stays unset."""
    found = tuple(
        warning
        for warning in (_unproven(verification), _lost(verification), _lost_in_tensor(verification))
        if warning is not None
    )
    return verification.model_copy(update={"warnings": found}) if found else verification


def _unproven(verification: VerificationResult) -> WarningResult | None:
    if verification.verdict != "Unproven":
        return None
    effect, noise = verification.base_divergence, verification.noise_divergence
    found = "" if effect is None or noise is None else f", {effect:.3g} against {noise:.3g} nats per token"
    return WarningResult(
        code="MergeUnproven",
        value=effect,
        threshold=noise,
        message=f"the adapter's effect is below the noise of the measurement{found}, so the merge is not proven; "
        "train for more steps or with a higher training.learningRate",
    )


def _lost(verification: VerificationResult) -> WarningResult | None:
    share = verification.surviving_update
    if share is None or share >= LEAST_SURVIVAL:
        return None
    return WarningResult(
        code="UpdateLost",
        value=share,
        threshold=LEAST_SURVIVAL,
        message=f"rounding left {_part(share)} of the update in the merged weights; publish Adapter with BaseAsTrained "
        "to lose nothing, or output.dtype: AsBase if the base has 32 bits",
    )


def _lost_in_tensor(verification: VerificationResult) -> WarningResult | None:
    share = verification.weakest_survival
    if share is None or share >= LEAST_SURVIVAL:
        return None
    return WarningResult(
        code="UpdateLostInTensor",
        value=share,
        threshold=LEAST_SURVIVAL,
        message=f"rounding left {_part(share)} of the update of one tensor, see the report for others; "
        f"publish Adapter with BaseAsTrained to lose nothing: {verification.weakest_tensor}",
    )


def _part(share: float) -> str:
    # An update far below the steps of the grid leaves nothing but noise, whose projection can have any sign.
    return "none" if share < 0.005 else f"{share:.0%}"
