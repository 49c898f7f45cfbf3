"""The real parts as pytest fixtures; a part that can't be prepared is an error of the test, never a skip.

The logs of what they start stay in pytest's temporary folders.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.parts import prometheus as prometheus_part
from tests.parts import vllm as vllm_part
from tests.parts.controlplane import ControlPlane
from tests.parts.helm import Helm
from tests.parts.prometheus import Prometheus
from tests.parts.vllm import Vllm


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A Kubernetes control plane that all tests share; each test keeps to a `namespace` of its own."""
    with ControlPlane(tmp_path_factory.mktemp("controlplane")) as running:
        yield running


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """The name of a new namespace, ready for Pods and deleted afterwards."""
    name = f"test-{secrets.token_hex(4)}"
    control_plane.create_namespace(name)
    yield name
    control_plane.request("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture(scope="session")
def prometheus_programs() -> Path:
    """The folder with prometheus and promtool."""
    return prometheus_part.ensure_programs()


@pytest.fixture
def start_prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Prometheus]]:
    """Starts a Prometheus with the options of `tests.parts.prometheus.Prometheus`; it ends with the test."""
    with ExitStack() as running:

        def start(*args: Any, **options: Any) -> Prometheus:
            options.setdefault("directory", tmp_path_factory.mktemp("prometheus"))
            return running.enter_context(Prometheus(*args, **options))

        yield start


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """The Python of the environment that has vLLM."""
    return vllm_part.ensure_env()


@pytest.fixture(scope="session")
def vllm_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny model."""
    return vllm_part.make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    """A vLLM that all tests share, with so little room that a dozen calls overload it.

    32 KV blocks of 128 tokens hold four calls of the longest length, and eight run at once. It keeps
    responses, so that one can go on from another.
    """
    directory, env = tmp_path_factory.mktemp("vllm"), {"VLLM_ENABLE_RESPONSES_API_STORE": "1"}
    with Vllm(num_gpu_blocks=32, max_num_seqs=8, directory=directory, env=env) as running:
        yield running


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Helm without a cluster: it lints and renders."""
    return Helm(tmp_path_factory.mktemp("helm"))
