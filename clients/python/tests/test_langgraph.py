"""The example: a real graph that stops and goes on as the person says."""

from __future__ import annotations

import json
import threading

import langgraph_agent
import pytest
from conftest import PERSON, Service, new_session, until

from aura_hitl import Client


@pytest.fixture(autouse=True)
def _empty_outbox() -> None:
    langgraph_agent.OUTBOX.clear()


def pending_of(service: Service, session: str) -> str | None:
    """The session's task tells a person which request waits."""
    listed = service.call("GET", "/main/agent/tasks?status=WAITING_APPROVAL", user="user123")
    for task in listed.json()["data"]["content"]:
        request: str = task["hitlRequestId"]
        shown = service.call("GET", f"/aura/hitl/requests/{request}").json()["data"]
        if json.loads(shown)["sessionId"] == session:
            return request
    return None


def run_with(service: Service, client: Client, verb: str, **body: str) -> str:
    session = new_session()

    def click() -> None:
        service.decide(verb, until(lambda: pending_of(service, session)) or "", **body)

    person = threading.Thread(target=click)
    person.start()
    report = langgraph_agent.run(client, "team@example.com", session_id=session, timeout=30)
    person.join()
    return report


def test_approved(service: Service, client: Client) -> None:
    assert run_with(service, client, "approve") == "sent to team@example.com"
    assert langgraph_agent.OUTBOX == [{"to": "team@example.com", "subject": "Weekly summary"}]


def test_rejected(service: Service, client: Client) -> None:
    report = run_with(service, client, "reject", reason="아직 아닙니다")
    assert report == f"not sent: {PERSON} says: 아직 아닙니다"
    assert langgraph_agent.OUTBOX == []


def test_nobody_decides(client: Client) -> None:
    report = langgraph_agent.run(client, "a@b.c", session_id=new_session(), timeout=1)
    assert report == "not sent: expired, nobody decided"
    assert langgraph_agent.OUTBOX == []
