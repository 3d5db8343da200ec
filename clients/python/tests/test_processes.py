"""Exceptions that leave their process, and clients that are used on both sides of a fork or in
several event loops. With real processes: what pytest itself runs in has threads, and never forks.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import pytest
from conftest import TENANT, Service, new_request, new_session

from aura_hitl import (
    AlreadyActed,
    ApiError,
    Approved,
    BulkRefused,
    BulkResult,
    Client,
    Conflict,
    ContentChanged,
    Gone,
    HitlError,
    NotAllowed,
    NotFound,
    PreconditionFailed,
    PreconditionRequired,
    Unavailable,
    UnexpectedAnswer,
    Unprocessable,
)

ENVELOPE: dict[str, Any] = {
    "status": 409,
    "error_code": "E3006",
    "data": {"status": "rejected"},
    "trace_id": "t1",
    "retry_after": 1.5,
}
APPROVED = Approved(
    request_id="r",
    session_id="s",
    fingerprint="f",
    decided_by="u",
    decided_at=None,
    acted_at=datetime(2026, 1, 16, tzinfo=UTC),
)
RESULT = BulkResult(
    request_id="r", status=409, message="거절됨", error_code="E3006", data={"status": "rejected"}
)
PROBLEMS: list[HitlError] = [
    *(
        kind("거절됨", **ENVELOPE)
        for kind in (
            ApiError,
            NotAllowed,
            NotFound,
            Conflict,
            Gone,
            PreconditionFailed,
            Unprocessable,
            PreconditionRequired,
        )
    ),
    BulkRefused(Conflict("거절됨", **ENVELOPE), (RESULT,)),
    Unavailable("no answer", may_have_happened=True, **ENVELOPE),
    ContentChanged("r", registered="a", approved=None),
    AlreadyActed(APPROVED),
    UnexpectedAnswer("?"),
]


def fail(number: int) -> None:
    raise PROBLEMS[number]


def described(problem: BaseException) -> tuple[Any, ...]:
    return type(problem), str(problem), problem.args, vars(problem)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: type(problem).__name__)
def test_exceptions_are_copied_and_pickled(problem: HitlError) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        same = pickle.loads(pickle.dumps(problem, protocol))
        assert described(same) == described(problem)
    assert described(copy.copy(problem)) == described(problem)
    assert described(copy.deepcopy(problem)) == described(problem)


def test_every_class_is_among_them() -> None:
    def below(kind: type[HitlError]) -> set[type[HitlError]]:
        return {kind}.union(*(below(each) for each in kind.__subclasses__()))

    assert {type(problem) for problem in PROBLEMS} == below(HitlError) - {HitlError}


def test_a_pool_hears_of_them() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for number, problem in enumerate(PROBLEMS):
            # An exception that could not be unpickled would kill the pool's thread: no answer.
            with pytest.raises(type(problem)) as caught:
                pool.apply_async(fail, [number]).get(timeout=60)
            assert described(caught.value)[:3] == described(problem)[:3]


def run_python(code: str, service: Service, *requests: str, **more: str) -> Any:
    """Runs code in a process of its own, and reads what it prints."""
    given = {
        "PATH": os.environ.get("PATH", ""),
        "HITL_URL": service.url,
        "HITL_TOKEN": service.token(),
        "HITL_TENANT": TENANT,
        "HITL_REQUESTS": json.dumps(requests),
        **more,
    }
    command = [sys.executable, "-c", PREAMBLE + code]
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


PREAMBLE = """
import asyncio, json, os, sys, time
import httpx
from aura_hitl import AsyncClient, Client
requests = json.loads(os.environ["HITL_REQUESTS"])
options = dict(
    base_url=os.environ["HITL_URL"],
    token=os.environ["HITL_TOKEN"],
    tenant=os.environ["HITL_TENANT"],
    redis_url=os.environ.get("HITL_REDIS"),
)
"""

# Parent and children ask at once, each about a request of its own.
FORK = """
def ask(mine):
    for _ in range(60):
        assert client.decision(mine).request_id == mine

