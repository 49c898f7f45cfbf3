"""Whatever a manifest says, parsing, compiling and status end in true words that the API server takes.

Objects come here as an older or newer schema would let them through; those that the real API server accepts
are in `tests/integration/test_operator_fuzz.py`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairserve.config import SchedulerConfig
from fairserve.sidecar.identity import IdentityTable
from fairserve_operator.api.v1alpha1 import (
    ApplicationSpec,
    ApplicationStatus,
    ServingPoolSpec,
    ServingPoolStatus,
    TenantSpec,
    TenantStatus,
)
from fairserve_operator.decide.announcements import announcement
from fairserve_operator.decide.compilation import compile_pool, needs
from fairserve_operator.decide.specs import parse
from fairserve_operator.decide.status import Delivery, PodAck, application_status, pool_status, tenant_status
from fairserve_operator.handlers.overload import stored_state
from fairserve_operator.handlers.publication import same
from fairserve_operator.handlers.store import Store
from tests.property.fuzz_manifests import KINDS, odd_values, specs, statuses
from tests.unit.operator.builders import SALT, application, pool, tenant

MAKERS: dict[str, Any] = {"Tenant": tenant, "Application": application, "ServingPool": pool}
STATUSES = {"Tenant": TenantStatus, "Application": ApplicationStatus, "ServingPool": ServingPoolStatus}
SPECS = {"Tenant": TenantSpec, "Application": ApplicationSpec, "ServingPool": ServingPoolSpec}
NOW = "2026-01-01T00:00:00Z"

patient = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@st.composite
def objects(draw: st.DrawFn) -> tuple[str, Any, Any]:
    kind = draw(st.sampled_from(sorted(KINDS)))
    spec = draw(st.one_of(specs(kind), specs(kind), specs(kind), odd_values))
    return kind, spec, draw(statuses(kind))


@patient
@given(objects())
def test_whatever_an_object_says_its_status_is_true_and_fits(made: tuple[str, Any, Any]) -> None:
    kind, spec, previous = made
    odd = replace(MAKERS[kind]("odd"), spec=spec)
    store = Store()
    store.put(odd, 1, previous)
    sound_pool, sound = pool("sound", selector={"matchLabels": {"its": "own"}}), tenant("sound", weight=2)
    everything = [sound_pool, sound, application("chat"), odd]
    pools, tenants, applications = (
        [each for each in everything if each.key.kind == name]
        for name in ("ServingPool", "Tenant", "Application")
    )
    needs(tenants, pools)
    compiled = compile_pool(sound_pool, pools, tenants, applications, {}, {}, SALT)
    conditions = compiled.conditions[odd.key]
    assert [each.type for each in conditions[:2]] == ["Accepted", "ResolvedRefs"]
    into = [(Delivery("sound", [PodAck("a", 1)]), 1)]
    match kind:
        case "Tenant":
            status = tenant_status(odd, conditions, into, previous, NOW)
        case "Application":
            status = application_status(odd, conditions, into, previous, NOW)
        case _:
            own = compile_pool(odd, pools, tenants, applications, {}, {}, SALT)
            status = pool_status(odd, own, 1, into[0][0], None, previous, NOW)
            stored_state(previous)
    STATUSES[kind].model_validate(json.loads(json.dumps(status)))
    assert status["observedGeneration"] == odd.generation
    announcement(previous, status)
    same(status, previous)
    # It takes the pool's Pods from nobody, unless both select the same; then one of the two is told.
    if compiled.config is not None:
        assert "sound" in {each.name for each in compiled.config.tenants}
        IdentityTable(SchedulerConfig.from_bytes(compiled.config.to_bytes()))
    else:
        assert any(each.type == "Conflicted" for each in compiled.conditions[sound_pool.key])


@pytest.mark.parametrize(
    ("kind", "spec", "words"),
    [
        ("Tenant", {"queue": {"maxBytes": "1000000Gi"}}, "spec.queue.maxBytes: must be at most 900000Gi"),
        (
            "ServingPool",
            {"selector": {"matchLabels": {"app": "x"}}, "scheduler": {"tokenWeights": {"input": 5e-324}}},
            "spec.scheduler.tokenWeights.input: must be at least 1e-06",
        ),
    ],
)
def test_what_cannot_be_scheduled_by_is_told_and_not_compiled(
    kind: str, spec: dict[str, Any], words: str
) -> None:
    odd = replace(MAKERS[kind]("odd"), spec=spec)
    assert parse(odd, SPECS[kind]).error == words


def test_a_spec_that_slips_through_to_the_configuration_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    weightless = TenantSpec.model_construct(**{**TenantSpec().model_dump(), "weight": 0.0})
    monkeypatch.setattr(TenantSpec, "model_validate", lambda _spec: weightless)
    told = parse(tenant("odd"), TenantSpec)
    assert told.spec is None
    assert told.error.startswith("spec: no configuration can be made of it: ")
    assert "weight" in told.error


def test_the_schemas_make_accepted_and_refused_objects() -> None:
    """Else the test above would look at one half alone."""
    seen: set[str] = set()

    @settings(parent=patient, max_examples=60, database=None)
    @given(specs("Tenant"))
    def look(spec: Any) -> None:
        seen.add("error" if parse(replace(tenant("odd"), spec=spec), TenantSpec).error else "spec")

    look()
    assert seen == {"error", "spec"}
