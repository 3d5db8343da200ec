"""Real services, in both modes, and the two who meet at them: an agent and a person.

Nothing is mocked but faults that no server shows on demand (see `faults.py`).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar
from urllib.parse import urlsplit, urlunsplit

import httpx
import jwt
import psycopg
import pytest
import redis

from aura_hitl import AsyncClient, Client, Result

T = TypeVar("T")

SECRET = "a secret of the tests, longer than 32 bytes"
TENANT = "tenant1"
USER = "user123"
PERSON = "person7"


def needed(variable: str) -> str:
    value = os.environ.get(variable)
    if not value:
        # A missing server fails the run; a skipped test proves nothing.
        pytest.fail(f"{variable} is not set: run scripts/client-tests")
    return value


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def until(condition: Callable[[], T], seconds: float = 15.0) -> T:
    """Waits for something to become true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return value


def token(user: str = USER, tenant: str = TENANT, **more: Any) -> str:
    now = int(time.time())
    claims = {"sub": user, "tenant_id": tenant, "iat": now, "exp": now + 3600, **more}
    return jwt.encode(claims, SECRET, algorithm="HS256")


def new_session() -> str:
    return f"session_{USER}_{uuid.uuid4().hex[:12]}"


def new_request() -> str:
    return f"req_{uuid.uuid4().hex[:12]}"


@dataclass
class Service:
    """A process of the service, and a person who clicks."""

    environment: dict[str, str]
    log: Path
    port: int = field(default_factory=free_port)
    redis_url: str | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [needed("AURA_HITL_BINARY"), "serve"],
                env={**self.environment, "PORT": str(self.port)},
                stdout=log,
                stderr=log,
                cwd=self.log.parent,
            )
        until(self._is_ready, 30)

    def _is_ready(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.log.read_text()
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=2, verify=False).is_success
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(15)
            self.process = None

    # The person

    def call(self, method: str, path: str, user: str = PERSON, **more: Any) -> httpx.Response:
        headers = {
            "Authorization": f"Bearer {token(user)}",
            "X-Tenant-ID": TENANT,
            "X-User-ID": user,
        }
        headers |= more.pop("headers", {})
        url = f"{self.url}/api{path}"
        # Plain HTTP: reading all certificates for each call would take longer than the call.
        return httpx.request(method, url, headers=headers, timeout=10, verify=False, **more)

    def decide(self, verb: str, request_id: str, **body: Any) -> httpx.Response:
        path = f"/aura/hitl/{verb}/{request_id}"
        answer = self.call("POST", path, json={"userId": PERSON, **body})
        assert answer.status_code == 200, answer.text
        return answer

    def approve(self, request_id: str) -> None:
        self.decide("approve", request_id)

    def reject(self, request_id: str, reason: str) -> None:
        self.decide("reject", request_id, reason=reason)

    def state(self, request_id: str) -> dict[str, Any]:
        answer = self.call("GET", f"/aura/hitl/requests/{request_id}/decision")
        assert answer.status_code == 200, answer.text
        data: dict[str, Any] = answer.json()["data"]
        return data

    def is_pending(self, request_id: str) -> bool:
        answer = self.call("GET", f"/aura/hitl/requests/{request_id}/decision")
        return answer.status_code == 200 and answer.json()["data"]["status"] == "pending"

    def task(self, task_id: str) -> dict[str, Any]:
        answer = self.call("GET", f"/main/agent/tasks/{task_id}", user=USER)
        assert answer.status_code == 200, answer.text
        data: dict[str, Any] = answer.json()["data"]
        return data

    def token(self) -> str:
        return token()


Mode = Literal["embedded", "production"]


@pytest.fixture(scope="session")
def database() -> Iterator[str]:
    """A database of this run's own."""
    server = needed("TEST_DATABASE_URL")
    name = f"client_{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as link:
        link.execute(f"CREATE DATABASE {name}".encode())
        yield urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
        link.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


MakeService = Callable[..., Service]


