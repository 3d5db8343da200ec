"""A LangGraph agent that asks a person before it sends a mail. No model: its draft is scripted.

The node stops with `interrupt()`; whoever runs the graph asks for approval and resumes it with the
decision. So the graph knows nothing of the service, and nothing waits inside of a node: the
checkpoint holds the state meanwhile, and with a durable checkpointer it survives a restart.

    HITL_URL=http://127.0.0.1:8081 HITL_TOKEN=... python langgraph_agent.py a@b.c
"""

from __future__ import annotations

import os
import sys
import uuid
from typing import Any, Literal, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command, Interrupt, interrupt

from aura_hitl import Approved, Client, Rejected, Result

OUTBOX: list[dict[str, str]] = []


class State(TypedDict, total=False):
    to: str
    mail: dict[str, str]
    report: str


def draft(state: State) -> State:
    return {"mail": {"to": state["to"], "subject": "Weekly summary"}}


def ask(state: State) -> Command[Literal["send", "__end__"]]:
    # On resumption LangGraph runs the node again from its top, and interrupt() returns the answer.
    # Nothing with an effect may stand before it.
    answer = interrupt({"action_type": "send_email", "context": state["mail"]})
    # Only the very word: whatever else comes, the mail is not sent.
    if isinstance(answer, dict) and answer.get("approved") is True:
        return Command(goto="send")
    return Command(goto="__end__", update={"report": f"not sent: {answer['why']}"})


def send(state: State) -> State:
    OUTBOX.append(state["mail"])
    return {"report": f"sent to {state['mail']['to']}"}


def build() -> CompiledStateGraph[Any, Any, Any, Any]:
    graph = StateGraph(State)
    graph.add_node("draft", draft)
    graph.add_node("ask", ask)
    graph.add_node("send", send)
    graph.add_edge(START, "draft")
    graph.add_edge("draft", "ask")
    graph.add_edge("send", END)
    return graph.compile(checkpointer=InMemorySaver())


def resumption(result: Result) -> dict[str, Any]:
    match result:
        case Approved():
            return {"approved": True}
        case Rejected(reason=reason, decided_by=person):
            return {"approved": False, "why": f"{person} says: {reason}"}
        case _:
            return {"approved": False, "why": f"{type(result).__name__.lower()}, nobody decided"}


def run(client: Client, to: str, *, session_id: str, timeout: float = 300) -> str:
    """Runs the agent to its end, asking whenever it stops to be answered."""
    graph = build()
    config: RunnableConfig = {"configurable": {"thread_id": session_id}}
    state: dict[str, Any] = graph.invoke({"to": to}, config)
    while stops := state.get("__interrupt__"):
        answers = {
            stop.id: resumption(approve(client, stop, session_id, timeout)) for stop in stops
        }
        state = graph.invoke(Command(resume=answers), config)
    return str(state["report"])


def approve(client: Client, stop: Interrupt, session_id: str, timeout: float) -> Result:
    return client.request_approval(
        stop.value["action_type"],
        stop.value["context"],
        session_id=session_id,
        message=f"Send a mail to {stop.value['context']['to']}?",
        # The same stop is the same request: run again after a crash, it goes on waiting for it.
        request_id=f"req_{stop.id}",
        timeout=timeout,
    )


if __name__ == "__main__":
    with Client(
        os.environ["HITL_URL"],
        token=os.environ["HITL_TOKEN"],
        tenant=os.environ.get("HITL_TENANT", "tenant1"),
    ) as client:
        print(run(client, sys.argv[1], session_id=f"session_agent_{uuid.uuid4().hex}"))
