"""The benchmark of the operator in small: every sidecar gets what it should, and holds the right document.

Times are printed and not judged.
"""

from __future__ import annotations

from pathlib import Path

from bench.cluster import install
from bench.operator import Bench, Size
from bench.operator_overload import Pools
from tests.parts.controlplane import ControlPlane

SMALL = Size(pods=20, tenants=200, applications=5, changes=4, burst=50, idle_s=0.1, rounds=2, interval_s=0.5)


async def test_changes_reach_every_sidecar_as_differences(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    install(control_plane)
    measured = await Bench(SMALL, tmp_path, namespace).run(control_plane)
    print(measured)
    assert measured.sound
    # The whole document once for each, and nothing but differences for every change.
    assert measured.traffic["whole"] == SMALL.pods
    assert measured.traffic["difference"] == SMALL.pods * SMALL.changes
    assert measured.traffic["refused"] == 0
    assert len(measured.applied_s) == len(measured.programmed_s) == SMALL.changes
    assert measured.burst_compiles < SMALL.burst
    assert measured.beside_hanging_s
    assert measured.restarted_s
    assert len(measured.reaction.late_s) == SMALL.rounds


async def test_every_small_pool_is_evaluated(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    install(control_plane)
    found = await Pools(3, 10, 0.5, tmp_path, namespace).run(control_plane, 2)
    print(found)
    assert sorted(found.told) == ["pool-0", "pool-1", "pool-2"]
    assert all(found.told.values())
    assert found.shares["operator"] > 0.0
