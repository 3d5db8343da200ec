"""The wire format, without I/O. Answers are read strictly: what does not fit the contract raises.

What is to be sent is checked here too, before it is: a ValueError that never repeats the value.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import unicodedata
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, get_args
from urllib.parse import quote

import httpx

from .errors import (
    ApiError,
    Conflict,
    Gone,
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
    Decision,
    Outcome,
    Registration,
    Signal,
    SignalDelivery,
    Status,
)
from .people import (
    BulkItem,
    BulkResult,
    Comment,
    HistoryEntry,
    InboxChange,
    InboxCounts,
    InboxEvent,
    ListedRequest,
    RequestDetail,
    RequestPage,
    Vote,
)

_STATUSES = frozenset(get_args(Status))
_REFUSALS: Mapping[int, type[ApiError]] = {
    401: NotAllowed,
    403: NotAllowed,
    404: NotFound,
    409: Conflict,
    410: Gone,
    412: PreconditionFailed,
    422: Unprocessable,
    428: PreconditionRequired,
}
# RFC 6750. A JWT is one.
_BEARER_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
MAX_NAME_BYTES = 256


def bearer(token: object) -> str:
    """The value of `Authorization`."""
    if not isinstance(token, str) or _BEARER_TOKEN.fullmatch(token) is None:
        raise ValueError(
            "the token is not a bearer token: it is empty, or holds something else than letters, "
            "digits and -._~+/ (a line break at its end, perhaps)"
        )
    return f"Bearer {token}"


def name(kind: str, value: object) -> str:
    """A tenant or user id, by the service's own rule."""
    if not (
        isinstance(value, str)
        and value.strip()
        and not any(unicodedata.category(each) in ("Cc", "Cs") for each in value)
        and len(value.encode()) <= MAX_NAME_BYTES
    ):
        raise ValueError(
            f"{kind}: not a text of 1 to {MAX_NAME_BYTES} bytes without control characters"
        )
    return value


def header(value: str) -> str:
    """A name as a header carries it: as it is if it can be, else as percent-encoded UTF-8."""
    return value if value.isascii() and value == value.strip() else quote(value, safe="")


def body(value: Any) -> bytes:
    """As JSON."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode()
    except UnicodeEncodeError:
        problem = "a text holds half of a surrogate pair"
    except RecursionError:
        problem = "it is nested too deeply"
    raise ValueError(f"what is to be sent is no JSON: {problem}")


def error_text(failure: BaseException, longest: int) -> str:
    """An exception's text as the service takes it."""
    try:
        text = str(failure)
    except Exception:
        text = ""
    # Surrogates that make a pair become the character; what is half of one cannot be sent.
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return (whole.replace("\0", "\ufffd") or type(failure).__name__)[:longest]


def exact(text: str) -> int | Decimal | str:
    """A number of JSON, unchanged. One that Python has no number for stays text."""
    try:
        return int(text)
    except ValueError:
        pass  # No integer, or one of more digits than Python takes.
    try:
        return Decimal(text)
    except InvalidOperation:
        return text


def data(response: httpx.Response, *, numbers_exact: bool = False) -> Any:
    """The `data` of a successful answer, None if it has none; raises the error of any other."""
    try:
        options = {"parse_int": exact, "parse_float": exact} if numbers_exact else {}
        envelope = response.json(**options)
    except (ValueError, RecursionError):
        envelope = None
    if not isinstance(envelope, dict) or not isinstance(envelope.get("success"), bool):
        # Not the service's: a proxy on the way, most likely.
        envelope = None
    if response.is_success and envelope is not None and envelope["success"]:
        return envelope.get("data")
    described: dict[str, Any] = {
        "status": response.status_code,
        "retry_after": _retry_after(response),
    }
    message = f"HTTP {response.status_code} from {response.url.path}"
    if envelope is not None:
        message = str(envelope.get("message", message))
        described["error_code"] = envelope.get("errorCode")
        described["data"] = envelope.get("data")
        described["trace_id"] = envelope.get("traceId")
    if response.status_code == 429 or response.status_code >= 500:
        # 429 and 503 are answered before anything is done; a fault or a gateway's time-out is not.
        done = response.status_code not in (429, 503)
        raise Unavailable(message, may_have_happened=done, **described)
    if response.is_success or envelope is None:
        raise UnexpectedAnswer(f"{message} is not an answer of the service")
    raise _REFUSALS.get(response.status_code, ApiError)(message, **described)


