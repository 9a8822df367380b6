"""The time and the price of a run as it was decided."""

from __future__ import annotations

from finetune_operator.sizing.cost.forecast import Forecast, forecast
from finetune_operator.sizing.cost.prices import CostSettings
from finetune_operator.sizing.cost.work import Rows
from finetune_operator.sizing.decision import Feasible
from finetune_operator.sizing.request import SizingRequest

_UNKNOWN = "no speed is known for models of this family"


def forecast_of(
    request: SizingRequest, decision: Feasible, rows: Rows | None, settings: CostSettings
) -> Forecast:
    """Estimate the run that `decision` decided for `request`. No time is known of a family without a formula."""
    if request.shape is None:
        return Forecast(_UNKNOWN, _UNKNOWN)
    return forecast(
        request.spec,
        request.shape,
        decision.plan,
        decision.gpu,
        decision.offers,
        rows,
        settings,
        request.device,
        decision.layout.nodes,
    )
