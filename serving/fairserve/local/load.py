"""A load generator: classes of clients that talk to a chat endpoint, and a record of every call.

It knows nothing of the engine: a base URL, a model's name and classes of clients are all it takes, so the
same load runs against the emulator and against a real vLLM. Clients are closed loops: each waits for its
answer, thinks, and goes on. It sends to this machine only, by choice: it exists to overload things.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp

from fairserve.local.addresses import is_loopback

#: Words of a prompt are four letters and a space: with `BYTES_PER_TOKEN` close to a token each.
_WORDS = ("fair", "each", "turn", "wait", "much", "work", "team", "part", "load", "flow")


@dataclass(frozen=True, slots=True)
class ClientClass:
    """Clients that behave alike. Times are (shortest, longest) in seconds, drawn evenly between."""

    name: str
    api_key: str = field(repr=False)
    application: str | None = None
    users: Sequence[str] = ("",)  #: each has clients of its own; "" names no user
    clients_per_user: int = 1
    prompt_tokens: int = 32  #: roughly: words of the prompt
    max_tokens: int = 32
    calls_per_interaction: int = 1  #: from 2 on calls carry an interaction id
    think_s: tuple[float, float] = (0.0, 0.0)  #: between two interactions
    tool_s: tuple[float, float] = (0.0, 0.0)  #: between two calls of one interaction
    honours_retry_after: bool = True
    #: What a client that does not honour Retry-After waits after a refusal.
    impatient_s: float = 0.25

    def __post_init__(self) -> None:
        if min(self.clients_per_user, self.prompt_tokens, self.max_tokens, self.calls_per_interaction) < 1:
            raise ValueError(f"class {self.name}: clients, tokens and calls are at least 1")


@dataclass(slots=True)
class CallRecord:
    """One call. Times are seconds on the event loop's clock."""

    client_class: str
    user: str
    interaction: str
    index: int  #: place in its interaction, from 0
    calls: int  #: how many calls its interaction wants
    started_s: float
    first_token_s: float | None = None
    ended_s: float | None = None
    status: int | None = None  #: None: no answer
    prompt_tokens: int = 0
    output_tokens: int = 0
    retry_after_s: float | None = None
    refused_reason: str | None = None
    error: str = ""

    @property
    def completed(self) -> bool:
        """Whether the whole answer came."""
        return self.status == 200 and self.ended_s is not None and not self.error

    @property
    def refused(self) -> bool:
        """Whether the scheduler turned it away."""
        return self.status == 429

    @property
    def time_to_first_token_s(self) -> float | None:
        """What the client waited for the first token."""
        return None if self.first_token_s is None else self.first_token_s - self.started_s


