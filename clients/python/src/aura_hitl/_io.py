"""The only code that blocks or awaits, once for each kind of client, and the owner of connections.

The modules that use this one are coroutines over `Io`. With `BlockingIo` these coroutines never
suspend, so `run` drives them to their end without an event loop.

A connection belongs to the process and the event loop that opened it. `Kept` makes sure of it.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import threading
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Hashable,
    Iterable,
    Iterator,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, Generic, Protocol, TypedDict, TypeVar, cast

import httpx
from httpx_sse import EventSource, ServerSentEvent

T = TypeVar("T")
PlaceT = TypeVar("PlaceT", bound=Hashable)


class Call(TypedDict, total=False):
    """Arguments of an HTTP call, as httpx names them."""

    method: str
    url: str
    params: dict[str, str | int]
    content: bytes
    headers: dict[str, str]
    timeout: httpx.Timeout


class Ending(Protocol):
    """The end of a client in one process and event loop."""

    def set(self) -> None: ...

    def is_set(self) -> bool: ...

    async def sleep(self, seconds: float) -> None:
        """Sleeps until the client is closed, but not longer."""


class _BlockingEnding(threading.Event):
    async def sleep(self, seconds: float) -> None:
        self.wait(max(0.0, seconds))


class _AsyncEnding(asyncio.Event):
    async def sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.wait()


class Io(Protocol):
    """The I/O of the logic in `_core`."""

    async def call(self, call: Call) -> httpx.Response: ...

    def stream(
        self, call: Call, enough: Callable[[], bool]
    ) -> AbstractAsyncContextManager[tuple[httpx.Response, AsyncIterator[ServerSentEvent]]]:
        """An open event stream. Ends when `enough` is true after an event or a comment."""

    def redis(self) -> Any:
        """The redis-py client of this process and event loop; None without Redis."""

    async def sleep(self, seconds: float) -> None: ...

    def ending(self) -> Ending:
        """Set when the client is closed in this process and event loop."""

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
    """Awaits the value if necessary. redis-py's two clients differ only in that."""
    return await cast(Awaitable[T], value) if inspect.isawaitable(value) else value


class Kept(Generic[PlaceT, T]):
    """Something with connections, one for each place that uses it: a process, or an event loop.

    Two processes that share a connection read each other's answers, and the connections of an
    event loop end with it. `given` is the caller's own: it serves the first place that uses it.
    """

    def __init__(
        self,
        make: Callable[[], T],
        is_over: Callable[[PlaceT], bool],
        *,
        given: T | None = None,
        elsewhere: str = "",
    ) -> None:
        self._make = make
        self._is_over = is_over
        self._given = given
        self._elsewhere = elsewhere
        self._made: dict[PlaceT, T] = {}
        self._owner: list[PlaceT] = []

    def at(self, place: PlaceT) -> T:
        if self._given is not None:
            if not self._owner:
                self._owner.append(place)
            if self._owner[0] != place:
                raise RuntimeError(self._elsewhere)
            return self._given
        made = self._made.get(place)
        if made is None:
            # Of two threads that make one at once, the second finds the first one's here.
            made = self._made.setdefault(place, self._make())
            for old in [each for each in list(self._made) if self._is_over(each)]:
                # Not closed: that would write to another process' connections, or need the loop
                # that has ended. The operating system's part goes with the object.
                self._made.pop(old, None)
        return made

    def pop(self, place: PlaceT) -> T | None:
        """The object of this process or event loop, to close it."""
        if self._given is not None:
            return None if self._owner and self._owner[0] != place else self._given
        return self._made.pop(place, None)


class _Watched(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that ends when `enough` is true, which is checked at each event and comment."""

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


def _cut(response: httpx.Response) -> None:
    """Ends what another thread reads. Closing its socket alone would not wake that thread."""
    network = response.extensions.get("network_stream")
    connection = None if network is None else network.get_extra_info("socket")
    if isinstance(connection, socket.socket):
        with suppress(OSError):
            # Not the method of a TLS socket, which would take the session away from its reader.
            socket.socket.shutdown(connection, socket.SHUT_RDWR)


class BlockingIo:
    """For `Client`. redis-py's blocking client minds forks itself."""

    def __init__(self, http: Kept[int, httpx.Client], redis: Any, owns_redis: bool) -> None:
        self._http = http
        self._redis = redis
        self._owns_redis = owns_redis
        self._streams: dict[httpx.Response, int] = {}
        self._ending: Kept[int, _BlockingEnding] = Kept(
            _BlockingEnding, lambda process: process != os.getpid()
        )

    async def call(self, call: Call) -> httpx.Response:
        return self._http.at(os.getpid()).request(**call)

    @asynccontextmanager
    async def stream(
        self, call: Call, enough: Callable[[], bool]
    ) -> AsyncIterator[tuple[httpx.Response, AsyncIterator[ServerSentEvent]]]:
        with self._http.at(os.getpid()).stream(**call) as response:
            if response.status_code != httpx.codes.OK:
                response.read()
            self._streams[response] = os.getpid()
            try:
                yield response, _each(_events(response, enough).iter_sse())
            finally:
                self._streams.pop(response, None)

    def redis(self) -> Any:
        return self._redis

    async def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))

    def ending(self) -> Ending:
        return self._ending.at(os.getpid())

    async def close(self) -> None:
        ending = self._ending.pop(os.getpid())
        if ending is not None:
            ending.set()
        for response, process in list(self._streams.items()):
            # After a fork the parent's streams are here, too, and stay the parent's.
            if process == os.getpid():
                _cut(response)
        http = self._http.pop(os.getpid())
        if http is not None:
            http.close()
        if self._owns_redis:
            self._redis.close()


Loop = asyncio.AbstractEventLoop


class AsyncIo:
    """For `AsyncClient`."""

    def __init__(
        self,
        http: Kept[Loop, httpx.AsyncClient],
        redis: Kept[Loop, Any] | None,
        owns_redis: bool,
    ) -> None:
        self._http = http
        self._redis = redis
        self._owns_redis = owns_redis
        self._ending: Kept[Loop, _AsyncEnding] = Kept(_AsyncEnding, lambda loop: loop.is_closed())

    async def call(self, call: Call) -> httpx.Response:
        return await self._http.at(asyncio.get_running_loop()).request(**call)

    @asynccontextmanager
    async def stream(
        self, call: Call, enough: Callable[[], bool]
    ) -> AsyncIterator[tuple[httpx.Response, AsyncIterator[ServerSentEvent]]]:
        http = self._http.at(asyncio.get_running_loop())
        async with http.stream(**call) as response:
            if response.status_code != httpx.codes.OK:
                await response.aread()
            yield response, _events(response, enough).aiter_sse()

    def redis(self) -> Any:
        return None if self._redis is None else self._redis.at(asyncio.get_running_loop())

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))

    def ending(self) -> Ending:
        return self._ending.at(asyncio.get_running_loop())

    async def close(self) -> None:
        here = asyncio.get_running_loop()
        ending = self._ending.pop(here)
        if ending is not None:
            ending.set()
        http = self._http.pop(here)
        if http is not None:
            await http.aclose()
        redis = self._redis.pop(here) if self._redis is not None and self._owns_redis else None
        if redis is not None:
            await (getattr(redis, "aclose", None) or redis.close)()
