"""A LangGraph agent that asks a person before it sends a mail. No model: its draft is scripted.

The node stops with `interrupt()`; whoever runs the graph asks for approval and resumes it with the
decision. So the graph knows nothing of the service, and nothing waits inside of a node: the
checkpoint holds the state meanwhile, and with a durable checkpointer it survives a restart.

What the node says and hears are the words of LangChain's HumanInTheLoopMiddleware: it asks with
`action_requests` and `review_configs`, and is answered with `decisions`, each of which is `approve`,
`edit`, `reject` or `respond`. So `run` also serves a graph that has that middleware.

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

from aura_hitl import (
    Answered,
    Approved,
    ApprovedWithEdits,
    Cancelled,
    Client,
    Expired,
    Rejected,
    Result,
)

Graph = CompiledStateGraph[Any, Any, Any, Any]

OUTBOX: list[dict[str, str]] = []
# What a person may make of the draft.
MAIL_SCHEMA = {
    "type": "object",
    "properties": {"to": {"type": "string", "pattern": "@"}, "subject": {"type": "string"}},
    "required": ["to", "subject"],
    "additionalProperties": False,
}


class State(TypedDict, total=False):
    to: str
    mail: dict[str, str]
    report: str


def draft(state: State) -> State:
    return {"mail": {"to": state["to"], "subject": "Weekly summary"}}


def question(mail: dict[str, str]) -> dict[str, Any]:
    """What HumanInTheLoopMiddleware asks for a tool call."""
    return {
        "action_requests": [
            {
                "name": "send_email",
                "args": mail,
                "description": f"Send a mail to {mail['to']}?",
            }
        ],
        "review_configs": [
            {
                "action_name": "send_email",
                "allowed_decisions": ["approve", "edit", "reject", "respond"],
                "args_schema": MAIL_SCHEMA,
            }
        ],
    }


def ask(state: State) -> Command[Literal["send", "__end__"]]:
    # On resumption LangGraph runs the node again from its top, and interrupt() returns the answer.
    # Nothing with an effect may stand before it.
    [decision] = interrupt(question(state["mail"]))["decisions"]
    # Only these very words: whatever else comes, the mail is not sent.
    match decision:
        case {"type": "approve"}:
            return Command(goto="send")
        case {"type": "edit", "edited_action": {"name": "send_email", "args": mail}}:
            return Command(goto="send", update={"mail": mail})
        case {"type": "respond", "message": message}:
            return Command(goto="__end__", update={"report": f"answered instead: {message}"})
        case _:
            why = decision.get("message", "no reason given")
            return Command(goto="__end__", update={"report": f"not sent: {why}"})


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


def resumption(action: str, result: Result) -> dict[str, Any]:
    """What HumanInTheLoopMiddleware is answered."""
    match result:
        case Approved():
            return {"type": "approve"}
        case ApprovedWithEdits(arguments=arguments):
            return {"type": "edit", "edited_action": {"name": action, "args": arguments}}
        case Answered(response=response):
            text = response if isinstance(response, str) else json.dumps(response)
            return {"type": "respond", "message": text}
        case Rejected(reason=reason, decided_by=person):
            return {"type": "reject", "message": f"{person} says: {reason}"}
        case _:
            nobody = f"{type(result).__name__.lower()}, nobody decided"
            return {"type": "reject", "message": nobody}


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
        results: list[Result] = []
        answers: dict[str, Any] = {}
        for stop in stops:
            decisions = []
            for number, action in enumerate(stop.value["action_requests"]):
                id = request_id(graph, config, stop, number)
                result = review(client, stop.value, action, id, session_id, timeout)
                decisions.append(resumption(action["name"], result))
                results.append(result)
            answers[stop.id] = {"decisions": decisions}
        state = graph.invoke(Command(resume=answers), config)
        # Now that the checkpoint holds the answers: a crash before this asks for them once more.
        for result in results:
            if not isinstance(result, Expired | Cancelled):
                client.acknowledge(result.request_id)
    return state


def review(
    client: Client,
    asked: dict[str, Any],
    action: dict[str, Any],
    id: str,
    session_id: str,
    timeout: float,
) -> Result:
    configs = asked["review_configs"]
    config = next(each for each in configs if each["action_name"] == action["name"])
    return client.request_approval(
        action["name"],
        action["args"],
        session_id=session_id,
        message=action.get("description"),
        request_id=id,
        decisions=config["allowed_decisions"],
        arguments_schema=config.get("args_schema"),
        timeout=timeout,
        acknowledge=False,
    )


def request_id(graph: Graph, config: RunnableConfig, stop: Interrupt, number: int = 0) -> str:
    """The same for the same action of the same stop, another for every other one.

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
    return f"req_{uuid.uuid5(uuid.NAMESPACE_OID, json.dumps([*parts, answered, number])).hex}"


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