client = Client(**options)
client.decision(requests[0])
children = []
for mine in requests[1:]:
    child = os.fork()
    if child == 0:
        try:
            ask(mine)
        except BaseException as problem:
            print(f"{type(problem).__name__}: {problem}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    children.append(child)
ask(requests[0])
print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]))
client.close()
"""


def registered(client: Client, count: int) -> list[str]:
    ids = [new_request() for _ in range(count)]
    for request in ids:
        client.register("send_email", {}, session_id=new_session(), request_id=request)
    return ids


def test_used_on_both_sides_of_a_fork(service: Service, client: Client) -> None:
    assert run_python(FORK, service, *registered(client, 4)) == [0, 0, 0]


FORK_WHILE_AN_INBOX_IS_OPEN = """
client = Client(**options)
events = client.inbox()
heard = [next(events)]
child = os.fork()
if child == 0:
    client.close()
    os._exit(0)
os.waitpid(child, 0)
client.register("send_email", {}, session_id="s", request_id=requests[0])
while getattr(heard[-1], "request_id", "") != requests[0]:
    heard.append(next(events))
events.close()
client.close()
print(json.dumps([event.opened for event in heard if type(event).__name__ == "InboxCounts"][1:]))
"""


def test_a_child_that_closes_leaves_the_parent_its_inbox(service: Service) -> None:
    openings = run_python(FORK_WHILE_AN_INBOX_IS_OPEN, service, new_request())
    assert not any(openings)


FORK_OF_A_GIVEN_CLIENT = """
def outcome_in_a_child():
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            said = client.decision(requests[0]).status
        except RuntimeError as problem:
            said = str(problem)
        os.write(writer, said.encode())
        os._exit(0)
    os.wait()
    return os.read(reader, 1000).decode()

heard = []
with Client(**options, http_client=httpx.Client()) as client:
    heard.append(outcome_in_a_child())      # not used yet: the child may have it
    client.decision(requests[0])
    heard.append(outcome_in_a_child())
with Client(**options, http_client=httpx.Client) as client:
    client.decision(requests[0])
    heard.append(outcome_in_a_child())
print(json.dumps(heard))
"""


def test_a_client_of_httpx_that_is_given_is_not_shared_by_a_fork(
    service: Service, client: Client
) -> None:
    unused, used, made = run_python(FORK_OF_A_GIVEN_CLIENT, service, *registered(client, 1))
    assert (unused, made) == ("pending", "pending")
    assert "before the fork" in used


SEVERAL_LOOPS = """
client = AsyncClient(**options)

async def ask(mine, **more):
    return (await client.decision(mine, **more)).request_id

async def approval():
    result = await client.request_approval("x", {}, session_id="s", timeout=1)
    return type(result).__name__

heard = []
for mine in requests:
    heard.append(asyncio.run(ask(mine)))
    heard.append(asyncio.run(approval()))
asyncio.run(client.close())

given = AsyncClient(**options, http_client=httpx.AsyncClient())
async def twice():
    return [(await given.decision(requests[0])).status for _ in range(2)]
heard.append(asyncio.run(twice()))
try:
    asyncio.run(twice())
except RuntimeError as problem:
    heard.append(str(problem))

client = AsyncClient(**options, http_client=httpx.AsyncClient)
heard.append([asyncio.run(ask(requests[0])), asyncio.run(ask(requests[0]))])
print(json.dumps(heard))
"""


def test_one_client_in_several_event_loops(service: Service, client: Client) -> None:
    first, second = registered(client, 2)
    redis = {"HITL_REDIS": service.redis_url} if service.redis_url else {}
    heard = run_python(SEVERAL_LOOPS, service, first, second, **redis)
    *asked, given, refused, made = heard
    assert asked == [first, "Expired", second, "Expired"]
    assert given == ["pending", "pending"]
    assert "another event loop" in refused
    assert made == [first, first]
