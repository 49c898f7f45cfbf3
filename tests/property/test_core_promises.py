"""What clients are promised: who is admitted is not cut, and who waits as long as told is let in."""

from dataclasses import replace
from types import MappingProxyType

from hypothesis import example, given, settings
from hypothesis import strategies as st

from fairserve.core import (
    ApplicationSettings,
    Call,
    InteractionRules,
    Limit,
    Outcome,
    Profile,
    Queued,
    RefusalReason,
    Refused,
    Scheduler,
    Settings,
    TenantSettings,
    Usage,
)
from fairserve.core.catalogue import SCHEDULERS

limits = st.one_of(st.none(), st.builds(Limit, st.integers(1, 6), st.floats(0.5, 100.0)))
moments = st.floats(-1e6, 1e6)
arrivals = st.lists(
    st.tuples(
        st.floats(0.0, 20.0),
        st.sampled_from("ab"),
        st.sampled_from("uvw"),
        st.sampled_from([None, "i", "j"]),
    ),
    min_size=1,
    max_size=60,
)


@st.composite
def policies(draw):
    rules = InteractionRules(
        idle_timeout_s=draw(st.floats(1.0, 60.0)),
        max_calls=draw(st.integers(1, 10)),
        max_duration_s=draw(st.floats(1.0, 200.0)),
    )
    application = ApplicationSettings(
        "chat",
        Profile(100.0, 50.0),
        per_user=draw(limits),
        per_tenant=draw(limits),
        total=draw(limits),
        interaction=rules,
    )
    tenants = {name: TenantSettings(name, per_user=draw(limits), total=draw(limits)) for name in "ab"}
    return Settings(tenants=MappingProxyType(tenants), applications=MappingProxyType({"chat": application}))


#: The shortest case of each promise, so that a fault against it never depends on chance to be noticed.
ONE_EACH = Settings(
    tenants=MappingProxyType({"a": TenantSettings("a", per_user=Limit(1, 10.0))}),
    applications=MappingProxyType({"chat": ApplicationSettings("chat", Profile(100.0, 50.0))}),
)
HELD, NOT_HELD = TenantSettings("a", held=True), TenantSettings("a")
TWO_IN_A_ROW = [(0.0, "a", "u", None), (1.0, "a", "u", None)]


@settings(max_examples=150, deadline=None)
@given(chosen=policies(), start=moments, arrivals=arrivals)
@example(chosen=ONE_EACH, start=0.0, arrivals=TWO_IN_A_ROW)
def test_a_retry_after_retry_after_is_admitted(chosen, start, arrivals):
    scheduler = Scheduler(chosen)
    scheduler.set_armed(True)
    now = start
    for call_id, (gap_s, tenant, user, interaction) in enumerate(arrivals):
        now += gap_s
        call = Call(call_id, tenant, user, "chat", 100, interaction=interaction)
        decision = scheduler.enqueue(call, now)
        if isinstance(decision, Refused):
            now += decision.refusal.retry_after_s
            decision = scheduler.enqueue(call, now)
        assert isinstance(decision, Queued)
        scheduler.check()


@settings(max_examples=150, deadline=None)
@given(chosen=policies(), start=moments, arrivals=arrivals)
@example(chosen=ONE_EACH, start=0.0, arrivals=[(0.0, "a", "u", "i"), (1.0, "a", "u", "i")])
def test_an_admitted_interaction_is_never_refused(chosen, start, arrivals):
    """The test keeps its own book of what is open: within its rules, begun by an admitted call."""
    scheduler = Scheduler(chosen)
    scheduler.set_armed(True)
    rules = chosen.applications["chat"].interaction
    book = {}
    now = start
    for call_id, (gap_s, tenant, user, interaction) in enumerate(arrivals):
        now += gap_s
        key = tenant, user, interaction
        opened, touched, calls = book.get(key, (0.0, 0.0, rules.max_calls))
        is_open = (
            interaction is not None
            and calls < rules.max_calls
            and now - opened <= rules.max_duration_s
            and now - touched <= rules.idle_timeout_s
        )
        decision = scheduler.enqueue(Call(call_id, tenant, user, "chat", 100, interaction=interaction), now)
        if is_open:
            assert isinstance(decision, Queued)
            assert not decision.begins_interaction
            book[key] = opened, now, calls + 1
        elif isinstance(decision, Queued):
            assert decision.begins_interaction
            book[key] = now, now, 1
        if isinstance(decision, Queued):
            scheduler.finish(scheduler.dispatch(now).call_id, Usage(100, 50), Outcome.COMPLETED, now)


