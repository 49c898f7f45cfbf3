"""Scenario files: YAML in, a `Scenario` out. The only place that knows their format.

docs/concepts/simulator.md describes the fields; an error names file, line and field, and nothing is run.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from fairserve.core import (
    ApplicationSettings,
    InteractionRules,
    Limit,
    Profile,
    QueueBounds,
    Settings,
    TenantSettings,
    ThrottlingMode,
    TokenWeights,
)
from fairserve.core.errors import SettingsError
from fairserve.core.settings import MAX_WEIGHT, MIN_WEIGHT, MOST, Learning, validate
from fairserve.overload.settings import OnStale, OverloadSettings, SignalSettings
from fairserve.sim import distributions as dist
from fairserve.sim import paper, workload
from fairserve.sim.costs import VTC_A10G, StepCost
from fairserve.sim.documents import Document, Number, Source, Whole, read_document, read_with_source
from fairserve.sim.errors import InputError
from fairserve.sim.scenario import (
    Balancing,
    Engines,
    Faults,
    Overload,
    Restart,
    Scenario,
    Signal,
    Slowdown,
    Span,
)
from fairserve.sim.steps import EngineLimits
from fairserve.sim.traces import TraceOptions, read_trace, trace_workload

Positive = Annotated[Number, Field(gt=0.0)]
NotNegative = Annotated[Number, Field(ge=0.0)]
Share = Annotated[Number, Field(ge=0.0, le=1.0)]
Count = Annotated[Whole, Field(ge=1)]
# The core's own bounds, so that what it would refuse has a line.
Weight = Annotated[Number, Field(ge=MIN_WEIGHT, le=MAX_WEIGHT)]
Seconds = Annotated[Number, Field(ge=1e-3, le=MOST)]
Many = Annotated[Whole, Field(ge=1, le=MOST)]
Length = Annotated[Number, Field(ge=0.0, le=dist.MOST_TOKENS)]
PositiveLength = Annotated[Number, Field(gt=0.0, le=dist.MOST_TOKENS)]


class LogNormalFields(Document):
    """exp(N(mu, sigma)) / divide, cut to low..high; `median` may be given instead of mu. No draw overflows
    with these bounds of mu and sigma.
    """

    mu: Annotated[Number, Field(ge=-100.0, le=100.0)] | None = None
    median: PositiveLength | None = None
    sigma: Annotated[Number, Field(ge=0.0, le=20.0)]
    divide: Positive = 1.0
    low: Length = 0.0
    high: PositiveLength = dist.MOST_TOKENS

    @model_validator(mode="after")
    def _one_middle(self) -> Self:
        if (self.mu is None) == (self.median is None):
            raise ValueError("one of mu and median is needed")
        return self

    @field_validator("high")
    @classmethod
    def _above(cls, high: float, info: ValidationInfo) -> float:
        if high < info.data.get("low", 0.0):
            raise ValueError("high must not be below low")
        return high


class GammaFields(Document):
    """Mean and coefficient of variation."""

    mean: PositiveLength
    cv: Annotated[Number, Field(ge=0.0, le=100.0)] = 1.0


class DistributionFields(Document):
    """Exactly one of these; a plain number is a constant."""

    constant: Length | None = None
    uniform: tuple[Length, Length] | None = None
    lognormal: LogNormalFields | None = None
    gamma: GammaFields | None = None
    choice: Annotated[dict[Length, Weight], Field(min_length=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _number(cls, data: Any) -> Any:
        return data if isinstance(data, dict | cls) else {"constant": data}

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = self.model_fields_set
        if len(given) != 1 or getattr(self, min(given)) is None:
            raise ValueError("give exactly one of constant, uniform, lognormal, gamma, choice")
        if self.uniform is not None and self.uniform[0] > self.uniform[1]:
            raise ValueError("uniform: the first value is the smaller one")
        return self

    def value(self) -> dist.Distribution:
        """The distribution."""
        if self.uniform is not None:
            return dist.Uniform(*self.uniform)
        if self.gamma is not None:
            return dist.Gamma(self.gamma.mean, self.gamma.cv)
        if self.choice is not None:
            return dist.Choice(tuple(self.choice), tuple(self.choice.values()))
        if self.lognormal is not None:
            fields = self.lognormal
            mu = fields.mu if fields.mu is not None else math.log(fields.median or 1.0)
            return dist.LogNormal(mu, fields.sigma, fields.divide, fields.low, fields.high)
        return dist.Constant(self.constant or 0.0)


def _counts(fields: DistributionFields) -> DistributionFields:
    # Tails of the others are cut to 1 when they are drawn; a 0 that somebody wrote is a slip.
    written = (fields.constant, *(fields.uniform or ()), *(fields.choice or ()))
    if any(value is not None and round(value) < 1 for value in written):
        raise ValueError("must be at least 1")
    return fields


#: Of what there is at least one: calls of an interaction, tokens.
CountFields = Annotated[DistributionFields, AfterValidator(_counts)]


class CostFields(Document):
    """Coefficients in ms; see sim.costs."""

    step_ms: NotNegative = 10.0
    scale: NotNegative = 1.0
    prompt: NotNegative = 0.21
    output: NotNegative = 0.10
    cross: NotNegative = 0.004
    square: NotNegative = 0.0032
    first: NotNegative = 1.15

    @model_validator(mode="after")
    def _takes_time(self) -> Self:
        if self.step_ms == 0.0 and (self.scale == 0.0 or self.output == 0.0):
            raise ValueError("a step must take time: step_ms, or scale and output, above 0")
        return self

    def value(self) -> StepCost:
        """The calibration."""
        return StepCost(
            self.step_ms, self.scale, self.prompt, self.output, self.cross, self.square, self.first
        )


class CalibrationFile(Document):
    """What `fairserve sim calibrate` writes."""

    cost: CostFields
    max_num_seqs: Count | None = None
    max_num_batched_tokens: Count | None = None
    kv_tokens: Count | None = None
    max_model_len: Count | None = None
    held_back: dict[str, Any] = Field(default_factory=dict)
    measured: dict[str, Any] = Field(default_factory=dict)


class EngineFields(Document):
    """The pods."""

    count: Count = 1
    calibration: str | CostFields = "vtc-a10g"  #: `vtc-a10g`, a file beside the scenario, or coefficients
    speed: Positive = 1.0  #: times as fast as its calibration
    max_num_seqs: Count = 64
    max_num_batched_tokens: Count = 2048
    kv_tokens: Count = 65_536
    max_model_len: Count = 8192
    block_tokens: Count = 16
    prefix_cache_share: Share = 0.0
    balancing: Balancing = Balancing.ROUND_ROBIN
    max_window: Count = 256
    sampling_s: Positive = 0.25

    @model_validator(mode="after")
    def _possible(self) -> Self:
        self.limits()
        return self

    def limits(self) -> EngineLimits:
        """Sizes. Raises ValueError for impossible ones."""
        return EngineLimits(
            self.max_num_seqs,
            self.max_num_batched_tokens,
            self.kv_tokens,
            self.max_model_len,
            self.block_tokens,
        )


class LimitFields(Document):
    """An interaction limit."""

    count: Annotated[Whole, Field(ge=1, le=10**9)]
    window_s: Seconds


class ProfileFields(Document):
    """A typical call."""

    input_tokens: PositiveLength
    output_tokens: PositiveLength
    system_tokens: Length = 0.0


class LearningFields(Document):
    """How a learned profile follows the traffic."""

    min_samples: Many = 50
    max_factor_per_hour: Annotated[Number, Field(ge=1.0, le=1e9)] = 4.0


class ApplicationFields(Document):
    """An application: what its calls are like, and what the scheduler is told of it."""

    input_tokens: CountFields
    output_tokens: CountFields
    system_tokens: Annotated[Whole, Field(ge=0, le=dist.MOST_TOKENS)] = 0
    profile: ProfileFields | None = None  #: default: the means of 1,000 drawn calls
    learning: LearningFields | None = None  #: None: the profile stays
    weight: Weight = 1.0
    per_user: LimitFields | None = None
    per_tenant: LimitFields | None = None
    total: LimitFields | None = None
    idle_timeout_s: Annotated[Positive, Field(le=MOST)] = 300.0
    max_calls: Many = 100
    max_duration_s: Annotated[Positive, Field(le=MOST)] = 3600.0


class TenantFields(Document):
    """A tenant, as the scheduler is told."""

    weight: Weight = 1.0
    per_user: LimitFields | None = None
    total: LimitFields | None = None
    max_requests: Many = 10_000
    max_wait_s: Seconds = 600.0


class TokenWeightFields(Document):
    """Prices."""

    input: Weight = 1.0
    cached: Annotated[Number, Field(ge=0.0, le=MAX_WEIGHT)] = 0.1
    system: Weight = 1.0
    output: Weight = 2.0


class SchedulerFields(Document):
    """What the scheduler is told besides tenants and applications. The policy is chosen by the command."""

    mode: ThrottlingMode = ThrottlingMode.ENFORCE
    normalisation: Share = 0.8
    token_weights: TokenWeightFields = TokenWeightFields()
    continuation_head_start: Annotated[Number, Field(ge=0.0, le=1e6)] = 1.0


def _after_start(stop_s: float, info: ValidationInfo) -> float:
    if stop_s <= info.data.get("start_s", 0.0):
        raise ValueError("must be after start_s")
    return stop_s


class ArrivalFields(Document):
    """When a user's interactions begin."""

    kind: workload.ArrivalKind = workload.ArrivalKind.POISSON
    rate_per_s: NotNegative = 0.1
    cv: Annotated[Number, Field(ge=0.0, le=100.0)] = 1.0
    start_s: NotNegative = 0.0
    stop_s: Annotated[Positive, AfterValidator(_after_start)] | None = None
    think_s: DistributionFields = DistributionFields(uniform=(1.0, 6.0))


