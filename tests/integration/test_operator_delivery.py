"""The benchmark of the operator in small: every sidecar gets what it should, and holds the right document.

Times are printed and not judged.
"""

from __future__ import annotations

from pathlib import Path

from bench.operator import Bench, Size, install
from tests.parts.controlplane import ControlPlane

SMALL = Size(pods=20, tenants=200, applications=5, changes=4, burst=50, idle_s=0.1)


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
