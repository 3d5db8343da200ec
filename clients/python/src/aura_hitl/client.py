"""The blocking and the asyncio client and their tasks: thin wrappers of `_core`."""

from __future__ import annotations

import os
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Generator,
    Iterator,
    Sequence,
)
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any, Required, Self, TypedDict, TypeVar, Unpack

import httpx

from ._core import Core, Listening, PlanStep
from ._io import AsyncIo, BlockingIo, Kept, Loop, run
from .outcomes import (
    Acknowledgement,
    Decision,
    Outcome,
    Registration,
    Result,
    Risk,
    Signal,
    Way,
)
from .people import (
    BulkItem,
    BulkResult,
    Comment,
    InboxEvent,
    ListedRequest,
    RequestDetail,
    RequestFilter,
    RequestPage,
)

if TYPE_CHECKING:
    import redis
    import redis.asyncio

# Every waiting call holds a connection. How many wait is the agent's business, not the pool's.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)
_LISTEN_BY: tuple[Listening, ...] = ("pubsub", "stream")

T = TypeVar("T")


class ApprovalOptions(TypedDict, total=False):
    """What `request_approval` of a task takes beside the action and its context."""

    session_id: Required[str]
    message: str | None
    request_id: str | None
    plan_steps: Sequence[PlanStep] | None
    timeout: float
    expires_in: int | None
    decisions: Collection[Way] | None
    arguments_schema: Any
    response_schema: Any
    risk: Risk | None
    acknowledge: bool
    act_again: bool


def _redis_options(asynchronous: bool) -> dict[str, Any]:
    """Short time-outs: while a call to Redis hangs, the agent cannot be woken."""
    from redis.backoff import NoBackoff

    if asynchronous:
        from redis.asyncio.retry import Retry as AsyncRetry

        retry: Any = AsyncRetry(NoBackoff(), 0)
    else:
        from redis.retry import Retry

        retry = Retry(NoBackoff(), 0)
    return {"retry": retry, "socket_connect_timeout": 3, "socket_timeout": 3}


_NO_REDIS = "redis_url needs the redis package: pip install 'aura-hitl-client[redis]'"
_ONE_PROCESS = (
    "this http_client was used before the fork, and two processes that share its connections read "
    "each other's answers: give a function that makes one"
)
_ONE_LOOP = (
    "this client of httpx or redis-py was used in another event loop, to which its connections "
    "belong: give a function that makes one, or a URL"
)


def _redis_from(url: str, asynchronous: bool) -> Callable[[], Any]:
    """Makes clients of redis-py; each connects when it is used."""
    try:
        if asynchronous:
            from redis.asyncio import Redis as AsyncRedis

            from_url: Callable[..., Any] = AsyncRedis.from_url
        else:
            from redis import Redis

            from_url = Redis.from_url
    except ImportError as missing:
        raise ImportError(_NO_REDIS) from missing

    def make() -> Any:
        return from_url(url, **_redis_options(asynchronous))

    try:
        make()
        return make
    except ValueError:
        pass  # Its text repeats what it took for the port: half of a password, perhaps.
    raise ValueError("redis_url is not a URL as redis-py reads them")


def _kept_redis(redis_url: str | redis.asyncio.Redis | None) -> Kept[Loop, Any] | None:
    if redis_url is None:
        return None
    if isinstance(redis_url, str):
        return Kept(_redis_from(redis_url, asynchronous=True), _is_closed)
    return Kept(lambda: redis_url, _is_closed, given=redis_url, elsewhere=_ONE_LOOP)


def _is_closed(loop: Loop) -> bool:
    return loop.is_closed()


def _each(items: AsyncGenerator[T, None]) -> Generator[T, None, None]:
    """The items of a blocking client's generator."""
    try:
        while True:
            try:
                yield run(anext(items))
            except StopAsyncIteration:
                return
    finally:
        run(items.aclose())