class BehaviourFields(Document):
    """How clients behave."""

    retry: workload.Retry = workload.Retry.HONOUR
    max_retries: Annotated[Whole, Field(ge=0)] = 10
    retry_delay_s: Positive = 1.0
    cancel_share: Share = 0.0
    cancel_at: Share = 0.5
    patience_s: Positive | None = None
    labelled_as: str | None = None
    interaction_ids: workload.InteractionIds = workload.InteractionIds.OWN


class ClassFields(Document):
    """A class of users."""

    name: str
    users: Count
    tenant: str
    applications: dict[str, Positive]
    arrivals: ArrivalFields = ArrivalFields()
    calls: CountFields = DistributionFields(constant=1)
    gap_s: DistributionFields = DistributionFields(uniform=(1.0, 6.0))
    behaviour: BehaviourFields = BehaviourFields()
    tenant_per_user: bool = False
    good: bool = True


class SignalFields(Document):
    """An overload signal."""

    name: Signal
    threshold: Positive
    clear_threshold: Positive
    for_s: NotNegative = 0.0


class OverloadFields(Document):
    """How OIT is armed."""

    signals: Annotated[tuple[SignalFields, ...], Field(min_length=1)] = (
        SignalFields(name=Signal.QUEUE_WAIT, threshold=2.0, clear_threshold=0.5, for_s=2.0),
        SignalFields(name=Signal.SATURATION, threshold=1.0, clear_threshold=0.8, for_s=5.0),
    )
    interval_s: Positive = 1.0
    hold_down_s: NotNegative = 10.0
    stale_after_s: Positive = 30.0
    on_stale: OnStale = OnStale.HOLD


