"""Which paths of the engine spend tokens, and how each is read: the one place that knows.

The tables hold every POST route that the routers under `vllm/entrypoints` of vLLM 0.32 make. A path that is
in neither is found in the engine's description when it comes up (`unknown_paths`), so that a newer engine's
new door is no way around the queue: its calls are scheduled as `UNKNOWN`.
"""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Final, Protocol

import httptools

from fairserve.engine.multipart import read_audio
from fairserve.engine.requests import (
    Amount,
    BodyField,
    EngineRequest,
    chat_amount,
    chat_batch_amount,
    completion_amount,
    decision_amount,
    either_amount,
    message_amount,
    pooling_amount,
    read_json,
    response_amount,
    scoring_amount,
    tokens_amount,
)
from fairserve.engine.usage import Place

#: Bytes of an audio file for each token of its prompt: 16 kB/s of sound (128 kbit/s) over Whisper's 50
#: positions a second. vLLM gives no usage for audio, so this is never corrected.
_AUDIO_BYTES_PER_TOKEN: Final = 320.0
#: More paths than this are not named.


#: Names in lower case.
Headers = list[tuple[bytes, bytes]]


class Read(Protocol):
    """Reads a request's body, with its headers where those say how."""

    def __call__(
        self,
        body: bytes,
        headers: Headers,
        *,
        trusted: bool,
        cache_salt: str | None,
        wanted: tuple[BodyField, ...],
    ) -> EngineRequest:
        """Never fails: the engine refuses what can't be read. `cache_salt` goes only where it is known.
        `wanted` are fields to tell in the request's `said`.
        """


class EventFormat(Enum):
    """What a stream's events look like."""

    OPENAI = auto()  #: objects without a name, `[DONE]` last; most of vLLM's own endpoints too
    RESPONSES = auto()  #: named, numbered events
    ANTHROPIC = auto()  #: named events
    COHERE = auto()  #: objects with a type, `message-end` and `[DONE]` last


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A path whose calls are scheduled."""

    read: Read
    usage: Place = Place.END
    events_per_answer: int = 0  #: events that begin an answer in a stream and hold no token
    generates: bool = True  #: False: a prompt is all that it costs
    #: Bytes of body per input token where the scheduler can't learn it; None: it can.
    bytes_per_token: float | None = None
    makes_chains: bool = False  #: a later call may go on from an answer by its id
    events: EventFormat = EventFormat.OPENAI
    #: One prompt is admitted by the engine once: where it is refused, nothing of the call was computed.
    admitted_once: bool = False
    takes_priority: bool = True  #: the body has a field for its place in the engine's queue


def _json(
    amount: Amount, *, usage_on_request: bool = False, runs_behind: bool = False, salted: bool = True
) -> Read:
    def read(
        body: bytes,
        headers: Headers,
        *,
        trusted: bool,
        cache_salt: str | None,
        wanted: tuple[BodyField, ...],
    ) -> EngineRequest:
        return read_json(
            body,
            amount,
            trusted=trusted,
            cache_salt=cache_salt if salted else None,
            wanted=wanted,
            usage_on_request=usage_on_request,
            runs_behind=runs_behind,
        )

    return read


def _audio(
    body: bytes, headers: Headers, *, trusted: bool, cache_salt: str | None, wanted: tuple[BodyField, ...]
) -> EngineRequest:
    content_type = next((value for name, value in headers if name == b"content-type"), b"")
    return read_audio(body, content_type, wanted)


_completion = partial(_json, usage_on_request=True)
_POOLING: Final = Endpoint(_json(pooling_amount), generates=False)
_RERANK: Final = Endpoint(_json(pooling_amount), Place.BEGINNING, generates=False)
_AUDIO: Final = Endpoint(_audio, bytes_per_token=_AUDIO_BYTES_PER_TOKEN)

#: Every path whose POST spends tokens.
ENDPOINTS: Final = {
    "/v1/chat/completions": Endpoint(_completion(chat_amount), events_per_answer=1, admitted_once=True),
    "/v1/completions": Endpoint(_completion(completion_amount), admitted_once=True),
    # The engine may call a tool of its own and be refused on the second turn: not admitted once.
    "/v1/responses": Endpoint(
        _json(response_amount, runs_behind=True),
        Place.ANYWHERE,
        events_per_answer=4,
        makes_chains=True,
        events=EventFormat.RESPONSES,
    ),
    "/v1/messages": Endpoint(
        _json(message_amount),
        Place.ANYWHERE,
        events_per_answer=2,
        events=EventFormat.ANTHROPIC,
        admitted_once=True,
        takes_priority=False,
    ),
    "/v1/chat/completions/batch": Endpoint(_json(chat_batch_amount)),
    "/v1/embeddings": _POOLING,
    "/v2/embed": Endpoint(_json(pooling_amount, salted=False), generates=False),
    "/pooling": _POOLING,
    "/classify": _POOLING,
    "/score": _POOLING,
    "/v1/score": _POOLING,
    "/rerank": _RERANK,
    "/v1/rerank": _RERANK,
    "/v2/rerank": _RERANK,
    "/v1/audio/transcriptions": _AUDIO,
    "/v1/audio/translations": _AUDIO,
    "/generative_scoring": Endpoint(_json(scoring_amount)),
    "/v1/systemone": Endpoint(_json(decision_amount), Place.ANYWHERE),
    "/inference/v1/generate": Endpoint(_completion(tokens_amount), Place.BEGINNING, admitted_once=True),
    "/cohere/v2/chat": Endpoint(
        _json(message_amount, salted=False),
        Place.ANYWHERE,
        events_per_answer=2,
        events=EventFormat.COHERE,
        admitted_once=True,
    ),
    # SageMaker's one door: the body decides whether it is a chat, a completion or a prompt alone.
    "/invocations": Endpoint(_completion(either_amount)),
}

#: What a path is taken for that nobody here knows: its answer may tell what it cost.
UNKNOWN: Final = Endpoint(_json(either_amount, salted=False), Place.ANYWHERE)

#: Paths whose POST spends none: token counts and templates, adapters, and what only an administrator calls.
FREE: Final = frozenset(
    {
        "/abort_requests",
        "/cohere/v2/chat/render",
        "/collective_rpc",
        "/detokenize",
        "/fault_tolerance/apply",
        "/finish_weight_update",
        "/inference/v1/abort_requests",
        "/init_weight_transfer_engine",
        "/is_scaling_elastic_ep",
        "/pause",
        "/ping",
        "/release_kv_cache_memory",
        "/reset_encoder_cache",
        "/reset_mm_cache",
        "/reset_prefix_cache",
        "/resume",
        "/scale_elastic_ep",
        "/shutdown_weight_transfer_engine",
        "/sleep",
        "/start_draft_weight_update",
        "/start_profile",
        "/start_weight_update",
        "/stop_profile",
        "/tokenize",
        "/update_weight_version",
        "/update_weights",
        "/v1/chat/completions/derender",
        "/v1/chat/completions/render",
        "/v1/completions/derender",
        "/v1/completions/render",
        "/v1/load_lora_adapter",
        "/v1/messages/count_tokens",
        "/v1/messages/render",
        "/v1/responses/render",
        "/v1/responses/{response_id}/cancel",
        "/v1/unload_lora_adapter",
        "/wake_up",
        "/weight_checker",
    }
)

_PARAMETER: Final = re.compile(r"\\\{[^}]*\\\}")
_LAST_PARAMETER: Final = re.compile(_PARAMETER.pattern + "$")

#: The raw request targets that need no further look.
_PLAIN: Final = {path.encode(): endpoint for path, endpoint in ENDPOINTS.items()}


def scheduled(method: bytes, target: bytes) -> Endpoint | None:
    """What a request spends tokens on; None for one that spends none."""
    if method != b"POST":
        return None
    return _PLAIN.get(target) or _endpoint_at(path_of(target))


def path_of(target: bytes) -> str:
    """Which path the engine will see: without query, scheme and host, and percent-decoded."""
    try:
        raw = httptools.parse_url(target).path or b""
    except httptools.HttpParserInvalidURLError:
        raw = target.partition(b"?")[0]
    return urllib.parse.unquote_to_bytes(raw).decode("latin-1")


def speaks_anthropic(target: bytes) -> bool:
    """Whether whoever calls `target` reads errors in Anthropic's shape."""
    return b"message" in target.lower() and "/v1/messages" in path_of(target)


