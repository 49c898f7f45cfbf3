"""The operator's own port: probes for the kubelet, figures for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from fairserve_operator.errors import SetupError
from fairserve_operator.handlers.measures import Measures


class ObservationServer:
    """`/healthz`, `/readyz` and `/metrics`. `unready` says why others that can't be seen in the measures
    are not ready.
    """

    def __init__(self, measures: Measures, unready: Callable[[], list[str]] = list) -> None:
        self._measures = measures
        self._unready = unready
        application = web.Application()
        application.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
            ]
        )
        self._runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=1.0)

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises SetupError for an address that can't be bound."""
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as problem:
            raise SetupError(f"--listen {host}:{port}: {problem.strerror}") from problem

    async def stop(self) -> None:
        """Close the port."""
        await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        """The event loop turns."""
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        """Whether all objects are known, and the webhook can answer. The one that waits for the Lease is
        ready to act, hence ready.
        """
        view = self._measures.view()
        reasons = [*([] if view.complete else ["not all objects are known yet"]), *self._unready()]
        body = {"ready": not reasons, "acting": view.acting, "reasons": reasons}
        return web.json_response(body, status=503 if reasons else 200)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._measures.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})
