"""The wire format, without I/O. Answers are read strictly: what does not fit the contract raises.

What is to be sent is checked here too, before it is: a ValueError that never repeats the value.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
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


def data(response: httpx.Response) -> Any:
    """The `data` of a successful answer, None if it has none; raises the error of any other."""
    try:
        envelope = response.json()
    except ValueError:
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
    )


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
    if event not in ("approval", "rejection", "expired", "cancelled"):
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
