"""Fuzzed manifests on a real API server: what it accepts gets a true status, and no handler crashes."""

from __future__ import annotations

import json
import os
import urllib.error
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.integration.agreement import untrue_statuses
from tests.integration.operating import Place, custom, operator_process, until
from tests.parts.controlplane import ControlPlane
from tests.parts.process import DeadlineError
from tests.property.fuzz_manifests import KINDS, odd_values, specs

MANIFESTS = 150
#: Characters of a manifest that a failure shows.
SHOWN = 2000


@pytest.fixture
def place(api: ControlPlane, namespace: str) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(api, namespace, stack)


@st.composite
def manifests(draw: st.DrawFn) -> tuple[str, Any]:
    kind = draw(st.sampled_from(["Tenant", "Tenant", "Application", "ServingPool"]))
    return kind, draw(st.one_of(*[specs(kind)] * 9, odd_values))


def test_what_the_api_server_accepts_is_told_the_truth(place: Place, tmp_path: Path) -> None:
    chosen = int(os.environ.get("FAIRSERVE_SEED", "1"))
    print(f"FAIRSERVE_SEED={chosen}")
    accepted: dict[str, str] = {}
    refused = 0

    @seed(chosen)
    @settings(
        max_examples=MANIFESTS,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(manifests())
    def post(made: tuple[str, Any]) -> None:
        nonlocal refused
        kind, spec = made
        name = f"fuzz-{len(accepted) + refused}"
        try:
            place.control_plane.request("POST", place.path(KINDS[kind], ""), custom(kind, name, spec))
            accepted[f"{kind} {name}"] = json.dumps(spec)[:SHOWN]
        except urllib.error.HTTPError as problem:
            if problem.code not in (400, 422):
                raise
            refused += 1

    # Named so that it is the oldest also of those made within the same second: nobody takes its Pods.
    pool = {"selector": {"matchLabels": {"its": "own"}}, "sidecar": {"controlPort": place.control_port}}
    place.apply([custom("ServingPool", "0", pool), custom("Tenant", "0", {"weight": 1})])
    sidecar = place.pod("a", {"its": "own"})
    with operator_process(
        place.control_plane.kubeconfig, tmp_path / "log", "-n", place.namespace
    ) as operator:
        place.until_condition("tenants", "0", "Ready", "True")
        post()
        print(f"{len(accepted)} accepted, {refused} refused")
        try:
            until(lambda: not untrue_statuses(place), "true statuses")
        except DeadlineError:
            untrue = untrue_statuses(place)
            culprits = {name: spec for name, spec in accepted.items() if any(name in each for each in untrue)}
            pytest.fail(f"{untrue}\n{culprits}\n{operator.log_tail(40)}")
        place.patch("tenants", "0", {"weight": 7})
        place.until_condition("tenants", "0", "Programmed", "True")
        assert next(each.weight for each in sidecar.config.tenants if each.name == "0") == 7
        assert operator.alive
        assert "Traceback" not in operator.log_tail(100_000)
    assert len(accepted) > MANIFESTS / 15
    assert refused > MANIFESTS / 10
