from __future__ import annotations

import asyncio
import gc
import itertools
import json
import time
from operator import itemgetter
from pathlib import Path

import pytest
from aiohttp import web
from finetune_operator.cluster import client
from finetune_operator.cluster.client import ApiClient, load_configuration
from finetune_operator.cluster.credentials import ServiceAccountToken
from finetune_operator.cluster.pages import FIRST_PAGE, PAGE_BYTES
from finetune_operator.cluster.rate_limiter import TokenBucket
from finetune_operator.errors import ApiError
from kubernetes.aio import client as kubernetes_client
from kubernetes.aio.client import Configuration

from tests.support.api_server import Handler, failure, serving


@pytest.fixture(autouse=True)
def _no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_RETRY_DELAY", 0.0)


def responding(*responses: web.Response) -> tuple[Handler, list[web.Request]]:
    """A handler that gives these responses in turn and repeats the last one; and the requests that it gets."""
    requests: list[web.Request] = []
    following = itertools.chain(responses[:-1], itertools.repeat(responses[-1]))

    async def handler(request: web.Request) -> web.Response:
        requests.append(request)
        found = next(following)
        return web.Response(
            status=found.status, body=found.body, headers={"Content-Type": "application/json"}
        )

    return handler, requests


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_request_to_an_overloaded_api_server_is_retried(status: int) -> None:
    observed: list[tuple[str, str]] = []
    handler, _ = responding(failure(status), failure(status), web.json_response({"a": 1}))
    async with serving(handler, lambda method, code: observed.append((method, code))) as api:
        assert await api.call("GET", "/x") == {"a": 1}
    assert observed == [("GET", str(status)), ("GET", str(status)), ("GET", "200")]


@pytest.mark.parametrize(
    ("status", "limited", "tries"), [(503, True, 4), (503, False, 1), (403, True, 1), (404, True, 1)]
)
async def test_only_transient_failures_are_retried_and_never_those_of_the_lease(
    status: int, *, limited: bool, tries: int
) -> None:
    handler, requests = responding(failure(status, "because"))
    async with serving(handler) as api:
        with pytest.raises(ApiError, match="because") as caught:
            await api.call("GET", "/x", limited=limited)
    assert caught.value.status == status
    assert len(requests) == tries


async def test_an_unreachable_api_server_is_a_failure_with_status_0() -> None:
    configuration = Configuration()
    configuration.host = "http://127.0.0.1:1"
    observed: list[tuple[str, str]] = []
    api = ApiClient(
        configuration,
        TokenBucket(1000, 1000, time.monotonic),
        lambda method, code: observed.append((method, code)),
    )
    try:
        with pytest.raises(ApiError) as caught:
            await api.call("GET", "/x")
    finally:
        await api.close()
    assert (caught.value.status, caught.value.reason) == (0, "Unreachable")
    assert observed == [("GET", "<error>")] * 4


async def test_plain_text_of_a_proxy_becomes_the_message() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=403, text="blocked by the proxy")

    async with serving(handler) as api:
        with pytest.raises(ApiError, match="blocked by the proxy"):
            await api.call("GET", "/x")


async def test_a_response_that_is_no_object_is_an_error() -> None:
    handler, _ = responding(web.json_response([1]))
    async with serving(handler) as api:
        with pytest.raises(ApiError, match="must respond with a JSON object"):
            await api.call("GET", "/x")


def page(items: list[str], token: str | None = None) -> web.Response:
    metadata = {"resourceVersion": "7", **({"continue": token} if token else {})}
    return web.json_response({"metadata": metadata, "items": [{"name": name} for name in items]})


@pytest.mark.parametrize(
    "body", [b"", b"<html>welcome</html>", b"\x1f\x8b\x08", b"{}", b'{"metadata": null}']
)
async def test_a_page_that_is_no_list_is_an_error_whatever_its_status(body: bytes) -> None:
    handler, _ = responding(web.Response(body=body))
    async with serving(handler) as api:
        with pytest.raises(ApiError, match="must respond") as caught:
            await api.list_all("/things", itemgetter("name"))
    assert caught.value.status == 502


async def test_a_list_is_read_in_pages() -> None:
    handler, requests = responding(page(["a", "b"], "next"), page(["c"]))
    async with serving(handler) as api:
        found = await api.list_all("/things", itemgetter("name"), labels="label", fields="a=b", page=2)
    assert (found.items, found.resource_version, found.complete) == (["a", "b", "c"], 7, True)
    assert dict(requests[0].query) == {"limit": "2", "labelSelector": "label", "fieldSelector": "a=b"}
    assert requests[1].query["continue"] == "next"


