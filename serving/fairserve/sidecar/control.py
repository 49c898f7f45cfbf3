"""The control port: configuration and overload from the operator, state for people, probes for the kubelet.

An ordinary web application, because nothing here is on a call's way. Everything but the probes wants the
control token.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import uvicorn
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from fairserve.difference import MEDIA_TYPE, WrongBaseError
from fairserve.sidecar.configuration import (
    MAX_BYTES,
    DocumentError,
    DocumentTooLargeError,
    Verdict,
    describe_problems,
    read_difference,
    read_document,
)
from fairserve.sidecar.control_connections import ControlConnection, ControlConnections, listen
from fairserve.sidecar.options import Address, Limits, OptionError, TlsFiles
from fairserve.sidecar.tls import Certificate

if TYPE_CHECKING:
    from fairserve.sidecar.service import Sidecar

_LOG = logging.getLogger(__name__)

_Endpoint = Callable[[Request], Awaitable[Response]]

#: A PUT /overload is a few fields.
_MAX_SMALL_BODY = 65_536
_MAX_REASON = 1024


class OverloadRequest(BaseModel):
    """The operator's word on overload."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    armed: bool
    lease_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    #: For people: what is too long for them is cut, and no reason to refuse the word itself.
    reason: Annotated[str, AfterValidator(lambda text: text[:_MAX_REASON])] = ""


class ControlToken:
    """The tokens that the control port takes: the lines of a file that may be rotated while we run. Two
    lines let both sides change one after the other.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tokens: tuple[bytes, ...] = ()
        self._problem = ""

    def load(self) -> None:
        """Read the file. Raises OptionError."""
        try:
            content = self._path.read_bytes()
        except OSError as error:
            raise OptionError(f"--control-token-file: {self._path}: {error.strerror}") from error
        tokens = tuple(line.strip() for line in content.splitlines() if line.strip())
        if not tokens:
            raise OptionError(f"--control-token-file: {self._path} is empty")
        self._tokens = tokens

    def matches(self, authorization: str) -> bool:
        """Whether an Authorization header carries one of the tokens that the file holds now. While it can't
        be read, those that it held last count.
        """
        scheme, _, presented = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return False
        problem = ""
        try:
            self.load()
        except OptionError as error:
            problem = str(error)
        if problem and problem != self._problem:
            _LOG.error("the control port keeps its old token: %s", problem)
        self._problem = problem
        given = presented.strip().encode("latin-1")
        # Every one is compared, so that the time doesn't tell which.
        return sum(hmac.compare_digest(given, token) for token in self._tokens) > 0


class ControlServer:
    """Serves the control port inside the sidecar's event loop."""

    def __init__(self, sidecar: Sidecar, token: ControlToken, tls: TlsFiles | None, limits: Limits) -> None:
        self._token = token
        self._tls = tls
        self._limits = limits
        self._certificate: Certificate | None = None
        self._application = control_application(sidecar, token)
        #: uvicorn, those whom it serves, and the jobs of both: to serve and to accept.
        self._parts: tuple[_Uvicorn, ControlConnections, asyncio.Task[None], asyncio.Task[None]] | None = None

    async def start(self, address: Address) -> Address:
        """Listen; the address that was bound. Raises OSError, OptionError."""
        self._token.load()
        if self._tls is not None:
            self._certificate = Certificate(self._tls)
        listening = listen(address)
        config = uvicorn.Config(
            self._application,
            access_log=False,
            log_config=None,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=1,
        )
        config.load()
        server = _Uvicorn(config)
        connections = ControlConnections(
            lambda: ControlConnection(
                self._limits, config=config, server_state=server.server_state, app_state={}
            ),
            None if self._certificate is None else self._certificate.context,
            self._limits,
        )
        serving = asyncio.create_task(server.serve(sockets=[]))
        accepting = asyncio.create_task(connections.accept(listening))
        self._parts = server, connections, serving, accepting
        bound = listening.getsockname()
        return Address(bound[0], bound[1])

    def refresh(self) -> None:
        """Follow the certificate's files. Call it about each second."""
        if self._certificate is not None:
            self._certificate.refresh()

    async def stop(self) -> None:
        """Close the port."""
        if self._parts is None:
            return
        server, connections, serving, accepting = self._parts
        accepting.cancel()
        server.should_exit = True
        await serving
        await connections.close()


