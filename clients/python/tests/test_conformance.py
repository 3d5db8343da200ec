"""The scenarios of clients/conformance, which every client must play alike, on the real service.

A scenario says what the client is asked to do, which calls it must send, what others do meanwhile,
and what the client must return or raise. This plays them by both kinds of the Python client.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import httpx
import psycopg
import pytest
import redis
from conftest import (
    PERSON,
    TENANT,
    USER,
    MakeService,
    Service,
    _in_background,
    new_request,
    new_session,
    token,
    until,
)
from jsonschema import Draft202012Validator

from aura_hitl import AsyncClient, Client, HitlError

FOLDER = Path(__file__).parents[2] / "conformance"
SCHEMA = json.loads((FOLDER / "schema" / "scenario.json").read_text())
SCENARIOS: dict[str, Any] = {
    path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))
}
PLAYS = [
    (name, mode)
    for name, scenario in SCENARIOS.items()
    for mode in scenario.get("modes", ["embedded", "production"])
]
Kind = Literal["blocking", "asyncio"]


# What a scenario expects, and what there is


def problem(expected: Any, found: Any, where: str = "") -> str | None:
    """Where `found` is not as expected; an object may have more, and "*" is anything but nothing."""
    if expected == "*":
        return None if found is not None else f"{where} is missing"
    if isinstance(expected, dict) and isinstance(found, dict):
        checks = (problem(value, found.get(k), f"{where}.{k}") for k, value in expected.items())
        return next((each for each in checks if each), None)
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        each = (problem(one, other, f"{where}[]") for one, other in zip(expected, found))
        return next((text for text in each if text), None)
    return None if expected == found else f"{where}: {found!r}, not {expected!r}"


def plain(value: Any) -> Any:
    """A result or an exception as scenarios write it: a `kind`, and fields in camelCase."""
    if isinstance(value, HitlError):
        fields = dict(vars(value))
    elif dataclasses.is_dataclass(value):
        fields = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    elif isinstance(value, tuple):
        return [plain(each) for each in value]
    else:
        return value.isoformat() if isinstance(value, datetime) else value
    named = {re.sub(r"_(\w)", lambda m: m[1].upper(), k): plain(v) for k, v in fields.items()}
    return {"kind": type(value).__name__, **named}


class Recorder(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Passes every call on to the service, and keeps it with its answer."""

    def __init__(self) -> None:
        self.exchanges: list[dict[str, Any]] = []
        self._blocking = httpx.HTTPTransport()
        self._asyncio = httpx.AsyncHTTPTransport()

    def _sent(self, request: httpx.Request) -> dict[str, Any]:
        exchange: dict[str, Any] = {
            "method": request.method,
            # Both addresses of the service are the same.
            "path": request.url.path.removeprefix("/api"),
            "query": dict(request.url.params),
            "headers": {name.lower(): value for name, value in request.headers.items()},
            "body": json.loads(request.content) if request.content else None,
        }
        self.exchanges.append(exchange)
        return exchange

    @staticmethod
    def _answer(response: httpx.Response, text: bytes) -> dict[str, Any]:
        envelope = json.loads(text) if text else {}
        return {
            "status": response.status_code,
            "headers": {name.lower(): value for name, value in response.headers.items()},
            "errorCode": envelope.get("errorCode"),
            "data": envelope.get("data"),
        }

    @staticmethod
    def _is_stream(response: httpx.Response) -> bool:
        return str(response.headers.get("content-type", "")).startswith("text/event-stream")

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        exchange = self._sent(request)
        response = self._blocking.handle_request(request)
        text = b"" if self._is_stream(response) else response.read()
        exchange["answer"] = self._answer(response, text)
        return response

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        exchange = self._sent(request)
        response = await self._asyncio.handle_async_request(request)
        text = b"" if self._is_stream(response) else await response.aread()
        exchange["answer"] = self._answer(response, text)
        return response

    def close(self) -> None:
        self._blocking.close()

    async def aclose(self) -> None:
        await self._asyncio.aclose()

    def has(self, expected: dict[str, Any]) -> bool:
        return any(problem(lowered(expected), each) is None for each in list(self.exchanges))

    def check(self, sends: list[Any], never: list[Any]) -> None:
        """That there are these calls in this order, and none of those."""
        left = iter(self.exchanges)
        for expected in sends:
            told = [problem(lowered(expected), each) for each in self.exchanges]
            assert any(problem(lowered(expected), each) is None for each in left), (expected, told)
        for unwanted in never:
            assert not self.has(unwanted), unwanted


def lowered(expected: dict[str, Any]) -> dict[str, Any]:
    """The names of headers have no case."""
    exchange = dict(expected)
    if "headers" in exchange:
        exchange["headers"] = {k.lower(): value for k, value in exchange["headers"].items()}
    if "answer" in exchange:
        exchange["answer"] = lowered(exchange["answer"])
    return exchange


# Playing