class SpanFields(Document):
    """A stretch of time."""

    start_s: NotNegative
    stop_s: Annotated[Positive, AfterValidator(_after_start)]


class SlowdownFields(SpanFields):
    """An engine takes `factor` times as long."""

    factor: Positive
    pod: Annotated[Whole, Field(ge=0)] | None = None


class RestartFields(Document):
    """A pod dies and starts again."""

    at_s: NotNegative
    pod: Annotated[Whole, Field(ge=0)] = 0
    snapshot_age_s: NotNegative = 0.0


class FaultFields(Document):
    """What goes wrong."""

    sensor_lag_s: NotNegative = 0.0
    blind: tuple[SpanFields, ...] = ()
    slowdowns: tuple[SlowdownFields, ...] = ()
    restarts: tuple[RestartFields, ...] = ()


class ScenarioFile(Document):
    """A whole scenario."""

    name: str
    duration_s: Positive = 60.0
    horizon_s: Positive = 3600.0
    engines: EngineFields = EngineFields()
    scheduler: SchedulerFields = SchedulerFields()
    tenants: dict[str, TenantFields] = Field(default_factory=dict)
    applications: dict[str, ApplicationFields] = Field(default_factory=dict)
    classes: tuple[ClassFields, ...] = ()
    paper: bool = False  #: the paper's workload instead of classes
    trace: TraceOptions | None = None
    overload: OverloadFields | None = OverloadFields()
    faults: FaultFields = FaultFields()

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: tuple[ClassFields, ...]) -> tuple[ClassFields, ...]:
        names = [users.name for users in classes]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two classes are called {name}")
        return classes


