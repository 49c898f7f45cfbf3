"""Secrets that are deleted, rotated and malformed, at rest and during changes: who names them is told which
entry, a key counts no longer than its Secret holds it, and nobody else notices.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from fairserve.config import key_digest
from tests.fakes.prometheus import Answer, FakePrometheus, number
from tests.integration.operating import Place, custom, until
from tests.parts.controlplane import ControlPlane
from tests.parts.process import Process

#: What becomes of an entry (None: of the whole Secret nothing is left; ...: no entry), and the reasons for
#: it, that of a key set in the second place.
FAULTS: dict[str, tuple[Any, str, str]] = {
    "deleted": (None, "SecretMissing", "SecretMissing"),
    "no entry": (..., "SecretKeyMissing", "SecretKeyMissing"),
    "empty": (b" \n", "SecretEmpty", "SecretEmpty"),
    "no text": (b"\xff\xfe\x80", "SecretMalformed", "KeysMalformed"),
    "two lines": (b"one\ntwo", "SecretMalformed", "KeysMalformed"),
    "huge": (b"x" * 900_000, "SecretMalformed", "KeysMalformed"),
}
ENTRY = "entry"
#: Who names each Secret.
OWNERS = {
    "key": ("tenants", "by-key"),
    "key-set": ("tenants", "by-token"),
    "hop": ("servingpools", "llm"),
    "credentials": ("servingpools", "llm"),
}
PATHS = {
    "key": "spec.identity[0].apiKey.secretRef",
    "key-set": "spec.identity[0].jwt",
    "hop": "spec.hopTokens[0]",
    "credentials": "spec.overload.prometheus.auth.bearerToken.secretRef",
}


def key_set(kid: str) -> bytes:
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    return json.dumps({"keys": [ECAlgorithm.to_jwk(public, as_dict=True) | {"kid": kid}]}).encode()


class Keys:
    """Objects that name four Secrets, and a Tenant that names another one."""

    def __init__(self, place: Place, prometheus: FakePrometheus) -> None:
        self.place = place
        self.round = 0
        prometheus.answer = lambda asked: (
            number("5") if asked.authorization == f"Bearer credentials-{self.round}" else Answer(b"no", 401)
        )
        self.restore()
        self.put("other", b"other-key")
        self.sidecar = place.pod("a")

    def put(self, name: str, value: Any) -> None:
        """Make the Secret hold this; None deletes it."""
        if value is None:
            self.place.delete("secrets", name)
            return
        data = {} if value is ... else {ENTRY: base64.b64encode(value).decode()}
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}
        path = f"{self.place.path('secrets', name)}?fieldManager=test&force=true"
        self.place.control_plane.request("PATCH", path, body, content_type="application/apply-patch+yaml")

    def restore(self) -> None:
        """Give all of them new values."""
        self.round += 1
        for name in ("key", "hop", "credentials"):
            self.put(name, f"{name}-{self.round}\n".encode())
        self.put("key-set", key_set(f"kid-{self.round}"))

    def change(self) -> int:
        """Change something that has nothing to do with them."""
        weight = int(self.place.get("tenants", "other")["spec"]["weight"]) + 1
        self.place.patch("tenants", "other", {"weight": weight})
        return weight

    def holding(self, round_: int | None) -> None:
        """Assert that callers are known by the keys of this round, and of no other."""
        identity = self.sidecar.config.identity

        def of(*keys: str) -> set[str]:
            return {key_digest(identity.salt, key) for key in keys}

        mine = [] if round_ is None else [round_]
        assert {key.digest for key in identity.api_keys} == of("other-key", *(f"key-{r}" for r in mine))
        assert set(identity.hop_tokens) == of(*(f"hop-{r}" for r in mine))
        kids = [key["kid"] for issuer in identity.token_issuers for key in issuer.keys]
        assert kids == [f"kid-{r}" for r in mine]
        assert {tenant.name for tenant in self.sidecar.config.tenants} == {"by-key", "by-token", "other"}

    def until_well(self) -> None:
        """Wait until everything is in force, with the newest keys."""
        for kind, name in {*OWNERS.values(), ("tenants", "other")}:
            self.place.until_condition(kind, name, "ResolvedRefs", "True")
            self.place.until_condition(kind, name, "Ready", "True")
        until(
            lambda: self.place.condition("servingpools", "llm", "Overloaded")["reason"] == "SignalsClear",
            "the signals",
        )


@pytest.fixture(scope="module")
def keys(api: ControlPlane, everywhere: Process) -> Iterator[Keys]:
    api.create_namespace("failing-secrets")
    with ExitStack() as stack:
        stack.callback(api.request, "DELETE", "/api/v1/namespaces/failing-secrets")
        place = Place(api, "failing-secrets", stack)
        prometheus = stack.enter_context(FakePrometheus())
        made = Keys(place, prometheus)
        ref = {name: {"name": name, "key": ENTRY} for name in (*OWNERS, "other")}
        token = {"issuer": "https://id.example", "audience": "llm", "jwksSecretRef": ref["key-set"]}
        pool = {
            "selector": {"matchLabels": {"app": "vllm"}},
            "hopTokens": [ref["hop"]],
            "overload": {
                "prometheus": {
                    "url": prometheus.url,
                    "auth": {"bearerToken": {"secretRef": ref["credentials"]}},
                },
                "evaluationInterval": "200ms",
                "signals": [{"name": "mine", "query": "up", "threshold": 100}],
            },
        }
        named = (
            ("ServingPool", "llm", pool),
            ("Tenant", "by-key", {"identity": [{"apiKey": {"secretRef": ref["key"]}}]}),
            ("Tenant", "by-token", {"identity": [{"jwt": token}]}),
            ("Tenant", "other", {"weight": 1, "identity": [{"apiKey": {"secretRef": ref["other"]}}]}),
        )
        place.apply([custom(*each) for each in named])
        made.until_well()
        yield made


@pytest.mark.parametrize("changing", [False, True], ids=["at rest", "changing"])
@pytest.mark.parametrize("kind", FAULTS)
def test_failing_secrets_are_named_and_cost_nobody_else_anything(
    keys: Keys, kind: str, changing: bool, everywhere: Process
) -> None:
    value, reason, key_set_reason = FAULTS[kind]
    keys.until_well()
    keys.holding(keys.round)
    other = keys.place.get("tenants", "other")["status"]["conditions"]
    weight = 0
    for name in OWNERS:
        if changing:
            keys.change()
        keys.put(name, value)
    if changing:
        weight = keys.change()
    for name, (plural, owner) in OWNERS.items():
        words = f'Secret "{name}"'

        def told(plural: str = plural, owner: str = owner, words: str = words) -> dict[str, Any] | None:
            said = keys.place.condition(plural, owner, "ResolvedRefs")
            return said if words in said.get("message", "") else None

        said = until(told, f"ResolvedRefs of {owner} about {words}")
        assert said["status"] == "False"
        assert said["reason"] == (key_set_reason if name == "key-set" else reason)
        assert PATHS[name] in said["message"]
        assert value is None or f'"{ENTRY}"' in said["message"]
        assert "xxxx" not in said["message"]
    for plural, owner in {*OWNERS.values(), ("tenants", "other")}:
        keys.place.until_condition(plural, owner, "Programmed", "True")
    keys.holding(None)
    if changing:
        weights = {tenant.name: tenant.weight for tenant in keys.sidecar.config.tenants}
        assert weights["other"] == weight
        keys.change()
    else:
        assert keys.place.get("tenants", "other")["status"]["conditions"] == other
    keys.restore()
    keys.until_well()
    keys.holding(keys.round)
    log = everywhere.log.read_text()
    assert not any(each in log for each in (f"key-{keys.round}\n", "other-key", "xxxx"))


def test_rotated_secrets_count_at_once(keys: Keys) -> None:
    keys.until_well()
    before = keys.round
    keys.restore()
    until(lambda: f"kid-{keys.round}" in str(keys.sidecar.config.identity.token_issuers), "the new keys")
    keys.until_well()
    assert keys.round == before + 1
    keys.holding(keys.round)