@settings(max_examples=100, deadline=None)
@given(chosen=policies(), arrivals=arrivals, held_after=st.integers(0, 60), armed=st.booleans())
@example(
    chosen=ONE_EACH,
    arrivals=[(0.0, "a", "u", "i"), (1.0, "a", "u", "i"), (0.0, "a", "u", None)],
    held_after=1,
    armed=False,
)
def test_a_hold_refuses_all_beginnings_and_no_continuation(chosen, arrivals, held_after, armed):
    """Beside it runs a scheduler without the hold, given only what it lets through: that is the oracle."""
    held = replace(chosen, tenants=MappingProxyType({**chosen.tenants, "a": HELD}))
    scheduler, free = Scheduler(chosen), Scheduler(chosen)
    scheduler.set_armed(armed)
    free.set_armed(armed)
    now = 0.0
    for call_id, (gap_s, tenant, user, interaction) in enumerate(arrivals):
        now += gap_s
        if call_id == held_after:
            scheduler.configure(held)
            free.configure(replace(held, tenants=MappingProxyType({**held.tenants, "a": NOT_HELD})))
        call = Call(call_id, tenant, user, "chat", 100, interaction=interaction)
        decision = scheduler.enqueue(call, now)
        if isinstance(decision, Refused) and decision.refusal.reason is RefusalReason.TENANT_HELD:
            assert tenant == "a"
            assert call_id >= held_after
            asked = Scheduler(free.settings)
            asked.restore(free.snapshot(now), now)
            would_be = asked.enqueue(call, now)
            assert isinstance(would_be, Refused) or would_be.begins_interaction
            continue
        assert decision == free.enqueue(call, now)
        if isinstance(decision, Queued):
            assert tenant != "a" or call_id < held_after or not decision.begins_interaction
            assert scheduler.dispatch(now) == free.dispatch(now)
            for each in (scheduler, free):
                each.finish(call_id, Usage(100, 50), Outcome.COMPLETED, now)
    scheduler.check()


@settings(max_examples=50, deadline=None)
@given(chosen=policies(), arrivals=arrivals)
@example(chosen=ONE_EACH, arrivals=TWO_IN_A_ROW)
def test_before_overload_nobody_is_refused(chosen, arrivals):
    scheduler = Scheduler(chosen)
    now = 0.0
    for call_id, (gap_s, tenant, user, interaction) in enumerate(arrivals):
        now += gap_s / 100.0
        decision = scheduler.enqueue(Call(call_id, tenant, user, "chat", 1, interaction=interaction), now)
        assert isinstance(decision, Queued)


@settings(max_examples=50, deadline=None)
@given(
    name=st.sampled_from(sorted(SCHEDULERS)),
    plan=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("uv"), st.booleans()), max_size=80),
)
def test_every_scheduler_conserves_work(name, plan):
    """If anything waits, something is dispatched; and each queued call is dispatched once."""
    scheduler = SCHEDULERS[name](Settings())
    queued, dispatched = set(), []
    for call_id, (tenant, user, serve) in enumerate(plan):
        if isinstance(
            scheduler.enqueue(Call(call_id, tenant, user, "chat", 100, interaction="i"), 0.0), Queued
        ):
            queued.add(call_id)
        if serve:
            dispatched.append(scheduler.dispatch(0.0).call_id)
            if len(dispatched) % 2:
                scheduler.finish(dispatched[-1], Usage(100, 500), Outcome.COMPLETED, 0.0)
        scheduler.check()
    while scheduler.queued:
        dispatched.append(scheduler.dispatch(0.0).call_id)
    assert scheduler.dispatch(0.0) is None
    assert sorted(dispatched) == sorted(queued)