def _retry_after(response: httpx.Response) -> float | None:
    # The other form, a date, is for pages that come back tomorrow.
    value = response.headers.get("retry-after", "").strip()
    return float(value) if value.isascii() and value.isdigit() else None


def _member(values: Any, name: str, kind: type) -> Any:
    value = values.get(name) if isinstance(values, dict) else None
    if not isinstance(value, kind):
        raise UnexpectedAnswer(f"the answer has no usable {name}: {values!r:.500}")
    return value


def _text(values: dict[str, Any], name: str) -> str | None:
    return None if values.get(name) is None else str(_member(values, name, str))


def _number(values: dict[str, Any], name: str) -> int | None:
    return None if values.get(name) is None else int(_member(values, name, int))


def _flag(values: dict[str, Any], name: str) -> bool:
    return False if values.get(name) is None else bool(_member(values, name, bool))


def _time(values: dict[str, Any], name: str) -> datetime | None:
    text = _text(values, name)
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError as problem:
        raise UnexpectedAnswer(f"{name} is no time: {text!r:.100}") from problem


def _required_time(values: dict[str, Any], name: str) -> datetime:
    _member(values, name, str)
    time = _time(values, name)
    assert time is not None
    return time


def _status(values: dict[str, Any]) -> Status:
    status = _member(values, "status", str)
    if status not in _STATUSES:
        raise UnexpectedAnswer(f"unknown status {status!r:.100}")
    return status  # type: ignore[no-any-return]


def registration(values: Any) -> Registration:
    return Registration(
        request_id=_member(values, "requestId", str),
        session_id=_member(values, "sessionId", str),
        status=_status(values),
        fingerprint=_member(values, "fingerprint", str),
        expires_at=_required_time(values, "expiresAt"),
    )


def decision(values: Any, request_id: str) -> Decision:
    """The decision on this request. One on another request raises."""
    if _member(values, "requestId", str) != request_id:
        raise UnexpectedAnswer(f"asked about {request_id}, answered about {values['requestId']!r}")
    signal = values.get("signal")
    return Decision(
        request_id=request_id,
        session_id=_member(values, "sessionId", str),
        status=_status(values),
        fingerprint=_text(values, "fingerprint"),
        expires_at=_time(values, "expiresAt"),
        reason=_text(values, "reason"),
        decided_by=_text(values, "decidedBy"),
        decided_at=_time(values, "decidedAt"),
        settled_at=_time(values, "settledAt"),
        signal=None if signal is None else _delivery(signal),
        acted_at=_time(values, "actedAt"),
        requested_fingerprint=_text(values, "requestedFingerprint"),
        arguments=_arguments(values),
        response=values.get("response"),
    )


def _arguments(values: Any) -> dict[str, Any] | None:
    if values.get("arguments") is None:
        return None
    arguments: dict[str, Any] = _member(values, "arguments", dict)
    return arguments


def comment(values: Any) -> Comment:
    return Comment(
        request_id=_member(values, "requestId", str),
        number=_member(values, "number", int),
        user_id=_member(values, "userId", str),
        author=_member(values, "author", str),
        text=_member(values, "text", str),
        at=_required_time(values, "at"),
        more=_unknown(values, "requestId", "number", "userId", "author", "text", "at"),
    )


def bulk(items: Collection[BulkItem], user: str, *, atomic: bool) -> dict[str, Any]:
    """The body of several decisions."""

    def one(item: BulkItem) -> dict[str, Any]:
        if item.decision not in ("approve", "reject"):
            raise ValueError("decision must be approve or reject")
        named = {
            "requestId": item.request_id,
            "decision": item.decision,
            "reason": item.reason,
            "etag": item.etag,
        }
        return {name: value for name, value in named.items() if value is not None}

    return {"userId": user, "decisions": [one(item) for item in items], "atomic": atomic}


def bulk_results(values: Any, items: Collection[BulkItem]) -> tuple[BulkResult, ...]:
    """One for each item, in their order."""
    results = tuple(
        BulkResult(
            request_id=_member(each, "requestId", str),
            status=_member(each, "status", int),
            message=_member(each, "message", str),
            error_code=_text(each, "errorCode"),
            data=each.get("data"),
            more=_unknown(each, "requestId", "status", "message", "errorCode", "data"),
        )
        for each in _each(values, "results")
    )
    if [each.request_id for each in results] != [item.request_id for item in items]:
        raise UnexpectedAnswer("the results are not those of the requests, in their order")
    return results


