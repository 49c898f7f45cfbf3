"""An OpenTelemetry collector that takes spans over OTLP/HTTP on loopback and keeps them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass
class FakeCollector:
    """Listens on loopback while it is entered."""

    spans: list[Span] = field(default_factory=list)
    resource: dict[str, object] = field(default_factory=dict)  #: of the last batch
    told: bytes = b""  #: every byte that came
    asked: int = 0  #: batches that came
    answers: asyncio.Event = field(default_factory=asyncio.Event)  #: while it is clear, batches wait
    url: str = ""
    _runner: web.AppRunner | None = None

    async def __aenter__(self) -> FakeCollector:
        self.answers.set()
        app = web.Application()
        app.router.add_post("/v1/traces", self._take)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.asked += 1
        await self.answers.wait()
        self.told += body
        for batch in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resource = values(batch.resource.attributes)
            for scope in batch.scope_spans:
                self.spans += scope.spans
        return web.Response(content_type="application/x-protobuf")


def values(attributes: list[KeyValue]) -> dict[str, object]:
    """Attributes by name."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
