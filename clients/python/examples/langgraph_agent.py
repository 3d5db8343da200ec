"""A LangGraph agent that asks a person before it sends a mail. No model: its draft is scripted.

The node stops with `interrupt()`; whoever runs the graph asks for approval and resumes it with the
decision. So the graph knows nothing of the service, and nothing waits inside of a node: the
checkpoint holds the state meanwhile, and with a durable checkpointer it survives a restart.

    HITL_URL=http://127.0.0.1:8081 HITL_TOKEN=... python langgraph_agent.py a@b.c
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from typing import Any, Literal, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.types import RESUME
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command, Interrupt, StateSnapshot, interrupt

from aura_hitl import Approved, Client, Rejected, Result

Graph = CompiledStateGraph[Any, Any, Any, Any]

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


def build(checkpointer: BaseCheckpointSaver[Any] | None = None) -> Graph:
    graph = StateGraph(State)
    graph.add_node("draft", draft)
    graph.add_node("ask", ask)
    graph.add_node("send", send)
    graph.add_edge(START, "draft")
    graph.add_edge("draft", "ask")
    graph.add_edge("send", END)
    return graph.compile(checkpointer=checkpointer or InMemorySaver())


def resumption(result: Result) -> dict[str, Any]:
    match result:
        case Approved():
            return {"approved": True}
        case Rejected(reason=reason, decided_by=person):
            return {"approved": False, "why": f"{person} says: {reason}"}
        case _:
            return {"approved": False, "why": f"{type(result).__name__.lower()}, nobody decided"}


def run(
    client: Client,
    graph: Graph,
    given: Any,
    *,
    session_id: str,
    timeout: float = 300,
) -> dict[str, Any]:
    """Runs the agent to its end, asking whenever it stops to be answered.

    Run again after a crash, it goes on at the last checkpoint and waits for the same requests.
    """
    config: RunnableConfig = {"configurable": {"thread_id": session_id}}
    state = graph.invoke(None if graph.get_state(config).next else given, config)
    while stops := state.get("__interrupt__"):
        results = [approve(client, graph, config, stop, session_id, timeout) for stop in stops]
        answers = {stop.id: resumption(result) for stop, result in zip(stops, results, strict=True)}
        state = graph.invoke(Command(resume=answers), config)
        # Now that the checkpoint holds the answers: a crash before this asks for them once more.
        for result in results:
            if isinstance(result, Approved | Rejected):
                client.acknowledge(result.request_id)
    return state


def approve(
    client: Client,
    graph: Graph,
    config: RunnableConfig,
    stop: Interrupt,
    session_id: str,
    timeout: float,
) -> Result:
    return client.request_approval(
        stop.value["action_type"],
        stop.value["context"],
        session_id=session_id,
        message=f"Send a mail to {stop.value['context']['to']}?",
        request_id=request_id(graph, config, stop),
        timeout=timeout,
        acknowledge=False,
    )


def request_id(graph: Graph, config: RunnableConfig, stop: Interrupt) -> str:
    """The same for the same stop, another for every other one.

    `stop.id` is not: up to LangGraph 1.2.12 all stops of a task share it, so that the second would
    be approved by what was said to the first. A stop is known by its thread, checkpoint and task,
    and by how many of the task's stops have been answered.
    """
    found = stopped_at(graph.get_state(config, subgraphs=True), stop)
    checkpointer = graph.checkpointer
    if found is None or not isinstance(checkpointer, BaseCheckpointSaver):
        raise LookupError(f"no task of this thread has stopped at {stop.id}")
    place, task_id = found
    saved = checkpointer.get_tuple(place)
    answered = 0
    for task, channel, answers in (saved and saved.pending_writes) or []:
        if task == task_id and channel == RESUME:
            answered = len(answers)
    where = place.get("configurable", {})
    parts = [where["thread_id"], where.get("checkpoint_ns"), where["checkpoint_id"], task_id]
    return f"req_{uuid.uuid5(uuid.NAMESPACE_OID, json.dumps([*parts, answered])).hex}"


def stopped_at(snapshot: StateSnapshot, stop: Interrupt) -> tuple[RunnableConfig, str] | None:
    """The checkpoint and the task, of a subgraph if need be."""
    for task in snapshot.tasks:
        if any(each.id == stop.id for each in task.interrupts):
            inner = stopped_at(task.state, stop) if isinstance(task.state, StateSnapshot) else None
            return inner or (snapshot.config, task.id)
    return None


if __name__ == "__main__":
    with Client(
        os.environ["HITL_URL"],
        token=os.environ["HITL_TOKEN"],
        tenant=os.environ.get("HITL_TENANT", "tenant1"),
    ) as client:
        session = f"session_agent_{uuid.uuid4().hex}"
        print(run(client, build(), {"to": sys.argv[1]}, session_id=session)["report"])