async def test_the_pages_of_a_list_are_as_large_as_its_objects_allow() -> None:
    limits: list[int] = []

    async def handler(request: web.Request) -> web.Response:
        limits.append(int(request.query["limit"]))
        start = int(request.query.get("continue", "0"))
        names = range(start, min(start + limits[-1], 200))
        items = [{"name": name, "large": "x" * 16_000} for name in names]
        metadata = {"resourceVersion": "7", **({"continue": str(names.stop)} if names.stop < 200 else {})}
        return web.json_response({"metadata": metadata, "items": items})

    async with serving(handler) as api:
        found = await api.list_all("/things", itemgetter("name"), page=100)
        assert found.items == list(range(200))
        assert limits[0] == FIRST_PAGE
        assert max(limits) * 16_000 <= PAGE_BYTES < (max(limits) + 2) * 16_000
        limits.clear()
        await api.list_all("/things", itemgetter("name"), page=100, maximum_pages=2)
        assert limits == [100, 100], "the number of pages stands for that of the objects"


async def test_a_page_is_free_before_the_next_one_is_read() -> None:
    alive: list[int] = []

    def number_alive() -> int:
        return sum(type(each) is dict and "OnlyInThisList" in each for each in gc.get_objects())

    answers = iter([page(["a"], "next"), page(["b"], "next"), page(["c"])])

    async def handler(_: web.Request) -> web.Response:
        alive.append(number_alive())
        response = next(answers)
        response.text = (response.text or "").replace('"name":', '"OnlyInThisList": [{}], "name":')
        return response

    async with serving(handler) as api:
        assert (await api.list_all("/things", itemgetter("name"))).items == ["a", "b", "c"]
    assert alive == [0, 0, 0]


async def test_a_list_starts_again_if_its_continuation_has_expired() -> None:
    handler, _ = responding(page(["old"], "next"), failure(410), page(["a"], "next"), page(["b"]))
    async with serving(handler) as api:
        found = await api.list_all("/things", itemgetter("name"))
    assert found.items == ["a", "b"]


async def test_a_list_that_always_expires_is_an_error_after_some_tries() -> None:
    handler, requests = responding(failure(410))
    async with serving(handler) as api:
        with pytest.raises(ApiError, match="410"):
            await api.list_all("/things", itemgetter("name"))
    assert len(requests) == 4


def expired(rest: str) -> web.Response:
    """The answer to a continuation whose version has been compacted."""
    return web.json_response(
        {"reason": "Expired", "message": "too old", "metadata": {"continue": rest}}, status=410
    )


async def test_a_slow_list_goes_on_after_its_version_has_expired() -> None:
    later = web.json_response({"metadata": {"resourceVersion": "9"}, "items": [{"name": "b"}]})
    handler, requests = responding(page(["a"], "next"), expired("rest"), later)
    async with serving(handler) as api:
        found = await api.list_all("/things", itemgetter("name"), share=0.5)
    assert [request.query.get("continue") for request in requests] == [None, "next", "rest"]
    assert found.items == ["a", "b"]
    assert found.resource_version == 7, "what is not listed may be newer than this"


async def test_a_list_that_is_not_slow_is_one_of_a_single_version() -> None:
    handler, _ = responding(page(["old"], "next"), expired("rest"), page(["a"]))
    async with serving(handler) as api:
        assert (await api.list_all("/things", itemgetter("name"))).items == ["a"]


async def test_a_slow_list_rests_after_each_page_for_as_long_as_its_share_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handler, _ = responding(page(["a"], "next"), page(["b"], "next"), page(["c"]))
    rests: list[float] = []

    async def rest(seconds: float) -> None:
        rests.append(seconds)

    async with serving(handler) as api:
        with monkeypatch.context() as patched:
            patched.setattr(api, "_clock", itertools.count(10.0, 2.0).__next__)
            patched.setattr(asyncio, "sleep", rest)
            await api.list_all("/things", itemgetter("name"), share=0.25)
            assert rests == [6.0, 6.0], "each page took 2 s"
            rests.clear()
            await api.list_all("/things", itemgetter("name"))
            assert rests == []


