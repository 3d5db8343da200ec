"""By what an agent is woken, and what happens when that breaks."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable

import httpx
import pytest
import redis
import redis.asyncio
from conftest import (
    TENANT,
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

from aura_hitl import Approved, AsyncClient, Expired, Rejected, _listeners
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
    assert production.state(request)["signal"]["listeners"] == 1


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


def test_signals_for_others_and_forged_ones_are_ignored(
    production: Service, agent: _Agent, waits_by: WaitsBy
) -> None:
    request, session = new_request(), new_session()
    url = production.redis_url or ""
    future = agent.ask(production, request, session_id=session, redis_url=url)
    waits_by(request, "pubsub")
    channel = f"hitl:channel:{session}"
    signal = {"type": "approval", "requestId": "", "status": "approved", "timestamp": 1}
    with redis.Redis.from_url(url) as link:
        for text in [
            json.dumps(signal | {"requestId": "req_another"}),
            # Whoever can publish can say this; the ledger knows better.
            json.dumps(signal | {"requestId": request}),
            json.dumps({"type": "heartbeat"}),
            "approved",
            b"\xff\xfe",
            "[]",
            "",
        ]:
            link.publish(channel, text)
        time.sleep(1)
        assert not future.done()
    production.reject(request, "no")
    assert isinstance(future.result(10), Rejected)


def test_a_forged_key_is_no_approval(production: Service, agent: _Agent) -> None:
    request, session = new_request(), new_session()
    url = production.redis_url or ""
    forged = {"type": "approval", "requestId": request, "status": "approved", "timestamp": 1}
    with redis.Redis.from_url(url) as link:
        link.set(f"hitl:signal:{session}", json.dumps(forged), ex=60)
    result = agent.ask(production, request, session_id=session, redis_url=url, timeout=2).result(15)
    assert isinstance(result, Expired)


def test_a_message_that_is_lost(
    production: Service,
    agent: _Agent,
    own_redis: OwnRedis,
    waits_by: WaitsBy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_listeners, "PUBSUB_LOOK_SECONDS", 1.0)
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
    url, request, session = production.redis_url or "", new_request(), new_session()
    future = agent.ask_and_wait_until_pending(
        production, request, session_id=session, redis_url=url
    )
    production.approve(request)
    assert future.result(10)
    with redis.Redis.from_url(url) as link:
        until(lambda: dict(link.pubsub_numsub(f"hitl:channel:{session}")).popitem()[1] == 0)
