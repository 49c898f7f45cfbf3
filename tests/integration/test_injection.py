"""What is injected, for real: an API server takes every shape, and the hooks end a Pod in the right order."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from fairserve.local.inject import inject_text
from fairserve_operator.manifests.boot_secret import compressed
from fairserve_operator.manifests.injection import Injected, Settings, inject
from tests.fakes.engine import FakeEngine, answers_after
from tests.integration.sidecars import KEY_A, TOKEN, ask, document, eventually
from tests.integration.test_sidecar_process import until_served
from tests.parts.cache import REPOSITORY
from tests.parts.controlplane import ControlPlane
from tests.parts.process import Process, free_port

SHAPES = sorted((REPOSITORY / "tests" / "unit" / "operator" / "shapes").glob("*.yaml"))
DRY_RUN = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "-o", "json", "-f", "-")


def test_an_api_server_takes_every_shape(control_plane: ControlPlane, namespace: str) -> None:
    text = "\n---\n".join(path.read_text() for path in SHAPES)
    result = inject_text(text, "shapes", "llm", Settings("sidecar:1"))
    assert not result.problems
    taken = json.loads(control_plane.kubectl(*DRY_RUN, "-n", namespace, stdin=result.text))["items"]
    assert len(taken) == len(SHAPES)
    for body in taken:  # with what an API server adds, as a webhook sees it
        template = body if body["kind"] == "Pod" else body["spec"]["template"]
        again = inject(template, "llm", Settings("sidecar:1"))
        assert isinstance(again, Injected), str(again)
        names = [each["name"] for each in again.template["spec"]["initContainers"]]
        assert names.count("fairserve") == 1


def test_a_restricted_namespace_takes_the_sidecar(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    restricted = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    vllm = {"name": "vllm", "image": "vllm/vllm-openai", "args": ["--port=80"], "securityContext": restricted}
    pod: dict[str, Any] = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}
    result = inject({**pod, "spec": {"containers": [vllm]}}, "llm", Settings("sidecar:1"))
    assert isinstance(result, Injected)
    control_plane.kubectl(*DRY_RUN, "-n", namespace, stdin=json.dumps(result.template))


def as_kubelet(words: list[str], folder: Path) -> list[str]:
    """A command as the kubelet runs it, in folders and with addresses of this test."""
    replaced = {
        "$$": "$",
        "/etc/fairserve": str(folder / "boot"),
        "/var/lib/fairserve": str(folder / "state"),
        "0.0.0.0": "127.0.0.1",
        "sleep 5;": "sleep 0;",
    }
    for old, new in replaced.items():
        words = [word.replace(old, new) for word in words]
    return words


def injected(engine_port: int, port: int, control_port: int, own: list[str]) -> dict[str, Any]:
    """A Pod's spec with vLLM at `engine_port`, whose own hook runs `own`."""
    vllm = {
        "name": "vllm",
        "image": "vllm/vllm-openai",
        "args": [f"--port={port}"],
        "command": [sys.executable, "-m", "vllm.entrypoints.openai.api_server"],
        "lifecycle": {"preStop": {"exec": {"command": own}}},
    }
    result = inject({"spec": {"containers": [vllm]}}, "llm", Settings("sidecar:1", control_port, drain_s=60))
    assert isinstance(result, Injected)
    spec = result.template["spec"]
    (sidecar,) = spec["initContainers"]
    sidecar["args"][0] = f"--engine=http://127.0.0.1:{engine_port}"
    return spec


@pytest.fixture
async def engine():
    async with FakeEngine() as engine:
        yield engine


async def test_vllm_outlives_the_streams_of_a_pod_that_ends(tmp_path: Path, engine: FakeEngine) -> None:
    port, control_port, go_on = free_port(), free_port(), asyncio.Event()
    ran = tmp_path / "ran"
    spec = injected(engine.port, port, control_port, ["touch", str(ran)])
    (tmp_path / "boot").mkdir()
    (tmp_path / "state").mkdir()
    (tmp_path / "boot" / "config.json.gz").write_bytes(compressed(document().to_bytes()))
    (tmp_path / "boot" / "control-token").write_text(TOKEN)
    (sidecar,), (vllm,) = spec["initContainers"], spec["containers"]
    leave = as_kubelet(sidecar["lifecycle"]["preStop"]["exec"]["command"], tmp_path)
    wait = vllm["lifecycle"]["preStop"]["exec"]["command"]
    environment = {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = as_kubelet([*sidecar["command"], *sidecar["args"]], tmp_path)
    with Process("sidecar", command, tmp_path / "log", env=environment) as running:
        await until_served(port)

        # vLLM alone is restarted: the sidecar stays, and nobody waits for its end.
        impatient = [*wait[:5], "0", *wait[6:]]
        restarted = await asyncio.create_subprocess_exec(*impatient)
        assert await asyncio.wait_for(restarted.wait(), 60) == 0
        assert ran.exists(), "vLLM's own hook ran"
        assert running.alive

        # The Pod ends with a stream under way.
        engine.behaviour = answers_after(go_on)
        before = len(engine.completions)
        call = asyncio.create_task(ask(port, KEY_A, {"stream": True, "max_tokens": 4}))
        await eventually(lambda: len(engine.completions) > before, "the call runs")
        leaving = await asyncio.create_subprocess_exec(*leave)
        assert await asyncio.wait_for(leaving.wait(), 60) == 0
        await eventually(lambda: "stopping" in running.log_tail(), "the sidecar drains")
        waiting = await asyncio.create_subprocess_exec(*impatient)
        with pytest.raises(TimeoutError):  # vLLM is needed, however impatient its hook is
            await asyncio.wait_for(waiting.wait(), 2)
        go_on.set()
        answer = await call
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert await asyncio.wait_for(waiting.wait(), 60) == 0
        await eventually(lambda: not running.alive, "the sidecar has ended")
        assert (tmp_path / "state" / "snapshot.json").exists()
