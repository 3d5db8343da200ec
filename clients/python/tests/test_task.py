"""Agent tasks."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from conftest import TENANT, USER, Service, new_request, new_session, token, until
from faults import Faulty, Once, busy

from aura_hitl import ApiError, AsyncClient, Client, Conflict, Rejected, Unavailable


def test_progress_plan_and_result(service: Service, client: Client) -> None:
    with client.task("mail_summary", description="요약", input_data={"folder": "INBOX"}) as task:
        begun = service.task(task.id)
        assert (begun["status"], begun["progress"]) == ("IN_PROGRESS", 0)
        assert (begun["description"], begun["inputData"]) == ("요약", {"folder": "INBOX"})

        task.plan(["Read the mails", {"stepId": "send", "description": "Send", "confidence": 0.5}])
        task.step("step-1", status="completed", confidence=0.9)
        task.step("check", description="Check", status="in_progress")
        task.progress(40, "half way")
        state = service.task(task.id)
        assert (state["progress"], state["description"]) == (40, "half way")
        first, send, check = json.loads(state["planSteps"])
        assert first["description"] == "Read the mails"
        assert (first["status"], first["confidence"]) == ("completed", 0.9)
        assert (send["stepId"], send["confidence"]) == ("send", 0.5)
        assert (check["stepId"], check["status"]) == ("check", "in_progress")
        task.result = {"sent": 1}
    done = service.task(task.id)
    assert (done["status"], done["progress"], done["resultData"]) == ("COMPLETED", 100, {"sent": 1})


def test_without_a_result(service: Service, client: Client) -> None:
    with client.task("nothing") as task:
        pass
    done = service.task(task.id)
    assert (done["status"], done["resultData"]) == ("COMPLETED", None)


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "failure, text",
    [
        (ValueError("우편함이 가득 찼습니다"), "우편함이 가득 찼습니다"),
        (KeyError(), "KeyError"),
        (RuntimeError("x" * 5000), "x" * 4000),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        # What JSON or Postgres cannot hold.
        (ValueError("half \ud83d, whole \ud83d\ude00"), "half \ufffd, whole \U0001f600"),
        (OSError("no file \udcff"), "no file \ufffd"),
        (ValueError("a\0b"), "a\ufffdb"),
        (Mute(), "Mute"),
    ],
)
def test_an_exception_fails_it(
    service: Service, client: Client, failure: BaseException, text: str
) -> None:
    with pytest.raises(type(failure)) as caught, client.task("mail_summary") as task:
        raise failure
    assert caught.value is failure
    failed = service.task(task.id)
    assert (failed["status"], failed["errorMessage"]) == ("FAILED", text)


class Foreign:
    pass


@pytest.mark.parametrize(
    "result, problem, text",
    [
        (Foreign(), TypeError, "Foreign is not JSON serializable"),
        ({"a": float("nan")}, ValueError, "not JSON compliant"),
        ("half \ud83d", ValueError, "half of a surrogate pair"),
        ({"a": {1, 2}}, TypeError, "set is not JSON serializable"),
        # JSON, but the service does not take it.
        ("x" * 2_000_000, ApiError, "E4130"),
    ],
)
def test_a_result_that_cannot_be_kept_fails_it(
    service: Service, client: Client, result: Any, problem: type[Exception], text: str
) -> None:
    with pytest.raises(problem, match=text) as caught, client.task("mail_summary") as task:
        task.result = result
    failed = service.task(task.id)
    assert failed["status"] == "FAILED"
    assert failed["errorMessage"] == str(caught.value)

    async def asynchronous() -> str:
        async with AsyncClient(service.url, token=token, tenant=TENANT) as other:
            with pytest.raises(problem, match=text):
                async with other.task("mail_summary") as task:
                    task.result = result
            return task.id

    assert service.task(asyncio.run(asynchronous()))["status"] == "FAILED"


def test_its_own_exception_is_seen_whatever_happens_to_the_task(service: Service) -> None:
    """The token's function breaks, and nothing can be told to the service any more."""
    tokens = iter([token(), token(), token()])
    with (
        Client(service.url, token=lambda: next(tokens), tenant=TENANT) as client,
        pytest.raises(ZeroDivisionError),
        client.task("mail_summary"),
    ):
        raise ZeroDivisionError