def unknown_paths(openapi: bytes) -> tuple[str, ...] | None:
    """The POST paths of an engine's `/openapi.json` that are in neither table, in order; None for what can't
    be read.
    """
    try:
        document = json.loads(openapi)
    except (ValueError, RecursionError):
        return None
    paths = document.get("paths") if type(document) is dict else None
    if type(paths) is not dict:
        return None
    unknown = [
        path
        for path, methods in paths.items()
        if type(methods) is dict and "post" in methods and path not in FREE and _endpoint_at(path) is None
    ]
    return tuple(sorted(unknown))


def matching(paths: Collection[str]) -> re.Pattern[str] | None:
    """What matches the paths of a description, also of an engine under a prefix; None for no paths."""
    if not paths:
        return None
    # A part in braces is one part of a path; the last may be all that is left of it.
    shapes = [_PARAMETER.sub("[^/]+", _LAST_PARAMETER.sub(".+", re.escape(path))) for path in paths]
    return re.compile(f".*(?:{'|'.join(shapes)})/?", re.DOTALL)


def _endpoint_at(path: str) -> Endpoint | None:
    """By the end of the path: an engine mounted under a prefix has every path there as well, and another
    spelling of a scheduled path would be a way around the queue.
    """
    endpoint = ENDPOINTS.get(path)
    if endpoint is not None:
        return endpoint
    # The longest first, for "/v1/score" ends with "/score".
    return next((ENDPOINTS[known] for known in _LONGEST_FIRST if path.endswith(known)), None)


_LONGEST_FIRST: Final = sorted(ENDPOINTS, key=len, reverse=True)