class Play:
    """One scenario, with names that no other has."""

    def __init__(self, service: Service, kind: Kind) -> None:
        self.service = service
        self.kind = kind
        self.names = {
            "request": new_request(),
            "session": new_session(),
            "task": new_request(),
            "tenant": TENANT,
            "user": USER,
            "person": PERSON,
        }
        self._lock: psycopg.Connection[Any] | None = None

    def filled(self, value: Any) -> Any:
        """With every {name} replaced."""
        if isinstance(value, str):
            return re.sub(r"\{(\w+)\}", lambda m: self.names[m[1]], value)
        if isinstance(value, list):
            return [self.filled(each) for each in value]
        if isinstance(value, dict):
            return {k: self.filled(each) for k, each in value.items()}
        return value

    def steps(self, steps: list[Any], recorder: Recorder | None = None) -> None:
        for step in steps:
            # Not the steps within it: names may come to be known on the way.
            own = self.filled({k: value for k, value in step.items() if k != "meanwhile"})
            if "agent" in step:
                self._agent(own, step.get("meanwhile", []))
            elif "person" in step:
                self._person(own)
            elif "await" in step:
                self._await(own["await"], recorder)
            elif "service" in step:
                self.service.stop()
                self.service.start()
            elif "ledger" in step:
                self._hold() if step["ledger"] == "hold" else self.release()
            else:
                with redis.Redis.from_url(self.service.redis_url or "") as link:
                    link.set(own["redis"], json.dumps(own["value"]), ex=1800)

    def _agent(self, step: dict[str, Any], meanwhile: list[Any]) -> None:
        recorder = Recorder()
        future = _in_background(lambda: self._call(step, recorder))
        if meanwhile:
            self.steps(meanwhile, recorder)
        if "raises" in step:
            failure = future.exception(60)
            assert isinstance(failure, HitlError), failure or future.result()
            found = plain(failure)
        else:
            found = plain(future.result(60))
        expected = step.get("raises", step.get("returns"))
        assert problem(expected, found) is None, (problem(expected, found), recorder.exchanges)
        recorder.check(step.get("sends", []), step.get("neverSends", []))

    def _call(self, step: dict[str, Any], recorder: Recorder) -> Any:
        given = step.get("token", {})
        user = step.get("as", USER)
        options: dict[str, Any] = {
            "token": given if isinstance(given, str) else self._token(user, given),
            "tenant": TENANT,
            "listen_by": () if step.get("waitBy") == "longPoll" else ("stream",),
        }
        name, arguments = step["agent"], self._arguments(step.get("with", {}))

        async def asynchronous() -> Any:
            http = httpx.AsyncClient(transport=recorder)
            async with http, AsyncClient(self.service.url, http_client=http, **options) as client:
                # Tasks have a shape of their own in Python; what is sent is the same.
                core = client._core if name == "progress" else client
                return await getattr(core, name)(**arguments)

        if self.kind == "asyncio" or name == "progress":
            return asyncio.run(asynchronous())
        with httpx.Client(transport=recorder) as http:
            with Client(self.service.url, http_client=http, **options) as client:
                return getattr(client, name)(**arguments)

    @staticmethod
    def _token(user: str, claims: dict[str, Any]) -> str:
        made = dict(claims)
        if "exp" in made:
            made["exp"] += int(datetime.now().timestamp())
        return token(user, **made)

    @staticmethod
    def _arguments(given: dict[str, Any]) -> dict[str, Any]:
        """As Python's functions call them."""
        names = {"timeoutSeconds": "timeout", "expiresInSeconds": "expires_in"}
        snake = {
            names.get(k) or re.sub(r"[A-Z]", lambda m: f"_{m[0].lower()}", k): value
            for k, value in given.items()
        }
        return snake | ({"description": None} if "percent" in snake else {})

    def _person(self, step: dict[str, Any]) -> None:
        request = quote(step["request"], safe="")
        if step["person"] == "look":
            answer = self.service.call("GET", f"/aura/hitl/requests/{request}")
            self.names["etag"] = answer.headers.get("ETag", "")
        elif step["person"] == "comment":
            path = f"/aura/hitl/requests/{request}/comments"
            headers = {"X-DWP-Caller-Type": "USER"}
            answer = self.service.call("POST", path, json={"text": step["text"]}, headers=headers)
        else:
            given = ("reason", "arguments", "response")
            body = {"userId": PERSON} | {name: step[name] for name in given if name in step}
            headers = {"If-Match": step["ifMatch"]} if "ifMatch" in step else {}
            path = f"/aura/hitl/{step['person']}/{request}"
            answer = self.service.call("POST", path, json=body, headers=headers)
        expected = lowered(step.get("answer", {"status": 200}))
        found = Recorder._answer(answer, answer.content)
        assert problem(expected, found) is None, (problem(expected, found), answer.text)

    def _await(self, awaited: dict[str, Any], recorder: Recorder | None) -> None:
        if "pending" in awaited:
            until(lambda: self.service.is_pending(awaited["pending"]), 60)
        else:
            assert recorder is not None, "only a call that is under way has sent anything"
            until(lambda: recorder.has(awaited["sent"]), 60)

    def _hold(self) -> None:
        link = psycopg.connect(self.service.environment["DATABASE_URL"])
        link.execute("LOCK TABLE hitl_request IN ACCESS EXCLUSIVE MODE")
        self._lock = link

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


@contextmanager
def own_or_shared(make: MakeService, shared: Service, scenario: Any) -> Iterator[Service]:
    """The run's service, or one of the scenario's own where it has settings or is restarted."""
    settings = scenario.get("settings", {})
    if not settings and '"service":' not in json.dumps(scenario["steps"]):
        yield shared
        return
    service = make("production" if shared.redis_url else "embedded", **settings)
    yield service
    service.stop()


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_is_written_as_the_schema_says(name: str) -> None:
    Draft202012Validator.check_schema(SCHEMA)
    Draft202012Validator(SCHEMA).validate(SCENARIOS[name])


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
@pytest.mark.parametrize("name, service", PLAYS, indirect=["service"])
def test_scenario(name: str, service: Service, kind: Kind, make_service: MakeService) -> None:
    with own_or_shared(make_service, service, SCENARIOS[name]) as played:
        play = Play(played, kind)
        try:
            play.steps(SCENARIOS[name]["steps"])
        finally:
            play.release()
