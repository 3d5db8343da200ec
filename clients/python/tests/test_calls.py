"""The calls below request_approval, one by one."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import aclosing, closing
from itertools import islice
from typing import Any

import httpx
import pytest
from conftest import PERSON, TENANT, Service, new_request, new_session, token

from aura_hitl import (
    AsyncClient,
    Client,
    Conflict,
    Gone,
    NotFound,
    Outcome,
    UnexpectedAnswer,
    _wire,
)


def test_a_decision_from_first_to_last(service: Service, client: Client) -> None:
    session, request = new_session(), new_request()
    asked: Any = {"session_id": session, "request_id": request}
    registration = client.register("send_email", {"to": "a@b.c"}, **asked)
    assert registration == client.register("send_email", {"to": "a@b.c"}, **asked)
    assert (registration.status, len(registration.fingerprint)) == ("pending", 64)

    pending = client.decision(request)
    assert (pending.status, pending.fingerprint) == ("pending", registration.fingerprint)
    assert pending.decided_by is None and pending.settled_at is None
    with pytest.raises(Conflict):
        client.acknowledge(request)

    service.reject(request, "안 됩니다")
    decision = client.decision(request, wait_seconds=5)
    assert (decision.status, decision.reason) == ("rejected", "안 됩니다")
    assert decision.decided_by == PERSON
    assert decision.fingerprint == registration.fingerprint
    assert decision.settled_at == decision.decided_at
    assert decision.signal is not None and decision.signal.state == "none"
    with pytest.raises(Conflict) as caught:
        client.cancel(request)
    assert caught.value.data["status"] == "rejected"

    signal = client.signal(session, request, wait_seconds=5)
    assert signal is not None
    assert (signal.type, signal.reason) == ("rejection", "안 됩니다")


def test_held_until_decided(service: Service, client: Client) -> None:
    session, request = new_session(), new_request()
    client.register("send_email", {}, session_id=session, request_id=request)
    assert client.signal(session, request, wait_seconds=1) is None
    threading.Timer(1.0, service.approve, [request]).start()
    began = time.monotonic()
    signal = client.signal(session, request, wait_seconds=20)
    assert signal is not None and signal.status == "approved"
    assert 0.5 < time.monotonic() - began < 5


def test_unknown_requests(client: Client) -> None:
    for call in (client.decision, client.cancel, client.acknowledge):
        with pytest.raises(NotFound) as caught:
            call(new_request())
        assert caught.value.error_code == "E1004"


def test_cancelled_and_expired(client: Client) -> None:
    request = new_request()
    client.register("send_email", {}, session_id=new_session(), request_id=request)
    client.cancel(request)
    client.cancel(request)
    assert client.decision(request).status == "cancelled"

    late = new_request()
    client.register("x", {}, session_id=new_session(), request_id=late, expires_in=1)
    assert client.decision(late, wait_seconds=20).status == "expired"
    with pytest.raises(Gone):
        client.cancel(late)


def test_outcomes_are_replayed(service: Service, client: Client) -> None:
    session, first, second, third = new_session(), *(new_request() for _ in range(3))
    for request in (first, second, third):
        client.register("send_email", {}, session_id=session, request_id=request)
    service.approve(first)
    service.reject(second, "아니요")
    client.cancel(third)

    with closing(client.outcomes(session)) as stream:  # type: ignore[type-var]
        outcomes: list[Outcome] = list(islice(stream, 3))
    assert [outcome.request_id for outcome in outcomes] == [first, second, third]
    assert [outcome.type for outcome in outcomes] == ["approval", "rejection", "cancelled"]
    assert [outcome.id for outcome in outcomes] == ["1", "2", "3"]
    assert outcomes[1].reason == "아니요"
    assert outcomes[0].fingerprint == client.decision(first).fingerprint

    client.acknowledge(first)
    assert next(iter(client.outcomes(session))).request_id == second
    assert next(iter(client.outcomes(session, last_event_id="2"))).request_id == third
    assert next(iter(client.outcomes(session, last_event_id="0"))).request_id == first


def test_the_asynchronous_client_does_the_same(service: Service) -> None:
    async def use() -> None:
        async def give() -> str:
            return token()

        session, request = new_session(), new_request()
        async with AsyncClient(service.url, token=give, tenant=TENANT) as client:
            asked: Any = {"session_id": session, "request_id": request}
            registration = await client.register("send_email", {}, **asked)
            held = asyncio.create_task(client.decision(request, wait_seconds=20))
            heard = asyncio.create_task(client.signal(session, request, wait_seconds=20))
            await asyncio.sleep(0.5)
            assert not held.done() and not heard.done()
            await asyncio.to_thread(service.approve, request)
            assert (await held).fingerprint == registration.fingerprint
            signal = await heard
            assert signal is not None and signal.request_id == request
            async with aclosing(client.outcomes(session)) as outcomes:
                assert (await anext(outcomes)).request_id == request
            assert (await client.acknowledge(request)).request_id == request
            with pytest.raises(Conflict):
                await client.cancel(request)

    asyncio.run(use())


def test_a_cancelled_coroutine_leaves_the_request(service: Service, client: Client) -> None:
    """The agent's process stops. Asking again under the same id goes on."""

    async def use(request: str) -> None:
        async with AsyncClient(service.url, token=token, tenant=TENANT) as impatient:
            work = impatient.request_approval(
                "send_email", {}, session_id=new_session(), request_id=request
            )
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(work, 1)

    request = new_request()
    asyncio.run(use(request))
    assert client.decision(request).status == "pending"


def test_what_is_no_answer_of_the_service() -> None:
    page = httpx.Response(200, text="<html>", request=httpx.Request("GET", "http://a/b"))
    with pytest.raises(UnexpectedAnswer):
        _wire.data(page)
    answers: list[Any] = [
        None,
        [],
        {},
        {"requestId": "r", "sessionId": "s", "status": "granted"},
        {"requestId": "other", "sessionId": "s", "status": "approved"},
    ]
    for values in answers:
        with pytest.raises(UnexpectedAnswer):
            _wire.decision(values, "r")


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{}", "approved", b"\xff", None, "{", '{"type":1}']
)
def test_what_is_no_signal(text: object) -> None:
    assert _wire.signal(text) is None


def test_what_cannot_be_a_client() -> None:
    with pytest.raises(ValueError, match="base_url"):
        Client("localhost:8081", token="t", tenant="t")
    with pytest.raises(ValueError, match="listen_by"):
        Client("http://localhost", token="t", tenant="t", listen_by=("smoke",))  # type: ignore[arg-type]
