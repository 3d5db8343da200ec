"""Means of being woken when a request may have been decided: Redis Pub/Sub, and the event stream.

A listener only ever says "look now". What was decided is what the ledger answers, so a forged, a
repeated or a lost message can cost time, never an approval.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any

from . import _wire
from ._io import Io, settled
from .errors import HitlError
from .outcomes import Outcome

# How long to trust Redis before looking at the ledger all the same: Pub/Sub loses messages, and
# expiry and cancellation are never published there.
PUBSUB_LOOK_SECONDS = 15.0
# The gateway cuts every answer off after 300 s; a stream is renewed before.
STREAM_SECONDS = 240.0
# Redis acknowledges a subscription at once, or is not well.
ACKNOWLEDGE_SECONDS = 5.0
# The first pause after a failure; it doubles up to the longest.
SHORTEST_REST_SECONDS = 1.0
LONGEST_REST_SECONDS = 60.0


class ListeningFailed(Exception):
    """This means does not work at the moment."""


class Listener(ABC):
    """One means, and how long to leave it alone after it failed."""

    name: str

    def __init__(self) -> None:
        self.started = False
        self._failures = 0
        self._rests_until = 0.0

    @property
    def rest_left(self) -> float:
        return self._rests_until - time.monotonic()

    async def start(self) -> None:
        """From its return on, nothing is missed that this means can hear."""
        await self._start()
        self.started = True

    async def wait(self, seconds: float) -> None:
        """Returns when it is time to look at the ledger, after `seconds` at the latest."""
        await self._wait(seconds)
        self._failures = 0

    async def failed(self) -> None:
        """Stops it for a while."""
        await self.stop()
        rest = min(SHORTEST_REST_SECONDS * 2**self._failures, LONGEST_REST_SECONDS)
        self._failures += 1
        self._rests_until = time.monotonic() + rest

    async def stop(self) -> None:
        self.started = False
        await self._stop()

    @abstractmethod
    async def _start(self) -> None: ...

    @abstractmethod
    async def _wait(self, seconds: float) -> None: ...

    @abstractmethod
    async def _stop(self) -> None: ...


class PubSubListener(Listener):
    """Hears the session's channel on Redis."""

    name = "pubsub"

    def __init__(self, redis: Any, session_id: str, request_id: str) -> None:
        super().__init__()
        from redis.exceptions import RedisError

        # OSError: what redis-py lets through while it connects.
        self._failures_of_redis = (RedisError, OSError)
        self._redis = redis
        self._session_id = session_id
        self._request_id = request_id
        self._pubsub: Any = None
        self._key_read = False

    async def _start(self) -> None:
        self._key_read = False
        try:
            self._pubsub = self._redis.pubsub()
            await settled(self._pubsub.subscribe(f"hitl:channel:{self._session_id}"))
            until = time.monotonic() + ACKNOWLEDGE_SECONDS
            while (left := until - time.monotonic()) > 0:
                message = await settled(self._pubsub.get_message(timeout=left))
                if message and message["type"] == "subscribe":
                    return
        except self._failures_of_redis as problem:
            raise ListeningFailed(f"Redis: {problem}") from problem
        raise ListeningFailed("Redis did not acknowledge the subscription")

    async def _wait(self, seconds: float) -> None:
        until = time.monotonic() + min(seconds, PUBSUB_LOOK_SECONDS)
        try:
            if not self._key_read:
                # What was signalled before the subscription is under the key. Read once only: it
                # stays there for 300 s, whatever it is worth.
                self._key_read = True
                key = await settled(self._redis.get(f"hitl:signal:{self._session_id}"))
                if self._is_for_us(key):
                    return
            while (left := until - time.monotonic()) > 0:
                message = await settled(self._pubsub.get_message(timeout=left))
                if not message:
                    continue
                # redis-py has reconnected and subscribed again: something may have been missed.
                if message["type"] == "subscribe":
                    return
                if message["type"] == "message" and self._is_for_us(message["data"]):
                    return
        except self._failures_of_redis as problem:
            raise ListeningFailed(f"Redis: {problem}") from problem

    def _is_for_us(self, text: Any) -> bool:
        signal = _wire.signal(text)
        return signal is not None and signal.request_id == self._request_id

    async def _stop(self) -> None:
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            with suppress(*self._failures_of_redis):
                await settled((getattr(pubsub, "aclose", None) or pubsub.close)())


OpenStream = Callable[[str | None, float], AsyncGenerator[Outcome, None]]


class StreamListener(Listener):
    """Hears the session's event stream.

    Each opening replays what was missed: from the last event heard, else whatever of the last
    30 minutes nobody has acknowledged. So nothing is lost between two of them.
    """

    name = "stream"

    def __init__(self, io: Io, open_stream: OpenStream, request_id: str) -> None:
        super().__init__()
        self._io = io
        self._open = open_stream
        self._request_id = request_id
        self._last_id: str | None = None

    async def _start(self) -> None:
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
