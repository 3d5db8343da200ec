"""What can go wrong. An exception is never an approval.

A call that cannot be sent at all, because of the token, a header, the URL or the content, is a
`ValueError` (or the `TypeError` of `json`), raised at once and without the value.
"""

from __future__ import annotations

from typing import Any

from .outcomes import Approved, ApprovedWithEdits
from .people import BulkResult


class HitlError(Exception):
    """The base of all exceptions of this package."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own way calls the constructor with `args`, which are not its arguments.
        return _again, (type(self), self.args), self.__dict__


def _again(kind: type[HitlError], args: tuple[Any, ...]) -> HitlError:
    return kind.__new__(kind, *args)


class ApiError(HitlError):
    """The service refused a call.

    `status` is the HTTP status, `error_code`, `message`, `data` and `trace_id` are the envelope's;
    the service's log has the call under the trace id.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        error_code: str | None = None,
        data: Any = None,
        trace_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{error_code}: {message}" if error_code else message)
        self.message = message
        self.status = status
        self.error_code = error_code
        self.data = data
        self.trace_id = trace_id
        self.retry_after = retry_after


class NotAllowed(ApiError):
    """401 or 403: the token, or what it permits. Only its user changes a request or a task."""


class NotFound(ApiError):
    """404: not there, or another tenant's."""


class Conflict(ApiError):
    """409: it stands otherwise; `data` says how."""


class BulkRefused(Conflict):
    """409: of several requests that were to be decided whole or not at all, some stood in the way.

    Nothing was recorded. `results` says of each what stood in its way; `E3008` of those that only the
    others held up.
    """

    def __init__(self, refused: Conflict, results: tuple[BulkResult, ...]) -> None:
        super().__init__(
            refused.message,
            status=refused.status,
            error_code=refused.error_code,
            data=refused.data,
            trace_id=refused.trace_id,
            retry_after=refused.retry_after,
        )
        self.results = results


class Gone(ApiError):
    """410: the request expired undecided, was withdrawn, or its agent has moved on."""


class PreconditionFailed(ApiError):
    """412: the request no longer has the content that `If-Match` names."""


class Unprocessable(ApiError):
    """422: the request cannot be read, or is not the one known under its id. Nothing is decided."""


class PreconditionRequired(ApiError):
    """428: the service decides nothing without `If-Match`."""


class Unavailable(ApiError):
    """No answer (`status` is None), or 429, or 500 and above, even after trying again.

    `may_have_happened` is False when the service certainly did nothing.
    """

    def __init__(self, message: str, *, may_have_happened: bool, **envelope: Any) -> None:
        super().__init__(message, **envelope)
        self.may_have_happened = may_have_happened


class ContentChanged(HitlError):
    """Somebody approved, but not what was registered: do not act on it."""

    def __init__(self, request_id: str, *, registered: str, approved: str | None) -> None:
        super().__init__(
            f"the approval of {request_id} is for the fingerprint {approved}, not {registered}"
        )
        self.request_id = request_id
        self.registered = registered
        self.approved = approved


class AlreadyActed(HitlError):
    """An agent has acknowledged this approval before, so its action may have run.

    `result` is the approval; its `acted_at` says when it was acknowledged.
    """

    def __init__(self, result: Approved | ApprovedWithEdits) -> None:
        super().__init__(
            f"the approval of {result.request_id} was acted on already, at {result.acted_at}"
        )
        self.result = result


class UnexpectedAnswer(HitlError):
    """The answer is not what the service's contract says; something else may have answered."""
