"""The example: a real graph that stops and goes on as the person says.

`scripts/client-tests` runs these tests on the oldest and on the newest LangGraph.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any, TypedDict

import langgraph_agent
import pytest
from conftest import PERSON, Service, new_session, until
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import interrupt

from aura_hitl import Client


@pytest.fixture(autouse=True)
def _empty_outbox() -> None:
    langgraph_agent.OUTBOX.clear()


def pending_of(service: Service, session: str) -> list[str]:
    """The session's tasks tell a person which requests wait."""
    found = []
    listed = service.call("GET", "/main/agent/tasks?status=WAITING_APPROVAL", user="user123")
    for task in listed.json()["data"]["content"]:
        request: str = task["hitlRequestId"]
        shown = service.call("GET", f"/aura/hitl/requests/{request}").json()["data"]
        if json.loads(shown)["sessionId"] == session:
            found.append(request)
    return found


def in_background(work: Callable[[], None]) -> threading.Thread:
    person = threading.Thread(target=work)
    person.start()
    return person


def mail_with(service: Service, client: Client, verb: str, **body: Any) -> str:
    session = new_session()

    def click() -> None:
        [request] = until(lambda: pending_of(service, session))
        service.decide(verb, request, **body)

    person = in_background(click)
    graph = langgraph_agent.build()
    given = {"to": "team@example.com"}
    state = langgraph_agent.run(client, graph, given, session_id=session, timeout=30)
    person.join()
    return str(state["report"])


def test_approved(service: Service, client: Client) -> None:
    assert mail_with(service, client, "approve") == "sent to team@example.com"
    assert langgraph_agent.OUTBOX == [{"to": "team@example.com", "subject": "Weekly summary"}]


def test_edited(service: Service, client: Client) -> None:
    mail = {"to": "kim@example.com", "subject": "주간 요약"}
    report = mail_with(service, client, "approve", arguments=mail)
    assert report == "sent to kim@example.com"
    assert langgraph_agent.OUTBOX == [mail], "never what was asked"


def test_answered(service: Service, client: Client) -> None:
    report = mail_with(service, client, "respond", response="Ask the team first")
    assert report == "answered instead: Ask the team first"
    assert langgraph_agent.OUTBOX == []


def test_edits_are_checked_before_they_are_taken(service: Service, client: Client) -> None:
    session = new_session()

    def click() -> None:
        [request] = until(lambda: pending_of(service, session))
        path = f"/aura/hitl/approve/{request}"
        wrong = {"userId": PERSON, "arguments": {"to": "nobody", "subject": "a"}}
        refused = service.call("POST", path, json=wrong)
        assert (refused.status_code, list(refused.json()["data"])) == (400, ["/arguments/to"])
        service.reject(request, "no")

    person = in_background(click)
    given = {"to": "team@example.com"}
    graph = langgraph_agent.build()
    langgraph_agent.run(client, graph, given, session_id=session, timeout=30)
    person.join()
    assert langgraph_agent.OUTBOX == []


def test_rejected(service: Service, client: Client) -> None:
    report = mail_with(service, client, "reject", reason="아직 아닙니다")
    assert report == f"not sent: {PERSON} says: 아직 아닙니다"
    assert langgraph_agent.OUTBOX == []


def test_nobody_decides(client: Client) -> None:
    graph = langgraph_agent.build()
    state = langgraph_agent.run(client, graph, {"to": "a@b.c"}, session_id=new_session(), timeout=1)
    assert state["report"] == "not sent: expired, nobody decided"
    assert langgraph_agent.OUTBOX == []


class Nothing(TypedDict, total=False):
    pass


QUESTION = langgraph_agent.question({"to": "a@b.c", "subject": "Weekly summary"})
ANSWERS: list[bool] = []


def is_approved() -> bool:
    [decision] = interrupt(QUESTION)["decisions"]
    return bool(decision["type"] == "approve")


def asks_twice(state: Nothing) -> Nothing:
    answers = [is_approved(), is_approved()]
    ANSWERS.extend(answers)
    return {}


def asks_once(state: Nothing) -> Nothing:
    ANSWERS.append(is_approved())
    return {}


def equal_questions() -> langgraph_agent.Graph:
    """Asks the same five times: twice in a node, once beside it, twice in a subgraph."""
    subgraph = StateGraph(Nothing)
    subgraph.add_node("twice", asks_twice)
    subgraph.add_edge(START, "twice")
    graph = StateGraph(Nothing)
    graph.add_node("twice", asks_twice)
    graph.add_node("once", asks_once)
    graph.add_node("subgraph", subgraph.compile())
    graph.add_edge(START, "twice")
    graph.add_edge(START, "once")
    graph.add_edge(["once", "twice"], "subgraph")
    return graph.compile(checkpointer=InMemorySaver())


def test_equal_questions_are_asked_each_time(service: Service, client: Client) -> None:
    """Nothing is approved that nobody was asked."""
    ANSWERS.clear()
    session, decisions = new_session(), [True, False, True, False, True]
    asked: list[str] = []

    def click() -> None:
        for approves in decisions:
            asked.append(until(lambda: pending_of(service, session), 30)[0])
            if approves:
                service.approve(asked[-1])
            else:
                service.reject(asked[-1], "no")

    person = in_background(click)
    graph = equal_questions()
    langgraph_agent.run(client, graph, {}, session_id=session, timeout=30)
    person.join()
    assert len(set(asked)) == len(decisions)
    assert sorted(ANSWERS) == sorted(decisions)


class Crash(Exception):
    pass


def test_run_again_after_a_crash_it_waits_for_the_same_request(
    service: Service, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, saver = new_session(), InMemorySaver()
    given: dict[str, Any] = {"session_id": session, "timeout": 30}

    def crash(*_: object) -> None:
        raise Crash

    # Decided, but not yet resumed.
    with monkeypatch.context() as patch:
        patch.setattr(langgraph_agent, "resumption", crash)
        person = in_background(
            lambda: service.approve(until(lambda: pending_of(service, session))[0])
        )
        with pytest.raises(Crash):
            langgraph_agent.run(client, langgraph_agent.build(saver), {"to": "a@b.c"}, **given)
        person.join()
    assert langgraph_agent.OUTBOX == []
    state = langgraph_agent.run(client, langgraph_agent.build(saver), {"to": "a@b.c"}, **given)
    assert state["report"] == "sent to a@b.c"
    assert len(langgraph_agent.OUTBOX) == 1
    assert pending_of(service, session) == [], "nobody was asked a second time"