@pytest.fixture(scope="session")
def make_service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MakeService]:
    """Starts services; all of them end with the run."""
    started: list[Service] = []

    def make(mode: Mode, redis_url: str | None = None, **settings: str) -> Service:
        folder = tmp_path_factory.mktemp(mode)
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "JWT_SECRET": SECRET,
            "AURA_HITL_RATE_LIMIT_PER_SECOND": "0",
            "RUST_LOG": "info",
            **settings,
        }
        if mode == "embedded":
            environment["AURA_HITL_DATA_DIR"] = str(folder / "data")
        else:
            redis_url = redis_url or needed("TEST_REDIS_URL")
            environment["DATABASE_URL"] = request.getfixturevalue("database")
            environment["REDIS_URL"] = redis_url
        service = Service(environment, folder / "log", redis_url=redis_url)
        service.start()
        started.append(service)
        return service

    yield make
    for service in started:
        service.stop()


_services: dict[str, Service] = {}


@pytest.fixture(params=["embedded", "production"])
def service(request: pytest.FixtureRequest, make_service: MakeService) -> Service:
    """The run's service in each mode."""
    if request.param not in _services:
        _services[request.param] = make_service(request.param)
    return _services[request.param]


@pytest.fixture
def production(make_service: MakeService) -> Service:
    """The run's service on Postgres and Redis."""
    if "production" not in _services:
        _services["production"] = make_service("production")
    return _services["production"]


@dataclass
class OwnRedis:
    """A Redis that a test may kill."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        program = shutil.which("redis-server")
        assert program, "redis-server is missing: run scripts/client-tests"
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        self.process = subprocess.Popen(
            [program, *arguments], cwd=self.folder, stdout=subprocess.DEVNULL
        )

        def is_up() -> bool:
            try:
                with redis.Redis.from_url(self.url) as link:
                    return bool(link.ping())
            except redis.RedisError:
                return False

        until(is_up)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[OwnRedis]:
    server = OwnRedis(tmp_path)
    server.start()
    yield server
    server.kill()


class Agent(Protocol):
    """Asks in the background, by either kind of client."""

    kind: Literal["blocking", "asyncio"]

    def ask(self, service: Service, request_id: str, **options: Any) -> Future[Result]: ...


def _in_background(work: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()

    def body() -> None:
        try:
            future.set_result(work())
        except BaseException as problem:
            future.set_exception(problem)

    threading.Thread(target=body, daemon=True).start()
    return future


ACTION, CONTEXT = "send_email", {"to": "a@b.c", "subject": "요약", "copies": 1.50}
_CLIENT_OPTIONS = ("redis_url", "listen_by", "retry_seconds", "transport", "token", "tenant")


@dataclass
class _Agent:
    kind: Literal["blocking", "asyncio"]

    def ask(self, service: Service, request_id: str, **options: Any) -> Future[Result]:
        built: dict[str, Any] = {
            name: options.pop(name) for name in _CLIENT_OPTIONS if name in options
        }
        built = {"token": service.token, "tenant": TENANT, **built}
        transport = built.pop("transport", None)
        asked = {"session_id": new_session(), "timeout": 30, "request_id": request_id, **options}
        action, context = asked.pop("action_type", ACTION), asked.pop("context", CONTEXT)

        def blocking() -> Result:
            http = None if transport is None else httpx.Client(transport=transport)
            with Client(service.url, http_client=http, **built) as client:
                return client.request_approval(action, context, **asked)

        async def asynchronous() -> Result:
            http = None if transport is None else httpx.AsyncClient(transport=transport)
            async with AsyncClient(service.url, http_client=http, **built) as client:
                return await client.request_approval(action, context, **asked)

        if self.kind == "blocking":
            return _in_background(blocking)
        return _in_background(lambda: asyncio.run(asynchronous()))

    def ask_and_wait_until_pending(
        self, service: Service, request_id: str, **options: Any
    ) -> Future[Result]:
        future = self.ask(service, request_id, **options)
        until(lambda: future.done() or service.is_pending(request_id))
        # A little later it waits in earnest, and not only is about to.
        time.sleep(0.3)
        return future


@pytest.fixture(params=["blocking", "asyncio"])
def agent(request: pytest.FixtureRequest) -> _Agent:
    return _Agent(request.param)


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    """A blocking client that waits over HTTP."""
    with Client(service.url, token=service.token, tenant=TENANT) as client:
        yield client
