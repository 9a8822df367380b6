"""What a running TRAIN has measured, as a typed value within bounds."""

from __future__ import annotations

from finetune_operator.contract.bounded import Count, Document, Finite, NotNegative, Step, Time


class TrainingReport(Document):
    """The member `training` of the progress (contract/progress.schema.json), which a trainer before 1.9 does not send.

    `seconds` is the time of all steps of this process. `evaluation_loss` is in nats per supervised token.
    `router_aux_loss` is the last step's load-balancing loss, since 1.11 and only if the job asks for it.
    """

    steps: Step
    seconds: NotNegative
    tokens: Count
    step_seconds: NotNegative | None = None
    evaluation_loss: Finite | None = None
    router_aux_loss: NotNegative | None = None
    checkpoint_time: Time | None = None
    allocated_bytes: Count | None = None
    peak_allocated_bytes: Count | None = None
    reserved_bytes: Count | None = None
    peak_reserved_bytes: Count | None = None
