"""What request_approval returns, and what it leaves behind. Both clients, both modes."""

from __future__ import annotations

import json
import signal
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import redis
from conftest import (
    PERSON,
    TENANT,
    MakeService,
    OwnRedis,
    Service,
    _Agent,
    new_request,
    new_session,
    token,
    until,
)
from faults import Faulty, Once, busy

from aura_hitl import (
    AlreadyActed,
    Answered,
    Approved,
    ApprovedWithEdits,
    Cancelled,
    Client,
    Conflict,
    ContentChanged,
    Decision,
    Expired,
    Gone,
    NotAllowed,
    NotFound,
    PreconditionFailed,
    PreconditionRequired,
    Registration,
    Rejected,
    Unavailable,
    UnexpectedAnswer,
    Unprocessable,
    _core,
    _wire,
)
from aura_hitl._io import run


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
    assert (late.status_code, late.json()["errorCode"]) == (410, "E3007")


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


def test_a_decision_is_not_lost_when_it_cannot_be_acknowledged(
    service: Service, agent: _Agent
) -> None:
    request, decided = new_request(), [False]

    def see(call: httpx.Request, answer: dict[str, Any]) -> dict[str, Any]:
        decided[0] |= answer.get("data", {}).get("status") == "approved"
        return answer

    def give() -> str:
        if decided[0]:
            raise OSError("no token any more")
        return service.token()

    options: dict[str, Any] = {"token": give, "transport": Faulty(after=see)}
    future = agent.ask_and_wait_until_pending(service, request, **options)
    service.approve(request)
    assert isinstance(future.result(10), Approved)
    assert "actedAt" not in service.state(request)


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
    monkeypatch.setattr(_core, "CLOSE_TIMEOUT_SECONDS", 1.0)
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
    assert conflict.value.error_code == "E3008"


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


def test_an_approval_that_was_acted_on_is_not_returned_again(
    service: Service, agent: _Agent
) -> None:
    request, session = new_request(), new_session()
    first = agent.ask_and_wait_until_pending(service, request, session_id=session)
    service.approve(request)
    approved = first.result(10)
    assert isinstance(approved, Approved) and approved.acted_at is None
    acted_at = datetime.fromisoformat(service.state(request)["actedAt"]).replace(tzinfo=UTC)

    with pytest.raises(AlreadyActed) as caught:
        agent.ask(service, request, session_id=session).result(10)
    assert caught.value.result.request_id == request
    assert caught.value.result.acted_at == acted_at

    again = agent.ask(service, request, session_id=session, act_again=True).result(10)
    assert isinstance(again, Approved) and again.acted_at == acted_at


def test_a_refusal_may_be_heard_again(service: Service, agent: _Agent) -> None:
    request, session = new_request(), new_session()
    first = agent.ask_and_wait_until_pending(service, request, session_id=session)
    service.reject(request, "no")
    assert isinstance(first.result(10), Rejected)
    assert service.state(request)["actedAt"]
    assert isinstance(agent.ask(service, request, session_id=session).result(10), Rejected)


@pytest.mark.parametrize("asked, lives", [({"timeout": 7200}, 7230), ({"timeout": 86_400}, 86_400)])
def test_a_request_lives_as_long_as_its_agent_waits(
    service: Service, agent: _Agent, asked: dict[str, float], lives: int
) -> None:
    request = new_request()
    future = agent.ask_and_wait_until_pending(service, request, **asked)
    expires = datetime.fromisoformat(service.state(request)["expiresAt"]).replace(tzinfo=UTC)
    left = expires - datetime.now(UTC)
    assert timedelta(seconds=lives - 60) < left <= timedelta(seconds=lives)
    service.approve(request)
    assert future.result(10)


