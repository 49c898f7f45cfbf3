"""One sidecar: its parts, how they hang together, and what may be done to it from outside.

`Sidecar` is the same whether a process of its own runs it (`process`) or `fairserve up` holds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairserve.config import OverloadConfig
from fairserve.core.errors import SnapshotError
from fairserve.core.scheduler import Scheduler
from fairserve.core.settings import Settings
from fairserve.core.state import TenantView
from fairserve.core.window import DispatchWindow
from fairserve.overload.lease import LeaseState, OverloadLease, OverloadSource
from fairserve.overload.machine import OverloadMachine
from fairserve.overload.saturation import arming
from fairserve.overload.settings import OnStale, Sample
from fairserve.sidecar.calllog import CallLog
from fairserve.sidecar.configuration import Configuration, DocumentError, Verdict, judge, read_file
from fairserve.sidecar.control import ControlServer, ControlToken
from fairserve.sidecar.dispatch import Dispatcher
from fairserve.sidecar.metrics import Gauges, Metrics
from fairserve.sidecar.options import OptionError, SidecarOptions
from fairserve.sidecar.proxy import Proxy
from fairserve.sidecar.recent import Recent
from fairserve.sidecar.server import Server
from fairserve.sidecar.snapshot import SnapshotFile
from fairserve.sidecar.upstream import UpstreamPool
from fairserve.sidecar.watch import EngineWatch

if TYPE_CHECKING:
    from fairserve.sidecar.spans import WaitSpans

_LOG = logging.getLogger(__name__)

#: How often overload is evaluated and running calls are charged for their progress.
_TICK_S = 0.25
_SECOND_S = 1.0
#: What a call that is cut short is told may take so long to leave.
_LAST_WORDS_S = 1.0


class Sidecar:
    """Everything of one pod."""

    def __init__(self, options: SidecarOptions, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises OptionError for an option that needs what is not installed."""
        rng = random.Random(options.seed)  # noqa: S311 - jitter, not secrets
        self._options = options
        self._clock = clock
        self._configuration: Configuration | None = None
        self._lease = OverloadLease(stale_after_s=30.0, on_stale=OnStale.HOLD)
        #: Judges this pod's own saturation; None where that does not arm.
        self._local: OverloadMachine | None = None
        self._overload = LeaseState(armed=False, source=OverloadSource.NONE, reason="", remaining_s=0.0)
        self._tasks: list[asyncio.Task[None]] = []
        self.metrics = Metrics()
        self.metrics.gauges = self._gauges
        self.metrics.tenants = self._tenants
        self._service = Recent(period_s=30.0, periods=10)
        self._refused = Recent(period_s=60.0, periods=60)
        self.scheduler = Scheduler(Settings())
        window = DispatchWindow(maximum=options.max_window, initial=min(8, options.max_window))
        self.dispatcher = Dispatcher(
            self.scheduler,
            window,
            self.metrics,
            clock,
            engine_wait_s=options.engine_wait_s,
            engine_silence_s=options.engine_silence_s,
        )
        path = options.snapshot_file
        self._snapshot = None if path is None else SnapshotFile(path)
        self._call_log = _call_log(options.call_log)
        self._spans = _wait_spans(options.otlp_endpoint)
        self.pool = UpstreamPool(options.engine, options.limits.connect_timeout_s, clock)
        self.watch = EngineWatch(self.pool, self.dispatcher, options.poll_interval_s, clock)
        self.proxy = Proxy(
            dispatcher=self.dispatcher,
            pool=self.pool,
            engine=options.engine,
            limits=options.limits,
            metrics=self.metrics,
            is_unknown=self.watch.is_unknown,
            call_log=self._call_log,
            observers=tuple(observer for observer in (self._call_log, self._spans) if observer is not None),
            rng=rng,
            engine_priority=options.engine_priority,
            clock=clock,
        )
        self._server = Server(self.proxy, options.limits, clock)
        self._control = ControlServer(
            self, ControlToken(options.control_token_file), options.control_tls, options.limits
        )
        self.data_address = options.listen  #: where clients connect; the real port once started
        self.control_address = options.control  #: where the operator connects; likewise

    # -- life ---------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read what is on disk, listen, and begin to watch the engine. Raises OSError for an address that
        can't be bound, OptionError for a control token, certificate or call log that
        can't be used.
        """
        if self._call_log is not None:
            self._call_log.open()
        self._boot()
        self.control_address = await self._control.start(self._options.control)
        self.data_address = await self._server.start(self._options.listen)
        jobs = [self.watch.run(), self._every(_TICK_S, self._tick), self._every(_SECOND_S, self._second)]
        if self._snapshot is not None:
            jobs.append(self._keep(self._snapshot))
        if self._call_log is not None:
            jobs.append(self._call_log.run())
        self._tasks = [asyncio.create_task(job) for job in jobs]
        _LOG.info("serving on %s, control on %s", self.data_address, self.control_address)

    async def stop(self, grace_s: float = 0.0) -> None:
        """Accept no connection more, let what runs finish for up to `grace_s`, keep the state, and end.

        A call that comes over an open connection meanwhile is served, as the connection's last; later than
        half of `grace_s` it would hardly end in time, and is told to go elsewhere.
        """
        self.proxy.draining = True
        self.proxy.turns_away_at = self._clock() + grace_s / 2.0
        self._server.stop_accepting()
        try:
            async with asyncio.timeout(grace_s):
                await self._server.emptied()
        except TimeoutError:
            if self._server.connections:
                _LOG.warning("%d connections are cut after %g s", len(self._server.connections), grace_s)
        self.dispatcher.hold()  # what is cut makes room for nobody
        self._server.cut()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await self._server.emptied()
        self._server.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.pool.close()
        if self._call_log is not None:
            await self._call_log.flush()
        if self._spans is not None:
            await self._spans.stop()
        await self._control.stop()
        if self._snapshot is not None:
            self._snapshot.write(self.scheduler.snapshot(self._clock()))

    async def broken(self) -> None:
        """Wait until one of the background jobs ends, which none does, and raise why."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    # -- being told ---------------------------------------------------------------------------------

    def configure(self, offered: Configuration) -> Verdict:
        """Run another configuration from the next decision on, if it is newer. Raises DocumentError."""
        verdict = judge(self._configuration, offered)
        if verdict is Verdict.ADOPT:
            document = offered.document
            self.scheduler.configure(offered.settings)
            self._lease.configure(document.overload.stale_after_s, document.overload.on_stale)
            self._configure_local(document.overload)
            self._configuration = offered
            self.proxy.table = offered.table
            if self._call_log is not None:
                self._call_log.salt = bytes.fromhex(document.identity.salt)
            self._evaluate_overload()
            _LOG.info(
                "configuration %d of %s runs (%s)", offered.generation, document.pool, offered.hash[:12]
            )
        return verdict

    def renew_overload(self, *, armed: bool, lease_s: float, reason: str) -> bool:
        """Take the operator's word on overload. Whether OIT is armed now."""
        self._lease.renew(armed, lease_s, self._clock(), reason)
        self._evaluate_overload()
        return self.scheduler.armed

    # -- being asked --------------------------------------------------------------------------------

    @property
    def configuration(self) -> Configuration | None:
        """What runs; None before the first configuration."""
        return self._configuration

    def obstacles(self) -> list[str]:
        """Why this pod is not ready; empty if it is."""
        reasons = []
        if self._configuration is None:
            reasons.append("no configuration")
        if self.watch.problem is not None:
            reasons.append(self.watch.problem)
        if self.proxy.draining:
            reasons.append("shutting down")
        return reasons

    def state(self) -> dict[str, Any]:
        """For people and tests, as JSON. It names no user."""
        now = self._clock()
        configuration, sample, dump = self._configuration, self.watch.sample, self.scheduler.dump(now)
        refused = self.metrics.refused_calls()
        return {
            "pool": None if configuration is None else configuration.document.pool,
            "generation": None if configuration is None else configuration.generation,
            "hash": None if configuration is None else configuration.hash,
            "policy": dump["policy"],
            "mode": dump["mode"],
            "overload": {
                "armed": self.scheduler.armed,
                "source": self._overload.source.value,
                "reason": self._overload.reason,
                "lease_remaining_s": self._overload.remaining_s,
            },
            "window": {"size": self.dispatcher.window.size, "inflight": self.scheduler.running},
            "queued": self.scheduler.queued,
            "running": self.scheduler.running,
            "oldest_wait_s": dump["oldest_wait_s"],
            "saturation": self.watch.saturation(now),
            "engine": {
                "up": self.watch.problem is None,
                "problem": self.watch.problem,
                "signal_age_s": self.watch.age_s(now),
                "running": None if sample is None else sample.running,
                "waiting": None if sample is None else sample.waiting,
                "kv_use": None if sample is None else sample.kv_use,
                "kv_tokens": None if sample is None else sample.kv_tokens,
            },
            "tenants": [{**tenant, "refused": refused.get(tenant["name"], 0)} for tenant in dump["tenants"]],
            "interactions": {"open": dump["open_interactions"]},
            "realtime_sessions": len(self.proxy.sessions),
            "applications": dump["applications"],
            "recent": {
                "service_5m": self._service.sums(self.metrics.service()),
                "refused_interactions_1h": self._refused.sums(self.metrics.refused_interactions()),
            },
        }

    def _restore(self, snapshot: SnapshotFile) -> None:
        kept = snapshot.read()
        if kept is None:
            return
        try:
            self.scheduler.restore(kept.state, self._clock() - kept.age_s)
        except SnapshotError as error:
            _LOG.error("the snapshot is not used: %s: %s", snapshot.path, error)
        else:
            _LOG.info("the snapshot of %.0f s ago is restored", kept.age_s)

    async def _keep(self, snapshot: SnapshotFile) -> None:
        while True:
            await asyncio.sleep(self._options.snapshot_interval_s)
            await asyncio.to_thread(snapshot.write, self.scheduler.snapshot(self._clock()))

    # -- inside -------------------------------------------------------------------------------------

    def _boot(self) -> None:
        if self._options.config_file is not None:
            try:
                self.configure(read_file(self._options.config_file))
            except DocumentError as error:
                _LOG.error("waiting for PUT /config, because the boot file can't be used: %s", error)
        if self._snapshot is not None:
            self._restore(self._snapshot)

    async def _every(self, interval_s: float, job: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(interval_s)
            job()

    def _tick(self) -> None:
        self.dispatcher.tick()
        self._evaluate_overload()

    def _second(self) -> None:
        self.dispatcher.expire()
        self.pool.reap()
        self._control.refresh()
        now = self._clock()
        self.metrics.experience.turn(now)
        if self._service.due(now):
            self._service.close(self.metrics.service(), now)
        if self._refused.due(now):
            self._refused.close(self.metrics.refused_interactions(), now)

    def _evaluate_overload(self) -> None:
        """Armed by the operator's lease, or by this pod's own saturation where that is on."""
        now = self._clock()
        state = self._lease.describe(now)
        if self._local is not None:
            verdict = self._local.observe([Sample("saturation", self.watch.saturation(now))], now)
            if verdict.armed and not state.armed:
                state = LeaseState(True, OverloadSource.LOCAL, verdict.message, 0.0)
        if state.armed != self.scheduler.armed:
            _LOG.info("OIT is %s: %s (%s)", "armed" if state.armed else "off", state.source, state.reason)
        self.scheduler.set_armed(state.armed)
        self._overload = state

    def _configure_local(self, overload: OverloadConfig) -> None:
        settings = arming(overload.hold_down_s)
        if not overload.arm_locally:
            self._local = None
        elif self._local is None:
            self._local = OverloadMachine(settings)
        else:
            self._local.configure(settings)

    def _tenants(self) -> Iterator[TenantView]:
        return self.scheduler.tenant_views(self._clock())

    def _gauges(self) -> Gauges:
        now = self._clock()
        configuration = self._configuration
        namespace, _, pool = (
            ("", "", "") if configuration is None else configuration.document.pool.partition("/")
        )
        return Gauges(
            pool=(namespace, pool) if pool else None,
            generation=None if configuration is None else configuration.generation,
            armed=self.scheduler.armed,
            queued=self.scheduler.queued,
            oldest_wait_s=self.scheduler.oldest_wait(now),
            running=self.scheduler.running,
            window=self.dispatcher.window.size,
            saturation=self.watch.saturation(now),
            engine_up=self.watch.problem is None,
            signal_age_s=self.watch.age_s(now),
            unknown_paths=self.watch.unknown_paths,
            realtime_sessions=len(self.proxy.sessions),
        )


def _call_log(path: Path | None) -> CallLog | None:
    if path is None:
        return None
    return CallLog(None if str(path) == "-" else path)


def _wait_spans(endpoint: str | None) -> WaitSpans | None:
    """Imports OpenTelemetry only where it is asked for. Raises OptionError if it is not installed."""
    if endpoint is None:
        return None
    try:
        from fairserve.sidecar.spans import WaitSpans
    except ModuleNotFoundError as error:
        raise OptionError(
            f"--otlp-endpoint needs {error.name}, which is not installed: pip install 'fairserve[otel]'"
        ) from error
    return WaitSpans(endpoint)
