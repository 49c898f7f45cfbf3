"""The emulator's HTTP: vLLM's paths, bodies, errors and streams over the step model.

A stream is written straight to ASGI: one small write per token and no task besides the request's own, so
that a busy emulator leaves the machine to what is being tried out. A client that goes away is aborted at
once, as in vLLM.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from fairserve import __version__
from fairserve.local.emulator.bodies import Body, ChatBody, CompletionBody
from fairserve.local.emulator.driver import Driver, Generation
from fairserve.local.emulator.exposition import Exposition
from fairserve.local.emulator.words import Answer, natural_tokens
from fairserve.sim.steps import EngineLimits, EngineModel, StepCost

B = TypeVar("B", bound=Body)

#: Said at every start.
NOTICE = "fairserve engine emulator: no model, made-up text; for trying out and for tests"


@dataclass(frozen=True, slots=True)
class _Plan:
    """What one request gets: decided before the engine sees it."""

    body: Body
    chat: bool
    identifier: str
    created: int
    prompt_tokens: int
    output_tokens: int
    #: Characters of the answer that are sent; None sends them all.
    characters: int | None
    finish_reason: str
    answer: Answer

    def text(self, start: int, end: int) -> str:
        """Tokens `start` to `end` of the answer, without what a stop string cuts off."""
        if self.characters is None:
            return self.answer.text(start, end)
        before = len(self.answer.text(0, start))
        return self.answer.text(start, end)[: max(0, self.characters - before)]

    def usage(self, output_tokens: int) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + output_tokens,
            "completion_tokens": output_tokens,
        }


class Emulator:
    """The application; `app` is what a server runs."""

    def __init__(self, limits: EngineLimits, cost: StepCost, model_name: str) -> None:
        self.model_name = model_name
        self._model = EngineModel(limits, cost)
        self._driver = Driver(self._model)
        self._exposition = Exposition(self._model, model_name)
        self._numbers = count(1)
        self._started = int(time.time())
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._completion, methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/health", self._health),
                Route("/version", self._version),
                Route("/metrics", self._metrics),
            ],
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        steps = asyncio.create_task(self._driver.run(), name="engine-steps")
        yield
        steps.cancel()
        with suppress(asyncio.CancelledError):
            await steps

    async def _chat(self, request: Request) -> Response:
        return await self._generate(request, ChatBody)

    async def _completion(self, request: Request) -> Response:
        return await self._generate(request, CompletionBody)

    async def _generate(self, request: Request, kind: type[B]) -> Response:
        try:
            body = kind.model_validate_json(await request.body())
        except ValidationError as error:
            return _bad_request(_first_problem(error))
        if body.model not in (None, self.model_name):
            return _error(404, "NotFoundError", f"The model `{body.model}` does not exist.", "model")
        room = self._model.limits.max_model_len - (prompt_tokens := body.prompt_tokens())
        if room < (body.output_cap or 1):
            return _bad_request(
                f"This model's maximum context length is {self._model.limits.max_model_len} tokens. However, "
                f"you requested {prompt_tokens} input tokens and {body.output_cap or 1} output tokens."
            )
        plan = self._plan(body, prompt_tokens, room, request.headers.get("x-request-id"))
        return _Run(plan, self._driver, self._exposition, self.model_name)

    def _plan(self, body: Body, prompt_tokens: int, room: int, request_id: str | None) -> _Plan:
        seed = body.seed()
        chat = isinstance(body, ChatBody)
        # vLLM lets a completion without a limit have 16 tokens, and a chat all that is left.
        cap = body.output_cap or (room if chat else min(room, 16))
        natural = cap if body.ignore_eos else max(natural_tokens(seed), body.min_tokens)
        answer = Answer(seed)
        output_tokens, reason = (cap, "length") if cap <= natural else (natural, "stop")
        characters: int | None = None
        stop = answer.tokens_until(body.stops, output_tokens) if body.stops else None
        if stop is not None and stop[0] > body.min_tokens:
            output_tokens, characters = stop
            reason = "stop"
        prefix = "chatcmpl" if chat else "cmpl"
        return _Plan(
            body=body,
            chat=chat,
            identifier=f"{prefix}-{request_id or f'emulated-{next(self._numbers)}'}",
            created=int(time.time()),
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            characters=characters,
            finish_reason=reason,
            answer=answer,
        )

    async def _models(self, _request: Request) -> Response:
        card = {
            "id": self.model_name,
            "object": "model",
            "created": self._started,
            "owned_by": "fairserve-emulator",
            "root": self.model_name,
            "parent": None,
            "max_model_len": self._model.limits.max_model_len,
        }
        return JSONResponse({"object": "list", "data": [card]})

    async def _health(self, _request: Request) -> Response:
        return Response()

    async def _version(self, _request: Request) -> Response:
        return JSONResponse({"version": f"fairserve-emulator-{__version__}"})

    async def _metrics(self, _request: Request) -> Response:
        return PlainTextResponse(self._exposition.text())


class _Run(Response):
    """The answer to one accepted request: it enters the engine when the server begins to write it."""

    def __init__(self, plan: _Plan, driver: Driver, exposition: Exposition, model_name: str) -> None:
        super().__init__()
        self._plan = plan
        self._driver = driver
        self._exposition = exposition
        self._model_name = model_name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        plan = self._plan
        generation = self._driver.submit(plan.prompt_tokens, plan.output_tokens)
        watch = asyncio.ensure_future(_client_left(receive))
        watch.add_done_callback(lambda _: self._driver.abort(generation))
        try:
            await (self._stream(generation, send) if plan.body.stream else self._whole(generation, send))
        except OSError:  # The client left while we wrote.
            pass
        finally:
            self._account(generation)
            watch.cancel()
            self._driver.abort(generation)

    async def _whole(self, generation: Generation, send: Send) -> None:
        plan = self._plan
        if await generation.complete() < plan.output_tokens:
            return
        text = plan.text(0, plan.output_tokens)
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": plan.finish_reason}
        if plan.chat:
            choice["message"] = {"role": "assistant", "content": text, "tool_calls": []}
        else:
            choice["text"] = text
        body = self._envelope(chunk=False) | {"choices": [choice], "usage": plan.usage(plan.output_tokens)}
        await JSONResponse(body)(_HTTP_SCOPE, _nothing, send)

    async def _stream(self, generation: Generation, send: Send) -> None:
        plan = self._plan
        head = {"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS}
        sent = 0
        await generation.more_than(0)
        await send(head)
        if plan.chat:
            await self._send(send, [{"index": 0, "delta": {"role": "assistant", "content": ""}}], 0)
        while sent < plan.output_tokens:
            ready = await generation.more_than(sent)
            if ready == sent:  # Aborted: the connection is gone.
                return
            await self._send(send, [self._choice(sent, ready)], ready)
            sent = ready
        if plan.body.wants_usage:
            await self._send(send, [], sent, usage=True)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

    def _choice(self, start: int, end: int) -> dict[str, Any]:
        plan = self._plan
        text = plan.text(start, end)
        shape = {"delta": {"content": text}} if plan.chat else {"text": text}
        reason = plan.finish_reason if end == plan.output_tokens else None
        return {"index": 0, **shape, "logprobs": None, "finish_reason": reason}

    async def _send(
        self, send: Send, choices: list[dict[str, Any]], tokens: int, *, usage: bool = False
    ) -> None:
        chunk = self._envelope(chunk=True) | {"choices": choices}
        if usage or self._plan.body.wants_continuous_usage:
            chunk["usage"] = self._plan.usage(tokens)
        data = b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"
        await send({"type": "http.response.body", "body": data, "more_body": True})

    def _envelope(self, *, chunk: bool) -> dict[str, Any]:
        plan = self._plan
        kind = "text_completion"
        if plan.chat:
            kind = "chat.completion.chunk" if chunk else "chat.completion"
        return {"id": plan.identifier, "object": kind, "created": plan.created, "model": self._model_name}

    def _account(self, generation: Generation) -> None:
        done = generation.ready >= self._plan.output_tokens
        reason = self._plan.finish_reason if done else "abort"
        begun = generation.submitted_s
        first = generation.first_token_s
        now = asyncio.get_running_loop().time()
        self._exposition.ended(reason, now - begun, None if first is None else first - begun)


_HTTP_SCOPE: Scope = {"type": "http"}
_STREAM_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


async def _nothing() -> dict[str, Any]:
    return {"type": "http.disconnect"}


async def _client_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _bad_request(message: str) -> Response:
    return _error(400, "BadRequestError", message, None)


def _error(status: int, kind: str, message: str, param: str | None) -> Response:
    """Word an error as vLLM does."""
    body = {"error": {"message": message, "type": kind, "param": param, "code": status}}
    return JSONResponse(body, status_code=status)