@pytest.mark.parametrize("limited", [True, False])
async def test_a_request_with_an_old_token_is_sent_again_with_the_new_one(
    tmp_path: Path, *, limited: bool
) -> None:
    sent: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        sent.append(request.headers["Authorization"])
        return web.json_response({"a": 1}) if sent[-1] == "bearer new" else failure(401)

    token = tmp_path / "token"
    token.write_text("old")
    async with serving(handler) as api:
        configuration = api._api.configuration
        credentials = ServiceAccountToken(token, time.monotonic)
        credentials.attach(configuration)
        credentials.read(configuration)
        with pytest.raises(ApiError, match="401"):
            await api.call("GET", "/x", limited=limited)
        token.write_text("new")
        assert await api.call("POST", "/x", body={}, limited=limited) == {"a": 1}
    assert sent == ["bearer old", "bearer old", "bearer new"]


async def test_a_list_may_be_cut_after_some_pages() -> None:
    handler, requests = responding(page(["a"], "next"), page(["b"], "next"), page(["c"]))
    async with serving(handler) as api:
        found = await api.list_all("/things", itemgetter("name"), maximum_pages=2)
    assert (found.items, found.complete, len(requests)) == (["a", "b"], False, 2)


async def test_each_page_is_reduced_before_the_next_one_is_read() -> None:
    seen: list[str] = []
    pages = [page(["a"], "next"), page(["b"])]

    async def handler(_: web.Request) -> web.Response:
        assert len(seen) == 2 - len(pages)
        return pages.pop(0)

    async with serving(handler) as api:
        await api.list_all("/things", lambda body: seen.append(body["name"]))
    assert seen == ["a", "b"]


async def test_credentials_come_from_the_kubeconfig_that_the_environment_names(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
                "clusters": [{"name": "k", "cluster": {"server": "https://localhost:6443"}}],
                "users": [{"name": "u", "user": {"token": "secret"}}],
            }
        )
    )
    configuration = await load_configuration({"KUBECONFIG": str(kubeconfig), "KUBERNETES_SERVICE_HOST": "h"})
    assert configuration.host == "https://localhost:6443"
    assert configuration.retries is None, "the client has its own retries"


async def test_the_time_for_which_the_api_server_asks_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    paused: list[float] = []
    monkeypatch.setattr(TokenBucket, "pause", lambda _, seconds: paused.append(seconds))
    answers = [(429, "3"), (503, "7"), (429, "86400"), (200, "")]

    async def handler(_: web.Request) -> web.Response:
        status, seconds = answers.pop(0)
        return web.json_response({"reason": "x"}, status=status, headers={"Retry-After": seconds})

    async with serving(handler) as api:
        await api.call("GET", "/x")
    assert paused == [3, 7, client.LONGEST_PAUSE]


async def test_an_unreachable_webhook_is_not_retried_and_is_no_outage() -> None:
    handler, requests = responding(failure(500, 'failed calling webhook "w": connection refused'))
    async with serving(handler) as api:
        with pytest.raises(ApiError, match="failed calling webhook"):
            await api.call("POST", "/x")
        assert not api.outage.ongoing
    assert len(requests) == 1


async def test_an_outage_ends_with_the_first_answer_whatever_it_is() -> None:
    handler, _ = responding(*[failure(503)] * client.TRIES, failure(404))
    async with serving(handler) as api:
        with pytest.raises(ApiError):
            await api.call("GET", "/x")
        assert api.outage.ongoing
        with pytest.raises(ApiError):
            await api.call("GET", "/x")
        assert not api.outage.ongoing


async def test_an_error_names_the_fields_that_the_api_server_refuses() -> None:
    details = {"causes": [{"field": "status.phase", "message": "no"}, {"message": "no"}]}
    handler, _ = responding(web.json_response({"reason": "Invalid", "details": details}, status=422))
    async with serving(handler) as api:
        with pytest.raises(ApiError) as caught:
            await api.call("GET", "/x")
    assert caught.value.fields == ("status.phase",)


@pytest.mark.parametrize(
    ("variables", "proxy"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        ({"HTTP_PROXY": "http://proxy:3128"}, None),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "other,10.0.0.1"}, None),
    ],
)
async def test_the_proxy_of_the_environment_is_read_once_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], proxy: str | None
) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    cluster = {"name": "c", "cluster": {"server": "https://10.0.0.1:6443"}}
    context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [cluster], "contexts": [context], "users": [{"name": "u", "user": {"token": "t"}}],
    }  # fmt: skip
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(config))
    configuration = await load_configuration({"KUBECONFIG": str(path)})
    assert configuration.proxy == proxy
    monkeypatch.setenv("HTTPS_PROXY", "http://another:1")
    session = kubernetes_client.ApiClient(configuration).rest_client._create_pool_manager()
    assert not session.trust_env
    await session.close()
