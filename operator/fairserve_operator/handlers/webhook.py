"""The webhook that puts a sidecar into Pods which ask for one: its port, and where it learns of their pools.

Every replica answers, also one that waits for the Lease. Answering writes nothing, so a dry run is as safe as
any.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any, Protocol

from aiohttp import web

from fairserve_operator.decide.admission import (
    Answer,
    BadReview,
    NoPool,
    Outcome,
    Pool,
    Request,
    answer,
    ignored,
    read_pool,
    read_review,
)
from fairserve_operator.decide.resources import SERVING_POOL, ObjectKey
from fairserve_operator.errors import ApiServerError, NotFoundError, SetupError
from fairserve_operator.handlers.census import Scope
from fairserve_operator.handlers.certificates import CertificateFolder, CertificateKeeper, Cluster
from fairserve_operator.handlers.measures import Measures
from fairserve_operator.handlers.serving_certificate import ServingCertificate
from fairserve_operator.handlers.store import Store
from fairserve_operator.manifests.injection import Settings
from fairserve_operator.options import OwnCertificate, WebhookOptions

_log = logging.getLogger(__name__)

PATH = "/inject"

#: An API server takes 3 MiB of a request and holds 1.5 MiB of an object; a review has it once for a creation.
_LONGEST_BODY = 3 * 1024 * 1024
#: For a body to come.
_BODY_S = 5.0
#: For a pool that is not known yet to be asked for. An API server waits for us for five seconds.
_LOOKUP_S = 2.5
#: Such questions at a time: whoever reaches the port must not keep the operator from all else.
_LOOKUPS = 2
#: An API server closes a connection that it has no use for after 90 s. If we did first, a call could be lost.
_IDLE_S = 120.0
#: After the end was asked for: until then somebody may still be sent here.
_LINGER_S = 5.0

#: A warning is logged again after that, and no more different ones than these meanwhile: whoever creates Pods
#: writes them.
_LOG_AGAIN_S = 600.0
_LOGGED = 100
#: Of a line, in characters.
_LONGEST_LINE = 1000

_POOL_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


class PoolSource(Protocol):
    """The API server, as far as pools go. Raises errors.ApiServerError or one of its kinds."""

    async def serving_pool(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        """One ServingPool, None where there is none."""
        ...


class Pools:
    """What is known of ServingPools. `store` is what watches have told; who is not in there is asked for,
    because a Pod may come with its pool, and sooner than its pool's event.
    """

    def __init__(self, source: PoolSource, scope: Scope) -> None:
        self.store = Store()
        self._source = source
        self._scope = scope
        self._lookups = asyncio.Semaphore(_LOOKUPS)

    async def find(self, namespace: str, name: str) -> Pool | NoPool:
        """One of them."""
        if self._scope != (None,) and namespace not in self._scope:
            served = ", ".join(str(each) for each in self._scope)
            return NoPool(
                Outcome.REFUSED,
                HTTPStatus.BAD_REQUEST,
                f"the operator serves no ServingPool of namespace {namespace}, only those of {served}: take "
                "the label off, or restrict the webhook's namespaceSelector",
            )
        known = self.store.stored(ObjectKey(SERVING_POOL, namespace, name))
        if known is not None:
            return read_pool(known.resource.spec)
        if not _POOL_NAME.fullmatch(name):
            return Pool(None)
        try:
            async with asyncio.timeout(_LOOKUP_S), self._lookups:
                body = await self._source.serving_pool(namespace, name)
        except NotFoundError:
            return Pool(None)
        except (ApiServerError, TimeoutError) as problem:
            words = str(problem) or "no answer in time"
            return NoPool(
                Outcome.UNAVAILABLE,
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"can't look for ServingPool {namespace}/{name}: {words}; try again",
            )
        return Pool(None) if body is None else read_pool(body.get("spec") or {})


class Logged:
    """Which warnings were logged lately: the Pods of one ReplicaSet all have the same."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def is_due(self, warning: str, now: float) -> bool:
        """Whether to log it, at this time in seconds of a clock that never goes back."""
        self._until = {each: until for each, until in self._until.items() if until > now}
        if warning in self._until or len(self._until) >= _LOGGED:
            return False
        self._until[warning] = now + _LOG_AGAIN_S
        return True


class WebhookCluster(Cluster, PoolSource, Protocol):
    """The API server, as far as the webhook goes."""


