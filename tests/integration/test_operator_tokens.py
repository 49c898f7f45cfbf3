"""Callers by signed tokens, from the objects on: the cluster's own, and an issuer's that changes its keys."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fairserve.sidecar.claims import Claim
from fairserve.sidecar.identity import IdentityTable, Memory
from fairserve.sidecar.refusals import Problem
from tests.fakes.sidecar_control import SidecarControl
from tests.integration.operating import Place, custom, install_custom_resources, operator_process, until
from tests.parts.cache import REPOSITORY
from tests.parts.controlplane import ControlPlane
from tests.parts.process import Process

EXAMPLES = REPOSITORY / "examples"
ISSUER = "https://id.example"


class Issuer(ThreadingHTTPServer):
    """Publishes the public halves of its keys, and signs."""

    daemon_threads = True

    def __init__(self) -> None:
        self.keys = {"first": ec.generate_private_key(ec.SECP256R1())}
        super().__init__(("127.0.0.1", 0), _Published)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/keys"

    def token(self, kid: str, **claims: Any) -> str:
        now = int(time.time())
        content = {"iss": ISSUER, "aud": "llm", "exp": now + 600, "sub": "ann", **claims}
        return jwt.encode(content, self.keys[kid], "ES256", headers={"kid": kid})


class _Published(BaseHTTPRequestHandler):
    server: Issuer

    def do_GET(self) -> None:
        to_jwk = jwt.algorithms.ECAlgorithm.to_jwk
        keys = [
            to_jwk(key.public_key(), as_dict=True) | {"kid": kid} for kid, key in self.server.keys.items()
        ]
        body = json.dumps({"keys": keys}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer() as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def place(control_plane: ControlPlane, namespace: str) -> Iterator[Place]:
    install_custom_resources(control_plane)
    with ExitStack() as stack:
        yield Place(control_plane, namespace, stack)


def operator(place: Place, log: Path, *options: str) -> Process:
    return operator_process(place.control_plane.kubeconfig, log, f"--namespace={place.namespace}", *options)


def pool() -> dict[str, Any]:
    return custom("ServingPool", "llm", {"selector": {"matchLabels": {"app": "vllm"}}})


def tenant(name: str, *identity: dict[str, Any]) -> dict[str, Any]:
    return custom("Tenant", name, {"identity": list(identity)})


def shown(sidecar: SidecarControl, token: str) -> str:
    """Whose a token is to a sidecar that runs this document, or why it is nobody's."""
    table = IdentityTable(sidecar.config)
    pairs = [(b"authorization", f"Bearer {token}".encode())]
    claim = table.authenticate(pairs, dict(pairs), Memory(table, "10.0.0.9"), trusted=False)
    assert isinstance(claim, Claim | Problem)
    return claim.tenant if isinstance(claim, Claim) else claim.code


def account_token(place: Place, name: str, audience: str) -> str:
    """What a Pod of that ServiceAccount would find in its projected volume."""
    path = f"/api/v1/namespaces/{place.namespace}/serviceaccounts/{name}/token"
    spec = {"audiences": [audience], "expirationSeconds": 600}
    answer = place.control_plane.request("POST", path, {"spec": spec})
    return str(answer["status"]["token"])


def test_service_accounts_are_their_tenants_callers(place: Place, tmp_path: Path) -> None:
    place.control_plane.kubectl("apply", "-n", place.namespace, "-f", EXAMPLES / "operator" / "rbac.yaml")
    kubeconfig = place.control_plane.service_account_kubeconfig(place.namespace, "fairserve-operator")
    sidecar = place.pod("a")
    place.apply(
        [
            *(
                {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": n}}
                for n in ("web", "nightly")
            ),
            pool(),
            tenant("team", {"serviceAccount": {"namespace": place.namespace}}),
            tenant("batch", {"serviceAccount": {"namespace": place.namespace, "name": "nightly"}}),
        ]
    )
    with operator_process(kubeconfig, tmp_path / "log"):  # With its role's rights and no others.
        place.until_condition("tenants", "team", "Ready", "True")
        place.until_condition("tenants", "batch", "Ready", "True")
        assert shown(sidecar, account_token(place, "web", "fairserve")) == "team"
        assert shown(sidecar, account_token(place, "nightly", "fairserve")) == "batch"
        elsewhere = account_token(place, "web", "https://kubernetes.default.svc")
        assert shown(sidecar, elsewhere) == "token_audience_mismatch"


def test_an_issuers_callers_are_known_also_after_it_is_gone(
    place: Place, issuer: Issuer, tmp_path: Path
) -> None:
    sidecar = place.pod("a")
    identity = {"issuer": ISSUER, "jwksUri": issuer.url, "audience": "llm"}
    by_team = {**identity, "claim": ["org", "team"]}
    place.apply([pool(), tenant("a", {"jwt": {**by_team, "value": "alpha"}})])
    with operator(place, tmp_path / "log", "--allow-http-jwks"):
        place.until_condition("tenants", "a", "Ready", "True")
        assert shown(sidecar, issuer.token("first", org={"team": "alpha"})) == "a"
        assert shown(sidecar, issuer.token("first", org={"team": "beta"})) == "token_tenant_unknown"

        place.apply([tenant("b", {"jwt": {**by_team, "audience": "other", "value": "beta"}})])
        lost = place.until_condition("tenants", "b", "Ready", "False")
        assert 'Tenant "b" and Tenant "a"' in lost["message"]
        assert "audience" in lost["message"]
        place.until_condition("tenants", "a", "Conflicted", "True")

    issuer.shutdown()
    issuer.server_close()
    with operator(place, tmp_path / "log2", "--allow-http-jwks"):
        kept = until(
            lambda: (
                each
                if (each := place.condition("tenants", "a", "ResolvedRefs"))["reason"] == "KeysNotRefreshed"
                else None
            ),
            "the Tenant to be told",
        )
        assert issuer.url in kept["message"]
        assert shown(sidecar, issuer.token("first", org={"team": "alpha"})) == "a"


def test_keys_over_http_want_the_operators_permission(place: Place, issuer: Issuer, tmp_path: Path) -> None:
    place.pod("a")
    identity = {"issuer": ISSUER, "jwksUri": issuer.url, "audience": "llm"}
    place.apply([pool(), tenant("a", {"jwt": identity})])
    with operator(place, tmp_path / "log"):
        told = place.until_condition("tenants", "a", "ResolvedRefs", "False")
        until(
            lambda: "--allow-http-jwks" in place.condition("tenants", "a", "ResolvedRefs")["message"] or None,
            "the reason",
        )
        assert told["reason"] in ("KeysPending", "KeysUnavailable")