def test_it_waits_for_approval(service: Service, client: Client) -> None:
    import threading

    request = new_request()

    def click(task_id: str) -> None:
        until(lambda: service.is_pending(request))
        states.append(service.task(task_id))
        service.reject(request, "나중에")

    states: list[dict[str, Any]] = []
    with client.task("mail_summary") as task:
        person = threading.Thread(target=click, args=[task.id])
        person.start()
        answer = task.request_approval(
            "send_email", {"to": "a@b.c"}, session_id=new_session(), request_id=request, timeout=30
        )
        person.join()
        assert isinstance(answer, Rejected)
        task.result = {"sent": 0}
    assert (states[0]["status"], states[0]["hitlRequestId"]) == ("WAITING_APPROVAL", request)
    assert service.task(task.id)["status"] == "COMPLETED"


def test_it_goes_on_when_nobody_decides(service: Service, client: Client) -> None:
    with client.task("mail_summary") as task:
        answer = task.request_approval("send_email", {}, session_id=new_session(), timeout=1)
        assert not answer
        task.progress(90, "without the mail")
    assert service.task(task.id)["status"] == "COMPLETED"


def test_the_asynchronous_task(service: Service) -> None:
    async def work() -> str:
        async with AsyncClient(service.url, token=token, tenant=TENANT) as client:
            async with client.task("mail_summary") as task:
                await task.plan(["one"])
                await task.step("step-1", status="completed")
                await task.progress(50)
                request = new_request()
                asked = asyncio.create_task(
                    task.request_approval(
                        "send_email", {}, session_id=new_session(), request_id=request, timeout=30
                    )
                )
                await asyncio.to_thread(until, lambda: service.is_pending(request))
                await asyncio.to_thread(service.approve, request)
                assert await asked
                task.result = ["sent"]
            with pytest.raises(ZeroDivisionError):
                async with client.task("fails") as failing:
                    raise ZeroDivisionError("division by zero")
            assert service.task(failing.id)["errorMessage"] == "division by zero"
            return task.id

    done = service.task(asyncio.run(work()))
    assert (done["status"], done["resultData"]) == ("COMPLETED", ["sent"])
    assert json.loads(done["planSteps"])[0]["status"] == "completed"


def faulty_client(service: Service, transport: Faulty) -> Client:
    http = httpx.Client(transport=transport)
    return Client(service.url, token=token, tenant=TENANT, http_client=http)


def test_no_second_task_after_a_lost_answer(service: Service) -> None:
    fault = Once("/tasks", httpx.ReadTimeout("no answer"))
    with faulty_client(service, Faulty(before=fault)) as client, pytest.raises(Unavailable):
        client.task("mail_summary").__enter__()
    assert len(fault.seen) == 1


def test_a_busy_service_is_asked_for_a_task_again(service: Service) -> None:
    fault = Once("/tasks", busy(503, retry_after=0), httpx.ConnectError("refused"))
    with faulty_client(service, Faulty(before=fault)) as client:
        with client.task("mail_summary") as task:
            pass
        assert len(fault.seen) == 3
    assert service.task(task.id)["status"] == "COMPLETED"


def test_completed_though_the_answer_was_lost(service: Service) -> None:
    lost = [True]

    def lose(call: httpx.Request, answer: dict[str, Any]) -> dict[str, Any]:
        if call.url.path.endswith("/complete") and lost:
            lost.clear()
            raise httpx.ReadError("the connection broke")
        return answer

    with faulty_client(service, Faulty(after=lose)) as client, client.task("x") as task:
        task.result = 1
    assert service.task(task.id)["status"] == "COMPLETED"


def test_completing_what_somebody_failed(service: Service, client: Client) -> None:
    with pytest.raises(Conflict), client.task("x") as task:
        path, body = f"/main/agent/tasks/{task.id}/fail", {"errorMessage": "stop"}
        assert service.call("POST", path, user=USER, json=body).status_code == 200
    assert service.task(task.id)["errorMessage"] == "stop"
