"""The client's logic, written once for both kinds of client (see `_io`).

The promise it keeps: nothing is taken for an approval but the ledger's own word that this very
request was approved with the fingerprint it was registered with. Everything else, signals, events,
lost answers, time-outs, only decides when the ledger is asked.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from urllib.parse import quote

import httpx
from httpx_sse import ServerSentEvent
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_before_delay,
    wait_exponential,
    wait_random,
)

from . import _wire
from ._io import Call, Ending, Io, settled
from ._listeners import (
    MAX_RETRY_SECONDS,
    MIN_RETRY_SECONDS,
    STREAM_SECONDS,
    Listener,
    ListeningFailed,
    PubSubListener,
    StreamListener,
    decision_channel,
    growing,
)
from .errors import (
    AlreadyActed,
    ApiError,
    BulkRefused,
    Conflict,
    ContentChanged,
    Gone,
    HitlError,
    NotAllowed,
    Unavailable,
    UnexpectedAnswer,
)
from .outcomes import (
    Acknowledgement,
    Answered,
    Approved,
    ApprovedWithEdits,
    Cancelled,
    Decision,
    Expired,
    Outcome,
    Registration,
    Rejected,
    Result,
    Risk,
    Signal,
    Way,
)
from .people import (
    BulkItem,
    BulkResult,
    Comment,
    InboxCounts,
    InboxEvent,
    ListedRequest,
    RequestDetail,
    RequestPage,
    Scope,
    Sort,
)

log = logging.getLogger("aura_hitl")

Listening = Literal["pubsub", "stream"]
PlanStep = Mapping[str, Any] | str

# How long the service holds a long-poll at most.
POLL_SECONDS = 55
# The longest lifetime of a request.
MAX_LIFETIME_SECONDS = 86_400
# A request lives this much longer than its agent waits, so that the cancellation comes first: an
# expiry would fail the agent's task.
LIFETIME_MARGIN_SECONDS = 30
# A stream carries a comment every 15 s. After this time without one, the connection is dead.
STREAM_TIMEOUT_SECONDS = 20.0
# The time-out of an answer that is not a long-poll.
ANSWER_TIMEOUT_SECONDS = 10.0
CONNECT_TIMEOUT_SECONDS = 5.0
# The time-out of all calls after the deadline: withdraw, confirm, acknowledge.
CLOSE_TIMEOUT_SECONDS = 10.0
MAX_ERROR_CHARACTERS = 4000
# The time-out of several decisions: the service waits for room in the person's rate limit, and for
# others who decide the same.
BULK_TIMEOUT_SECONDS = 30.0
OBSTRUCTED = "E3008"
# The code of a token that has expired, of all that are refused.
EXPIRED_TOKEN = "E2002"

_backoff = wait_exponential(multiplier=0.1, max=2.0) + wait_random(0.0, 0.1)


def _pause(state: RetryCallState) -> float:
    """The `Retry-After` of the answer, else a delay that grows with each attempt."""
    problem = state.outcome.exception() if state.outcome else None
    asked = problem.retry_after if isinstance(problem, ApiError) else None
    return max(asked or 0.0, _backoff(state))


@dataclass(frozen=True)
class _Asked:
    """A registered request and the deadline of its agent."""

    registration: Registration
    deadline: float
    takes_edits: bool = False

    @property
    def id(self) -> str:
        return self.registration.request_id

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    @property
    def closes(self) -> float:
        """The deadline of withdrawing and acknowledging."""
        return min(self.deadline, time.monotonic()) + CLOSE_TIMEOUT_SECONDS


def new_request_id() -> str:
    """A random id that no request has."""
    return f"req_{uuid.uuid4().hex}"


def result_of(
    decision: Decision, registration: Registration, *, takes_edits: bool = False
) -> Result:
    """The result of a closed request, for the agent that registered it."""
    ids = {"request_id": registration.request_id, "session_id": registration.session_id}
    match decision.status:
        case "approved" if takes_edits and decision.requested_fingerprint is None:
            # It does not tell edits apart, and would call one a plain approval.
            raise UnexpectedAnswer(f"{registration.request_id}: this service knows no edits")
        case "approved" if decision.arguments is not None:
            if decision.requested_fingerprint != registration.fingerprint or not decision.fingerprint:
                raise ContentChanged(
                    registration.request_id,
                    registered=registration.fingerprint,
                    approved=decision.requested_fingerprint,
                )
            return ApprovedWithEdits(
                **ids,
                arguments=decision.arguments,
                fingerprint=decision.fingerprint,
                requested_fingerprint=registration.fingerprint,
                decided_by=decision.decided_by,
                decided_at=decision.decided_at,
                acted_at=decision.acted_at,
            )
        case "answered":
            return Answered(
                **ids,
                response=decision.response,
                decided_by=decision.decided_by,
                decided_at=decision.decided_at,
            )
        case "approved":
            if decision.fingerprint != registration.fingerprint:
                raise ContentChanged(
                    registration.request_id,
                    registered=registration.fingerprint,
                    approved=decision.fingerprint,
                )
            return Approved(
                **ids,
                fingerprint=registration.fingerprint,
                decided_by=decision.decided_by,
                decided_at=decision.decided_at,
                acted_at=decision.acted_at,
            )
        case "rejected":
            return Rejected(
                **ids,
                reason=decision.reason or "",
                decided_by=decision.decided_by,
                decided_at=decision.decided_at,
            )
        case "expired":
            return _expired(registration)
        case "cancelled":
            return Cancelled(**ids)
        case "pending":
            raise UnexpectedAnswer(f"{registration.request_id} is said to be settled and pending")


def _expired(registration: Registration, withdrawn: bool = True) -> Expired:
    return Expired(
        request_id=registration.request_id,
        session_id=registration.session_id,
        withdrawn=withdrawn,
    )


def plan_step(step: PlanStep, number: int) -> dict[str, Any]:
    """A step as the service takes it; a bare text becomes a pending step."""
    if isinstance(step, str):
        return {
            "type": "plan_step",
            "stepId": f"step-{number}",
            "description": step,
            "status": "pending",
        }
    return dict(step)


class Core:
    """All calls, over either kind of I/O."""

    def __init__(
        self,
        io: Io,
        *,
        base_url: str,
        token: str | Callable[[], str | Awaitable[str]],
        tenant: str,
        user: str | None,
        listens_to_redis: bool,
        listen_by: Collection[Listening],
        retry_seconds: float,
        as_person: bool,
    ) -> None:
        base = _base(base_url)
        # Served with and without /api; only with it does the gateway route it.
        self._base = base if base.endswith("/api") else f"{base}/api"
        self._io = io
        if not callable(token):
            _wire.bearer(token)
        self._token = token
        self._tenant = _wire.name("tenant", tenant)
        self._user = None if user is None else _wire.name("user", user)
        if unknown := set(listen_by) - {"pubsub", "stream"}:
            raise ValueError(f"listen_by: unknown {sorted(unknown)}")
        self._by_pubsub = listens_to_redis and "pubsub" in listen_by
        self._by_stream = "stream" in listen_by
        self._retry_seconds = retry_seconds
        # The service never lets an agent decide; so it cannot by mistake either.
        self._caller_type = "USER" if as_person else "AGENT"

    async def close(self) -> None:
        await self._io.close()

    # Calls

    async def _fresh_token(self) -> str:
        return await settled(self._token()) if callable(self._token) else self._token

    async def _prepare(
        self,
        method: str,
        path: str,
        *,
        connect_seconds: float = CONNECT_TIMEOUT_SECONDS,
        read_seconds: float = ANSWER_TIMEOUT_SECONDS,
        until: float = math.inf,
        params: Mapping[str, str | int | None] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
    ) -> Call:
        left = until - time.monotonic()
        if left <= 0:
            raise Unavailable(f"{method} {path}: no time is left", may_have_happened=False)
        connect_seconds = min(connect_seconds, left / 2)
        read_seconds = min(read_seconds, left - connect_seconds)
        call = Call(
            method=method,
            url=self._base + path,
            params={name: v for name, v in (params or {}).items() if v is not None},
            headers={
                "Authorization": _wire.bearer(await self._fresh_token()),
                "X-Tenant-ID": _wire.header(self._tenant),
                "X-DWP-Caller-Type": self._caller_type,
                **(headers or {}),
            },
            timeout=httpx.Timeout(
                min(ANSWER_TIMEOUT_SECONDS, left),
                connect=connect_seconds,
                read=read_seconds,
                pool=None,
            ),
        )
        if body is not None:
            call["content"] = _wire.body(body)
            call["headers"]["Content-Type"] = "application/json"
        return call

    async def _once(
        self, method: str, path: str, *, numbers_exact: bool = False, **more: Any
    ) -> Any:
        call = await self._prepare(method, path, **more)
        response: httpx.Response | None = None
        try:
            response = await self._io.call(call)
        except (httpx.InvalidURL, httpx.LocalProtocolError, httpx.UnsupportedProtocol):
            pass  # Its text repeats the value, a token even.
        except httpx.TransportError as problem:
            unsent = isinstance(problem, httpx.ConnectError | httpx.ConnectTimeout)
            described = f"{method} {path}: {problem or type(problem).__name__}"
            raise Unavailable(described, may_have_happened=not unsent) from problem
        except httpx.RequestError as problem:
            raise UnexpectedAnswer(f"{method} {path}: {problem}") from problem
        if response is None:
            raise ValueError(f"{method}: HTTP cannot carry this call's URL or headers")
        return _wire.data(response, numbers_exact=numbers_exact)

    async def _call(
        self,
        method: str,
        path: str,
        *,
        repeatable: bool = True,
        patience: float | None = None,
        **more: Any,
    ) -> Any:
        """Calls until there is an answer. All calls but one may be repeated after a lost answer."""

        def again(problem: BaseException) -> bool:
            return isinstance(problem, Unavailable) and (
                repeatable or not problem.may_have_happened
            )

        retrying = AsyncRetrying(
            sleep=self._io.sleep,
            retry=retry_if_exception(again),
            wait=_pause,
            stop=stop_before_delay(self._retry_seconds if patience is None else patience),
            reraise=True,
        )
        happened = False

        async def attempt() -> Any:
            nonlocal happened
            try:
                return await self._once(method, path, **more)
            except Unavailable as problem:
                # Of any attempt, not only of the last.
                happened = problem.may_have_happened = happened or problem.may_have_happened
                raise

        return await retrying(attempt)

    async def _call_until(self, until: float, *what: Any, **how: Any) -> Any:
        """Calls until there is an answer, or this time has come."""
        patience = None if until == math.inf else max(0.0, until - time.monotonic())
        return await self._call(*what, patience=patience, until=until, **how)

    # Approval requests

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
        patience: float | None = None,
        until: float = math.inf,
    ) -> Registration:
        # The id is made here, so that a repetition after a lost answer is the same request.
        body = {
            "requestId": request_id or new_request_id(),
            "sessionId": session_id,
            "actionType": action_type,
            "context": context,
            "message": message,
            "taskId": task_id,
            "planSteps": None if plan_steps is None else _plan(plan_steps),
            "expiresInSeconds": expires_in,
            "decisions": None if decisions is None else list(decisions),
            "argumentsSchema": arguments_schema,
            "responseSchema": response_schema,
            "risk": risk,
        }
        body = {name: value for name, value in body.items() if value is not None}
        answer = await self._call(
            "POST", "/aura/hitl/requests", body=body, patience=patience, until=until
        )
        registration = _wire.registration(answer)
        if registration.request_id != body["requestId"]:
            raise UnexpectedAnswer(f"registered {registration.request_id}, not {body['requestId']}")
        return registration

    async def decision(
        self,
        request_id: str,
        wait_seconds: int = 0,
        *,
        patience: float | None = None,
        connect_seconds: float = CONNECT_TIMEOUT_SECONDS,
        answer_seconds: float = ANSWER_TIMEOUT_SECONDS,
        until: float = math.inf,
    ) -> Decision:
        answer = await self._call(
            "GET",
            f"/aura/hitl/requests/{quote(request_id, safe='')}/decision",
            params={"waitSeconds": wait_seconds or None},
            connect_seconds=connect_seconds,
            read_seconds=wait_seconds + answer_seconds,
            patience=patience,
            until=until,
        )
        return _wire.decision(answer, request_id)

    async def signal(
        self, session_id: str, request_id: str | None = None, wait_seconds: int = 0
    ) -> Signal | None:
        text = await self._call(
            "GET",
            f"/aura/hitl/signals/{quote(session_id, safe='')}",
            params={"requestId": request_id, "waitSeconds": wait_seconds or None},
            read_seconds=wait_seconds + ANSWER_TIMEOUT_SECONDS,
        )
        if text is None:
            return None
        found = _wire.signal(text)
        if found is None or (request_id is not None and found.request_id != request_id):
            raise UnexpectedAnswer(f"no signal for {request_id or session_id}: {text!r:.200}")
        return found

    async def outcomes(
        self,
        session_id: str,
        last_event_id: str | None = None,
        *,
        request_id: str | None = None,
        until: float = math.inf,
    ) -> AsyncGenerator[Outcome, None]:
        silence = max(0.001, min(STREAM_TIMEOUT_SECONDS, until - time.monotonic()))

        def enough() -> bool:
            # The time-out begins anew with every comment. So once it would reach beyond the end,
            # the stream must be opened again with a shorter one; a second does not matter.
            return until - time.monotonic() < silence - 1.0

        events = self._events(
            f"/aura/hitl/signals/{quote(session_id, safe='')}/stream",
            f"the stream of {session_id}",
            enough,
            params={"requestId": request_id},
            connect_seconds=min(CONNECT_TIMEOUT_SECONDS, silence),
            read_seconds=silence,
            headers={} if last_event_id is None else {"Last-Event-ID": last_event_id},
        )
        async with aclosing(events):
            async for event in events:
                outcome = _wire.outcome(event.event, event.id, event.data)
                if outcome is not None:
                    yield outcome

    async def _events(
        self,
        path: str,
        name: str,
        enough: Callable[[], bool],
        *,
        headers: Mapping[str, str],
        **more: Any,
    ) -> AsyncGenerator[ServerSentEvent, None]:
        """The events of one connection."""
        call = await self._prepare(
            "GET",
            path,
            headers={
                "Accept": "text/event-stream",
                "Accept-Encoding": "identity",
                "Cache-Control": "no-store",
                **headers,
            },
            **more,
        )
        try:
            async with self._io.stream(call, enough) as (response, events):
                if response.status_code != httpx.codes.OK:
                    _wire.data(response)
                    raise UnexpectedAnswer(f"HTTP {response.status_code} instead of a stream")
                async for event in events:
                    yield event
        except httpx.TransportError as problem:
            described = f"{name}: {problem or type(problem).__name__}"
            raise Unavailable(described, may_have_happened=False) from problem

    async def cancel(self, request_id: str, *, until: float = math.inf) -> None:
        path = f"/aura/hitl/requests/{quote(request_id, safe='')}/cancel"
        await self._call_until(until, "POST", path)

    async def acknowledge(self, request_id: str, *, until: float = math.inf) -> Acknowledgement:
        path = f"/aura/hitl/requests/{quote(request_id, safe='')}/ack"
        return _wire.acknowledgement(await self._call_until(until, "POST", path))

    async def comment(self, request_id: str, text: str) -> Comment:
        # A comment whose answer is lost may be there; twice is worse than once more asked.
        path = f"/aura/hitl/requests/{quote(request_id, safe='')}/comments"
        return _wire.comment(await self._call("POST", path, repeatable=False, body={"text": text}))

    async def comments(self, request_id: str) -> tuple[Comment, ...]:
        path = f"/aura/hitl/requests/{quote(request_id, safe='')}/comments"
        return _wire.comments(await self._call("GET", path))

    # For people

    async def requests(
        self,
        *,
        cursor: str | None = None,
        status: str | Collection[str] | None = None,
        scope: Scope | None = None,
        action_type: str | None = None,
        user_id: str | None = None,
        session_id: str | None = None,
        task_id: str | None = None,
        decided_by: str | None = None,
        risk: str | None = None,
        rule: str | None = None,
        q: str | None = None,
        created_from: datetime | None = None,
        created_before: datetime | None = None,
        sort: Sort | None = None,
        size: int | None = None,
    ) -> RequestPage:
        params = _wire.filters(
            status=status,
            scope=scope,
            action_type=action_type,
            user_id=user_id,
            session_id=session_id,
            task_id=task_id,
            decided_by=decided_by,
            risk=risk,
            rule=rule,
            q=q,
            created_from=created_from,
            created_before=created_before,
            sort=sort,
            size=size,
            cursor=cursor,
        )
        return _wire.page(await self._call("GET", "/aura/hitl/requests", params=params))

    async def all_requests(self, **filters: Any) -> AsyncGenerator[ListedRequest, None]:
        cursor: str | None = None
        while True:
            page = await self.requests(cursor=cursor, **filters)
            for request in page.content:
                yield request
            # Not when a page is empty: it may have read rows that a filter left out.
            cursor = page.next_cursor
            if cursor is None:
                return

    async def detail(self, request_id: str) -> RequestDetail:
        path = f"/aura/hitl/requests/{quote(request_id, safe='')}/detail"
        return _wire.detail(await self._call("GET", path, numbers_exact=True), request_id)

    async def decide(
        self, items: Collection[BulkItem], *, atomic: bool
    ) -> tuple[BulkResult, ...]:
        if self._caller_type != "USER":
            raise ValueError("only a client that is made with as_person=True decides")
        user = self._user or _wire.subject(await self._fresh_token())
        # Whoever says the same again is answered the same, so a lost answer may be asked for again.
        try:
            values = await self._call(
                "POST",
                "/aura/hitl/decisions",
                read_seconds=BULK_TIMEOUT_SECONDS,
                headers={"X-User-ID": _wire.header(user)},
                body=_wire.bulk(items, user, atomic=atomic),
            )
        except Conflict as refused:
            if refused.error_code != OBSTRUCTED:
                raise
            raise BulkRefused(refused, _wire.bulk_results(refused.data, items)) from None
        return _wire.bulk_results(values, items)

    async def inbox(self) -> AsyncGenerator[InboxEvent, None]:
        ending = self._io.ending()
        patience_until = time.monotonic() + self._retry_seconds
        is_open = False
        failures = 0
        while not ending.is_set():
            opened = time.monotonic()
            try:
                async with aclosing(self._inbox_once(ending)) as events:
                    async for event in events:
                        is_open, failures = True, 0
                        yield event
                # The service stops, and another process takes over. Not more than one opening a
                # second, whatever is wrong.
                pause = opened + 1.0 - time.monotonic()
            except Unavailable as problem:
                if ending.is_set():
                    return
                rest = growing(MIN_RETRY_SECONDS, failures, MAX_RETRY_SECONDS)
                pause = max(problem.retry_after or 0.0, rest)
                failures += 1
                if not is_open and time.monotonic() + pause > patience_until:
                    raise
                log.warning("%s; not listening to the inbox for %.0f s", problem, pause)
            except NotAllowed as problem:
                if is_open and problem.error_code == EXPIRED_TOKEN:
                    return
                raise
            except Exception:
                if ending.is_set():
                    return
                raise
            await ending.sleep(pause)

    async def _inbox_once(self, ending: Ending) -> AsyncGenerator[InboxEvent, None]:
        renew_at = time.monotonic() + STREAM_SECONDS

        def enough() -> bool:
            return ending.is_set() or time.monotonic() > renew_at

        opened = True
        events = self._events(
            "/aura/hitl/inbox/stream",
            "the inbox",
            enough,
            read_seconds=STREAM_TIMEOUT_SECONDS,
            headers={},
        )
        async with aclosing(events):
            async for sent in events:
                event = _wire.inbox_event(sent.event, sent.data, opened=opened)
                if event is not None:
                    opened = opened and not isinstance(event, InboxCounts)
                    yield event

    # Asking and waiting

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
        if not 0 <= timeout <= MAX_LIFETIME_SECONDS:
            raise ValueError(f"timeout: not 0 to {MAX_LIFETIME_SECONDS} seconds")
        deadline = time.monotonic() + timeout
        asked = _Asked(
            await self._register_until(
                deadline,
                action_type,
                context,
                session_id=session_id,
                message=message,
                request_id=request_id or new_request_id(),
                task_id=task_id,
                plan_steps=plan_steps,
                expires_in=expires_in or _lifetime(timeout),
                decisions=decisions,
                arguments_schema=arguments_schema,
                response_schema=response_schema,
                risk=risk,
            ),
            deadline,
            takes_edits=decisions is not None and "edit" in decisions,
        )
        # One that is settled already is just looked at.
        pending = asked.registration.status == "pending"
        listeners = self._listeners(session_id, asked.id) if pending else []
        try:
            decision = await self._wait(asked, listeners)
        finally:
            for listener in listeners:
                await listener.stop()
        if decision is None:
            result = await self._give_up(asked)
        else:
            result = result_of(decision, asked.registration, takes_edits=asked.takes_edits)
        if isinstance(result, Approved | ApprovedWithEdits) and result.acted_at is not None and not act_again:
            raise AlreadyActed(result)
        if acknowledge:
            await self._acknowledge_quietly(result, asked.closes)
        return result

    def _listeners(self, session_id: str, request_id: str) -> list[Listener]:
        """The listeners, best one first."""
        listeners: list[Listener] = []
        if self._by_pubsub:
            listeners.append(PubSubListener(self._io, decision_channel(self._tenant, request_id)))
        if self._by_stream:

            def open_stream(last_id: str | None, until: float) -> AsyncGenerator[Outcome, None]:
                return self.outcomes(session_id, last_id, request_id=request_id, until=until)

            listeners.append(StreamListener(self._io, open_stream, request_id))
        return listeners

    async def _start(self, listener: Listener, seconds: float) -> bool:
        try:
            await listener.start(seconds)
        except ListeningFailed as problem:
            await self._rest(listener, problem)
            return False
        return True

    async def _rest(self, listener: Listener, problem: ListeningFailed) -> None:
        await listener.failed()
        log.warning("%s; not waiting by %s for %.0f s", problem, listener.name, listener.rest_left)

    async def _register_until(self, deadline: float, *what: Any, **how: Any) -> Registration:
        patience = max(0.0, deadline - time.monotonic())
        # Half of the time after the deadline. The other half is for withdrawing the request.
        until = deadline + CLOSE_TIMEOUT_SECONDS / 2
        try:
            return await self.register(*what, **how, patience=patience, until=until)
        except Unavailable as problem:
            if problem.may_have_happened:
                # The agent will not wait for this request, so it must not be approved.
                try:
                    await self.cancel(how["request_id"], until=deadline + CLOSE_TIMEOUT_SECONDS)
                except HitlError as second:
                    log.warning("%s may be registered: %s", how["request_id"], second)
            raise

    async def _wait(self, asked: _Asked, listeners: Sequence[Listener]) -> Decision | None:
        """The decision, or None when the time is over.

        Each turn looks at the ledger, then waits by the best means that works. When none does, the
        look itself is held by the service: that is the long-poll.
        """
        # Nobody had decided at registration, and what came since a stream replays.
        look = False
        troubles = 0
        while asked.left > 0:
            listener = next((each for each in listeners if each.rest_left <= 0), None)
            if listener is not None and not listener.started:
                look = True
                if not await self._start(listener, asked.left):
                    continue
            if look or listener is None:
                began = time.monotonic()
                hold = 0 if listener else self._hold(asked, listeners)
                if hold:
                    log.debug("%s: waiting by poll", asked.id)
                try:
                    decision = await self.decision(
                        asked.id,
                        hold,
                        patience=0,
                        connect_seconds=max(0.1, min(CONNECT_TIMEOUT_SECONDS, asked.left)),
                        # One second more than the service waits.
                        answer_seconds=min(
                            ANSWER_TIMEOUT_SECONDS, max(0.0, asked.left - hold) + 1.0
                        ),
                    )
                except Unavailable as problem:
                    # For example, the service restarts. A listener would not wake the agent either.
                    troubles += 1
                    pause = max(problem.retry_after or 0.0, growing(0.1, troubles, 5.0))
                    log.info("%s: %s; asking again in %.1f s", asked.id, problem, pause)
                    await self._io.sleep(min(pause, asked.left))
                    continue
                troubles = 0
                if decision.status != "pending":
                    return decision
                if hold and time.monotonic() - began < 0.5:
                    # The service did not wait: it is stopping, or a proxy answered.
                    await self._io.sleep(min(0.5, asked.left))
            look = True
            if listener is not None and asked.left > 0:
                log.debug("%s: waiting by %s", asked.id, listener.name)
                try:
                    await listener.wait(asked.left)
                except ListeningFailed as problem:
                    await self._rest(listener, problem)
        return None

    @staticmethod
    def _hold(asked: _Asked, listeners: Sequence[Listener]) -> int:
        """Until something better may work again."""
        rests = [each.rest_left for each in listeners]
        return max(1, math.ceil(min(POLL_SECONDS, asked.left, *rests)))

    async def _give_up(self, asked: _Asked) -> Result:
        """Withdraws the request, so that nobody approves it after its agent stopped waiting."""
        registration = asked.registration
        try:
            await self.cancel(asked.id, until=asked.closes)
        except Gone:
            pass
        except Conflict as problem:
            # Decided at the last moment. That decision stands, and must be known for certain.
            decision = await self.decision(
                asked.id, patience=asked.closes - time.monotonic(), until=asked.closes
            )
            if decision.status == "pending":
                raise problem
            return result_of(decision, registration, takes_edits=asked.takes_edits)
        except Unavailable as problem:
            log.warning("%s could not be withdrawn: %s", asked.id, problem)
            return _expired(registration, withdrawn=False)
        return _expired(registration)

    async def _acknowledge_quietly(self, result: Result, until: float) -> None:
        """Acknowledges the outcome. A failure here does not change the result."""
        if isinstance(result, Expired) and not result.withdrawn:
            return
        try:
            await self.acknowledge(result.request_id, until=until)
        except Exception as problem:
            log.warning("%s could not be acknowledged: %s", result.request_id, _said(problem))

    # Tasks

    async def create_task(self, task_type: str, description: str | None, input_data: Any) -> str:
        user = self._user or _wire.subject(await self._fresh_token())
        body = {
            "taskType": task_type,
            "userId": user,
            "tenantId": self._tenant,
            "description": description,
            "inputData": input_data,
        }
        body = {name: value for name, value in body.items() if value is not None}
        # The service chooses the id, so a repetition after a lost answer would be a second task.
        task = await self._call("POST", "/main/agent/tasks", body=body, repeatable=False)
        return _wire.task_id(task)

    async def task_call(self, task_id: str, method: str, step: str, body: Any = None) -> None:
        path = f"/main/agent/tasks/{quote(task_id, safe='')}"
        await self._call(method, f"{path}/{step}", body=body)

    async def progress(self, task_id: str, percent: int, description: str | None) -> None:
        body: dict[str, Any] = {"progress": percent}
        if description is not None:
            body["description"] = description
        await self.task_call(task_id, "PATCH", "progress", body)

    async def replace_plan(self, task_id: str, steps: Sequence[PlanStep]) -> None:
        await self.task_call(task_id, "PUT", "plan-steps", _plan(steps))

    async def update_step(self, task_id: str, step_id: str, fields: Mapping[str, Any]) -> None:
        given = {name: value for name, value in fields.items() if value is not None}
        step = {"stepId": step_id, **given}
        await self.task_call(task_id, "POST", "plan-steps", step)

    async def finish_task(self, task_id: str, failure: BaseException | None, result: Any) -> None:
        """Completes the task, or fails it with the exception's text."""
        if failure is not None:
            await self._fail_quietly(task_id, failure)
            return
        try:
            await self._finish(task_id, "complete", "COMPLETED", result)
        except (Conflict, Unavailable):
            raise  # It is finished otherwise, or it may be completed.
        except Exception as problem:
            # The result is no JSON, say, or not what the service takes.
            await self._fail_quietly(task_id, problem)
            raise

    async def _fail_quietly(self, task_id: str, failure: BaseException) -> None:
        """Fails the task. Never raises, so that the caller sees the agent's exception."""
        text = _wire.error_text(failure, MAX_ERROR_CHARACTERS)
        try:
            await self._finish(task_id, "fail", "FAILED", {"errorMessage": text})
        except Exception as problem:
            log.warning("task %s could not be failed: %s", task_id, _said(problem))

    async def _finish(self, task_id: str, step: str, status: str, body: Any) -> None:
        try:
            await self.task_call(task_id, "POST", step, body)
        except Conflict as conflict:
            # It is there already: the first answer was lost.
            if not (isinstance(conflict.data, dict) and conflict.data.get("status") == status):
                raise


def _said(problem: Exception) -> str:
    """An error without secrets, for the log: the token function's exception may hold the token."""
    return str(problem) if isinstance(problem, HitlError) else type(problem).__name__


def _plan(steps: Sequence[PlanStep]) -> list[dict[str, Any]]:
    return [plan_step(step, number) for number, step in enumerate(steps, start=1)]


def _lifetime(timeout: float) -> int:
    return min(MAX_LIFETIME_SECONDS, max(1, math.ceil(timeout) + LIFETIME_MARGIN_SECONDS))


def _base(base_url: str) -> str:
    """Checks a URL. Errors do not repeat it, because it may hold a password."""
    try:
        url = httpx.URL(base_url)
    except (httpx.InvalidURL, TypeError, ValueError):
        url = None
    if url is None or url.scheme not in ("http", "https") or not url.host:
        raise ValueError("base_url must be a URL that begins with http:// or https://")
    if (url.port or 0) > 65535:
        raise ValueError("base_url: no port is above 65535")
    if url.userinfo or url.query or url.fragment:
        raise ValueError("base_url must have neither user name and password nor a query")
    return base_url.rstrip("/")
