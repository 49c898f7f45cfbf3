"""The operator as a process: restarts, absence, rights, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import urllib.error
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.operating import (
    DEADLINE_S,
    PYTHONPATH,
    Place,
    inference_pool,
    install_custom_resources,
    install_inference_pools,
    operator_process,
    two_teams,
    until,
)
from tests.parts.cache import REPOSITORY
from tests.parts.controlplane import ControlPlane
from tests.parts.loopback import Client
from tests.parts.process import free_port


@pytest.fixture
def place(control_plane: ControlPlane, namespace: str) -> Iterator[Place]:
    """A namespace that no operator serves yet, with our kinds."""
    install_custom_resources(control_plane)
    with ExitStack() as stack:
        yield Place(control_plane, namespace, stack)


def test_restart_changes_nothing_and_absence_blocks_nothing(place: Place, tmp_path: Path) -> None:
    place.apply(two_teams())
    sidecar = place.pod("a")
    operator = operator_process(place.control_plane.kubeconfig, tmp_path / "log", "-n", place.namespace)
    named = (
        ("tenants", "team-a"),
        ("applications", "chat"),
        ("servingpools", "llm"),
        ("secrets", "fairserve-llm"),
    )

    def versions() -> list[str]:
        return [place.get(kind, name)["metadata"]["resourceVersion"] for kind, name in named]

    with operator:
        place.until_condition("tenants", "team-a", "Ready", "True")
        place.until_condition("servingpools", "llm", "Ready", "True")
        before = versions()
        operator.kill()
        place.delete("tenants", "team-b")
        with pytest.raises(urllib.error.HTTPError, match="not found"):
            place.get("tenants", "team-b")
        place.apply(two_teams())
        calls, generation = len(sidecar.calls), sidecar.generation
        operator.start()
        place.until_condition("tenants", "team-b", "Ready", "True")
    assert sidecar.generation == generation
    assert len(sidecar.calls) > calls
    assert versions() == before


def test_tells_its_health_and_ends_on_sigterm_with_status_0(place: Place, tmp_path: Path) -> None:
    place.apply(two_teams())
    listen = f"127.0.0.1:{free_port()}"
    described = operator_process(
        place.control_plane.kubeconfig, tmp_path / "log", "-n", place.namespace, "--listen", listen
    )
    with subprocess.Popen(
        described.args, env={**os.environ, **PYTHONPATH}, stderr=subprocess.PIPE
    ) as operator:
        try:
            until(place.boot_secret, "the boot Secret")
            own_port = Client(f"http://{listen}")
            assert own_port.call("GET", "/healthz") == "ok\n"
            assert own_port.json("GET", "/readyz") == {"ready": True, "acting": True, "reasons": []}
            place.pod("a")
            place.until_condition("servingpools", "llm", "Programmed", "True")
            pool = f'{{namespace="{place.namespace}",pool="llm"}}'
            figures = own_port.call("GET", "/metrics")
            for line in (
                "fairserve_operator_leader 1.0",
                f"fairserve_operator_pods{pool} 1.0",
                f"fairserve_operator_pods_behind{pool} 0.0",
                'fairserve_operator_sidecar_call_seconds_count{call="PUT /config",outcome="200"} 1.0',
                'fairserve_operator_api_call_seconds_count{call="POST secrets",outcome="200"} 1.0',
            ):
                assert line in figures.splitlines()
            assert "fairserve_operator_reconcile_seconds_count" in figures
            operator.send_signal(signal.SIGTERM)
            _, words = operator.communicate(timeout=DEADLINE_S)
        finally:
            operator.kill()
    assert operator.returncode == 0, words
    assert b"Traceback" not in words


@pytest.mark.parametrize("everywhere", [False, True], ids=["one namespace", "all namespaces"])
def test_needs_no_more_rights_than_its_role_gives(place: Place, tmp_path: Path, everywhere: bool) -> None:
    home = "fairserve-system" if everywhere else place.namespace
    rights = "rbac-all-namespaces.yaml" if everywhere else "rbac.yaml"
    # Without --all-namespaces it serves the namespace that the kubeconfig names. The Lease is there as well.
    options = ("--leader-elect", *(["--all-namespaces"] if everywhere else []))
    scope = () if everywhere else ("-n", home)
    place.control_plane.kubectl("apply", *scope, "-f", REPOSITORY / "examples" / "operator" / rights)
    kubeconfig = place.control_plane.service_account_kubeconfig(home, "fairserve-operator")
    install_inference_pools(place.control_plane)
    manifests = two_teams()
    (pool,) = (each for each in manifests if each["kind"] == "ServingPool")
    labels = pool["spec"].pop("selector")["matchLabels"]
    pool["spec"]["poolRef"] = {"name": "vllm"}
    place.apply([inference_pool("vllm", **labels), *manifests])
    sidecar = place.pod("a")
    with operator_process(kubeconfig, tmp_path / "log", "--verbose", *options) as operator:
        place.until_condition("tenants", "team-a", "Ready", "True")
        place.delete("secrets", "fairserve-llm")
        until(place.boot_secret, "the boot Secret")
        place.patch("tenants", "team-a", {"weight": 2})
        until(lambda: sidecar.generation == 2, "the changed configuration")
        log = operator.log_tail(100_000)
    # Namespaces of other tests are on their way out, and take nothing new from anybody.
    assert not [line for line in log.splitlines() if "orbidden" in line and "being terminated" not in line]
    assert place.control_token() not in log
    assert "demo-key-of-team-a" not in log


@pytest.mark.parametrize("options", [(), ("--leader-elect",)], ids=["alone", "with a Lease"])
def test_goes_on_after_the_api_server_was_away(
    place: Place, tmp_path: Path, options: tuple[str, ...]
) -> None:
    place.apply(two_teams())
    sidecar = place.pod("a")
    options = ("-n", place.namespace, *options)
    with operator_process(place.control_plane.kubeconfig, tmp_path / "log", *options):
        place.until_condition("tenants", "team-a", "Ready", "True")
        place.control_plane.stop_apiserver()
        place.control_plane.start_apiserver()  # Takes seconds, of refused connections first and of 403s then.
        place.patch("tenants", "team-a", {"weight": 2})
        place.until_condition("tenants", "team-a", "Programmed", "True")
    assert sidecar.generation == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "no cluster to talk to"),
        (("-n", "team-*"), "--namespace team-*: not the name of a namespace"),
        (("-n", "a", "-A"), "exclude each other"),
        (("--listen", "8080"), "must be HOST:PORT"),
        (("--leader-elect", "--lease-name", "a/b"), "--lease-name a/b: not a name"),
        (("--lease-namespace", "a"), "--lease-namespace needs --leader-elect"),
        (("--webhook", "127.0.0.1:9443"), "--webhook needs --webhook-service"),
    ],
)
def test_what_it_cannot_run_with_is_said_in_a_sentence(
    tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    nowhere = tmp_path / "kubeconfig"
    nowhere.write_text("apiVersion: v1\nkind: Config\n")
    described = operator_process(nowhere, tmp_path / "log", *options)
    ended = subprocess.run(
        described.args, env={**os.environ, **PYTHONPATH}, capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert ended.returncode == 1
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
