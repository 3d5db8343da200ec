"""Listeners wake an agent when its request may be decided: Redis Pub/Sub or the event stream.

A listener only says "look now"; the decision comes from the ledger. So a forged, repeated or lost
message costs time, and never makes an approval.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any
from urllib.parse import quote

from ._io import Io, settled
from .errors import HitlError
from .outcomes import Outcome

# How often to ask the ledger while Redis works: Pub/Sub loses messages.
PUBSUB_POLL_SECONDS = 15.0
# The shortest time between two questions to the ledger, however many messages come.
PUBSUB_PAUSE_SECONDS = 0.5
# The gateway cuts every answer off after 300 s; a stream is renewed before.
STREAM_SECONDS = 240.0
# The time-out of a subscription.
ACKNOWLEDGE_SECONDS = 5.0
# The first pause after a failure; it doubles up to the longest.
MIN_RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 60.0


def growing(first: float, failures: int, longest: float) -> float:
    """A delay that doubles with each failure."""
    # A float has no room for 2 ** 1024, which a day of failures reaches.
    return min(first * 2.0 ** min(failures, 64), longest)


class ListeningFailed(Exception):
    """The listener does not work at the moment."""


class Listener(ABC):
    """One listener, which pauses for a while after a failure."""

    name: str

    def __init__(self) -> None:
        self.started = False
        self._failures = 0
        self._rests_until = 0.0

    @property
    def rest_left(self) -> float:
        return self._rests_until - time.monotonic()

    async def start(self, seconds: float) -> None:
        """Subscribes. After it returns, the listener misses no message."""
        await self._start(seconds)
        self.started = True

    async def wait(self, seconds: float) -> None:
        """Returns when it is time to look at the ledger, after `seconds` at the latest."""
        await self._wait(seconds)
        self._failures = 0

    async def failed(self) -> None:
        """Stops the listener for a while."""
        await self.stop()
        rest = growing(MIN_RETRY_SECONDS, self._failures, MAX_RETRY_SECONDS)
        self._failures += 1
        self._rests_until = time.monotonic() + rest

    async def stop(self) -> None:
        self.started = False
        await self._stop()

    @abstractmethod
    async def _start(self, seconds: float) -> None: ...

    @abstractmethod
    async def _wait(self, seconds: float) -> None: ...

    @abstractmethod
    async def _stop(self) -> None: ...


def decision_channel(tenant: str, request_id: str) -> str:
    """The channel on which the service publishes `ask` when a registered request is closed."""
    return f"hitl:decision:{quote(tenant, safe='')}:{request_id}"


class PubSubListener(Listener):
    """Subscribes to the request's channel on Redis. The content of messages is ignored."""

    name = "pubsub"

    def __init__(self, io: Io, channel: str) -> None:
        super().__init__()
        from redis.exceptions import RedisError

        # OSError: what redis-py lets through while it connects. RuntimeError: a client of the
        # caller's that belongs to another event loop.
        self._failures_of_redis = (RedisError, OSError, RuntimeError)
        self._io = io
        self._channel = channel
        self._pubsub: Any = None
        self._quiet_until = 0.0

    async def _start(self, seconds: float) -> None:
        try:
            self._pubsub = self._io.redis().pubsub()
            await settled(self._pubsub.subscribe(self._channel))
            until = time.monotonic() + min(seconds, ACKNOWLEDGE_SECONDS)
            while (left := until - time.monotonic()) > 0:
                message = await settled(self._pubsub.get_message(timeout=left))
                if message and message["type"] == "subscribe":
                    return
        except self._failures_of_redis as problem:
            raise ListeningFailed(f"Redis: {problem}") from problem
        raise ListeningFailed("Redis did not acknowledge the subscription")

    async def _wait(self, seconds: float) -> None:
        until = time.monotonic() + min(seconds, PUBSUB_POLL_SECONDS)
        try:
            while (left := until - time.monotonic()) > 0:
                message = await settled(self._pubsub.get_message(timeout=left))
                # `subscribe`: redis-py has reconnected and subscribed again, so something may have
                # been missed.
                if message and message["type"] in ("message", "subscribe"):
                    break
        except self._failures_of_redis as problem:
            raise ListeningFailed(f"Redis: {problem}") from problem
        await self._io.sleep(min(self._quiet_until, until) - time.monotonic())
        self._quiet_until = time.monotonic() + PUBSUB_PAUSE_SECONDS

    async def _stop(self) -> None:
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            with suppress(*self._failures_of_redis):
                await settled((getattr(pubsub, "aclose", None) or pubsub.close)())


OpenStream = Callable[[str | None, float], AsyncGenerator[Outcome, None]]


class StreamListener(Listener):
    """Reads the session's event stream.

    A new stream replays the events since the last one that was read; without one, the outcomes of
    the last 30 minutes that nobody has acknowledged. So no event is lost between two streams.
    """

    name = "stream"

    def __init__(self, io: Io, open_stream: OpenStream, request_id: str) -> None:
        super().__init__()
        self._io = io
        self._open = open_stream
        self._request_id = request_id
        self._last_id: str | None = None
        # What it missed it is told when it opens the stream.
        self.started = True

    async def _start(self, seconds: float) -> None:
        pass

    async def _wait(self, seconds: float) -> None:
        until = time.monotonic() + min(seconds, STREAM_SECONDS)
        while time.monotonic() < until:
            opened = time.monotonic()
            try:
                async with aclosing(self._open(self._last_id, until)) as outcomes:
                    async for outcome in outcomes:
                        self._last_id = outcome.id or self._last_id
                        if outcome.request_id == self._request_id:
                            return
            except HitlError as problem:
                if time.monotonic() < until:
                    raise ListeningFailed(f"stream: {problem}") from problem
            # It ended: the service stops, and another process takes over. Not more than one
            # opening a second, whatever is wrong.
            again = opened + 1.0 - time.monotonic()
            await self._io.sleep(min(again, until - time.monotonic()))

    async def _stop(self) -> None:
        pass
