"""What a refused client reads."""

from __future__ import annotations

import json
import random

import pytest

from fairserve.core.calls import Refusal, RefusalReason
from fairserve.sidecar.messages import Request
from fairserve.sidecar.refusals import (
    ENGINE_BROKEN,
    Problem,
    Unavailable,
    failed_engine_response,
    problem_response,
    refusal_response,
    refusal_status,
    retry_after,
    unavailable_response,
)

REQUEST = Request(b"POST", b"/v1/completions", [], b"")
LIMITS = (RefusalReason.USER_LIMIT, RefusalReason.TENANT_LIMIT, RefusalReason.APPLICATION_LIMIT)


def read(data: bytes):
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert int(headers["content-length"]) == len(body)
    return int(first.split(" ")[1]), headers, json.loads(body)["error"]


@pytest.mark.parametrize("exact_s", [0.0, 0.2, 1.0, 1.001, 7.5, 60.0, 110.5])
def test_retry_after_is_never_early_and_hardly_late(exact_s):
    rng = random.Random(1)
    seconds = [retry_after(exact_s, rng) for _ in range(500)]
    assert min(seconds) >= max(1, exact_s)
    assert max(seconds) <= min(120, exact_s + max(2.0, 0.1 * exact_s) + 1)
    assert len(set(seconds)) > 1


@pytest.mark.parametrize("exact_s", [120.0, 121.0, 1e6])
def test_retry_after_is_capped(exact_s):
    assert retry_after(exact_s, random.Random(1)) == 120


@pytest.mark.parametrize("reason", LIMITS)
def test_limit_is_429_with_the_callers_own_limit(reason):
    data = refusal_response(
        REQUEST, Refusal(reason, 12.3, 10, 60.0), "team", "chat", random.Random(1), reuse=True
    )
    status, headers, error = read(data)
    assert status == 429
    assert headers["x-fairserve-refused-reason"] == reason.value
    assert headers["x-ratelimit-limit-requests"] == "10"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"] == "13s"
    assert int(headers["retry-after"]) >= 13
    assert error["code"] == "rate_limit_exceeded"
    assert "10 new interactions per 60 s" in error["message"]
    assert "connection" not in headers


@pytest.mark.parametrize("request_", [REQUEST, Request(b"POST", b"/v1/messages", [], b"")])
def test_a_hold_is_403_that_nobody_retries(request_):
    refusal = Refusal(RefusalReason.TENANT_HELD, None)
    status, headers, error = read(
        refusal_response(request_, refusal, "team", "chat", random.Random(1), reuse=True)
    )
    assert (status, error["type"]) == (403, "permission_error")
    assert headers["x-fairserve-refused-reason"] == "tenant_held"
    assert error["message"] == "Tenant team is on hold: it begins no new interactions."
    assert "retry-after" not in headers
    assert refusal_status(refusal) == 403


@pytest.mark.parametrize("reason", [RefusalReason.QUEUE_FULL, RefusalReason.QUEUE_TIMEOUT])
def test_no_capacity_is_503(reason):
    data = refusal_response(REQUEST, Refusal(reason, None), "team", "chat", random.Random(1), reuse=False)
    status, headers, error = read(data)
    assert (status, error["code"], error["type"]) == (503, reason.value, "server_error")
    assert 1 <= int(headers["retry-after"]) <= 5
    assert "x-ratelimit-limit-requests" not in headers
    assert headers["connection"] == "close"


@pytest.mark.parametrize("reason", Unavailable)
def test_unavailable_is_503(reason):
    status, headers, error = read(unavailable_response(REQUEST, reason, random.Random(1), reuse=True))
    assert (status, headers["x-fairserve-refused-reason"], error["code"]) == (503, reason.value, reason.value)
    assert int(headers["retry-after"]) >= 1


MESSAGES = Request(b"POST", b"/v1/messages?beta=true", [], b"")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (408, "invalid_request_error"),
        (413, "request_too_large"),
    ],
)
@pytest.mark.parametrize("request_", [MESSAGES, None])
def test_problem_has_anthropics_shape_where_that_is_spoken(status, kind, request_):
    data = problem_response(
        request_, Problem(status, "code", "Words.", "param"), reuse=False, target=MESSAGES.target
    )
    assert data.startswith(b"HTTP/1.1 %d " % status)
    body = json.loads(data.partition(b"\r\n\r\n")[2])
    assert body == {"type": "error", "error": {"type": kind, "message": "Words."}}


def test_refusals_have_anthropics_types():
    rng = random.Random(1)
    refused = refusal_response(MESSAGES, Refusal(LIMITS[0], 12.3, 10, 60.0), "t", "a", rng, reuse=True)
    status, headers, error = read(refused)
    assert (status, error["type"], set(error)) == (429, "rate_limit_error", {"type", "message"})
    assert int(headers["retry-after"]) >= 13
    full = refusal_response(MESSAGES, Refusal(RefusalReason.QUEUE_FULL, None), "t", "a", rng, reuse=True)
    assert (read(full)[0], read(full)[2]["type"]) == (503, "overloaded_error")
    away = unavailable_response(MESSAGES, Unavailable.ENGINE_UNAVAILABLE, rng, reuse=True)
    assert (read(away)[0], read(away)[2]["type"]) == (503, "overloaded_error")
    broken = failed_engine_response(MESSAGES, ENGINE_BROKEN, reuse=True)
    assert (read(broken)[0], read(broken)[2]["type"]) == (502, "api_error")
