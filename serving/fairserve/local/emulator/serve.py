"""Serves the emulator on a socket until it is told to stop."""

from __future__ import annotations

import uvicorn

from fairserve.local.emulator.server import Emulator
from fairserve.sim.steps import EngineLimits, StepCost

#: Open streams get this long after SIGTERM before they are cut.
_GRACE_S = 2


def serve(host: str, port: int, limits: EngineLimits, cost: StepCost, model_name: str) -> None:
    """Run until SIGINT or SIGTERM."""
    config = uvicorn.Config(
        Emulator(limits, cost, model_name).app,
        host=host,
        port=port,
        loop="uvloop",
        http="httptools",
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_GRACE_S,
    )
    uvicorn.Server(config).run()