class _Uvicorn(uvicorn.Server):
    """Leaves signals to the process that it is a part of."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


class _Endpoints:
    """What the control port does."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar

    async def put_config(self, request: Request) -> Response:
        """Run a document, or the running one with a difference, if it is valid and not outdated."""
        encoding = request.headers.get("content-encoding", "identity")
        if encoding not in ("identity", "gzip"):
            return _error(415, f"Content-Encoding: {encoding!r} is neither gzip nor identity")
        try:
            body = await _body(request, MAX_BYTES)
            # A whole document of ten thousand tenants takes half a second, in which calls must go on.
            media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if media_type == MEDIA_TYPE:
                offered = await asyncio.to_thread(read_difference, body, self._sidecar.configuration)
            else:
                offered = await asyncio.to_thread(read_document, body)
            verdict = self._sidecar.configure(offered)
        except WrongBaseError as error:
            return self._conflict(str(error))
        except DocumentTooLargeError as error:
            return _error(413, str(error))
        except DocumentError as error:
            return _error(422, str(error))
        if verdict is Verdict.OUTDATED:
            return self._conflict(f"generation {offered.generation} does not follow the one that runs")
        return JSONResponse(self._running())

    def _running(self) -> dict[str, object]:
        running = self._sidecar.configuration
        return {
            "generation": None if running is None else running.generation,
            "hash": None if running is None else running.hash,
        }

    def _conflict(self, problem: str) -> Response:
        return JSONResponse({"error": problem, **self._running()}, 409)

    async def put_overload(self, request: Request) -> Response:
        """Take the operator's word on overload."""
        try:
            word = OverloadRequest.model_validate_json(await _body(request, _MAX_SMALL_BODY))
        except DocumentTooLargeError as error:
            return _error(413, str(error))
        except ValidationError as error:
            return _error(422, describe_problems(error))
        armed = self._sidecar.renew_overload(armed=word.armed, lease_s=word.lease_s, reason=word.reason)
        running = self._sidecar.configuration
        return JSONResponse({"armed": armed, "generation": None if running is None else running.generation})

    async def get_state(self, _request: Request) -> Response:
        """Everything people want to see."""
        return JSONResponse(self._sidecar.state())

    async def healthz(self, _request: Request) -> Response:
        """The event loop turns."""
        return PlainTextResponse("ok\n")

    async def readyz(self, _request: Request) -> Response:
        """Whether calls can be served, else why not."""
        obstacles = self._sidecar.obstacles()
        return JSONResponse({"ready": not obstacles, "reasons": obstacles}, 503 if obstacles else 200)


def control_application(sidecar: Sidecar, token: ControlToken) -> Starlette:
    """The web application of the control port."""

    def guarded(endpoint: _Endpoint) -> _Endpoint:
        async def checked(request: Request) -> Response:
            if not token.matches(request.headers.get("authorization", "")):
                return _error(401, "the control token is missing or wrong")
            connection = getattr(request.state, "connection", None)
            if isinstance(connection, ControlConnection):
                connection.known = True
            try:
                return await endpoint(request)
            except ClientDisconnect:
                return Response(status_code=400)  # for nobody

        return checked

    endpoints = _Endpoints(sidecar)
    return Starlette(
        routes=[
            Route("/config", guarded(endpoints.put_config), methods=["PUT"]),
            Route("/overload", guarded(endpoints.put_overload), methods=["PUT"]),
            Route("/state", guarded(endpoints.get_state), methods=["GET"]),
            Route("/healthz", endpoints.healthz, methods=["GET"]),
            Route("/readyz", endpoints.readyz, methods=["GET"]),
        ]
    )


async def _body(request: Request, limit: int) -> bytes:
    """The whole body. Raises DocumentTooLargeError as soon as it is too long."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise DocumentTooLargeError(f"longer than {limit} bytes")
        parts.append(part)
    return b"".join(parts)


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status)
