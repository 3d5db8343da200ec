"""What people see of requests: lists, one request in full, and the inbox, as immutable values.

All times are UTC. A newer service may send a status, a change or another word that this client does
not know, so words are plain texts here; and fields that it does not know are kept in `more`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypedDict

from .outcomes import SignalDelivery

Scope = Literal["decidable", "mine", "tenant"]
Verdict = Literal["approve", "reject"]
Sort = Literal["expiresAt", "-createdAt", "-settledAt"]


class RequestFilter(TypedDict, total=False):
    """Which requests a list has.

    status: `pending` when absent; or `approved`, `rejected`, `answered`, `expired`, `cancelled`, or
        several of them.
    scope: `decidable` when absent: what the token's user may decide; of closed ones, what they
        decided or could have. `mine`: what names the user. `tenant`: everything, for admins.
    q: up to 10 words that all occur, in any case, in the message, the action, the ids or the
        context.
    created_from, created_before: times with a zone.
    sort: `expiresAt` when absent, for pending ones alone; `-settledAt` when absent, otherwise.
    size: how many a page has at most; 20 when absent, 100 at most.

    The others are exact.
    """

    status: str | Collection[str] | None
    scope: Scope | None
    action_type: str | None
    user_id: str | None
    session_id: str | None
    task_id: str | None
    decided_by: str | None
    risk: str | None
    rule: str | None
    q: str | None
    created_from: datetime | None
    created_before: datetime | None
    sort: Sort | None
    size: int | None


def _more() -> Any:
    return field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedRequest:
    """A request as lists show it, without its context.

    `status` is pending, approved, rejected, answered, expired or cancelled; `may_decide` is whether
    the token's user may decide it now, in the ways of `decisions`; `etag` is what deciding it takes
    as `If-Match`. An agent on Redis gives up at `agent_waits_until`; `asked_again` is whether it
    has written a request anew that was decided before.
    """

    request_id: str
    session_id: str
    tenant_id: str
    user_id: str | None
    origin: str
    action_type: str
    message: str | None
    status: str
    risk: str
    rule: str | None
    created_at: datetime
    expires_at: datetime
    task_id: str | None
    fingerprint: str
    decided_by: str | None
    decided_via: str | None
    decided_at: datetime | None
    settled_at: datetime | None
    reason: str | None
    approvals: int
    approvals_needed: int
    may_decide: bool
    decisions: tuple[str, ...]
    etag: str
    agent_waits_until: datetime | None
    asked_again: bool
    more: dict[str, Any] = _more()


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestPage:
    """A page of a list. `next_cursor` begins the next one, and is None on the last.

    A page may have fewer than `size` requests, none even, and not be the last. `total_elements` is
    that of the whole list, at most 5 s old; above 10,000 it only says that there are more.
    `searched_newest`: `q` was looked for in so many requests, one by one, and there are more, where
    the next page goes on.
    """

    content: tuple[ListedRequest, ...]
    size: int
    total_elements: int
    next_cursor: str | None
    searched_newest: int | None
    more: dict[str, Any] = _more()


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """Something that happened to a request: created, approved, rejected, expired, cancelled, sent,
    superseded, heard or acted; and who did it, if a person did."""

    at: datetime
    event: str
    by: str | None
    more: dict[str, Any] = _more()


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """One person's approve or reject, and whether it counts."""

    user_id: str
    decision: str
    at: datetime
    reason: str | None
    counted: bool
    more: dict[str, Any] = _more()


@dataclass(frozen=True, slots=True, kw_only=True)
class Comment:
    """A question or an answer about a request. `number` counts those of the request from 1;
    `author` is person, or agent if an agent wrote it with the user's token."""

    request_id: str
    number: int
    user_id: str
    author: str
    text: str
    at: datetime
    more: dict[str, Any] = _more()


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestDetail(ListedRequest):
    """A request in full, with the whole message.

    `context` is as the agent wrote it, and so are `arguments` and `response`, which a decision may
    have: a number with a point or an exponent is a `Decimal`, so that 1.50 is not 1.5; `NaN` and
    `Infinity` are texts. `why` says who may decide it, and by which rule. `arguments_schema` and
    `response_schema` say what an edit and an answer must look like, if the agent does.
    """

    context: Any = field(hash=False)
    arguments: Any = field(hash=False)
    response: Any = field(hash=False)
    arguments_schema: Any = field(hash=False)
    response_schema: Any = field(hash=False)
    plan_steps: tuple[Any, ...] = field(hash=False)
    votes: tuple[Vote, ...]
    comments: tuple[Comment, ...]
    signal: SignalDelivery
    history: tuple[HistoryEntry, ...]
    why: str


@dataclass(frozen=True, slots=True)
class BulkItem:
    """What a person says to one of several requests.

    reason: of a rejection.
    etag: of the content that the person saw, as lists and details have it. What has changed since is
        not decided; None decides whatever it has now.
    """

    request_id: str
    decision: Verdict
    reason: str | None = field(default=None, kw_only=True)
    etag: str | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkResult:
    """What became of one of several requests: what deciding it by itself would have answered.

    `status` is the HTTP status: 200, or 202 of an approval that is recorded and needs those of more
    people. Else `error_code` says why not, and `data` how it stands. `decided` and `recorded` are the
    two questions that are asked most.
    """

    request_id: str
    status: int
    message: str
    error_code: str | None
    data: Any = field(hash=False)
    more: dict[str, Any] = _more()

    @property
    def recorded(self) -> bool:
        """Whether the service has what the person said, now or from before."""
        return self.error_code is None and self.status in (200, 202)

    @property
    def decided(self) -> bool:
        """Whether the request is decided as the person said."""
        return self.error_code is None and self.status == 200


@dataclass(frozen=True, slots=True, kw_only=True)
class InboxCounts:
    """How many requests wait: that the token's user may decide, and that name the user. Each stops
    at 10,001.

    `opened` is True for the first of each connection. What changed before it was not told: read the
    list again.
    """

    decidable: int
    mine: int
    opened: bool
    more: dict[str, Any] = _more()


@dataclass(frozen=True, slots=True, kw_only=True)
class InboxChange:
    """A request that has changed: `change` is created, voted, commented, decided, expired,
    cancelled or escalated."""

    request_id: str
    status: str
    change: str
    more: dict[str, Any] = _more()


InboxEvent = InboxCounts | InboxChange
