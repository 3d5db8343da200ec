"""By what an agent is woken, and what happens when that breaks."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
import redis
import redis.asyncio
from conftest import (
    TENANT,
    USER,
    MakeService,
    Mode,
    OwnRedis,
    Service,
    _Agent,
    free_port,
    new_request,
    new_session,
    token,
    until,
)
from faults import Faulty

from aura_hitl import Approved, AsyncClient, Client, Expired, Rejected, _listeners
from aura_hitl._io import settled


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "aura_hitl")


@pytest.fixture
def waits_by(caplog: pytest.LogCaptureFixture) -> Callable[[str, str], None]:
    """Waits until the agent of a request waits by this means."""

    def check(request: str, means: str) -> None:
        def last() -> str:
            mine = [text for text in caplog.messages if text.startswith(f"{request}: waiting by ")]
            return mine[-1] if mine else ""

        until(lambda: last() == f"{request}: waiting by {means}")

    return check


WaitsBy = Callable[[str, str], None]


def decide_and_measure(service: Service, request: str, done: Callable[[], bool]) -> float:
    time.sleep(0.5)
    began = time.monotonic()
    service.approve(request)
    until(done)
    return time.monotonic() - began


def test_woken_by_pubsub(production: Service, agent: _Agent, waits_by: WaitsBy) -> None:
    request = new_request()
    future = agent.ask(production, request, redis_url=production.redis_url, listen_by=("pubsub",))
    waits_by(request, "pubsub")
    assert decide_and_measure(production, request, future.done) < 2
    assert isinstance(future.result(), Approved)


def test_a_user_of_redis_that_may_do_nothing_else(
    production: Service, agent: _Agent, waits_by: WaitsBy
) -> None:
    """No key, and no channel of agents that wait on Redis: registered requests are none of them."""
    url = urlsplit(production.redis_url or "")
    with redis.Redis.from_url(production.redis_url or "") as link:
        name = f"agent_{new_request()}"
        rights = "on >pw resetkeys resetchannels &hitl:decision:* -@all +subscribe +unsubscribe"
        may = [*rights.split(), "+hello", "+ping"]
        link.execute_command("ACL", "SETUSER", name, *may)
        try:
            request = new_request()
            redis_url = f"redis://{name}:pw@{url.hostname}:{url.port}"
            options = {"redis_url": redis_url, "listen_by": ("pubsub",)}
            future = agent.ask(production, request, **options)
            waits_by(request, "pubsub")
            assert decide_and_measure(production, request, future.done) < 2
            assert isinstance(future.result(), Approved)
            denied = {each["object"] for each in link.acl_log() if each["username"] == name}
            # redis-py says its own name, and goes on when it may not.
            assert {each for each in denied if not each.startswith("client")} == set()
        finally:
            link.execute_command("ACL", "DELUSER", name)


def test_woken_by_the_stream(service: Service, agent: _Agent, waits_by: WaitsBy) -> None:
    request = new_request()
    future = agent.ask(service, request)
    waits_by(request, "stream")
    assert decide_and_measure(service, request, future.done) < 2
    assert isinstance(future.result(), Approved)


def test_woken_by_the_long_poll(service: Service, agent: _Agent, waits_by: WaitsBy) -> None:
    request = new_request()
    future = agent.ask(service, request, listen_by=())
    waits_by(request, "poll")
    assert decide_and_measure(service, request, future.done) < 2
    assert isinstance(future.result(), Approved)


@pytest.mark.parametrize("listen_by", [("stream",), ()])
def test_the_time_is_kept(service: Service, agent: _Agent, listen_by: tuple[str, ...]) -> None:
    began = time.monotonic()
    result = agent.ask(service, new_request(), timeout=4, listen_by=listen_by).result(20)
    assert isinstance(result, Expired)
    assert 4 <= time.monotonic() - began < 6.5


def test_the_time_is_kept_by_pubsub(production: Service, agent: _Agent) -> None:
    began = time.monotonic()
    # Longer than Redis may take for any single answer.
    options = {"redis_url": production.redis_url, "timeout": 5}
    assert isinstance(agent.ask(production, new_request(), **options).result(20), Expired)
    assert 5 <= time.monotonic() - began < 7.5


def test_a_client_of_redis_may_be_given(production: Service) -> None:
    """It stays open, and whatever it makes of the answers is understood."""
    with redis.Redis.from_url(production.redis_url or "", decode_responses=True) as link:
        request = new_request()
        future = _Agent("blocking").ask_and_wait_until_pending(
            production, request, redis_url=link, listen_by=("pubsub",)
        )
        production.approve(request)
        assert isinstance(future.result(5), Approved)
        assert link.ping()

    async def use() -> None:
        async with (
            redis.asyncio.Redis.from_url(production.redis_url or "") as link,
            AsyncClient(production.url, token=token, tenant=TENANT, redis_url=link) as client,
        ):
            request = new_request()
            asked = client.request_approval("x", {}, session_id=new_session(), request_id=request)
            waiting = asyncio.create_task(asked)
            await asyncio.to_thread(until, lambda: production.is_pending(request))
            await asyncio.to_thread(production.approve, request)
            assert isinstance(await asyncio.wait_for(waiting, 5), Approved)
            assert await settled(link.ping())

    asyncio.run(use())


def test_nothing_that_is_published_is_an_answer(
    production: Service, agent: _Agent, waits_by: WaitsBy
) -> None:
    """Whoever can publish can say whatever they like: the ledger is asked, and not too often."""
    request, session, looks = new_request(), new_session(), [0]

    def count(call: httpx.Request) -> None:
        looks[0] += call.url.path.endswith("/decision")

    options = {"redis_url": production.redis_url, "transport": Faulty(before=count)}
    future = agent.ask(production, request, session_id=session, **options)
    waits_by(request, "pubsub")
    signal = {"type": "approval", "requestId": request, "status": "approved", "timestamp": 1}
    with redis.Redis.from_url(production.redis_url or "") as link:
        for channel in (f"hitl:decision:{TENANT}:{request}", f"hitl:channel:{session}"):
            for text in [json.dumps(signal), "approved", "ask", b"\xff\xfe", "[]", ""] * 20:
                link.publish(channel, text)
        link.set(f"hitl:signal:{session}", json.dumps(signal), ex=60)
        time.sleep(2)
        assert not future.done()
    # One at once, and then no more than two a second.
    assert 2 <= looks[0] <= 8
    production.reject(request, "no")
    assert isinstance(future.result(10), Rejected)


def test_a_tenant_that_no_channel_name_holds(production: Service, agent: _Agent) -> None:
    """The service and the client spell it alike."""
    tenant, request = "한국 지사:*", new_request()
    given = token(USER, tenant)
    options: Any = {"token": given, "tenant": tenant}
    redis_url = production.redis_url
    asked = {**options, "redis_url": redis_url, "listen_by": ("pubsub",), "timeout": 60}
    future = agent.ask(production, request, **asked)
    channel = f"hitl:decision:%ED%95%9C%EA%B5%AD%20%EC%A7%80%EC%82%AC%3A%2A:{request}"
    with redis.Redis.from_url(redis_url or "") as link:
        until(lambda: future.done() or dict(link.pubsub_numsub(channel)).popitem()[1] == 1)
        with Client(production.url, **options) as client:
            until(lambda: future.done() or client.decision(request).status == "pending")
        headers = {
            "Authorization": f"Bearer {given}",
            "X-Tenant-ID": quote(tenant, safe=""),
            "X-User-ID": USER,
        }

        def decide() -> bool:
            answer = httpx.post(
                f"{production.url}/aura/hitl/approve/{request}",
                headers=headers,
                json={"userId": USER},
            )
            return answer.status_code == 200

        # A little later it waits in earnest.
        time.sleep(0.5)
        assert decide()
        # The next look would come after 15 s.
        assert isinstance(future.result(5), Approved)


def test_a_message_that_is_lost(
    production: Service,
    agent: _Agent,
    own_redis: OwnRedis,
    waits_by: WaitsBy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_listeners, "PUBSUB_POLL_SECONDS", 1.0)
    request = new_request()
    # A Redis on which nothing is ever published.
    future = agent.ask(production, request, redis_url=own_redis.url, listen_by=("pubsub",))
    waits_by(request, "pubsub")
    assert decide_and_measure(production, request, future.done) < 4
    assert isinstance(future.result(), Approved)


def test_redis_is_away_from_the_start(service: Service, agent: _Agent, waits_by: WaitsBy) -> None:
    request = new_request()
    future = agent.ask(service, request, redis_url=f"redis://127.0.0.1:{free_port()}")
    waits_by(request, "stream")
    assert decide_and_measure(service, request, future.done) < 2
    assert isinstance(future.result(), Approved)


def test_redis_dies_midway(
    make_service: MakeService, agent: _Agent, own_redis: OwnRedis, waits_by: WaitsBy
) -> None:
    service = make_service("production", redis_url=own_redis.url)
    request = new_request()
    future = agent.ask(service, request, redis_url=own_redis.url, timeout=60)
    waits_by(request, "pubsub")
    own_redis.kill()
    waits_by(request, "stream")
    service.approve(request)
    assert isinstance(future.result(20), Approved)
    service.stop()


def test_redis_dies_and_comes_back(
    make_service: MakeService, agent: _Agent, own_redis: OwnRedis, waits_by: WaitsBy
) -> None:
    service = make_service("production", redis_url=own_redis.url)
    request = new_request()
    options = {"redis_url": own_redis.url, "listen_by": ("pubsub",), "timeout": 60}
    future = agent.ask(service, request, **options)
    waits_by(request, "pubsub")
    own_redis.kill()
    waits_by(request, "poll")
    own_redis.start()
    waits_by(request, "pubsub")
    service.approve(request)
    assert isinstance(future.result(30), Approved)
    service.stop()


@pytest.mark.parametrize("mode", ["embedded", "production"])
@pytest.mark.parametrize("listen_by", [("pubsub",), ("stream",), ()])
def test_the_service_restarts_midway(
    make_service: MakeService,
    agent: _Agent,
    mode: Mode,
    listen_by: tuple[str, ...],
) -> None:
    service = make_service(mode)
    request = new_request()
    future = agent.ask_and_wait_until_pending(
        service, request, listen_by=listen_by, redis_url=service.redis_url, timeout=60
    )
    service.stop()
    time.sleep(1)
    assert not future.done()
    service.start()
    service.approve(request)
    assert isinstance(future.result(20), Approved)
    service.stop()


def test_a_gateway_that_has_no_streams(service: Service, agent: _Agent, waits_by: WaitsBy) -> None:
    def refuse(call: httpx.Request) -> httpx.Response | None:
        is_stream = call.url.path.endswith("/stream")
        return httpx.Response(502, text="<html>Bad Gateway</html>") if is_stream else None

    request = new_request()
    future = agent.ask(service, request, transport=Faulty(before=refuse))
    waits_by(request, "poll")
    assert decide_and_measure(service, request, future.done) < 3
    assert isinstance(future.result(), Approved)


def test_the_outcome_comes_before_the_stream(service: Service, agent: _Agent) -> None:
    """Decided between registration and the opening of the stream: it is replayed."""
    request = new_request()

    def decide_first(call: httpx.Request) -> None:
        if call.url.path.endswith("/stream") and service.is_pending(request):
            service.approve(request)

    began = time.monotonic()
    future = agent.ask(service, request, transport=Faulty(before=decide_first))
    assert isinstance(future.result(15), Approved)
    assert time.monotonic() - began < 5


def test_nothing_stays_open(production: Service, agent: _Agent) -> None:
    url, request = production.redis_url or "", new_request()
    future = agent.ask_and_wait_until_pending(production, request, redis_url=url)
    production.approve(request)
    assert future.result(10)
    with redis.Redis.from_url(url) as link:
        channel = f"hitl:decision:{TENANT}:{request}"
        until(lambda: dict(link.pubsub_numsub(channel)).popitem()[1] == 0)


def test_delays_stop_growing() -> None:
    assert [_listeners.growing(1.0, failures, 60.0) for failures in (0, 1, 5, 6)] == [1, 2, 32, 60]
    # A day of failures.
    assert _listeners.growing(0.1, 100_000, 5.0) == 5.0
