"""Which of the engine's refusals mean that nothing was computed, so that the call may be sent again.

vLLM 0.32 refuses a call with 503 in four places and never with 429:

- its queue is longer than `--max-num-queued-reqs`, or holds more prompt tokens than `--max-num-queued-tokens`
  (`AsyncLLM.check_admission`), before the call is queued;
- it is being scaled (`ScalingMiddleware`), before the request is read;
- its engine says that a failed call may be retried (`RetryableRequestError`), after it has begun to compute.

Only the wording tells them apart, and the last is not ours to repeat. An answer that reads otherwise, of
another version or another engine, passes to the client. A body of several prompts is admitted prompt by
prompt, so what its refusal means can't be told; beam search asks anew for every token.
"""

from __future__ import annotations

import json
from typing import Any, Final

from fairserve.engine.endpoints import Endpoint
from fairserve.engine.requests import EngineRequest

#: The status of such a refusal.
STATUS: Final = 503
#: They are shorter than this, in bytes.
MAX_BODY: Final = 4096

_BEGINNINGS: Final = (
    "The engine is currently busy and cannot accept new requests.",
    "The engine has reached its prefill token backlog limit.",
    "The model is currently scaling.",
)


def may_be_sent_again(endpoint: Endpoint, asked: EngineRequest) -> bool:
    """Whether a refusal of this call is one decision over all of it."""
    return endpoint.admitted_once and asked.sequences == 1 and b"use_beam_search" not in asked.payload


def turned_away(body: bytes) -> bool:
    """Whether a 503 with this body came before anything was computed."""
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        return False
    error = value.get("error") if type(value) is dict else None
    message = error.get("message") if type(error) is dict else error
    return type(message) is str and message.startswith(_BEGINNINGS)
