"""Lists, one request in full, and the inbox, by both kinds of client."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Literal

import httpx
import pytest
import redis
from conftest import (
    PERSON,
    TENANT,
    USER,
    MakeService,
    Mode,
    Service,
    _in_background,
    free_port,
    new_request,
    new_session,
    token,
    until,
)
from faults import Faulty, busy

from aura_hitl import (
    ApiError,
    AsyncClient,
    BulkItem,
    BulkRefused,
    BulkResult,
    Client,
    Conflict,
    InboxChange,
    InboxCounts,
    InboxEvent,
    ListedRequest,
    NotAllowed,
    NotFound,
    RequestDetail,
    Unavailable,
    UnexpectedAnswer,
    Unprocessable,
    _core,
    _wire,
)

Kind = Literal["blocking", "asyncio"]


@pytest.fixture(params=["blocking", "asyncio"])
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    return chosen


def new_tenant() -> str:
    """A tenant whose counts no other test changes."""
    return f"tenant_{uuid.uuid4().hex[:12]}"


def give(tenant: str) -> Callable[[], str]:
    return lambda: token(tenant=tenant)


def lasting(tenant: str, seconds: int) -> str:
    """A token that the service takes for so long: it forgives 10 s."""
    now = int(time.time())
    return token(tenant=tenant, iat=now - 60, exp=now + seconds - 10)


def registered(client: Client, session: str, count: int, **more: Any) -> list[str]:
    ids = [new_request() for _ in range(count)]
    for request in ids:
        client.register("send_email", {}, session_id=session, request_id=request, **more)
    return ids


def approve(service: Service, request: str, tenant: str) -> None:
    headers = {"Authorization": f"Bearer {token(PERSON, tenant)}", "X-Tenant-ID": tenant}
    path = f"/aura/hitl/approve/{request}"
    answer = service.call("POST", path, json={"userId": PERSON}, headers=headers)
    assert answer.status_code == 200, answer.text


# Decisions


def decide(
    service: Service,
    kind: Kind,
    items: list[BulkItem],
    *,
    atomic: bool = False,
    **options: Any,
) -> tuple[BulkResult, ...]:
    built = {"token": token(PERSON), "tenant": TENANT, "as_person": True, **options}

    async def asynchronous() -> tuple[BulkResult, ...]:
        async with AsyncClient(service.url, **built) as client:
            return await client.decide(items, atomic=atomic)

    if kind == "asyncio":
        return asyncio.run(asynchronous())
    with Client(service.url, **built) as client:
        return client.decide(items, atomic=atomic)


def test_several_decisions_have_a_result_each(
    service: Service, client: Client, kind: Kind
) -> None:
    ids = registered(client, new_session(), 5)
    service.reject(ids[3], "no")
    etag = client.detail(ids[0]).etag
    unknown = new_request()
    items = [
        BulkItem(ids[0], "approve", etag=etag),
        BulkItem(ids[1], "reject", reason="아니요"),
        BulkItem(ids[2], "approve", etag="other"),
        BulkItem(ids[3], "approve"),
        BulkItem(unknown, "approve"),
    ]
    results = decide(service, kind, items)
    assert [each.request_id for each in results] == [item.request_id for item in items]
    said = [(each.status, each.error_code, each.recorded, each.decided) for each in results]
    assert said == [
        (200, None, True, True),
        (200, None, True, True),
        (412, "E4120", False, False),
        (409, "E3006", False, False),
        (404, "E1004", False, False),
    ]
    assert results[0].data["status"] == "approved"
    assert results[1].data["reason"] == "아니요"
    assert results[3].data["decidedBy"] == PERSON
    assert all(each.message and each.more == {} for each in results)
    assert service.state(ids[0])["decidedBy"] == PERSON
    assert service.state(ids[2])["status"] == "pending"
    assert copy.deepcopy(results) == results == pickle.loads(pickle.dumps(results))
    # The same again is answered the same.
    assert decide(service, kind, items[:2]) == results[:2]


def test_all_or_none(service: Service, client: Client, kind: Kind) -> None:
    ids = registered(client, new_session(), 4)
    service.reject(ids[1], "no")
    items = [BulkItem(each, "approve") for each in ids]
    with pytest.raises(BulkRefused) as caught:
        decide(service, kind, items, atomic=True)
    refused = caught.value
    assert isinstance(refused, Conflict) and (refused.status, refused.error_code) == (409, "E3008")
    assert [each.error_code for each in refused.results] == ["E3008", "E3006", "E3008", "E3008"]
    assert not any(each.recorded for each in refused.results)
    again = pickle.loads(pickle.dumps(refused))
    assert (again.results, again.trace_id) == (refused.results, refused.trace_id)
    assert service.state(ids[0])["status"] == "pending"
    del items[1]
    results = decide(service, kind, items, atomic=True)
    assert [each.decided for each in results] == [True] * 3


def test_an_agent_decides_nothing(service: Service, client: Client, kind: Kind) -> None:
    (request,) = registered(client, new_session(), 1)
    items = [BulkItem(request, "approve")]
    with pytest.raises(ValueError, match="as_person"):
        decide(service, kind, items, as_person=False)
    with pytest.raises(ApiError) as refused:
        decide(service, kind, [])
    assert refused.value.status == 400
    with pytest.raises(ApiError) as twice:
        decide(service, kind, items * 2)
    assert twice.value.data == {"decisions[1].requestId": "is named twice"}
    with pytest.raises(ValueError):
        decide(service, kind, [BulkItem(request, "edit")])  # type: ignore[arg-type]
    with pytest.raises(NotAllowed):
        decide(service, kind, items, user=USER)
    assert service.state(request)["status"] == "pending"


# Lists


def test_what_a_list_says_of_a_request(service: Service, client: Client) -> None:
    session, request = new_session(), new_request()
    began = datetime.now(UTC).replace(microsecond=0)
    registration = client.register(
        "send_email", {"to": "a@b.c"}, session_id=session, request_id=request, message="보낼까요?"
    )
    page = client.requests(session_id=session)
    assert (len(page.content), page.size, page.total_elements) == (1, 20, 1)
    assert (page.next_cursor, page.more) == (None, {})
    listed = page.content[0]
    assert (listed.request_id, listed.session_id) == (request, session)
    assert (listed.tenant_id, listed.user_id, listed.origin) == (TENANT, USER, "http")
    assert (listed.action_type, listed.message) == ("send_email", "보낼까요?")
    assert (listed.status, listed.risk, listed.rule) == ("pending", "medium", None)
    assert listed.fingerprint == registration.fingerprint
    assert listed.expires_at == registration.expires_at
    assert began <= listed.created_at <= datetime.now(UTC)
    assert listed.task_id is not None and service.task(listed.task_id)
    assert (listed.approvals, listed.approvals_needed, listed.may_decide) == (0, 1, True)
    assert listed.decisions == ("approve", "reject")
    assert (listed.decided_by, listed.decided_via, listed.agent_waits_until) == (None, None, None)
    assert listed.more == {}, "the client knows every field of this release"

    # The tag is what deciding takes.
    path = f"/aura/hitl/reject/{request}"
    body = {"userId": PERSON, "reason": "아니요"}
    answer = service.call("POST", path, json=body, headers={"If-Match": f'"{listed.etag}"'})
    assert answer.status_code == 200, answer.text
    assert client.requests(session_id=session).content == ()
    closed = client.requests(session_id=session, status="rejected").content[0]
    assert (closed.decided_by, closed.decided_via, closed.reason) == (PERSON, "person", "아니요")
    assert closed.settled_at == closed.decided_at and closed.decided_at is not None
    assert not closed.may_decide
    assert listed != closed and len({listed, closed}) == 2


def test_all_pages(service: Service, client: Client) -> None:
    session = new_session()
    ids = registered(client, session, 5)
    first = client.requests(session_id=session, size=2)
    assert (len(first.content), first.size, first.total_elements) == (2, 2, 5)
    # What is closed between two pages is neither missing nor told twice.
    service.approve(first.content[0].request_id)
    second = client.requests(session_id=session, size=2, cursor=first.next_cursor)
    third = client.requests(session_id=session, size=2, cursor=second.next_cursor)
    told = [each.request_id for page in (first, second, third) for each in page.content]
    assert sorted(told) == sorted(ids) and third.next_cursor is None

    every = client.all_requests(session_id=session, size=2, status=["pending", "approved"])
    assert sorted(each.request_id for each in every) == sorted(ids)
    # By age, not by what they became.
    newest = client.all_requests(session_id=session, size=2, sort="-createdAt")
    times = [each.created_at for each in newest]
    assert times == sorted(times, reverse=True) and len(times) == 4
    with pytest.raises(ApiError) as refused:
        client.requests(session_id=new_session(), cursor=first.next_cursor)
    assert (refused.value.status, refused.value.error_code) == (400, "E4000")
    assert "cursor" in refused.value.data


def test_pages_that_a_filter_empties(service: Service, client: Client) -> None:
    """The service reads so many rows for a page. A page may have none that the filter takes."""
    session = new_session()
    ids = registered(client, session, 3)

    def emptied(call: httpx.Request, answer: dict[str, Any]) -> dict[str, Any]:
        if "cursor" not in call.url.params:
            answer["data"] |= {"content": [], "numberOfElements": 0}
        return answer

    http = httpx.Client(transport=Faulty(after=emptied))
    with Client(service.url, token=token, tenant=TENANT, http_client=http) as other:
        told = [each.request_id for each in other.all_requests(session_id=session, size=1)]
    assert len(told) == 2 and set(told) < set(ids)


def test_filters(service: Service, client: Client) -> None:
    session = new_session()
    (one,) = registered(client, session, 1)
    two = new_request()
    client.register("pay", {}, session_id=session, request_id=two)
    service.approve(two)

    def found(**filters: Any) -> list[str]:
        page = client.requests(**{"session_id": session, **filters})
        return [each.request_id for each in page.content]

    assert found() == [one]
    assert found(status=("approved", "rejected")) == [two]
    assert found(status="approved", decided_by=PERSON) == [two]
    assert found(status="approved", decided_by=USER) == []
    assert found(action_type="send_email") == [one] and found(action_type="pay") == []
    assert found(user_id=USER, scope="mine", risk="medium") == [one]
    assert found(user_id=PERSON) == found(risk="high") == found(rule="r") == []
    task = client.requests(session_id=session).content[0].task_id
    assert found(task_id=task) == [one] and found(task_id="other") == []

    now = datetime.now(UTC)
    korea = timezone(timedelta(hours=9))
    early, late = now - timedelta(minutes=1), (now + timedelta(minutes=1)).astimezone(korea)
    assert found(created_from=early, created_before=late) == [one]
    assert found(created_before=early) == found(created_from=late) == []
    with pytest.raises(ValueError, match="created_from"):
        found(created_from=datetime(2026, 1, 16))
    with pytest.raises(TypeError):
        found(actionType="pay")


def test_who_sees_the_tenant(service: Service, client: Client) -> None:
    session = new_session()
    (request,) = registered(client, session, 1)
    with pytest.raises(NotAllowed) as refused:
        client.requests(scope="tenant")
    assert refused.value.error_code == "E2001"
    admin = token("admin1", role="admin")
    with Client(service.url, token=admin, tenant=TENANT) as other:
        page = other.requests(scope="tenant", session_id=session)
        assert [each.request_id for each in page.content] == [request]
        assert other.requests(scope="mine", session_id=session).content == ()
    elsewhere = new_tenant()
    with Client(service.url, token=give(elsewhere), tenant=elsewhere) as stranger:
        assert stranger.requests(session_id=session).content == ()
        with pytest.raises(NotFound):
            stranger.detail(request)


def test_words(service: Service, client: Client) -> None:
    """The service needs up to a second to find what is new."""
    session, request = new_session(), new_request()
    context = {"to": "김철수", "what": "Quarterly Report"}
    client.register("pay", context, session_id=session, request_id=request, message="결제할까요?")
    registered(client, session, 1)

    def found(words: str) -> list[str]:
        page = client.requests(session_id=session, q=words)
        assert page.searched_newest is None and page.more == {}
        return [each.request_id for each in page.content]

    until(lambda: found("quarterly 김철수") == [request], 5)
    assert found("결제") == found(request.upper()) == [request]
    assert found("quarterly 이영희") == []
    assert [each.request_id for each in client.all_requests(session_id=session, q="철수")] == [
        request
    ]
    with pytest.raises(ApiError) as refused:
        found(" ")
    assert "q" in refused.value.data


def test_how_filters_are_sent(service: Service) -> None:
    sent: list[httpx.QueryParams] = []

    def page(call: httpx.Request) -> httpx.Response:
        sent.append(call.url.params)
        data = {"content": [], "numberOfElements": 0, "size": 20, "totalElements": 0}
        data |= {"searchedNewest": 10000, "isNew": True}
        envelope = {"status": "SUCCESS", "success": True, "data": data}
        return httpx.Response(200, json=envelope)

    http = httpx.Client(transport=httpx.MockTransport(page))
    with Client("http://a", token="t", tenant="t", http_client=http) as c:
        found = c.requests(q="결제 카드", scope="mine", decided_by="kim", status=["a", "b"])
        c.requests()
    assert (found.searched_newest, found.more) == (10_000, {"isNew": True})
    expected = {"q": "결제 카드", "scope": "mine", "decidedBy": "kim", "status": "a,b"}
    assert [dict(each) for each in sent] == [expected, {}]


# One request in full


def test_a_request_in_full(service: Service, client: Client) -> None:
    session, request = new_session(), new_request()
    client.register(
        "send_email",
        {"to": "a@b.c"},
        session_id=session,
        request_id=request,
        message="긴 글 " * 400,
        plan_steps=["Read"],
    )
    detail = client.detail(request)
    listed = client.requests(session_id=session).content[0]
    for name in ListedRequest.__dataclass_fields__:
        assert getattr(detail, name) == getattr(listed, name), name
    assert detail.context == {"to": "a@b.c"}
    assert [step["description"] for step in detail.plan_steps] == ["Read"]
    assert (detail.arguments, detail.response) == (None, None)
    assert (detail.votes, detail.comments) == ((), ())
    assert detail.signal.state == "none"
    assert [(each.event, each.by) for each in detail.history] == [("created", USER)]
    assert detail.history[0].at == detail.created_at
    assert TENANT in detail.why

    service.approve(request)
    client.acknowledge(request)
    detail = client.detail(request)
    assert (detail.status, detail.approvals, detail.may_decide) == ("approved", 1, False)
    happened = [(each.event, each.by) for each in detail.history]
    assert happened == [("created", USER), ("approved", PERSON), ("acted", None)]
    assert detail.more == {}
    with pytest.raises(NotFound) as caught:
        client.detail(new_request())
    assert caught.value.error_code == "E1004"


NUMBERS = (
    '{"money":1.50,"whole":5,"wholly":5.0,"large":123456789012345678901234567890,'
    '"small":1e-7,"precise":0.1000000000000000055511151231257827,"in":[{"x":-0.0}]}'
)


def test_numbers_are_those_that_the_agent_wrote(service: Service, client: Client) -> None:
    session, request = new_session(), new_request()
    given = {"sessionId": session, "requestId": request, "actionType": "pay", "context": "$"}
    body = json.dumps(given).replace('"$"', NUMBERS)
    path = "/aura/hitl/requests"
    headers = {"Content-Type": "application/json"}
    answer = service.call("POST", path, user=USER, content=body.encode(), headers=headers)
    assert answer.status_code == 201, answer.text
    context = client.detail(request).context
    assert [type(value) for value in context.values()] == [
        *(Decimal, int, Decimal, int, Decimal, Decimal, list),
    ]
    assert {name: str(value) for name, value in context.items()} == {
        "money": "1.50",
        "whole": "5",
        "wholly": "5.0",
        "large": "123456789012345678901234567890",
        "small": "1E-7",
        "precise": "0.1000000000000000055511151231257827",
        "in": "[{'x': Decimal('-0.0')}]",
    }


def test_a_request_of_redis(production: Service) -> None:
    session, request = new_session(), new_request()
    long = "9" * 5000
    document = json.dumps(
        {
            "requestId": request,
            "sessionId": session,
            "userId": USER,
            "tenantId": TENANT,
            "actionType": "pay",
            "context": {"amount": "$", "huge": "%", "limit": float("nan"), "rest": float("-inf")},
            "status": "pending",
        }
    )
    document = document.replace('"$"', long).replace('"%"', "1e400")
    with redis.Redis.from_url(production.redis_url or "") as link:
        link.set(f"hitl:request:{request}", document, ex=1800)
        link.set(f"hitl:session:{session}", request, ex=1800)
    with Client(production.url, token=token, tenant=TENANT) as client:
        detail = client.detail(request)
        assert (detail.origin, detail.status, detail.user_id) == ("redis", "pending", USER)
        # More digits than Python reads as an int, and more than a float holds.
        numbers = {"amount": Decimal(long), "huge": Decimal("1E+400")}
        assert detail.context == {**numbers, "limit": "NaN", "rest": "-Infinity"}
        assert detail.agent_waits_until == detail.created_at + timedelta(seconds=300)
        production.approve(request)
        until(lambda: client.detail(request).signal.state == "sent")
        detail = client.detail(request)
        assert detail.signal.listeners == 0 and detail.signal.sent_at is not None

        broken = new_request()
        with redis.Redis.from_url(production.redis_url or "") as link:
            link.set(f"hitl:request:{broken}", "{", ex=60)
        with pytest.raises(Unprocessable):
            client.detail(broken)


def test_numbers_that_python_has_not() -> None:
    assert _wire.exact("1e9999999999999999999999") == "1e9999999999999999999999"
    assert _wire.exact("-12") == -12


def test_the_asynchronous_client_lists_too(service: Service, client: Client) -> None:
    session = new_session()
    ids = registered(client, session, 3)

    async def use() -> None:
        async with AsyncClient(service.url, token=token, tenant=TENANT) as other:
            page = await other.requests(session_id=session, size=2)
            assert page == client.requests(session_id=session, size=2)
            rest = await other.requests(session_id=session, size=2, cursor=page.next_cursor)
            assert len(rest.content) == 1
            every = [each async for each in other.all_requests(session_id=session, size=1)]
            assert sorted(each.request_id for each in every) == sorted(ids)
            assert await other.detail(ids[0]) == client.detail(ids[0])
            with pytest.raises(NotFound):
                await other.detail(new_request())

    asyncio.run(use())


def test_a_lost_answer_is_asked_for_again(service: Service, client: Client, kind: Kind) -> None:
    session = new_session()
    (request,) = registered(client, session, 1)
    faults: list[httpx.Response | Exception] = [busy(503, 0), httpx.ReadError("gone")] * 2

    def before(call: httpx.Request) -> httpx.Response | None:
        if not faults:
            return None
        fault = faults.pop()
        if isinstance(fault, Exception):
            raise fault
        return fault

    transport = Faulty(before=before)

    async def use() -> None:
        http = httpx.AsyncClient(transport=transport)
        async with AsyncClient(service.url, token=token, tenant=TENANT, http_client=http) as other:
            assert len((await other.requests(session_id=session)).content) == 1
            assert (await other.detail(request)).request_id == request

    if kind == "asyncio":
        asyncio.run(use())
    else:
        http = httpx.Client(transport=transport)
        with Client(service.url, token=token, tenant=TENANT, http_client=http) as other:
            assert len(other.requests(session_id=session).content) == 1
            assert other.detail(request).request_id == request
    assert not faults


# What other releases of the service may send


LISTED: dict[str, Any] = {
    "requestId": "r",
    "sessionId": "s",
    "tenantId": "t",
    "userId": None,
    "origin": "redis",
    "actionType": "a",
    "message": None,
    "status": "pending",
    "risk": "medium",
    "rule": None,
    "createdAt": "2026-01-16T12:00:00",
    "expiresAt": "2026-01-16T12:30:00",
    "taskId": None,
    "fingerprint": "f",
    "decidedBy": None,
    "decidedVia": None,
    "decidedAt": None,
    "settledAt": None,
    "reason": None,
    "approvals": 0,
    "approvalsNeeded": 1,
    "mayDecide": True,
    "decisions": ["approve", "reject"],
    "etag": "e",
    "agentWaitsUntil": "2026-01-16T12:05:00",
}
DETAIL: dict[str, Any] = {
    **LISTED,
    "context": {},
    "planSteps": [],
    "votes": [],
    "comments": [],
    "signal": {"state": "none"},
    "history": [{"at": "2026-01-16T12:00:00", "event": "created"}],
    "why": "Because.",
}
VOTE = {
    "userId": "kim",
    "decision": "approve",
    "at": "2026-01-16T12:00:01",
    "reason": None,
    "counted": True,
}
PAGE: dict[str, Any] = {"content": [LISTED], "numberOfElements": 1, "size": 20, "totalElements": 1}


def test_what_a_newer_service_may_send() -> None:
    newer = {
        **DETAIL,
        "status": "thought_about",
        "decidedVia": "grant",
        "decisions": ["approve", "ponder"],
        "askedAgain": True,
        "requestedFingerprint": "g",
        "arguments": {"to": "c@d.e"},
        "response": [1],
        "votes": [{**VOTE, "arguments": {"to": "c@d.e"}}],
        "comments": [
            {
                "requestId": "req-1",
                "number": 1,
                "userId": "kim",
                "author": "person",
                "text": "왜요?",
                "at": "2026-01-16T12:00:00",
            }
        ],
        "history": [{"at": "2026-01-16T12:00:00", "event": "pondered", "by": "kim", "for": 5}],
    }
    detail = _wire.detail(newer, "r")
    assert (detail.status, detail.decided_via) == ("thought_about", "grant")
    assert detail.decisions == ("approve", "ponder")
    assert detail.asked_again and detail.more == {"requestedFingerprint": "g"}
    assert (detail.arguments, detail.response) == ({"to": "c@d.e"}, [1])
    assert detail.votes[0].counted and detail.votes[0].more == {"arguments": {"to": "c@d.e"}}
    assert detail.comments[0].text == "왜요?"
    assert (detail.history[0].event, detail.history[0].more) == ("pondered", {"for": 5})
    page = _wire.page({**PAGE, "content": [{**LISTED, "mood": "good"}], "bounded": True})
    assert page.more == {"bounded": True} and page.content[0].more == {"mood": "good"}

    assert _wire.inbox_event("pondered", "{}", opened=True) is None
    event = _wire.inbox_event(
        "request", '{"requestId":"r","status":"s","change":"pondered","by":"kim"}', opened=False
    )
    assert isinstance(event, InboxChange)
    assert (event.change, event.more) == ("pondered", {"by": "kim"})
    for value in (detail, page, event, detail.votes[0], detail.history[0]):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            assert pickle.loads(pickle.dumps(value, protocol)) == value
        assert copy.deepcopy(value) == value and hash(copy.copy(value)) == hash(value)
        with pytest.raises(AttributeError):
            value.more = {}  # type: ignore[misc]


@pytest.mark.parametrize("missing", [*DETAIL])
def test_what_is_no_request_in_full(missing: str) -> None:
    assert _wire.detail(DETAIL, "r").context == {}
    wrong = {**DETAIL, missing: {1: 2}} if missing != "context" else dict(LISTED)
    if missing == "signal":
        wrong["signal"] = None
    with pytest.raises(UnexpectedAnswer):
        _wire.detail(wrong, "r")


@pytest.mark.parametrize(
    "wrong",
    [
        *(None, [], {}, {**PAGE, "content": None}, {**PAGE, "content": [None]}),
        *(
            {**PAGE, "content": [{}]},
            {**PAGE, "nextCursor": 5},
            {**PAGE, "searchedNewest": "1"},
            {**PAGE, "totalElements": "1"},
        ),
        {**PAGE, "content": [{**LISTED, "createdAt": "yesterday"}]},
    ],
)
def test_what_is_no_page(wrong: Any) -> None:
    assert len(_wire.page(PAGE).content) == 1
    with pytest.raises(UnexpectedAnswer):
        _wire.page(wrong)


def test_the_answer_is_about_another_request() -> None:
    with pytest.raises(UnexpectedAnswer):
        _wire.detail(DETAIL, "other")


def test_an_answer_that_is_nested_too_deeply() -> None:
    deep = '{"success":true,"data":' + "[" * 200_000 + "]" * 200_000 + "}"
    page = httpx.Response(200, text=deep, request=httpx.Request("GET", "http://a/b"))
    with pytest.raises(UnexpectedAnswer):
        _wire.data(page, numbers_exact=True)
    with pytest.raises(UnexpectedAnswer):
        _wire.inbox_event("request", deep, opened=False)


@pytest.mark.parametrize("event", ["counts", "request"])
@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"decidable":"1","requestId":5}'])
def test_what_is_no_event_of_the_inbox(event: str, text: str) -> None:
    with pytest.raises(UnexpectedAnswer):
        _wire.inbox_event(event, text, opened=False)


# The inbox


@dataclass
class Listening:
    """An inbox that somebody reads in the background, by either kind of client."""

    kind: Kind
    events: list[InboxEvent] = field(default_factory=list)
    done: Future[None] = field(default_factory=Future)
    close: Callable[[], None] = lambda: None

    def start(self, url: str, tenant: str, **options: Any) -> Listening:
        options = {"token": give(tenant), "tenant": tenant, **options}
        transport = options.pop("transport", None)
        ready = threading.Event()

        def blocking() -> None:
            http = None if transport is None else httpx.Client(transport=transport)
            with Client(url, http_client=http, **options) as client:
                self.close = client.close
                ready.set()
                for event in client.inbox():
                    self.events.append(event)

        async def asynchronous() -> None:
            http = None if transport is None else httpx.AsyncClient(transport=transport)
            loop = asyncio.get_running_loop()
            async with AsyncClient(url, http_client=http, **options) as client:

                def close() -> None:
                    asyncio.run_coroutine_threadsafe(client.close(), loop).result(10)

                self.close = close
                ready.set()
                async for event in client.inbox():
                    self.events.append(event)

        if self.kind == "blocking":
            self.done = _in_background(blocking)
        else:
            self.done = _in_background(lambda: asyncio.run(asynchronous()))
        assert ready.wait(10)
        return self

    def stop(self) -> None:
        if not self.done.done():
            self.close()
        self.done.result(10)

    @property
    def openings(self) -> int:
        return sum(isinstance(event, InboxCounts) and event.opened for event in self.events)

    @property
    def changes(self) -> list[tuple[str, str, str]]:
        return [
            (event.request_id, event.status, event.change)
            for event in list(self.events)
            if isinstance(event, InboxChange)
        ]

    @property
    def counts(self) -> tuple[int, int]:
        last = next(each for each in reversed(self.events) if isinstance(each, InboxCounts))
        return last.decidable, last.mine


@pytest.fixture
def listening(kind: Kind) -> Iterator[Listening]:
    listening = Listening(kind)
    yield listening
    if not listening.done.done():
        listening.close()


def test_the_inbox_tells_what_changes(service: Service, listening: Listening) -> None:
    tenant = new_tenant()
    with Client(service.url, token=give(tenant), tenant=tenant) as client:
        listening.start(service.url, tenant)
        until(lambda: listening.events)
        assert listening.events[0] == InboxCounts(decidable=0, mine=0, opened=True)
        session = new_session()
        one, two, three = registered(client, session, 3)
        until(lambda: len(listening.changes) == 3 and listening.counts == (3, 3), 5)
        approve(service, one, tenant)
        client.cancel(two)
        until(lambda: len(listening.changes) == 5 and listening.counts == (1, 1), 5)
        assert sorted(listening.changes[:3]) == sorted(
            (request, "pending", "created") for request in (one, two, three)
        )
        assert sorted(listening.changes[3:]) == sorted(
            [(one, "approved", "decided"), (two, "cancelled", "cancelled")]
        )
        assert listening.openings == 1
        # Another tenant's requests are not its business.
        with Client(service.url, token=token, tenant=TENANT) as stranger:
            registered(stranger, new_session(), 1)
        registered(client, session, 1)
        until(lambda: listening.counts == (2, 2), 5)
        assert len(listening.changes) == 6
    listening.stop()


def test_the_inbox_ends_when_the_client_is_closed(service: Service, listening: Listening) -> None:
    listening.start(service.url, new_tenant())
    until(lambda: listening.events)
    time.sleep(0.3)
    began = time.monotonic()
    listening.close()
    listening.done.result(5)
    # The next comment would come after 15 s.
    assert time.monotonic() - began < 2


def test_the_inbox_ends_while_it_pauses(
    make_service: MakeService, listening: Listening, caplog: pytest.LogCaptureFixture
) -> None:
    service = make_service("embedded")
    listening.start(service.url, new_tenant())
    until(lambda: listening.events)
    service.stop()
    until(lambda: "for 4 s" in caplog.text, 20)
    began = time.monotonic()
    listening.close()
    listening.done.result(5)
    assert time.monotonic() - began < 2


def test_the_inbox_is_left_early(service: Service) -> None:
    tenant = new_tenant()
    with Client(service.url, token=give(tenant), tenant=tenant) as client:
        with closing(client.inbox()) as events:
            assert isinstance(next(events), InboxCounts)
        assert list(events) == []

    async def use() -> None:
        async with AsyncClient(service.url, token=give(tenant), tenant=tenant) as client:
            async with aclosing(client.inbox()) as events:
                assert isinstance(await anext(events), InboxCounts)
            # A cancelled reader is not taken for the end.
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5), aclosing(client.inbox()) as events:
                    async for _ in events:
                        pass

    asyncio.run(use())


def test_the_inbox_ends_with_its_token(service: Service, listening: Listening) -> None:
    tenant = new_tenant()
    began = time.monotonic()
    listening.start(service.url, tenant, token=lasting(tenant, 3))
    listening.done.result(15)
    assert listening.openings >= 1 and 1.5 < time.monotonic() - began < 9


def test_the_inbox_outlives_a_token(service: Service, listening: Listening) -> None:
    tenant = new_tenant()
    listening.start(service.url, tenant, token=lambda: lasting(tenant, 3))
    until(lambda: listening.openings >= 3, 20)
    with Client(service.url, token=give(tenant), tenant=tenant) as client:
        registered(client, new_session(), 1)
    until(lambda: listening.counts == (1, 1), 5)
    listening.stop()


@pytest.mark.parametrize("seconds, code", [(-5, "E2002"), (3600, "E2007")])
def test_an_inbox_that_is_refused(
    service: Service, listening: Listening, seconds: int, code: str
) -> None:
    """From the start there is nothing that could end."""
    tenant = new_tenant()
    of = tenant if code == "E2002" else TENANT
    listening.start(service.url, tenant, token=lasting(of, seconds))
    with pytest.raises(NotAllowed) as refused:
        listening.done.result(10)
    assert refused.value.error_code == code


@pytest.mark.parametrize("mode", ["embedded", "production"])
def test_the_inbox_survives_a_restart(
    make_service: MakeService, listening: Listening, mode: Mode
) -> None:
    service, tenant = make_service(mode), new_tenant()
    with Client(service.url, token=give(tenant), tenant=tenant) as client:
        listening.start(service.url, tenant)
        until(lambda: listening.events)
        service.stop()
        service.start()
        # Perhaps before it listens again. Then only the counts tell.
        (request,) = registered(client, new_session(), 1)
        until(lambda: listening.openings >= 2 and listening.counts == (1, 1), 20)
        assert [each.request_id for each in client.all_requests()] == [request]
        approve(service, request, tenant)
        until(lambda: (request, "approved", "decided") in listening.changes, 5)
    listening.stop()
    service.stop()


class Openings:
    """Keeps when streams were opened, and answers all but the first with faults."""

    def __init__(self, *faults: httpx.Response | Exception) -> None:
        self.times: list[float] = []
        self._faults: list[httpx.Response | Exception | None] = [None, *faults]

    def __call__(self, call: httpx.Request) -> httpx.Response | None:
        if not call.url.path.endswith("/inbox/stream"):
            return None
        self.times.append(time.monotonic())
        fault = self._faults.pop(0) if self._faults else None
        if isinstance(fault, Exception):
            raise fault
        return fault

    @property
    def pauses(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.times, self.times[1:])]


def stream_of(text: str) -> httpx.Response:
    body = httpx.ByteStream(text.encode())
    return httpx.Response(200, stream=body, headers={"Content-Type": "text/event-stream"})


def test_pauses_grow_and_begin_anew(
    service: Service, listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_core, "MIN_RETRY_SECONDS", 0.2)
    # The first stream ends: it is renewed with the first event after this time.
    monkeypatch.setattr(_core, "STREAM_SECONDS", 0.0)
    page = httpx.Response(502, text="<html>Bad Gateway</html>")
    counts = 'event: counts\ndata: {"decidable":0,"mine":0}\n\n'
    refusal, told = httpx.ConnectError("refused"), [stream_of(counts) for _ in range(2)]
    openings = Openings(refusal, page, busy(503, 1), told[0], page, told[1])
    listening.start(service.url, new_tenant(), transport=Faulty(before=openings))
    until(lambda: len(openings.times) >= 7, 20)
    listening.stop()
    ended, refused, broken, asked, again, anew = openings.pauses[:6]
    # After its end not more than one opening a second.
    assert 0.9 < ended < 3 and 0.9 < again < 3
    assert 0.15 < refused < 0.9 and broken > 0.35
    # `Retry-After` is longer than 0.8 s.
    assert asked > 0.95
    # Else it would be 1.6 s.
    assert 0.15 < anew < 1.4


def test_the_inbox_is_renewed_before_a_gateway_cuts_it(
    service: Service, listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_core, "STREAM_SECONDS", 2.0)
    tenant = new_tenant()
    listening.start(service.url, tenant)
    until(lambda: listening.events)
    time.sleep(2.1)
    assert listening.openings == 1
    with Client(service.url, token=give(tenant), tenant=tenant) as client:
        registered(client, new_session(), 1)
        until(lambda: listening.openings == 2 and listening.counts == (1, 1), 5)
    listening.stop()


def test_an_inbox_that_never_opens(listening: Listening) -> None:
    began = time.monotonic()
    listening.start(f"http://127.0.0.1:{free_port()}", new_tenant(), retry_seconds=2.5)
    with pytest.raises(Unavailable):
        listening.done.result(20)
    # At once, after 1 s; 2 s more would be too many.
    assert 0.9 < time.monotonic() - began < 3


def test_a_service_without_an_inbox(service: Service, listening: Listening) -> None:
    missing = httpx.Response(
        404, json={"status": "ERROR", "message": "?", "errorCode": "E1004", "success": False}
    )

    def old(call: httpx.Request) -> httpx.Response | None:
        return missing

    listening.start(service.url, new_tenant(), transport=Faulty(before=old))
    with pytest.raises(NotFound):
        listening.done.result(10)


def test_an_inbox_of_something_else(service: Service, listening: Listening) -> None:
    openings = Openings(stream_of('event: counts\ndata: {"decidable":"many"}\n\n'))
    openings._faults.pop(0)
    listening.start(service.url, new_tenant(), transport=Faulty(before=openings))
    with pytest.raises(UnexpectedAnswer):
        listening.done.result(10)


def test_what_others_are_told(service: Service) -> None:
    """Its requester has it in `mine`; another person of the tenant only may decide it."""
    tenant = new_tenant()
    with Client(service.url, token=give(tenant), tenant=tenant) as client:
        registered(client, new_session(), 1)
        with closing(client.inbox()) as events:
            first = next(events)
    assert first == InboxCounts(decidable=1, mine=1, opened=True)
    person = token(PERSON, tenant)
    with (
        Client(service.url, token=person, tenant=tenant) as client,
        closing(client.inbox()) as events,
    ):
        assert next(events) == InboxCounts(decidable=1, mine=0, opened=True)


def test_a_detail_is_a_listed_request() -> None:
    assert issubclass(RequestDetail, ListedRequest)
