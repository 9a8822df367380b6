from __future__ import annotations

import pytest
from finetune_operator.cluster.refusals import QUOTA, is_webhook_failure, refusal_of
from finetune_operator.errors import ApiError

QUOTA_TEXT = (
    'jobs.batch "a-prepare-0" is forbidden: exceeded quota: q, requested: count/jobs.batch=1, '
    "used: count/jobs.batch=5, limited: count/jobs.batch=5"
)


@pytest.mark.parametrize(
    ("status", "reason", "message"),
    [
        (400, "BadRequest", "cannot be handled"),
        (404, "NotFound", "the server could not find the requested resource"),
        (413, "RequestEntityTooLarge", "too large"),
        (422, "Invalid", 'Job.batch "a" is invalid: spec: Invalid value'),
    ],
)
def test_an_invalid_object_is_refused_for_good(status: int, reason: str, message: str) -> None:
    refusal = refusal_of(ApiError(status, reason, message))
    assert refusal is not None
    assert refusal.final


@pytest.mark.parametrize(
    ("status", "reason", "message"),
    [
        (403, "Forbidden", QUOTA_TEXT),
        (403, "Forbidden", 'violates PodSecurity "restricted:latest"'),
        (422, "Invalid", "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no"),
        (400, "BadRequest", 'admission webhook "w.example.com" denied the request: no'),
        (500, "InternalError", 'Internal error occurred: failed calling webhook "w": connection refused'),
    ],
)
def test_a_quota_a_policy_and_an_unreachable_webhook_can_change(
    status: int, reason: str, message: str
) -> None:
    refusal = refusal_of(ApiError(status, reason, message))
    assert refusal is not None
    assert not refusal.final


def test_a_refusal_of_megabytes_is_cut_to_what_a_condition_holds() -> None:
    refusal = refusal_of(ApiError(422, "Invalid", "Job is invalid: " + "spec.a: Too long\n" * 100_000))
    assert refusal is not None
    assert len(refusal.message) == 4096
    assert refusal.final


def test_a_namespace_that_is_gone_decides_nothing_about_the_spec() -> None:
    error = ApiError(404, "NotFound", 'namespaces "a" not found', missing_namespace=True)
    refusal = refusal_of(error)
    assert refusal is not None
    assert not refusal.final


@pytest.mark.parametrize(
    "error",
    [
        ApiError(0, "Unreachable", "refused"),
        ApiError(401, "Unauthorized", "token"),
        ApiError(409, "Conflict", "changed"),
        ApiError(429, "TooManyRequests", "slow"),
        ApiError(500, "InternalError", "etcd"),
        ApiError(503, "ServiceUnavailable", "starting"),
        ApiError(404, "", "<html>not found</html>"),
        ApiError(400, "", "the plain HTTP request was sent to HTTPS port"),
    ],
)
def test_an_outage_a_conflict_and_the_text_of_a_proxy_are_no_refusal(error: ApiError) -> None:
    assert refusal_of(error) is None


def test_refusals_with_one_cause_have_one_kind() -> None:
    def kind(message: str) -> str:
        refusal = refusal_of(ApiError(403, "Forbidden", message))
        assert refusal is not None
        return refusal.kind

    assert kind(QUOTA_TEXT) == QUOTA == kind(QUOTA_TEXT.replace("a-prepare-0", "b-train-3").replace("5", "7"))
    policy = 'jobs.batch "{}" is forbidden: {} needs a cost center'
    assert kind(policy.format("a-prepare-0", "label")) == kind(policy.format("b-train-12", "label"))
    assert kind(policy.format("a-prepare-0", "label")) != kind(policy.format("a-prepare-0", "image"))


def test_a_webhook_that_cannot_be_reached_is_no_outage_of_the_api_server() -> None:
    assert is_webhook_failure(ApiError(500, "InternalError", 'failed calling webhook "w": timeout'))
    assert not is_webhook_failure(ApiError(500, "InternalError", "etcd has no leader"))
