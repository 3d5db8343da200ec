"""Lets an agent ask a person before it acts, and wait for the decision.

with Client("http://localhost:8081", token=token, tenant="tenant1") as client:
    answer = client.request_approval("send_email", {"to": "a@b.c"}, session_id=session)
    if answer:
        send()
"""

from .client import AsyncClient, AsyncTask, Client, Task
from .errors import (
    AlreadyActed,
    ApiError,
    Conflict,
    ContentChanged,
    Gone,
    HitlError,
    NotAllowed,
    NotFound,
    PreconditionFailed,
    PreconditionRequired,
    Unavailable,
    UnexpectedAnswer,
    Unprocessable,
)
from .outcomes import (
    Acknowledgement,
    Approved,
    Cancelled,
    Decision,
    Expired,
    Outcome,
    Registration,
    Rejected,
    Result,
    Signal,
    SignalDelivery,
)
from .people import (
    HistoryEntry,
    InboxChange,
    InboxCounts,
    InboxEvent,
    ListedRequest,
    RequestDetail,
    RequestFilter,
    RequestPage,
    Vote,
)

__all__ = [
    "Acknowledgement",
    "AlreadyActed",
    "ApiError",
    "Approved",
    "AsyncClient",
    "AsyncTask",
    "Cancelled",
    "Client",
    "Conflict",
    "ContentChanged",
    "Decision",
    "Expired",
    "Gone",
    "HistoryEntry",
    "HitlError",
    "InboxChange",
    "InboxCounts",
    "InboxEvent",
    "ListedRequest",
    "NotAllowed",
    "NotFound",
    "Outcome",
    "PreconditionFailed",
    "PreconditionRequired",
    "Registration",
    "Rejected",
    "RequestDetail",
    "RequestFilter",
    "RequestPage",
    "Result",
    "Signal",
    "SignalDelivery",
    "Task",
    "Unavailable",
    "UnexpectedAnswer",
    "Unprocessable",
    "Vote",
]