def read_scenario(path: Path, trace: Path | None = None) -> Scenario:
    """The scenario of a file; with `trace`, its calls come from there. Raises InputError."""
    read, source = read_with_source(path, ScenarioFile)
    _check(source, read, trace)
    engines = _engines(path, read.engines)
    applications = {
        name: workload.Application(
            name, fields.input_tokens.value(), fields.output_tokens.value(), fields.system_tokens
        )
        for name, fields in read.applications.items()
    }
    settings = _settings(read, applications)
    try:
        validate(settings)
    except SettingsError as error:
        raise InputError(str(path), None, "", str(error)) from error
    classes = tuple(_class(fields) for fields in read.classes)
    options = read.trace
    if trace is not None or options is not None:
        options = options or TraceOptions()
        file = trace if trace is not None else path.parent / (options.file or "")
        rows = read_trace(file, frozenset(applications) or None)
        if not applications:
            settings = _with_profiles(settings, rows.profiles())

        def draw(seed: int) -> workload.Workload:
            return trace_workload(rows, options, seed)
    elif read.paper:
        settings = _with_profiles(settings, paper.profiles())
        draw = paper.draw
    else:

        def draw(seed: int) -> workload.Workload:
            return workload.draw_workload(classes, applications, read.duration_s, seed)

    return Scenario(
        name=read.name,
        settings=settings,
        draw=draw,
        engines=engines,
        overload=_overload(read.overload),
        faults=_faults(read.faults),
        horizon_s=read.horizon_s,
    )


def read_calibration(path: Path) -> CalibrationFile:
    """A calibration file. Raises InputError."""
    return read_document(path, CalibrationFile)


def _check(source: Source, read: ScenarioFile, trace: Path | None) -> None:
    """What one field alone can't tell."""
    sources = [read.paper, bool(read.classes), read.trace is not None or trace is not None]
    if sum(sources) != 1:
        raise source.error(("classes",), "give exactly one of classes, paper and trace")
    if read.trace is not None and read.trace.file is None and trace is None:
        raise source.error(("trace", "file"), "no trace is given, here or by --trace")
    for index, users in enumerate(read.classes):
        _check_class(source, read, ("classes", index), users)
    pods = [(("slowdowns", i), slow.pod) for i, slow in enumerate(read.faults.slowdowns)]
    pods += [(("restarts", i), restart.pod) for i, restart in enumerate(read.faults.restarts)]
    for place, pod in pods:
        if pod is not None and pod >= read.engines.count:
            problem = f"there is no pod {pod}: engines.count is {read.engines.count}"
            raise source.error(("faults", *place, "pod"), problem)


def _check_class(
    source: Source, read: ScenarioFile, place: tuple[int | str, ...], users: ClassFields
) -> None:
    if not users.applications:
        raise source.error((*place, "applications"), "at least one is needed")
    for name in users.applications:
        if name not in read.applications:
            raise source.error((*place, "applications", name), f"unknown application {name!r}")
    label = users.behaviour.labelled_as
    if label is not None and label not in read.applications:
        raise source.error((*place, "behaviour", "labelled_as"), f"unknown application {label!r}")
    if read.tenants and users.tenant not in read.tenants and not users.tenant_per_user:
        raise source.error((*place, "tenant"), f"unknown tenant {users.tenant!r}")