class Client:
    """Asks people for approval on behalf of an agent. Blocking; may be shared by threads, and used
    on both sides of a fork.

    base_url: of the gateway or of the service itself, with or without `/api`.
    token: the JWT, or a function that returns one. It is called for every call, so that a long
        wait outlives a short token.
    user: the token's `sub`; read from the token when absent.
    redis_url: the Redis of the service, as a URL or as a client of redis-py (which stays yours to
        close). Without it, agents wait over HTTP.
    listen_by: means of being woken that may be used; with none of them, long-polls alone.
    retry_seconds: for how long a call is tried again when the service does not answer.
    as_person: the token is a person's own, who decides with this client. Never for an agent: it then
        decides what it asks.
    http_client: an httpx client of your own, for certificates or proxies, or a function that makes
        one for each process; closed with this one.

    ValueError, without the value, for a token, an id or a URL that cannot be sent.
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: str | Callable[[], str],
        tenant: str,
        user: str | None = None,
        redis_url: str | redis.Redis | None = None,
        listen_by: Collection[Listening] = _LISTEN_BY,
        retry_seconds: float = 10.0,
        as_person: bool = False,
        http_client: httpx.Client | Callable[[], httpx.Client] | None = None,
    ) -> None:
        link: Any = redis_url
        if isinstance(redis_url, str):
            link = _redis_from(redis_url, asynchronous=False)()
        given = http_client if isinstance(http_client, httpx.Client) else None
        make = http_client if callable(http_client) else lambda: httpx.Client(limits=_LIMITS)
        http: Kept[int, httpx.Client] = Kept(
            make, lambda process: process != os.getpid(), given=given, elsewhere=_ONE_PROCESS
        )
        self._core = Core(
            BlockingIo(http, link, owns_redis=isinstance(redis_url, str)),
            base_url=base_url,
            token=token,
            tenant=tenant,
            user=user,
            listens_to_redis=link is not None,
            listen_by=listen_by,
            retry_seconds=retry_seconds,
            as_person=as_person,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        run(self._core.close())

    def request_approval(
        self,
        action_type: str,
        context: Any,
        *,
        session_id: str,
        message: str | None = None,
        request_id: str | None = None,
        task_id: str | None = None,
        plan_steps: Sequence[PlanStep] | None = None,
        timeout: float = 300,
        expires_in: int | None = None,
        decisions: Collection[Way] | None = None,
        arguments_schema: Any = None,
        response_schema: Any = None,
        risk: Risk | None = None,
        acknowledge: bool = True,
        act_again: bool = False,
    ) -> Result:
        """Asks, waits until a person has decided or `timeout` seconds are over, and tells which.

        Only `Approved` is true. When the time is over the request is withdrawn, so that nobody
        approves it later; a decision made at the last moment is returned.

        request_id: give one to go on waiting for the same request after a restart of the agent;
            everything else must be the same too. A random one when absent.
        timeout: at most 86,400 s, the longest life of a request.
        expires_in: how long people may decide, in seconds, 1 to 86,400; `timeout` and half a minute
            when absent. It matters if the agent dies.
        decisions: how this agent lets people decide: `approve` and `reject` when absent; `edit` too
            for `ApprovedWithEdits`, `respond` for `Answered`.
        arguments_schema, response_schema: what edited arguments and an answer must look like, as
            JSON Schema 2020-12.
        risk: the least risk that the request has.
        acknowledge: tell the service that the agent acts on the outcome. With False, call
            `acknowledge` once it has.
        act_again: return an approval that was acknowledged before, instead of raising AlreadyActed.

        An exception leaves the request as it is: it can still be waited for under its id, and
        expires by itself. Raises ContentChanged if what was approved is not what was registered.
        """
        return run(
            self._core.request_approval(
                action_type,
                context,
                session_id=session_id,
                message=message,
                request_id=request_id,
                task_id=task_id,
                plan_steps=plan_steps,
                timeout=timeout,
                expires_in=expires_in,
                decisions=decisions,
                arguments_schema=arguments_schema,
                response_schema=response_schema,
                risk=risk,
                acknowledge=acknowledge,
                act_again=act_again,
            )
        )

    def register(
        self,
        action_type: str,
        context: Any,
        *,
        session_id: str,
        message: str | None = None,
        request_id: str | None = None,
        task_id: str | None = None,
        plan_steps: Sequence[PlanStep] | None = None,
        expires_in: int | None = None,
        decisions: Collection[Way] | None = None,
        arguments_schema: Any = None,
        response_schema: Any = None,
        risk: Risk | None = None,
    ) -> Registration:
        """Registers a request and does not wait. Again with the same id and content: the same."""
        return run(
            self._core.register(
                action_type,
                context,
                session_id=session_id,
                message=message,
                request_id=request_id,
                task_id=task_id,
                plan_steps=plan_steps,
                expires_in=expires_in,
                decisions=decisions,
                arguments_schema=arguments_schema,
                response_schema=response_schema,
                risk=risk,
            )
        )

    def decision(self, request_id: str, wait_seconds: int = 0) -> Decision:
        """The state of a request, after waiting up to 55 s for it to be closed."""
        return run(self._core.decision(request_id, wait_seconds))

    def signal(
        self, session_id: str, request_id: str | None = None, wait_seconds: int = 0
    ) -> Signal | None:
        """The signal of a request, after waiting up to 55 s for one: a hint, like every signal.

        Without request_id, the one of the request that an agent asked for over Redis last.
        """
        return run(self._core.signal(session_id, request_id, wait_seconds))

    def outcomes(self, session_id: str, last_event_id: str | None = None) -> Iterator[Outcome]:
        """The outcomes of a session as they come, until the service ends the stream.

        Continue with the last outcome's `id`.
        """
        return _each(self._core.outcomes(session_id, last_event_id))

    def cancel(self, request_id: str) -> None:
        """Withdraws a pending request. Conflict: it is decided. Gone: it has expired.

        NotAllowed: it is another user's, and the token has not `role: admin`.
        """
        run(self._core.cancel(request_id))

    def acknowledge(self, request_id: str) -> Acknowledgement:
        """Tells the service that the agent has acted on the outcome; the first time counts."""
        return run(self._core.acknowledge(request_id))

    def comment(self, request_id: str, text: str) -> Comment:
        """Asks or answers something about a pending request, which stays pending."""
        return run(self._core.comment(request_id, text))

    def comments(self, request_id: str) -> tuple[Comment, ...]:
        """The questions and answers about a request, the oldest first."""
        return run(self._core.comments(request_id))

    def requests(
        self, *, cursor: str | None = None, **filters: Unpack[RequestFilter]
    ) -> RequestPage:
        """A page of requests; by default of those that wait for the token's user.

        Continue with its `next_cursor` and the same filters. NotAllowed: `scope="tenant"`, and the
        token has not `role: admin`.
        """
        return run(self._core.requests(cursor=cursor, **filters))

    def all_requests(self, **filters: Unpack[RequestFilter]) -> Iterator[ListedRequest]:
        """The requests of all pages, each page read when it is needed."""
        return _each(self._core.all_requests(**filters))

    def detail(self, request_id: str) -> RequestDetail:
        """A request in full. NotFound: it is not there, or not to be seen by the token's user."""
        return run(self._core.detail(request_id))

    def decide(
        self, items: Collection[BulkItem], *, atomic: bool = False
    ) -> tuple[BulkResult, ...]:
        """Approves and rejects 1 to 200 requests as the token's user. The results are in their order.

        Each is judged by itself: read its result. With `atomic` all are recorded or none;
        BulkRefused, whose `results` say what stood in the way. After Unavailable call it again: what
        is recorded is answered the same. ValueError: the client is an agent's.
        """
        return run(self._core.decide(items, atomic=atomic))

    def inbox(self) -> Generator[InboxEvent, None, None]:
        """How many requests wait, and which change, as it happens.

        An `InboxCounts` comes first. A lost connection is opened again, after 1 s, 2 s, up to a
        minute; an `InboxCounts` that is `opened` then says that changes may have been missed. Ends
        when the client is closed, by another thread too, or when the token has expired and its
        function has no newer one. Unavailable: it could not be opened for `retry_seconds`.
        """
        return _each(self._core.inbox())

    def task(
        self, task_type: str, *, description: str | None = None, input_data: Any = None
    ) -> Task:
        """A task as a context manager: started on entering, completed or failed on leaving."""
        return Task(self._core, task_type, description, input_data)


