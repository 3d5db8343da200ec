"""The only code that blocks or awaits, once for each kind of client.

Everything above is written once, as coroutines over `Io`. With `BlockingIo` nothing in them ever
suspends, so `run` drives them to their end on the spot, without an event loop.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol, TypedDict, TypeVar, cast

import httpx
from httpx_sse import EventSource, ServerSentEvent

T = TypeVar("T")


class Call(TypedDict, total=False):
    """Arguments of an HTTP call, as httpx names them."""

    method: str
    url: str
    params: dict[str, str | int]
    json: Any
    headers: dict[str, str]
    timeout: httpx.Timeout


class Io(Protocol):
    """What the logic needs from the outside world."""

    async def call(self, call: Call) -> httpx.Response: ...

    def stream(
        self, call: Call, enough: Callable[[], bool]
    ) -> AbstractAsyncContextManager[tuple[httpx.Response, AsyncIterator[ServerSentEvent]]]:
        """An open event stream, ended when `enough` after something came, a comment even."""

    async def sleep(self, seconds: float) -> None: ...

    async def close(self) -> None: ...


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine over `BlockingIo` to its end."""
    try:
        work.send(None)
    except StopIteration as end:
        return cast(T, end.value)
    work.close()
    raise RuntimeError("something awaited in a blocking client")


async def settled(value: Awaitable[T] | T) -> T:
    """The value, awaited if it must be: redis-py's two clients differ in nothing else."""
    return await cast(Awaitable[T], value) if inspect.isawaitable(value) else value


class _Watched(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that ends when `enough`. The service's comments give it the occasion to look."""

    def __init__(self, body: httpx.Response, enough: Callable[[], bool]) -> None:
        self._body = body
        self._enough = enough

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._body.iter_raw():
            yield chunk
            if self._enough():
                return

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._body.aiter_raw():
            yield chunk
            if self._enough():
                return


def _events(response: httpx.Response, enough: Callable[[], bool]) -> EventSource:
    return EventSource(
        httpx.Response(
            response.status_code,
            headers=response.headers,
            stream=_Watched(response, enough),
            request=response.request,
        )
    )


async def _each(items: Iterable[T]) -> AsyncIterator[T]:
    for item in items:
        yield item


class BlockingIo:
    """For `Client`."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    async def call(self, call: Call) -> httpx.Response:
        return self._http.request(**call)

    @asynccontextmanager
    async def stream(
        self, call: Call, enough: Callable[[], bool]
    ) -> AsyncIterator[tuple[httpx.Response, AsyncIterator[ServerSentEvent]]]:
        with self._http.stream(**call) as response:
            if response.status_code != httpx.codes.OK:
                response.read()
            yield response, _each(_events(response, enough).iter_sse())

    async def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))

    async def close(self) -> None:
        self._http.close()


class AsyncIo:
    """For `AsyncClient`."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def call(self, call: Call) -> httpx.Response:
        return await self._http.request(**call)

    @asynccontextmanager
    async def stream(
        self, call: Call, enough: Callable[[], bool]
    ) -> AsyncIterator[tuple[httpx.Response, AsyncIterator[ServerSentEvent]]]:
        async with self._http.stream(**call) as response:
            if response.status_code != httpx.codes.OK:
                await response.aread()
            yield response, _events(response, enough).aiter_sse()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))

    async def close(self) -> None:
        await self._http.aclose()