@pytest.mark.parametrize("timeout", [86_401, -1, float("inf"), float("nan")])
def test_a_timeout_that_cannot_be_kept(service: Service, agent: _Agent, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        agent.ask(service, new_request(), timeout=timeout).result(10)


TENANT_BEYOND_ASCII, USER_BEYOND_ASCII = "한국 지사/%41", "김철수 é"


@pytest.mark.parametrize(
    "tenant, user",
    [(TENANT_BEYOND_ASCII, USER_BEYOND_ASCII), ("a%41 b:c", "x/y"), (" Ø ", "José")],
)
def test_names_beyond_ascii(service: Service, agent: _Agent, tenant: str, user: str) -> None:
    request = new_request()
    given = token(user, tenant)
    options = {"token": given, "tenant": tenant}
    future = agent.ask(service, request, **options)
    with Client(service.url, token=given, tenant=tenant, user=user) as client:

        def is_there() -> bool:
            try:
                return client.decision(request).status == "pending"
            except NotFound:
                return False

        until(lambda: future.done() or is_there())
        with client.task("x") as task:
            task.result = 1
    headers = {
        "Authorization": f"Bearer {given}",
        "X-Tenant-ID": quote(tenant, safe=""),
        "X-User-ID": quote(user, safe=""),
    }
    answer = httpx.post(
        f"{service.url}/aura/hitl/approve/{request}", headers=headers, json={"userId": user}
    )
    assert answer.status_code == 200, answer.text
    result = future.result(20)
    assert isinstance(result, Approved) and result.decided_by == user


@pytest.fixture
def soon_closed(monkeypatch: pytest.MonkeyPatch) -> float:
    """How much longer than `timeout` a call may take: 3 s here instead of the README's 10."""
    monkeypatch.setattr(_core, "CLOSE_TIMEOUT_SECONDS", 3.0)
    return 3.0


def test_a_service_that_freezes_does_not_hold_the_agent(
    make_service: MakeService, agent: _Agent, soon_closed: float
) -> None:
    """It takes calls and answers none: each of them would wait its whole time out."""
    service = make_service("embedded")
    request = new_request()
    future = agent.ask_and_wait_until_pending(service, request, timeout=3)
    assert service.process is not None
    service.process.send_signal(signal.SIGSTOP)
    try:
        result = future.result(3 + soon_closed + 2)
    finally:
        service.process.send_signal(signal.SIGCONT)
    assert isinstance(result, Expired) and not result.withdrawn
    service.stop()


def test_a_service_that_is_frozen_from_the_start(
    make_service: MakeService, agent: _Agent, soon_closed: float
) -> None:
    service = make_service("embedded")
    assert service.process is not None
    service.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(Unavailable) as caught:
            agent.ask(service, new_request(), timeout=2).result(2 + soon_closed + 2)
    finally:
        service.process.send_signal(signal.SIGCONT)
    assert caught.value.may_have_happened
    service.stop()


def test_a_redis_that_freezes_does_not_hold_the_agent(
    service: Service, agent: _Agent, own_redis: OwnRedis, soon_closed: float
) -> None:
    assert own_redis.process is not None
    own_redis.process.send_signal(signal.SIGSTOP)
    try:
        future = agent.ask(service, new_request(), timeout=2, redis_url=own_redis.url)
        result = future.result(2 + soon_closed + 2)
    finally:
        own_redis.process.send_signal(signal.SIGCONT)
    assert isinstance(result, Expired) and result.withdrawn


def test_what_any_attempt_may_have_done_is_said(service: Service, agent: _Agent) -> None:
    """The first answer was lost; that the second was refused does not undo the first."""
    faults = Once("/requests", httpx.ReadError("lost"), *[httpx.ConnectError("refused")] * 100)
    with pytest.raises(Unavailable) as caught:
        agent.ask(service, new_request(), timeout=1, transport=Faulty(before=faults)).result(15)
    assert caught.value.may_have_happened


def test_only_its_user_changes_a_request(service: Service) -> None:
    request = new_request()
    with Client(service.url, token=token(), tenant=TENANT) as owner:
        owner.register("x", {}, session_id=new_session(), request_id=request)
        with Client(service.url, token=token("colleague"), tenant=TENANT) as colleague:
            assert colleague.decision(request).status == "pending"
            for change in (colleague.cancel, colleague.acknowledge):
                with pytest.raises(NotAllowed) as caught:
                    change(request)
                assert (caught.value.status, caught.value.error_code) == (403, "E2001")
        service.approve(request)
        with Client(service.url, token=token("boss", role="admin"), tenant=TENANT) as admin:
            assert admin.acknowledge(request).status == "approved"


def test_an_agent_never_decides(service: Service) -> None:
    """Whatever its token permits: the client says that it is an agent."""
    request = new_request()
    with Client(service.url, token=token(PERSON), tenant=TENANT) as client:
        client.register("x", {}, session_id=new_session(), request_id=request)
        with pytest.raises(NotAllowed) as caught:
            run(
                client._core._call(
                    "POST",
                    f"/aura/hitl/approve/{request}",
                    headers={"X-User-ID": PERSON},
                    body={"userId": PERSON},
                )
            )
        assert (caught.value.status, caught.value.error_code) == (403, "E2001")
        assert client.decision(request).status == "pending"


def call_as_a_person(service: Service, method: str, path: str, **more: Any) -> Any:
    """Reads the answer as the client does."""
    return _wire.data(service.call(method, path, **more))


def test_what_cannot_be_decided_has_names(make_service: MakeService, production: Service) -> None:
    withdrawn, session = new_request(), new_session()
    with Client(production.url, token=token(PERSON), tenant=TENANT) as client:
        client.register("x", {}, session_id=session, request_id=withdrawn)
        client.cancel(withdrawn)
        with pytest.raises(Gone) as gone:
            call_as_a_person(
                production, "POST", f"/aura/hitl/approve/{withdrawn}", json={"userId": PERSON}
            )
        assert (gone.value.status, gone.value.error_code) == (410, "E3007")

    broken = new_request()
    with redis.Redis.from_url(production.redis_url or "") as link:
        document = {"requestId": "another", "sessionId": session, "tenantId": TENANT}
        link.set(f"hitl:request:{broken}", json.dumps(document), ex=60)
    with pytest.raises(Unprocessable) as unreadable:
        call_as_a_person(
            production, "POST", f"/aura/hitl/approve/{broken}", json={"userId": PERSON}
        )
    assert (unreadable.value.status, unreadable.value.error_code) == (422, "E4220")

    changed = new_request()
    with Client(production.url, token=token(PERSON), tenant=TENANT) as client:
        client.register("x", {}, session_id=session, request_id=changed)
    with pytest.raises(PreconditionFailed) as failed:
        call_as_a_person(
            production,
            "POST",
            f"/aura/hitl/approve/{changed}",
            json={"userId": PERSON},
            headers={"If-Match": '"0"'},
        )
    assert (failed.value.status, failed.value.error_code) == (412, "E4120")

    strict = make_service("embedded", AURA_HITL_REQUIRE_IF_MATCH="true")
    blind = new_request()
    with Client(strict.url, token=token(PERSON), tenant=TENANT) as client:
        client.register("x", {}, session_id=session, request_id=blind)
    with pytest.raises(PreconditionRequired) as required:
        call_as_a_person(strict, "POST", f"/aura/hitl/approve/{blind}", json={"userId": PERSON})
    assert (required.value.status, required.value.error_code) == (428, "E4280")
    strict.stop()


def test_edits_and_answers_are_never_true(service: Service, agent: _Agent) -> None:
    decisions = ["approve", "reject", "edit", "respond"]
    edited, answered = new_request(), new_request()
    future = agent.ask_and_wait_until_pending(
        service, edited, session_id=new_session(), decisions=decisions
    )
    service.decide("approve", edited, arguments={"to": "kim@b.c"})
    result = future.result(10)
    assert isinstance(result, ApprovedWithEdits) and not result
    assert result.arguments == {"to": "kim@b.c"}
    assert result.fingerprint != result.requested_fingerprint
    future = agent.ask_and_wait_until_pending(
        service, answered, session_id=new_session(), decisions=decisions
    )
    service.decide("respond", answered, response=None)
    result = future.result(10)
    assert isinstance(result, Answered) and not result
    assert result.response is None


def test_an_edit_is_of_what_was_asked() -> None:
    """And a replica that does not tell edits apart is not believed."""
    registered = Registration(
        request_id="req-1",
        session_id="s",
        status="pending",
        fingerprint="asked",
        expires_at=datetime.now(UTC),
    )

    def decided(**fields: Any) -> Decision:
        values = {
            "requestId": "req-1",
            "sessionId": "s",
            "status": "approved",
            "fingerprint": "asked",
            **fields,
        }
        return _wire.decision(values, "req-1")

    def result(decision: Decision) -> object:
        return _core.result_of(decision, registered, takes_edits=True)

    plain = decided(requestedFingerprint="asked")
    assert isinstance(result(plain), Approved)
    edit = {"fingerprint": "edited", "arguments": {"to": "x"}}
    assert isinstance(result(decided(requestedFingerprint="asked", **edit)), ApprovedWithEdits)
    # Even unasked it is no plain approval.
    found = _core.result_of(decided(requestedFingerprint="asked", **edit), registered)
    assert isinstance(found, ApprovedWithEdits)
    with pytest.raises(ContentChanged):
        result(decided(requestedFingerprint="other", **edit))
    with pytest.raises(UnexpectedAnswer):
        result(decided())
    with pytest.raises(UnexpectedAnswer):
        decided(requestedFingerprint="asked", arguments=[1])