class Webhook:
    """The port. `start` it, and keep `run` running. Once `leaving` says so it is no longer ready, and holds
    no connection longer than for a call.
    """

    def __init__(
        self,
        cluster: WebhookCluster,
        namespace: str,
        scope: Scope,
        options: WebhookOptions,
        measures: Measures,
        leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        self.pools = Pools(cluster, scope)
        self._options = options
        self._measures = measures
        self._leaving = leaving
        self._logged = Logged()
        self._tls = ServingCertificate()
        self._source: CertificateKeeper | CertificateFolder
        if isinstance(options.certificate, OwnCertificate):
            self._source = CertificateKeeper(cluster, namespace, options.certificate, self._tls)
        else:
            self._source = CertificateFolder(options.certificate, self._tls)
        # A body of full length takes a second to read and to answer, in which the Lease must be renewed.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="admission")
        application = web.Application(client_max_size=_LONGEST_BODY)
        application.add_routes([web.post(PATH, self._inject)])
        self._runner = web.AppRunner(
            application,
            access_log=None,
            handle_signals=False,
            keepalive_timeout=_IDLE_S,
            shutdown_timeout=_LINGER_S,
        )

    async def start(self) -> None:
        """Listen. Raises SetupError for an address that can't be bound."""
        self._measures.certificate_expires_at = self._expires_at
        await self._runner.setup()
        host, port = self._options.listen
        try:
            await web.TCPSite(self._runner, host, port, ssl_context=self._tls.context).start()
        except OSError as problem:
            raise SetupError(f"--webhook {host}:{port}: {problem.strerror}") from problem

    async def run(self) -> None:
        """Look after the certificate until cancelled."""
        await self._source.run()

    async def stop(self) -> None:
        """Close the port; while we are leaving in order not before everybody may know that we go."""
        if self._leaving():
            await asyncio.sleep(_LINGER_S)
        await self._runner.cleanup()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def unready(self) -> list[str]:
        """Why nobody should be sent here."""
        if self._leaving():
            return ["shutting down"]
        expires_at = self._expires_at()
        if expires_at is None:
            return ["the webhook has no certificate yet"]
        return ["the webhook's certificate has expired"] if expires_at <= time.time() else []

    def _expires_at(self) -> float | None:
        return None if self._tls.current is None else self._tls.current.expires_at

    async def _inject(self, request: web.Request) -> web.Response:
        began = time.monotonic()
        outcome, response = await self._respond(request)
        self._measures.admitted(outcome.value, time.monotonic() - began)
        if self._leaving():
            response.force_close()
        return response

    async def _respond(self, request: web.Request) -> tuple[Outcome, web.Response]:
        if request.content_type != "application/json":
            return _bad(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Content-Type must be application/json")
        try:
            async with asyncio.timeout(_BODY_S):
                body = await request.read()
        except TimeoutError:
            return _bad(HTTPStatus.REQUEST_TIMEOUT, "the body didn't come in time")
        except web.HTTPRequestEntityTooLarge:
            return _bad(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is longer than {_LONGEST_BODY} bytes")
        return await self.reply(body)

    async def reply(self, body: bytes) -> tuple[Outcome, web.Response]:
        """The answer to a request's body."""
        in_thread = functools.partial(asyncio.get_running_loop().run_in_executor, self._thread)
        review = await in_thread(read_review, body)
        if isinstance(review, BadReview):
            return _bad(HTTPStatus.BAD_REQUEST, review.message)
        pool = None if review.pool is None else await self.pools.find(review.namespace, review.pool)
        try:
            answered, text = await in_thread(_rendered, review, pool, self._options.sidecar)
        except RecursionError:
            return _bad(HTTPStatus.BAD_REQUEST, "request.object is nested too deeply")
        if answered.message:
            _log.info("refused: %s", _line(answered.message))
        # A controller that creates Pods doesn't hand on what it is warned of.
        for warning in map(_line, answered.warnings):
            if self._logged.is_due(warning, time.monotonic()):
                _log.warning("%s", warning)
        return answered.outcome, web.Response(body=text, content_type="application/json")


def _rendered(review: Request, pool: Pool | NoPool | None, settings: Settings) -> tuple[Answer, bytes]:
    if review.pool is None or pool is None:
        answered = ignored(review)
    else:
        answered = answer(review, review.pool, pool, settings)
    return answered, json.dumps(answered.body).encode()


def _line(text: str) -> str:
    """For the log, whatever a Pod's author wrote there."""
    return "".join(each if each.isprintable() else "?" for each in text[:_LONGEST_LINE])


def _bad(status: HTTPStatus, message: str) -> tuple[Outcome, web.Response]:
    return Outcome.BAD, web.Response(status=status, text=message + "\n")