def comments(values: Any) -> tuple[Comment, ...]:
    return tuple(comment(each) for each in _each(values, "comments"))


def _delivery(values: Any) -> SignalDelivery:
    state = _member(values, "state", str)
    listeners = values.get("listeners")
    return SignalDelivery(
        state=state,
        sent_at=_time(values, "sentAt"),
        listeners=listeners if isinstance(listeners, int) else None,
    )


def acknowledgement(values: Any) -> Acknowledgement:
    return Acknowledgement(
        request_id=_member(values, "requestId", str),
        session_id=_member(values, "sessionId", str),
        status=_status(values),
        acted_at=_required_time(values, "actedAt"),
    )


def signal(text: Any) -> Signal | None:
    """A signal from Redis or from the service; None for anything else.

    Whoever can reach Redis can publish on the channel, so what is there is a stranger's text.
    """
    try:
        values = json.loads(text)
    except (TypeError, ValueError):
        return None
    if not isinstance(values, dict):
        return None
    kind, request, stamp = values.get("type"), values.get("requestId"), values.get("timestamp")
    if not isinstance(request, str) or not isinstance(stamp, int):
        return None
    reason = values.get("reason")
    reason = reason if isinstance(reason, str) else None
    match kind, values.get("status"):
        case "approval", "approved":
            return Signal(type="approval", request_id=request, status="approved", timestamp=stamp)
        case "answer", "answered":
            return Signal(type="answer", request_id=request, status="answered", timestamp=stamp)
        case "rejection", "rejected":
            return Signal(
                type="rejection",
                request_id=request,
                status="rejected",
                timestamp=stamp,
                reason=reason,
            )
        case _:
            return None


def outcome(event: str, id: str, text: str) -> Outcome | None:
    """An event of the stream; None for a kind that this client does not know (yet)."""
    if event not in ("approval", "rejection", "answer", "expired", "cancelled"):
        return None
    try:
        values = json.loads(text)
    except ValueError as problem:
        raise UnexpectedAnswer(f"an event without JSON: {text!r:.200}") from problem
    return Outcome(
        id=id,
        type=event,  # type: ignore[arg-type]
        request_id=_member(values, "requestId", str),
        status=_status(values),
        timestamp=_member(values, "timestamp", int),
        fingerprint=_text(values, "fingerprint"),
        reason=_text(values, "reason"),
    )


def filters(
    *,
    status: str | Collection[str] | None,
    created_from: datetime | None,
    created_before: datetime | None,
    **exact: str | int | None,
) -> dict[str, str | int | None]:
    """The parameters of a list."""
    return {
        "status": status if status is None or isinstance(status, str) else ",".join(status),
        "from": _instant("created_from", created_from),
        "to": _instant("created_before", created_before),
        **{_camel(name): value for name, value in exact.items()},
    }


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(other.capitalize() for other in others)


def _instant(name: str, value: datetime | None) -> str | None:
    if value is None:
        return None
    if value.utcoffset() is None:
        raise ValueError(f"{name}: a time without a zone")
    return value.astimezone(UTC).isoformat()


def _unknown(values: Any, *known: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in known}


def _each(values: Any, name: str) -> list[Any]:
    items: list[Any] = _member(values, name, list)
    return items


_LISTED = (
    *("requestId", "sessionId", "tenantId", "userId", "origin", "actionType", "message", "status"),
    *("risk", "rule", "createdAt", "expiresAt", "taskId", "fingerprint", "decidedBy", "decidedVia"),
    *("decidedAt", "settledAt", "reason", "approvals", "approvalsNeeded", "mayDecide", "decisions"),
    *("etag", "agentWaitsUntil", "askedAgain"),
)


