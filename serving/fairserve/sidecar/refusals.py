"""What a client reads when it is refused, in OpenAI's error shape, or Anthropic's where it speaks that.

429 says that the caller has used up its own limit, 503 that there is no capacity right now, 403 that its
tenant is held, 4xx else that the request can't be served as it is. A message names the caller's own limit
and never another tenant.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Any, assert_never

from fairserve.core.calls import Refusal, RefusalReason
from fairserve.engine.endpoints import speaks_anthropic
from fairserve.sidecar.messages import Headers, Request, own_response

#: OpenAI's SDK does not wait by itself for longer than this.
MAX_RETRY_AFTER_S = 120
#: Retry-After where no exact time can be told, seconds.
_GUESS_S = 2.0


class Unavailable(StrEnum):
    """Why the sidecar itself has no capacity. With `RefusalReason` the closed list of
    `x-fairserve-refused-reason`.
    """

    NOT_READY = "not_ready"  #: no configuration yet
    ENGINE_UNAVAILABLE = "engine_unavailable"  #: the engine doesn't accept connections, or doesn't answer
    SHUTTING_DOWN = "shutting_down"


@dataclass(frozen=True, slots=True)
class Problem:
    """A request that can't be served as it is."""

    status: int
    code: str
    message: str
    param: str | None = None


#: Anthropic's name for each status; other 4xx are `invalid_request_error`, other 5xx `api_error`.
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}

_UNAVAILABLE_MESSAGES = {
    Unavailable.NOT_READY: "This server has no configuration yet.",
    Unavailable.ENGINE_UNAVAILABLE: "The model server does not answer.",
    Unavailable.SHUTTING_DOWN: "This server is shutting down.",
}


def problem_response(request: Request | None, problem: Problem, *, reuse: bool, target: bytes = b"") -> bytes:
    """The whole response to a request that can't be served. `request` is None where it couldn't be read
    whole; its target may be known all the same.
    """
    error = _Error(problem.status, problem.message, "invalid_request_error", problem.code, problem.param)
    return _response(request, error, [], reuse=reuse, target=target)


def unavailable_response(request: Request, reason: Unavailable, rng: random.Random, *, reuse: bool) -> bytes:
    """The whole 503 for want of something of our own."""
    seconds = retry_after(None, rng)
    message = f"{_UNAVAILABLE_MESSAGES[reason]} Retry in {seconds} s."
    headers = [(b"retry-after", b"%d" % seconds), (b"x-fairserve-refused-reason", reason.value.encode())]
    return _response(request, _Error(503, message, "server_error", reason.value), headers, reuse=reuse)


#: The engine failed over a call that it was given, by closing the connection or by its silence.
ENGINE_BROKEN = Problem(502, "engine_broken", "The model server closed the connection.")
#: A fault of ours.
INTERNAL = Problem(500, "internal_error", "The request could not be handled.")
STOPPING = Problem(503, "shutting_down", "This pod of the model server is shutting down.")
ENGINE_SILENT = Problem(504, "engine_silent", "The model server stopped answering.")


def failed_engine_response(request: Request, problem: Problem, *, reuse: bool) -> bytes:
    """The whole 502 or 504 when the engine fails before it has answered."""
    error = _Error(problem.status, problem.message, "server_error", problem.code)
    return _response(request, error, [], reuse=reuse)


def refusal_response(
    request: Request, refusal: Refusal, tenant: str, application: str, rng: random.Random, *, reuse: bool
) -> bytes:
    """The whole response to a call that was refused or evicted."""
    if refusal.reason is RefusalReason.TENANT_HELD:
        return _held_response(request, refusal, tenant, reuse=reuse)
    seconds = retry_after(refusal.retry_after_s, rng)
    headers = [
        (b"retry-after", b"%d" % seconds),
        (b"x-fairserve-refused-reason", refusal.reason.value.encode()),
    ]
    if refusal.limit is not None:
        exact_s = refusal.retry_after_s if refusal.retry_after_s is not None else float(seconds)
        headers += [
            (b"x-ratelimit-limit-requests", b"%d" % refusal.limit),
            (b"x-ratelimit-remaining-requests", b"0"),
            (b"x-ratelimit-reset-requests", _duration(exact_s)),
        ]
    message = f"{_explanation(refusal, tenant, application)} Retry in {seconds} s."
    if refusal_status(refusal) == 503:
        error = _Error(503, message, "server_error", refusal.reason.value)
    else:
        error = _Error(429, message, "rate_limit_error", "rate_limit_exceeded")
    return _response(request, error, headers, reuse=reuse)


