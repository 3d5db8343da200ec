"""Faults on the way to the real service, on demand. All calls go through; some answers suffer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx

Answer = Callable[[httpx.Request], httpx.Response | None]


class Faulty(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Asks `before` for another answer, calls the service, and lets `after` change what came."""

    def __init__(
        self,
        before: Answer = lambda request: None,
        after: Callable[[httpx.Request, dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        self._before = before
        self._after = after
        self._blocking = httpx.HTTPTransport()
        self._asyncio = httpx.AsyncHTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if answer := self._before(request):
            return answer
        response = self._blocking.handle_request(request)
        if self._after is None or not is_json(response):
            return response
        response.read()
        return self._changed(request, response)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if answer := self._before(request):
            return answer
        response = await self._asyncio.handle_async_request(request)
        if self._after is None or not is_json(response):
            return response
        await response.aread()
        return self._changed(request, response)

    def _changed(self, request: httpx.Request, response: httpx.Response) -> httpx.Response:
        assert self._after is not None
        return httpx.Response(response.status_code, json=self._after(request, response.json()))

    def close(self) -> None:
        self._blocking.close()

    async def aclose(self) -> None:
        await self._asyncio.aclose()


def is_json(response: httpx.Response) -> bool:
    return str(response.headers.get("content-type", "")).startswith("application/json")


class Once:
    """Answers the first calls of a kind with faults, and leaves the rest alone."""

    def __init__(
        self, path: str, *faults: httpx.Response | Exception, method: str = "POST"
    ) -> None:
        self._path = path
        self._method = method
        self._faults = list(faults)
        self.seen: list[Any] = []

    def __call__(self, request: httpx.Request) -> httpx.Response | None:
        if request.method != self._method or not request.url.path.endswith(self._path):
            return None
        self.seen.append(json.loads(request.read() or b"null"))
        if not self._faults:
            return None
        fault = self._faults.pop(0)
        if isinstance(fault, Exception):
            raise fault
        return fault


def busy(status: int, retry_after: int) -> httpx.Response:
    code = {429: "E4290", 503: "E5000"}[status]
    body = {"status": "ERROR", "message": "busy", "errorCode": code, "success": False}
    return httpx.Response(status, json=body, headers={"Retry-After": str(retry_after)})