def _listed(values: Any) -> dict[str, Any]:
    return {
        "request_id": _member(values, "requestId", str),
        "session_id": _member(values, "sessionId", str),
        "tenant_id": _member(values, "tenantId", str),
        "user_id": _text(values, "userId"),
        "origin": _member(values, "origin", str),
        "action_type": _member(values, "actionType", str),
        "message": _text(values, "message"),
        "status": _member(values, "status", str),
        "risk": _member(values, "risk", str),
        "rule": _text(values, "rule"),
        "created_at": _required_time(values, "createdAt"),
        "expires_at": _required_time(values, "expiresAt"),
        "task_id": _text(values, "taskId"),
        "fingerprint": _member(values, "fingerprint", str),
        "decided_by": _text(values, "decidedBy"),
        "decided_via": _text(values, "decidedVia"),
        "decided_at": _time(values, "decidedAt"),
        "settled_at": _time(values, "settledAt"),
        "reason": _text(values, "reason"),
        "approvals": _member(values, "approvals", int),
        "approvals_needed": _member(values, "approvalsNeeded", int),
        "may_decide": _member(values, "mayDecide", bool),
        "decisions": tuple(str(each) for each in _each(values, "decisions")),
        "etag": _member(values, "etag", str),
        "agent_waits_until": _time(values, "agentWaitsUntil"),
        # Absent from services that list no request of this kind.
        "asked_again": _flag(values, "askedAgain"),
    }


_OF_PAGE = (
    *("content", "numberOfElements", "size", "totalElements", "nextCursor"),
    "searchedNewest",
)


def page(values: Any) -> RequestPage:
    return RequestPage(
        content=tuple(
            ListedRequest(**_listed(each), more=_unknown(each, *_LISTED))
            for each in _each(values, "content")
        ),
        size=_member(values, "size", int),
        total_elements=_member(values, "totalElements", int),
        next_cursor=_text(values, "nextCursor"),
        searched_newest=_number(values, "searchedNewest"),
        more=_unknown(values, *_OF_PAGE),
    )


_OF_DETAIL = (
    *("context", "arguments", "response", "planSteps", "votes", "comments", "signal", "history"),
    *("why", "argumentsSchema", "responseSchema"),
)


def detail(values: Any, request_id: str) -> RequestDetail:
    """This request in full. Another one raises."""
    if _member(values, "requestId", str) != request_id:
        raise UnexpectedAnswer(f"asked about {request_id}, answered about {values['requestId']!r}")
    if "context" not in values:
        raise UnexpectedAnswer(f"{request_id} is answered without its context")
    return RequestDetail(
        **_listed(values),
        context=values["context"],
        arguments=values.get("arguments"),
        response=values.get("response"),
        arguments_schema=values.get("argumentsSchema"),
        response_schema=values.get("responseSchema"),
        plan_steps=tuple(_each(values, "planSteps")),
        votes=tuple(_vote(each) for each in _each(values, "votes")),
        comments=comments(values),
        signal=_delivery(_member(values, "signal", dict)),
        history=tuple(_happened(each) for each in _each(values, "history")),
        why=_member(values, "why", str),
        more=_unknown(values, *_LISTED, *_OF_DETAIL),
    )


def _vote(values: Any) -> Vote:
    return Vote(
        user_id=_member(values, "userId", str),
        decision=_member(values, "decision", str),
        at=_required_time(values, "at"),
        reason=_text(values, "reason"),
        counted=_member(values, "counted", bool),
        more=_unknown(values, "userId", "decision", "at", "reason", "counted"),
    )


def _happened(values: Any) -> HistoryEntry:
    return HistoryEntry(
        at=_required_time(values, "at"),
        event=_member(values, "event", str),
        by=_text(values, "by"),
        more=_unknown(values, "at", "event", "by"),
    )


def inbox_event(event: str, text: str, *, opened: bool) -> InboxEvent | None:
    """An event of the inbox; None for a kind that this client does not know (yet)."""
    if event not in ("counts", "request"):
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise UnexpectedAnswer(f"an event without JSON: {text!r:.200}") from problem
    if event == "counts":
        return InboxCounts(
            decidable=_member(values, "decidable", int),
            mine=_member(values, "mine", int),
            opened=opened,
            more=_unknown(values, "decidable", "mine"),
        )
    return InboxChange(
        request_id=_member(values, "requestId", str),
        status=_member(values, "status", str),
        change=_member(values, "change", str),
        more=_unknown(values, "requestId", "status", "change"),
    )


def task_id(values: Any) -> str:
    return str(_member(values, "taskId", str))


def subject(token: str) -> str:
    """The user a token is for. Only the service checks tokens; here it is just read."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        subject = claims["sub"]
    except (IndexError, KeyError, TypeError, ValueError, binascii.Error):
        subject = None
    if not isinstance(subject, str):
        raise ValueError("the token is no JWT with a `sub`, so `user` must be given")
    return subject