def _held_response(request: Request, refusal: Refusal, tenant: str, *, reuse: bool) -> bytes:
    """A hold lasts until somebody ends it. 403 is what no client retries by itself and no gateway takes for a
    sick server; nobody knows a time for a Retry-After.
    """
    reason = refusal.reason.value
    error = _Error(403, _explanation(refusal, tenant, ""), "permission_error", reason)
    return _response(request, error, [(b"x-fairserve-refused-reason", reason.encode())], reuse=reuse)


def refusal_status(refusal: Refusal) -> int:
    """429 for the caller's own limit, 503 for want of room, 403 for a tenant that is held."""
    if refusal.reason is RefusalReason.TENANT_HELD:
        return 403
    return 503 if refusal.reason in (RefusalReason.QUEUE_FULL, RefusalReason.QUEUE_TIMEOUT) else 429


def retry_after(exact_s: float | None, rng: random.Random) -> int:
    """Whole seconds in 1..120, never below the exact time except for the cap, with up to a tenth (at least
    two seconds) on top so that clients don't return together.
    """
    seconds = _GUESS_S if exact_s is None else exact_s
    jitter = rng.random() * max(2.0, 0.1 * seconds)
    return max(1, min(MAX_RETRY_AFTER_S, math.ceil(seconds + jitter)))


def _explanation(refusal: Refusal, tenant: str, application: str) -> str:
    limit = f"{refusal.limit} new interactions per {refusal.window_s or 0.0:g} s"
    match refusal.reason:
        case RefusalReason.USER_LIMIT:
            return f"The server is overloaded and this user has used its limit of {limit}."
        case RefusalReason.TENANT_LIMIT:
            return f"The server is overloaded and tenant {tenant} has used its limit of {limit}."
        case RefusalReason.APPLICATION_LIMIT:
            return f"The server is overloaded and application {application} has used its limit of {limit}."
        case RefusalReason.QUEUE_FULL:
            return f"The queue of tenant {tenant} is full."
        case RefusalReason.QUEUE_TIMEOUT:
            return f"The call waited in the queue of tenant {tenant} for as long as it may."
        case RefusalReason.TENANT_HELD:
            return f"Tenant {tenant} is on hold: it begins no new interactions."
        case _:
            assert_never(refusal.reason)


def _duration(seconds: float) -> bytes:
    """OpenAI's way to write a duration: 1s, 6m0s."""
    whole = max(1, math.ceil(seconds))
    return b"%dm%ds" % divmod(whole, 60) if whole >= 60 else b"%ds" % whole


@dataclass(frozen=True, slots=True)
class _Error:
    """An error body's content. `kind`, `code` and `param` are OpenAI's; Anthropic's kind is the status'."""

    status: int
    message: str
    kind: str
    code: str
    param: str | None = None

    def openai(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def anthropic(self) -> dict[str, Any]:
        """As Anthropic's clients read it."""
        other = "invalid_request_error" if self.status < 500 else "api_error"
        kind = _ANTHROPIC_TYPES.get(self.status, other)
        return {"type": "error", "error": {"type": kind, "message": self.message}}


def _response(
    request: Request | None, error: _Error, headers: Headers, *, reuse: bool, target: bytes = b""
) -> bytes:
    if request is not None:
        target = request.target
    content = error.anthropic() if speaks_anthropic(target) else error.openai()
    headers = [(b"content-type", b"application/json"), *headers]
    reason = HTTPStatus(error.status).phrase.encode()
    return own_response(request, error.status, reason, headers, json.dumps(content).encode(), reuse=reuse)
