"""No token, password or id that cannot be sent is repeated, in an exception or a log; and what can
never be sent is not tried again."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import TENANT, Service, new_session, token

from aura_hitl import AsyncClient, Client, NotAllowed, Unavailable

CANARY = "c4n4ry"


def everything_said(problem: BaseException) -> str:
    """Its text, its fields, and the same of all that it came from."""
    said: list[str] = []
    seen: BaseException | None = problem
    while seen is not None:
        said += [str(seen), repr(seen), repr(vars(seen))]
        said += [repr(getattr(seen, name, "")) for name in ("object", "reason")]
        seen = seen.__cause__ or seen.__context__
    return "\n".join([*said, *traceback.format_exception(problem, limit=0)])


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    caplog.set_level(logging.DEBUG)
    yield lambda: caplog.text + "".join(repr(record.args) for record in caplog.records)


TOKENS = [
    f"{CANARY}.a.b\n",
    f"{CANARY}\r\nX-Evil: 1",
    f" {CANARY}",
    f"{CANARY} x",
    f"{CANARY}\0",
    f"{CANARY}é",
    f"{CANARY}\udc80",
    CANARY.encode(),
    "",
    None,
]


@pytest.mark.parametrize("bad", TOKENS)
@pytest.mark.parametrize("as_function", [True, False])
def test_a_token_that_no_header_carries(
    service: Service, logged: Callable[[], str], bad: Any, as_function: bool
) -> None:
    given: list[None] = []

    def give() -> Any:
        given.append(None)
        return bad

    async def give_later() -> Any:
        return give()

    def blocking() -> None:
        with Client(service.url, token=give if as_function else bad, tenant=TENANT) as client:
            client.request_approval("x", {}, session_id=new_session())

    async def asynchronous() -> None:
        chosen = give_later if as_function else bad
        async with AsyncClient(service.url, token=chosen, tenant=TENANT) as client:
            await client.request_approval("x", {}, session_id=new_session())

    for use in (blocking, lambda: asyncio.run(asynchronous())):
        given.clear()
        with pytest.raises(ValueError, match="token") as caught:
            use()
        assert len(given) == int(as_function), "tried once"
        assert CANARY not in everything_said(caught.value)
    assert CANARY not in logged()


@pytest.mark.parametrize(
    "options",
    [
        {"tenant": f"{CANARY}\n"},
        {"tenant": f"{CANARY}\udc80"},
        {"tenant": " "},
        {"tenant": CANARY * 50},
        {"tenant": None},
        {"user": f"{CANARY}\x7f"},
        {"user": ""},
        {"base_url": f"http://user:{CANARY}@localhost"},
        {"base_url": f"http://user:{CANARY}@localhost:port"},
        {"base_url": f"http://localhost/?token={CANARY}"},
        {"base_url": f"ftp://{CANARY}"},
        {"base_url": f"{CANARY}:8081"},
        {"base_url": f"http://{CANARY}\n"},
        {"base_url": "http://"},
        {"base_url": f"http://{CANARY}:99999999"},
        {"redis_url": f"redis://:{CANARY}/half@localhost:6379/0"},
        {"redis_url": f"redis://:1@localhost:{CANARY}"},
        {"redis_url": f"{CANARY}://localhost"},
    ],
)
def test_other_options_that_cannot_be_used(logged: Callable[[], str], options: Any) -> None:
    given = {"base_url": "http://localhost:8081", "token": "a.b.c", "tenant": TENANT, **options}
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError) as caught:
            kind(**given)
        assert CANARY not in everything_said(caught.value)
    assert CANARY not in logged()


def test_what_goes_wrong_on_the_way_says_no_token(
    service: Service, logged: Callable[[], str]
) -> None:
    options: Any = {"tenant": TENANT, "retry_seconds": 0.5}
    with Client(service.url, token=f"{CANARY}.{CANARY}.{CANARY}", **options) as client:
        with pytest.raises(NotAllowed) as refused:
            client.request_approval("x", {}, session_id=new_session())
        with pytest.raises(ValueError) as unreadable, client.task("x"):
            pass
    redis_url = f"redis://{CANARY}:{CANARY}@127.0.0.1:1"
    with (
        Client("http://127.0.0.1:1", token=CANARY, redis_url=redis_url, **options) as client,
        pytest.raises(Unavailable) as away,
    ):
        client.request_approval("x", {}, session_id=new_session(), timeout=1)
    with Client(service.url, token=token, redis_url=redis_url, **options) as client:
        client.request_approval("x", {}, session_id=new_session(), timeout=1)
    for caught in (refused, unreadable, away):
        assert CANARY not in everything_said(caught.value)
    assert "Redis: " in logged() and CANARY not in logged()


@pytest.mark.parametrize(
    "context", [{"a": "\udc80"}, {"a": float("nan")}, {"a": object()}, {"a": b"x"}]
)
def test_content_that_is_no_json(client: Client, context: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        client.request_approval("x", context, session_id=new_session())


def test_ids_of_any_length_fail_at_once(client: Client) -> None:
    for request in ("r" * 100_000, "\udc80"):
        with pytest.raises(ValueError):
            client.decision(request)
