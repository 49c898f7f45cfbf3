"""Who calls, over real sockets: signed tokens, hops that show a token, and what of it reaches the engine."""

import logging
import time

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from fairserve.config import key_digest
from fairserve.engine import endpoints
from fairserve.engine.endpoints import ENDPOINTS, Endpoint
from fairserve.engine.requests import EngineRequest
from fairserve.sidecar.configuration import read_document
from tests.integration.sidecars import KEY_A, KEY_B, SALT, ask, document, metric, running_sidecar

ISSUER = "https://id.example"
SIGNING_KEY = ec.generate_private_key(ec.SECP256R1())
PUBLIC_KEY = jwt.algorithms.ECAlgorithm.to_jwk(SIGNING_KEY.public_key(), as_dict=True) | {"kid": "k"}


def with_identity(generation: int = 1, tenants: dict[str, dict] | None = None, **changes):
    """The usual document with more in its identity, and more of some tenants."""
    config = document(generation)
    all_tenants = [{**t.model_dump(), **(tenants or {}).get(t.name, {})} for t in config.tenants]
    identity = {**config.identity.model_dump(), **changes}
    return document(generation, identity=identity, tenants=all_tenants)


def with_tokens(generation: int = 1, **changes):
    issuer = {
        "issuer": ISSUER, "audiences": ["llm"], "algorithms": ["ES256"], "keys": [PUBLIC_KEY],
        "tenant_claim": ["team"], **changes,
    }  # fmt: skip
    return with_identity(generation, token_issuers=[issuer])


def token(**changes) -> str:
    claims = {
        "iss": ISSUER,
        "aud": "llm",
        "exp": int(time.time()) + 600,
        "sub": "ann",
        "team": "b",
        **changes,
    }
    return jwt.encode(claims, SIGNING_KEY, "ES256", headers={"kid": "k"})


def calls(sidecar, tenant: str) -> float:
    text = sidecar.metrics.exposition().decode()
    return metric(text, "fairserve_requests_total", tenant=tenant, outcome="completed") or 0


async def test_token_is_its_tenant_until_its_issuer_is_no_longer_known(tmp_path, engine, caplog):
    caplog.set_level(logging.DEBUG)
    signed = token()
    async with running_sidecar(tmp_path, engine, with_tokens()) as sidecar:
        for _ in range(2):
            assert (await ask(sidecar.data_address, signed, {})).status == 200
        assert calls(sidecar, "b") == 2
        # The engine may want to see it as well: what a client says of itself passes.
        assert engine.seen[-1].header("authorization") == f"Bearer {signed}"
        expired = await ask(sidecar.data_address, token(exp=1), {})
        assert (expired.status, expired.fields["error"]["code"]) == (401, "token_expired")
        sidecar.configure(read_document(with_tokens(2, audiences=["other"]).to_bytes()))
        refused = await ask(sidecar.data_address, signed, {}, "/v1/messages", x_api_key=signed)
        assert (refused.status, refused.fields["error"]["type"]) == (401, "authentication_error")
        text = sidecar.metrics.exposition().decode()
        assert metric(text, "fairserve_denied_requests_total", code="token_audience_mismatch") == 1
    assert len(engine.seen) == 2
    assert not any(part in caplog.text for part in signed.split("."))


async def test_hop_that_shows_its_token_is_believed_and_its_token_stays_here(tmp_path, engine):
    config = with_identity(hop_tokens=[key_digest(SALT, "hop-secret")])
    says = {"x_fairserve_tenant": "b", "x_vllm_priority": "-5"}
    async with running_sidecar(tmp_path, engine, config) as sidecar:
        for shown, status in (("guess", 401), ("hop-secret", 200)):
            answer = await ask(sidecar.data_address, "none", {}, **says, x_fairserve_hop_token=shown)
            assert answer.status == status
        assert calls(sidecar, "b") == 1
        assert engine.seen[-1].header("x-vllm-priority") == "-5"
        forged = await ask(sidecar.data_address, KEY_A, {}, **says, x_fairserve_hop_token="guess")
        assert forged.status == 200
        assert calls(sidecar, "a") == 1
        assert engine.seen[-1].header("x-vllm-priority") is None
    assert all(seen.header("x-fairserve-hop-token") is None for seen in engine.seen)


#: Cohere's requests know no salt.
UNSALTED = {"/v2/embed", "/cohere/v2/chat"}


async def test_every_body_of_a_salted_tenant_is_salted_where_the_engine_knows_it(tmp_path, engine):
    config = with_identity(tenants={"a": {"cache_salt": "salt-of-a"}})
    body = b'{"input": "x",  "cache_salt": "theirs"}'
    async with running_sidecar(tmp_path, engine, config) as sidecar:
        for target in ENDPOINTS:
            await ask(sidecar.data_address, KEY_A, body, target)
            await ask(sidecar.data_address, KEY_B, body, target)
            salted, plain = (seen.body for seen in engine.seen[-2:])
            if target.startswith("/v1/audio/"):
                assert salted == plain == body
                continue
            assert plain == b'{"input": "x"}'
            assert salted == (plain if target in UNSALTED else b'{"input": "x","cache_salt": "salt-of-a"}')


async def test_strangers_body_is_not_read(sidecar, monkeypatch):
    read_bodies = []

    def read(body, headers, *, trusted, cache_salt, wanted):
        read_bodies.append(body)
        return EngineRequest(body)

    monkeypatch.setitem(endpoints._PLAIN, b"/v1/responses", Endpoint(read))
    for key, status in (("nobodys", 401), (KEY_A, 200)):
        answer = await ask(sidecar.data_address, key, {"for": key}, "/v1/responses")
        assert answer.status == status
    assert read_bodies == [b'{"for": "key-of-a"}']