class AsyncClient:
    """`Client` for asyncio. The token's function may be a coroutine function.

    It may be used in several event loops, one after another (`asyncio.run` makes a new one each
    time) or at once: each has connections of its own. A client of httpx or redis-py that is given
    serves one loop alone; RuntimeError in a second.
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: str | Callable[[], str | Awaitable[str]],
        tenant: str,
        user: str | None = None,
        redis_url: str | redis.asyncio.Redis | None = None,
        listen_by: Collection[Listening] = _LISTEN_BY,
        retry_seconds: float = 10.0,
        as_person: bool = False,
        http_client: httpx.AsyncClient | Callable[[], httpx.AsyncClient] | None = None,
    ) -> None:
        given = http_client if isinstance(http_client, httpx.AsyncClient) else None
        make = http_client if callable(http_client) else lambda: httpx.AsyncClient(limits=_LIMITS)
        self._core = Core(
            AsyncIo(
                Kept(make, _is_closed, given=given, elsewhere=_ONE_LOOP),
                _kept_redis(redis_url),
                owns_redis=isinstance(redis_url, str),
            ),
            base_url=base_url,
            token=token,
            tenant=tenant,
            user=user,
            listens_to_redis=redis_url is not None,
            listen_by=listen_by,
            retry_seconds=retry_seconds,
            as_person=as_person,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._core.close()

    async def request_approval(
        self,
        action_type: str,
        context: Any,
        *,
        session_id: str,
        message: str | None = None,
        request_id: str | None = None,
        task_id: str | None = None,
        plan_steps: Sequence[PlanStep] | None = None,
        timeout: float = 300,
        expires_in: int | None = None,
        decisions: Collection[Way] | None = None,
        arguments_schema: Any = None,
        response_schema: Any = None,
        risk: Risk | None = None,
        acknowledge: bool = True,
        act_again: bool = False,
    ) -> Result:
        """See `Client.request_approval`."""
        return await self._core.request_approval(
            action_type,
            context,
            session_id=session_id,
            message=message,
            request_id=request_id,
            task_id=task_id,
            plan_steps=plan_steps,
            timeout=timeout,
            expires_in=expires_in,
            decisions=decisions,
            arguments_schema=arguments_schema,
            response_schema=response_schema,
            risk=risk,
            acknowledge=acknowledge,
            act_again=act_again,
        )

    async def register(
        self,
        action_type: str,
        context: Any,
        *,
        session_id: str,
        message: str | None = None,
        request_id: str | None = None,
        task_id: str | None = None,
        plan_steps: Sequence[PlanStep] | None = None,
        expires_in: int | None = None,
        decisions: Collection[Way] | None = None,
        arguments_schema: Any = None,
        response_schema: Any = None,
        risk: Risk | None = None,
    ) -> Registration:
        """See `Client.register`."""
        return await self._core.register(
            action_type,
            context,
            session_id=session_id,
            message=message,
            request_id=request_id,
            task_id=task_id,
            plan_steps=plan_steps,
            expires_in=expires_in,
            decisions=decisions,
            arguments_schema=arguments_schema,
            response_schema=response_schema,
            risk=risk,
        )

    async def decision(self, request_id: str, wait_seconds: int = 0) -> Decision:
        """See `Client.decision`."""
        return await self._core.decision(request_id, wait_seconds)

    async def signal(
        self, session_id: str, request_id: str | None = None, wait_seconds: int = 0
    ) -> Signal | None:
        """See `Client.signal`."""
        return await self._core.signal(session_id, request_id, wait_seconds)

    async def outcomes(
        self, session_id: str, last_event_id: str | None = None
    ) -> AsyncGenerator[Outcome, None]:
        """See `Client.outcomes`. Use `contextlib.aclosing` if you may leave the loop early."""
        async with aclosing(self._core.outcomes(session_id, last_event_id)) as outcomes:
            async for outcome in outcomes:
                yield outcome

    async def cancel(self, request_id: str) -> None:
        """See `Client.cancel`."""
        await self._core.cancel(request_id)

    async def acknowledge(self, request_id: str) -> Acknowledgement:
        """See `Client.acknowledge`."""
        return await self._core.acknowledge(request_id)

    async def comment(self, request_id: str, text: str) -> Comment:
        """See `Client.comment`."""
        return await self._core.comment(request_id, text)

    async def comments(self, request_id: str) -> tuple[Comment, ...]:
        """See `Client.comments`."""
        return await self._core.comments(request_id)

    async def requests(
        self, *, cursor: str | None = None, **filters: Unpack[RequestFilter]
    ) -> RequestPage:
        """See `Client.requests`."""
        return await self._core.requests(cursor=cursor, **filters)

    async def all_requests(
        self, **filters: Unpack[RequestFilter]
    ) -> AsyncGenerator[ListedRequest, None]:
        """See `Client.all_requests`."""
        async with aclosing(self._core.all_requests(**filters)) as requests:
            async for request in requests:
                yield request

    async def detail(self, request_id: str) -> RequestDetail:
        """See `Client.detail`."""
        return await self._core.detail(request_id)

    async def decide(
        self, items: Collection[BulkItem], *, atomic: bool = False
    ) -> tuple[BulkResult, ...]:
        """See `Client.decide`."""
        return await self._core.decide(items, atomic=atomic)

    async def inbox(self) -> AsyncGenerator[InboxEvent, None]:
        """See `Client.inbox`. Use `contextlib.aclosing` if you may leave the loop early."""
        async with aclosing(self._core.inbox()) as events:
            async for event in events:
                yield event

    def task(
        self, task_type: str, *, description: str | None = None, input_data: Any = None
    ) -> AsyncTask:
        """See `Client.task`."""
        return AsyncTask(self._core, task_type, description, input_data)


class _TaskBase:
    """What both kinds of task share. `result` is what the task is completed with."""

    def __init__(
        self, core: Core, task_type: str, description: str | None, input_data: Any
    ) -> None:
        self._core = core
        self._new = (task_type, description, input_data)
        self._id: str | None = None
        self.result: Any = None

    @property
    def id(self) -> str:
        if self._id is None:
            raise RuntimeError("the task begins with its `with` block")
        return self._id

    async def _begin(self) -> None:
        self._id = await self._core.create_task(*self._new)
        await self._core.task_call(self._id, "POST", "start")

    async def _end(self, failure: BaseException | None) -> None:
        await self._core.finish_task(self.id, failure, self.result)


class Task(_TaskBase):
    """An agent task, from `Client.task`."""

    def __enter__(self) -> Self:
        run(self._begin())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        run(self._end(failure))

    def progress(self, percent: int, description: str | None = None) -> None:
        """How far it is, 0 to 100; `description` replaces the task's."""
        run(self._core.progress(self.id, percent, description))

    def plan(self, steps: Sequence[PlanStep]) -> None:
        """Replaces the plan. A step is a dict with `stepId`, or its text: then `step-1`, ...."""
        run(self._core.replace_plan(self.id, steps))

    def step(self, step_id: str, **fields: Any) -> None:
        """Updates one step: `status`, `description`, `confidence` (0 to 1) or other fields."""
        run(self._core.update_step(self.id, step_id, fields))

    def request_approval(
        self, action_type: str, context: Any, **options: Unpack[ApprovalOptions]
    ) -> Result:
        """See `Client.request_approval`; the task waits meanwhile."""
        return run(self._core.request_approval(action_type, context, task_id=self.id, **options))


class AsyncTask(_TaskBase):
    """An agent task, from `AsyncClient.task`."""

    async def __aenter__(self) -> Self:
        await self._begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._end(failure)

    async def progress(self, percent: int, description: str | None = None) -> None:
        """See `Task.progress`."""
        await self._core.progress(self.id, percent, description)

    async def plan(self, steps: Sequence[PlanStep]) -> None:
        """See `Task.plan`."""
        await self._core.replace_plan(self.id, steps)

    async def step(self, step_id: str, **fields: Any) -> None:
        """See `Task.step`."""
        await self._core.update_step(self.id, step_id, fields)

    async def request_approval(
        self, action_type: str, context: Any, **options: Unpack[ApprovalOptions]
    ) -> Result:
        """See `Task.request_approval`."""
        return await self._core.request_approval(action_type, context, task_id=self.id, **options)
