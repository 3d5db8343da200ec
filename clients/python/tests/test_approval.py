"""What request_approval returns, and what it leaves behind. Both clients, both modes."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from conftest import PERSON, Service, _Agent, new_request, new_session, until
from faults import Faulty, Once, busy

from aura_hitl import (
    Approved,
    Cancelled,
    Client,
    Conflict,
    ContentChanged,
    Expired,
    NotAllowed,
    Rejected,
    Unavailable,
    _core,
)


def test_approved(service: Service, agent: _Agent) -> None:
    request, session = new_request(), new_session()
    future = agent.ask_and_wait_until_pending(service, request, session_id=session)
    service.approve(request)
    result = future.result(10)
    assert isinstance(result, Approved) and result
    assert (result.request_id, result.session_id) == (request, session)
    assert result.decided_by == PERSON
    assert result.decided_at is not None
    assert abs(datetime.now(UTC) - result.decided_at) < timedelta(seconds=30)
    state = service.state(request)
    assert result.fingerprint == state["fingerprint"]
    assert state["actedAt"], "acknowledged before it returned"


def test_rejected_with_a_reason(service: Service, agent: _Agent) -> None:
    request = new_request()
    future = agent.ask_and_wait_until_pending(service, request)
    service.reject(request, "아직 필요한 파일입니다")
    result = future.result(10)
    assert isinstance(result, Rejected) and not result
    assert (result.reason, result.decided_by) == ("아직 필요한 파일입니다", PERSON)


def test_when_the_time_is_over_it_is_withdrawn(service: Service, agent: _Agent) -> None:
    request = new_request()
    began = time.monotonic()
    result = agent.ask(service, request, timeout=2).result(15)
    assert time.monotonic() - began < 6
    assert isinstance(result, Expired) and result.withdrawn and not result
    assert service.state(request)["status"] == "cancelled"
    late = service.call("POST", f"/aura/hitl/approve/{request}", json={"userId": PERSON})
    assert (late.status_code, late.json()["errorCode"]) == (409, "E3006")


def test_expired_by_the_service(service: Service, agent: _Agent) -> None:
    request = new_request()
    began = time.monotonic()
    result = agent.ask(service, request, timeout=60, expires_in=1).result(30)
    assert isinstance(result, Expired)
    assert time.monotonic() - began < 20
    assert service.state(request)["status"] == "expired"


def test_withdrawn_by_somebody_else(service: Service, agent: _Agent, client: Client) -> None:
    request = new_request()
    future = agent.ask_and_wait_until_pending(service, request)
    client.cancel(request)
    result = future.result(10)
    assert isinstance(result, Cancelled) and not result


@pytest.mark.parametrize("verb, kind", [("approve", Approved), ("reject", Rejected)])
def test_decided_at_the_last_moment(
    service: Service, agent: _Agent, verb: str, kind: type[Any]
) -> None:
    request = new_request()

    def decide_first(call: httpx.Request) -> None:
        if call.url.path.endswith("/cancel"):
            service.decide(verb, request)

    # Without a means of being woken, so that nothing but the cancellation can tell.
    transport = Faulty(before=decide_first)
    future = agent.ask(service, request, timeout=1, transport=transport, listen_by=())
    assert isinstance(future.result(15), kind)


def test_acknowledged_later(service: Service, agent: _Agent, client: Client) -> None:
    request = new_request()
    future = agent.ask_and_wait_until_pending(service, request, acknowledge=False)
    service.approve(request)
    assert future.result(10)
    assert "actedAt" not in service.state(request)
    first = client.acknowledge(request)
    assert first.status == "approved"
    assert client.acknowledge(request).acted_at == first.acted_at
    assert service.state(request)["actedAt"]


def test_other_content_is_no_approval(service: Service, agent: _Agent) -> None:
    request = new_request()

    def forge(call: httpx.Request, answer: dict[str, Any]) -> dict[str, Any]:
        if call.url.path.endswith("/decision") and "data" in answer:
            answer["data"]["fingerprint"] = "0" * 64
        return answer

    future = agent.ask_and_wait_until_pending(service, request, transport=Faulty(after=forge))
    service.approve(request)
    with pytest.raises(ContentChanged) as caught:
        future.result(10)
    assert caught.value.approved == "0" * 64
    assert caught.value.registered == service.state(request)["fingerprint"]
    assert "actedAt" not in service.state(request)


def test_no_fingerprint_is_no_approval(service: Service, agent: _Agent) -> None:
    request = new_request()

    def forget(call: httpx.Request, answer: dict[str, Any]) -> dict[str, Any]:
        if call.url.path.endswith("/decision"):
            answer["data"].pop("fingerprint", None)
        return answer

    future = agent.ask_and_wait_until_pending(service, request, transport=Faulty(after=forget))
    service.approve(request)
    with pytest.raises(ContentChanged):
        future.result(10)


def test_asking_again_after_a_crash_finds_the_decision(service: Service, agent: _Agent) -> None:
    request, session = new_request(), new_session()
    with Client(service.url, token=service.token, tenant="tenant1") as before:
        before.register("send_email", {"to": "a@b.c"}, session_id=session, request_id=request)
    service.approve(request)
    asked = {"session_id": session, "context": {"to": "a@b.c"}, "expires_in": 1800}
    assert isinstance(agent.ask(service, request, **asked).result(10), Approved)


def test_a_lost_answer_registers_once(service: Service, agent: _Agent) -> None:
    request, lost = new_request(), [True]

    def lose(call: httpx.Request, answer: dict[str, Any]) -> dict[str, Any]:
        if call.url.path.endswith("/requests") and lost:
            lost.clear()
            raise httpx.ReadError("the connection broke")
        return answer

    future = agent.ask_and_wait_until_pending(service, request, transport=Faulty(after=lose))
    assert not lost
    service.approve(request)
    assert isinstance(future.result(10), Approved)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_service_is_asked_again_when_it_says(
    service: Service, agent: _Agent, status: int
) -> None:
    request, fault = new_request(), Once("/requests", busy(status, retry_after=1))
    began = time.monotonic()
    future = agent.ask_and_wait_until_pending(service, request, transport=Faulty(before=fault))
    assert time.monotonic() - began >= 1
    assert len(fault.seen) == 2 and fault.seen[0] == fault.seen[1], "the same request, its id too"
    service.approve(request)
    assert isinstance(future.result(10), Approved)


def test_never_registered_is_an_exception(service: Service, agent: _Agent) -> None:
    gone = Once("/requests", *[httpx.ConnectError("refused")] * 100)
    with pytest.raises(Unavailable) as caught:
        agent.ask(service, new_request(), timeout=1, transport=Faulty(before=gone)).result(10)
    assert caught.value.status is None and not caught.value.may_have_happened


def test_an_answer_lost_for_good_leaves_nothing_to_approve(service: Service, agent: _Agent) -> None:
    request = new_request()

    def lose(call: httpx.Request, answer: dict[str, Any]) -> dict[str, Any]:
        if call.url.path.endswith("/requests"):
            raise httpx.ReadError("the connection broke")
        return answer

    with pytest.raises(Unavailable):
        agent.ask(service, request, timeout=1, transport=Faulty(after=lose)).result(15)
    assert service.state(request)["status"] == "cancelled"


def test_the_service_is_away_when_the_time_is_over(
    service: Service, agent: _Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_core, "CLOSING_SECONDS", 1.0)
    away = Once("/cancel", *[httpx.ConnectError("refused")] * 1000)
    request = new_request()
    result = agent.ask(service, request, timeout=1, transport=Faulty(before=away)).result(30)
    assert isinstance(result, Expired) and not result.withdrawn
    assert service.is_pending(request)


def test_refusals(service: Service, agent: _Agent, client: Client) -> None:
    with pytest.raises(NotAllowed) as caught:
        agent.ask(service, new_request(), token="a.b.c").result(10)
    assert (caught.value.status, caught.value.error_code) == (401, "E2003")
    assert caught.value.trace_id

    request, session = new_request(), new_session()
    client.register("send_email", {"to": "a@b.c"}, session_id=session, request_id=request)
    with pytest.raises(Conflict) as conflict:
        agent.ask(service, request, session_id=session, context={"to": "x@y.z"}).result(10)
    assert conflict.value.error_code == "E3002"


def test_a_token_is_asked_for_again(service: Service, agent: _Agent) -> None:
    request, given = new_request(), []

    def fresh() -> str:
        given.append(service.token())
        return given[-1]

    future = agent.ask_and_wait_until_pending(service, request, token=fresh)
    service.approve(request)
    assert future.result(10)
    assert len(given) >= 3


def test_an_odd_session(service: Service, agent: _Agent) -> None:
    request, session = new_request(), new_session() + "_김@b.c/..?a=1#2%41"
    future = agent.ask_and_wait_until_pending(service, request, session_id=session)
    service.approve(request)
    result = future.result(10)
    assert isinstance(result, Approved) and result.session_id == session


def test_two_requests_in_one_session(service: Service, agent: _Agent) -> None:
    session, yes, no = new_session(), new_request(), new_request()
    first = agent.ask_and_wait_until_pending(service, yes, session_id=session)
    second = agent.ask_and_wait_until_pending(service, no, session_id=session)
    service.reject(no, "하나만")
    assert isinstance(second.result(10), Rejected)
    assert not first.done()
    service.approve(yes)
    assert isinstance(first.result(10), Approved)


def test_plan_and_message_reach_the_person(service: Service, agent: _Agent) -> None:
    request = new_request()
    future = agent.ask_and_wait_until_pending(
        service,
        request,
        message="보낼까요?",
        plan_steps=["look", {"id": "s2", "status": "skipped"}],
    )
    shown = service.call("GET", f"/aura/hitl/requests/{request}").json()["data"]
    assert "보낼까요?" in shown and '"step-1"' in shown and '"s2"' in shown
    service.approve(request)
    until(future.done)
    assert future.result()
