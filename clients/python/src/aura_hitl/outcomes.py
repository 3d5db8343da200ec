"""The service's answers about requests, as immutable values. All times are UTC."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

Status = Literal["pending", "approved", "rejected", "answered", "expired", "cancelled"]
# How an agent may let people decide: `edit` approves with other arguments, `respond` answers instead.
Way = Literal["approve", "reject", "edit", "respond"]
Risk = Literal["low", "medium", "high", "critical"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A registered request. `fingerprint` stands for its action type and context."""

    request_id: str
    session_id: str
    status: Status
    fingerprint: str
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalDelivery:
    """The state of the signal on Redis. A registered request has no signal: `none`."""

    state: Literal["none", "owed", "sent", "superseded"]
    sent_at: datetime | None = None
    listeners: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The state of a request in the ledger.

    `fingerprint` is of what was approved: of an edit, with its `arguments` as the context. Then
    `requested_fingerprint` is that of what was asked; it is also there when a request that may be
    edited was approved as it was. `response` is the answer, when `status` is `answered`.
    """

    request_id: str
    session_id: str
    status: Status
    fingerprint: str | None
    expires_at: datetime | None
    reason: str | None
    decided_by: str | None
    decided_at: datetime | None
    settled_at: datetime | None
    signal: SignalDelivery | None
    acted_at: datetime | None
    requested_fingerprint: str | None = None
    arguments: dict[str, Any] | None = field(default=None, hash=False)
    response: Any = field(default=None, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """A decision as agents on Redis get it: a hint, which `Decision` must confirm.

    An `answer` is only there for requests that were registered over HTTP.
    """

    type: Literal["approval", "rejection", "answer"]
    request_id: str
    status: Literal["approved", "rejected", "answered"]
    timestamp: int
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """An event of a session's stream. `id` is where to continue the stream."""

    id: str
    type: Literal["approval", "rejection", "answer", "expired", "cancelled"]
    request_id: str
    status: Status
    timestamp: int
    fingerprint: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledgement:
    """When the agent first said that it acts on the outcome."""

    request_id: str
    session_id: str
    status: Status
    acted_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Approved:
    """A person approved this very request, as it was asked; the only result that is true.

    `acted_at` is when an agent acknowledged this approval before; None if none did.
    """

    request_id: str
    session_id: str
    fingerprint: str
    decided_by: str | None
    decided_at: datetime | None
    acted_at: datetime | None = None


# A forgotten comparison must not run a refused action: `if client.request_approval(...)` is safe
# because everything but an approval is false.


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovedWithEdits:
    """A person approved the action with these `arguments` instead of its context.

    Not true, so that nobody runs what was asked by mistake: act on `arguments`, or not at all.
    `fingerprint` is of what was approved, `requested_fingerprint` of what was asked.
    """

    request_id: str
    session_id: str
    arguments: dict[str, Any] = field(hash=False)
    fingerprint: str
    requested_fingerprint: str
    decided_by: str | None
    decided_at: datetime | None
    acted_at: datetime | None = None

    def __bool__(self) -> Literal[False]:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A person gave this `response` instead of an approval: the action must not run."""

    request_id: str
    session_id: str
    response: Any = field(hash=False)
    decided_by: str | None
    decided_at: datetime | None

    def __bool__(self) -> Literal[False]:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A person said no, and why."""

    request_id: str
    session_id: str
    reason: str
    decided_by: str | None
    decided_at: datetime | None

    def __bool__(self) -> Literal[False]:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Expired:
    """Nobody decided in time.

    `withdrawn` is False when the service did not answer the withdrawal: until the request expires,
    a person may still approve it although the agent no longer waits.
    """

    request_id: str
    session_id: str
    withdrawn: bool = True

    def __bool__(self) -> Literal[False]:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """Somebody else withdrew the request while this agent waited."""

    request_id: str
    session_id: str

    def __bool__(self) -> Literal[False]:
        return False


Result = Approved | ApprovedWithEdits | Answered | Rejected | Expired | Cancelled