class Load:
    """Runs classes of clients and keeps their records.

    Use it as `async with Load(url, model, seed=1) as load`, then `start` classes and `stop` them.
    """

    def __init__(self, base_url: str, model: str, *, seed: int = 0, call_timeout_s: float = 300.0) -> None:
        """`base_url` is without /v1. Raises ValueError if it is not on this machine."""
        if not is_loopback(base_url):
            raise ValueError(f"{base_url} is not on this machine: load is sent to loopback only")
        self.records: list[CallRecord] = []
        self._url = base_url.rstrip("/") + "/v1/chat/completions"
        self._model = model
        self._seed = seed
        self._timeout = aiohttp.ClientTimeout(total=call_timeout_s)
        self._session: aiohttp.ClientSession | None = None
        self._clients: dict[str, list[asyncio.Task[None]]] = {}
        self._stopped: dict[str, asyncio.Event] = {}

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop(drain_s=0.0)
        if self._session is not None:
            await self._session.close()

    def start(self, classes: Iterable[ClientClass]) -> None:
        """Start all clients of these classes. Names of running classes are unique."""
        for spec in classes:
            if spec.name in self._clients:
                raise ValueError(f"class {spec.name} runs already")
            self._stopped[spec.name] = asyncio.Event()
            self._clients[spec.name] = [
                asyncio.create_task(self._client(spec, user, number), name=f"{spec.name}-{user}-{number}")
                for user in spec.users
                for number in range(spec.clients_per_user)
            ]

    async def stop(self, names: Iterable[str] | None = None, *, drain_s: float = 30.0) -> None:
        """Let these classes (all by default) begin nothing more, and wait for what has begun.

        What still runs after `drain_s` is cancelled and recorded as cancelled.
        """
        stopping = list(self._clients) if names is None else list(names)
        for name in stopping:
            self._stopped[name].set()
        tasks = [task for name in stopping for task in self._clients.get(name, ())]
        if tasks:
            await asyncio.wait(tasks, timeout=drain_s)
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                raise result
        for name in stopping:
            self._clients.pop(name, None)

    async def _client(self, spec: ClientClass, user: str, number: int) -> None:
        rng = random.Random(f"{self._seed}/{spec.name}/{user}/{number}")  # noqa: S311  (no secret)
        count = 0
        # Clients of a class do not start in step.
        await self._pause(spec.name, rng.uniform(0.0, min(1.0, spec.think_s[1])))
        while not self._stopped[spec.name].is_set():
            count += 1
            interaction = f"{spec.name}-{user}-{number}-{count}-{rng.getrandbits(32):08x}"
            refusal = await self._interaction(spec, user, interaction, rng)
            await self._pause(spec.name, self._rest_s(spec, refusal, rng))

    def _rest_s(self, spec: ClientClass, refusal: CallRecord | None, rng: random.Random) -> float:
        if refusal is None:
            return rng.uniform(*spec.think_s)
        if spec.honours_retry_after and refusal.retry_after_s is not None:
            return refusal.retry_after_s
        return spec.impatient_s

    async def _interaction(
        self, spec: ClientClass, user: str, interaction: str, rng: random.Random
    ) -> CallRecord | None:
        """All calls of one interaction; ends at the first that fails, which is returned."""
        for index in range(spec.calls_per_interaction):
            if index:
                await asyncio.sleep(rng.uniform(*spec.tool_s))
            record = await self._call(spec, user, interaction, index, rng)
            if not record.completed:
                return record
        return None

    async def _call(
        self, spec: ClientClass, user: str, interaction: str, index: int, rng: random.Random
    ) -> CallRecord:
        now = asyncio.get_running_loop().time
        record = CallRecord(spec.name, user, interaction, index, spec.calls_per_interaction, now())
        self.records.append(record)
        if self._session is None:
            raise RuntimeError("the load is used outside its `async with`")
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": _prompt(spec.prompt_tokens, rng)}],
            "max_tokens": spec.max_tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        try:
            async with self._session.post(
                self._url, json=body, headers=_headers(spec, user, interaction)
            ) as answer:
                record.status = answer.status
                if answer.status == 200:
                    await _read_stream(answer, record)
                else:
                    _read_refusal(answer, record)
                    record.error = (await answer.text())[:500]
        except asyncio.CancelledError:
            record.error = "cancelled"
            raise
        except (aiohttp.ClientError, TimeoutError) as error:
            record.error = repr(error)
        finally:
            record.ended_s = now()
        return record

    async def _pause(self, name: str, seconds: float) -> None:
        """Sleep, but not past the stop of the class."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopped[name].wait(), seconds)


def _headers(spec: ClientClass, user: str, interaction: str) -> dict[str, str]:
    headers = {"Authorization": f"Bearer {spec.api_key}"}
    if spec.application is not None:
        headers["x-fairserve-application"] = spec.application
    if user:
        headers["x-fairserve-user"] = user
    if spec.calls_per_interaction > 1:
        headers["x-fairserve-interaction-id"] = interaction
    return headers


def _prompt(tokens: int, rng: random.Random) -> str:
    return " ".join(rng.choices(_WORDS, k=tokens))


async def _read_stream(answer: aiohttp.ClientResponse, record: CallRecord) -> None:
    """Read an answer as server-sent events. JSON is parsed only where it matters: it is many chunks."""
    done = False
    async for line in answer.content:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            done = True
        elif record.first_token_s is None or b'"usage"' in data:
            _read_chunk(json.loads(data), record)
    if not done and not record.error:
        record.error = "the stream ended early"


def _read_chunk(chunk: dict[str, Any], record: CallRecord) -> None:
    if problem := chunk.get("error"):
        record.error = str(problem)
    if record.first_token_s is None and any(
        c.get("delta", {}).get("content") for c in chunk.get("choices", ())
    ):
        record.first_token_s = asyncio.get_running_loop().time()
    if usage := chunk.get("usage"):
        record.prompt_tokens = usage["prompt_tokens"]
        record.output_tokens = usage["completion_tokens"]


def _read_refusal(answer: aiohttp.ClientResponse, record: CallRecord) -> None:
    record.refused_reason = answer.headers.get("x-fairserve-refused-reason")
    with suppress(KeyError, ValueError):
        record.retry_after_s = float(answer.headers["Retry-After"])


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of the calls of some records."""

    interactions: int  #: begun, refused ones included
    refused: int  #: interactions whose first call was refused
    cut: int  #: interactions that were admitted and then lost a call to a refusal or an error
    wasted_tokens: int  #: tokens computed for interactions that were cut
    tokens: int  #: all tokens computed
    failed_calls: int  #: neither completed nor refused nor cancelled by us
    first_token_s: tuple[float, ...]  #: times to first token, ascending

    def percentile_s(self, share: float) -> float | None:
        """The time to first token that this share of the calls does not exceed (nearest rank)."""
        if not self.first_token_s:
            return None
        rank = max(0, -(-int(share * 1000) * len(self.first_token_s) // 1000) - 1)
        return self.first_token_s[min(rank, len(self.first_token_s) - 1)]


def summarise(records: Iterable[CallRecord]) -> Summary:
    """Count what became of these calls. Calls that the load itself cancelled count as neither."""
    interactions: dict[str, list[CallRecord]] = {}
    for record in records:
        interactions.setdefault(record.interaction, []).append(record)
    calls = [record for group in interactions.values() for record in group]
    cut = [group for group in interactions.values() if _is_cut(group)]
    waits = sorted(wait for record in calls if (wait := record.time_to_first_token_s) is not None)
    return Summary(
        interactions=len(interactions),
        refused=sum(group[0].refused for group in interactions.values()),
        cut=len(cut),
        wasted_tokens=sum(_tokens(group) for group in cut),
        tokens=sum(_tokens(group) for group in interactions.values()),
        failed_calls=sum(not r.completed and not r.refused and r.error != "cancelled" for r in calls),
        first_token_s=tuple(waits),
    )


def _is_cut(group: Sequence[CallRecord]) -> bool:
    last = group[-1]
    return group[0].status == 200 and not last.completed and last.error != "cancelled"


def _tokens(group: Sequence[CallRecord]) -> int:
    return sum(record.prompt_tokens + record.output_tokens for record in group)
