"""vLLM's probes, which reach it through the sidecar.

The kubelet asks the Pod's address, where vLLM no longer listens. The sidecar passes `/health` and everything
else that costs no tokens to vLLM, whoever asks and before it has a configuration, and answers 503 where vLLM
is not there. So an HTTP probe means what it meant. Two things don't: a TCP connection, which the sidecar
takes while vLLM loads, and a liveness probe that fails because the sidecar restarts.
"""

from __future__ import annotations

import math
from typing import Any

from fairserve_operator.manifests.injection.engine import Engine
from fairserve_operator.manifests.injection.refusal import RefusedError

_HEALTH = "/health"
#: Seconds for which vLLM's liveness probe must fail before vLLM is restarted: longer than it takes to find
#: that the sidecar hangs, and to restart it. A model takes minutes to load.
_LIVENESS_S = 60
_DEFAULT_PERIOD_S, _DEFAULT_FAILURES = 10, 3
_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def keep_meaning(container: dict[str, Any], engine: Engine) -> None:
    """Let vLLM's probes ask what they asked. Changes `container`; raises RefusedError."""
    for kind in _PROBES:
        probe = container.get(kind)
        if probe is None:
            continue
        field = f"{engine.field}.{kind}"
        if not isinstance(probe, dict):
            raise RefusedError(field, "is no object")
        _ask_engine(probe, engine, field)
        if kind == "livenessProbe":
            period = probe.get("periodSeconds") or _DEFAULT_PERIOD_S
            failures = probe.get("failureThreshold") or _DEFAULT_FAILURES
            if not isinstance(period, int) or not isinstance(failures, int):
                raise RefusedError(field, "periodSeconds and failureThreshold must be whole numbers")
            if period * failures < _LIVENESS_S:
                probe["failureThreshold"] = math.ceil(_LIVENESS_S / period)


def sidecar_probes(control_port: int) -> dict[str, Any]:
    """The sidecar's own: ready with a configuration and an engine, alive while its event loop turns."""
    return {
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": control_port},
            "periodSeconds": 5,
            "timeoutSeconds": 3,
            "failureThreshold": 2,
        },
        "livenessProbe": {
            "httpGet": {"path": "/healthz", "port": control_port},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 3,
            # One that hangs does not drain.
            "terminationGracePeriodSeconds": 10,
        },
    }


def _ask_engine(probe: dict[str, Any], engine: Engine, field: str) -> None:
    names = [port.name for port in engine.container.ports if port.container_port == engine.port and port.name]
    for action in ("httpGet", "tcpSocket"):
        asked = probe.get(action)
        if not isinstance(asked, dict) or asked.get("port") not in (engine.port, *names):
            continue
        if action == "httpGet":
            if asked.get("scheme") == "HTTPS":
                raise RefusedError(f"{field}.httpGet.scheme", "the sidecar speaks HTTP")
        else:
            del probe["tcpSocket"]
            probe["httpGet"] = {**asked, "path": _HEALTH}