def _engines(path: Path, fields: EngineFields) -> Engines:
    calibration = fields.calibration
    if isinstance(calibration, CostFields):
        cost = calibration.value()
    elif calibration == "vtc-a10g":
        cost = VTC_A10G
    else:
        cost = read_calibration(path.parent / calibration).cost.value()
    if fields.speed != 1.0:
        cost = StepCost(
            cost.step_ms / fields.speed,
            cost.scale / fields.speed,
            cost.prompt,
            cost.output,
            cost.cross,
            cost.square,
            cost.first,
        )
    return Engines(
        count=fields.count,
        limits=fields.limits(),
        cost=cost,
        prefix_cache_share=fields.prefix_cache_share,
        balancing=fields.balancing,
        max_window=fields.max_window,
        sampling_s=fields.sampling_s,
    )


def _settings(read: ScenarioFile, applications: dict[str, workload.Application]) -> Settings:
    fields = read.scheduler
    weights = fields.token_weights
    tenants = {
        name: TenantSettings(
            name,
            tenant.weight,
            _limit(tenant.per_user),
            _limit(tenant.total),
            QueueBounds(max_requests=tenant.max_requests, max_wait_s=tenant.max_wait_s),
        )
        for name, tenant in read.tenants.items()
    }
    return Settings(
        mode=fields.mode,
        normalisation=fields.normalisation,
        tokens=TokenWeights(weights.input, weights.cached, weights.system, weights.output),
        continuation_head_start=fields.continuation_head_start,
        tenants=MappingProxyType(tenants),
        applications=MappingProxyType(
            {
                name: _application(name, application, applications[name])
                for name, application in read.applications.items()
            }
        ),
    )


def _application(
    name: str, fields: ApplicationFields, application: workload.Application
) -> ApplicationSettings:
    learning = fields.learning
    return ApplicationSettings(
        name,
        _profile(fields.profile, application),
        weight=fields.weight,
        per_user=_limit(fields.per_user),
        per_tenant=_limit(fields.per_tenant),
        total=_limit(fields.total),
        learning=Learning(learning.min_samples, learning.max_factor_per_hour) if learning else None,
        interaction=InteractionRules(fields.idle_timeout_s, fields.max_calls, fields.max_duration_s),
    )


def _with_profiles(settings: Settings, profiles: dict[str, ApplicationSettings]) -> Settings:
    return replace(settings, applications=MappingProxyType(profiles))


def _profile(fields: ProfileFields | None, application: workload.Application) -> Profile:
    if fields is not None:
        return Profile(fields.input_tokens, fields.output_tokens, fields.system_tokens)
    return workload.typical_call(application)


def _limit(fields: LimitFields | None) -> Limit | None:
    return Limit(fields.count, fields.window_s) if fields is not None else None


def _class(fields: ClassFields) -> workload.UserClass:
    arrivals, behaviour = fields.arrivals, fields.behaviour
    return workload.UserClass(
        name=fields.name,
        users=fields.users,
        tenant=fields.tenant,
        applications=tuple(fields.applications.items()),
        arrivals=workload.Arrivals(
            arrivals.kind,
            arrivals.rate_per_s,
            arrivals.cv,
            arrivals.start_s,
            arrivals.stop_s,
            arrivals.think_s.value(),
        ),
        calls=fields.calls.value(),
        gap_s=fields.gap_s.value(),
        behaviour=workload.Behaviour(
            behaviour.retry,
            behaviour.max_retries,
            behaviour.retry_delay_s,
            behaviour.cancel_share,
            behaviour.cancel_at,
            behaviour.patience_s,
            behaviour.labelled_as,
            behaviour.interaction_ids,
        ),
        tenant_per_user=fields.tenant_per_user,
        good=fields.good,
    )


def _overload(fields: OverloadFields | None) -> Overload | None:
    if fields is None:
        return None
    signals = tuple(
        SignalSettings(s.name.value, s.threshold, s.clear_threshold, s.for_s) for s in fields.signals
    )
    settings = OverloadSettings(signals, fields.stale_after_s, fields.on_stale, fields.hold_down_s)
    return Overload(settings, fields.interval_s)


def _faults(fields: FaultFields) -> Faults:
    return Faults(
        sensor_lag_s=fields.sensor_lag_s,
        blind=tuple(Span(span.start_s, span.stop_s) for span in fields.blind),
        slowdowns=tuple(Slowdown(Span(s.start_s, s.stop_s), s.factor, s.pod) for s in fields.slowdowns),
        restarts=tuple(Restart(r.at_s, r.pod, r.snapshot_age_s) for r in fields.restarts),
    )
