"""A span of each call's wait, from its arrival to its dispatch, sent to an OpenTelemetry collector.

Needs the extra `otel`; only `--otlp-endpoint` imports this module. The span is a child of the caller's, and
tells tenant, application and what the wait came to: no key, prompt or name that a client gave. It is made
when the call ends, as only then it is known which dispatch was the last, and so before the caller's own span
ends. A thread sends: a collector that is slow or gone costs spans and never a call's time.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from fairserve import __version__
from fairserve.core.calls import Outcome
from fairserve.sidecar.messages import Request
from fairserve.sidecar.observers import EndedCall

_LOG = logging.getLogger(__name__)

NAME = "fairserve.wait"
#: Where a collector takes spans, below its URL.
_PATH = "/v1/traces"
#: How long the last spans may take to be sent, seconds.
_FLUSH_S = 3.0
#: What goes wrong with a collector is said so often, seconds.
_SAY_EVERY_S = 60.0
_PROPAGATOR = TraceContextTextMapPropagator()


class WaitSpans:
    """Makes spans and sends them. Headers, certificates, sampling and batches follow OpenTelemetry's own
    environment variables.
    """

    def __init__(self, endpoint: str) -> None:
        """`endpoint`: the collector's URL without `/v1/traces`. Starts the thread that sends."""
        resource = Resource.create({"service.name": "fairserve-sidecar", "service.version": __version__})
        # The environment's word comes last, so that a pod can name itself.
        self._provider = TracerProvider(
            resource=resource.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        self._exporter = trace_exporter.OTLPSpanExporter(endpoint + _PATH)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("fairserve", __version__)
        _hush()

    def ended(self, ended: EndedCall) -> None:
        """A call has ended: make the span of its wait."""
        call, times = ended.call, ended.times
        wait_s = times.duration_s if ended.waiting or times.wait_s is None else times.wait_s
        attributes: dict[str, str | int | float] = {
            "fairserve.tenant": call.tenant,
            "fairserve.application": call.application,
            "fairserve.outcome": ended.outcome.value if ended.waiting else "dispatched",
            "fairserve.queue_wait_s": wait_s,
            "fairserve.input_tokens_estimate": call.input_tokens,
        }
        if ended.outcome in (Outcome.REFUSED, Outcome.EVICTED):
            attributes["fairserve.refusal_reason"] = ended.reason
        arrived_ns = time.time_ns() - _ns(times.duration_s)
        span = self._tracer.start_span(
            NAME, context=caller_context(ended.request), attributes=attributes, start_time=arrived_ns
        )
        span.end(arrived_ns + _ns(wait_s))

    async def stop(self) -> None:
        """Send what is left, for a few seconds at most."""
        # A thread that the process doesn't wait for: a collector may hang for longer than the bound.
        last = threading.Thread(target=self._provider.shutdown, daemon=True)
        last.start()
        await asyncio.to_thread(last.join, _FLUSH_S)
        if last.is_alive():
            _LOG.warning("the last spans are lost: the collector took more than %g s", _FLUSH_S)
            self._exporter.shutdown()  # type: ignore[no-untyped-call]  # it tries no more


def caller_context(request: Request) -> Context:
    """The trace that a call is part of; an empty one without a valid `traceparent`, or with several."""
    parents = [value for name, value in request.headers if name == b"traceparent"]
    if len(parents) != 1:
        return Context()
    states = [value.decode("latin-1") for name, value in request.headers if name == b"tracestate"]
    carrier = {"traceparent": parents[0].decode("latin-1"), "tracestate": states}
    return _PROPAGATOR.extract(carrier, Context())


class _Seldom(logging.Filter):
    """Lets one record pass now and then: the exporter has one for every try."""

    def __init__(self) -> None:
        super().__init__()
        self._said_at = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it has been quiet for long enough."""
        if record.created - self._said_at < _SAY_EVERY_S:
            return False
        self._said_at = record.created
        return True


def _hush() -> None:
    """Let the exporter speak seldom from here on. For good: its threads may try on after the end."""
    exporters = logging.getLogger(trace_exporter.__name__)
    for before in [known for known in exporters.filters if isinstance(known, _Seldom)]:
        exporters.removeFilter(before)
    exporters.addFilter(_Seldom())


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
