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
from tests.integration.sidecars import (
    KEY_A,
    KEY_B,
    SALT,
    ask,
    control,
    document,
    metric,
    running_sidecar,
)

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


def with_applications(tenants: dict[str, dict] | None = None, **matches: dict):
    """The usual document with matches of its applications, and more of some tenants."""
    config = with_identity(tenants=tenants)
    applications = [{**a.model_dump(), "match": matches.get(a.name)} for a in config.applications]
    return document(
        identity=config.identity.model_dump(),
        tenants=[t.model_dump() for t in config.tenants],
        applications=applications,
    )


async def test_application_of_others_is_refused_in_each_shape_before_the_engine_sees_it(tmp_path, engine):
    config = with_applications({"a": {"applications": ["chat"]}}, agent={"models": ["big"]})
    async with running_sidecar(tmp_path, engine, config) as sidecar:
        address = sidecar.data_address
        refused = await ask(address, KEY_A, {"model": "small"}, x_fairserve_application="agent")
        assert refused.status == 403
        assert refused.fields["error"]["code"] == "application_not_allowed"
        assert refused.header("retry-after") is None
        assert refused.header("x-fairserve-refused-reason") is None
        matched = await ask(address, KEY_A, {"model": "big"}, "/v1/messages")
        assert (matched.status, matched.fields["error"]["type"]) == (403, "permission_error")
        assert "'agent'" in matched.fields["error"]["message"]
        assert engine.seen == []
        text = sidecar.metrics.exposition().decode()
        assert metric(text, "fairserve_denied_requests_total", code="application_not_allowed") == 2
        # Its own, nobody's, and those of a tenant that may use all.
        for key, model, named in ((KEY_A, "s", "chat"), (KEY_A, "s", None), (KEY_B, "big", None)):
            headers = {"x_fairserve_application": named} if named else {}
            assert (await ask(address, key, {"model": model}, **headers)).status == 200
        assert calls_of(sidecar) == {("a", "chat"): 1, ("a", "_default"): 1, ("b", "agent"): 1}


def calls_of(sidecar) -> dict[tuple[str, str], float]:
    """Completed calls by tenant and application."""
    text = sidecar.metrics.exposition().decode()
    found = {
        (tenant, name): metric(
            text, "fairserve_requests_total", tenant=tenant, application=name, outcome="completed"
        )
        for tenant in "ab"
        for name in ("chat", "agent", "_default")
    }
    return {key: value for key, value in found.items() if value}


FORM = (
    b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nbig\r\n'
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n01\r\n--x--\r\n'
)


async def test_call_is_of_the_application_that_its_model_path_or_headers_match(tmp_path, engine):
    config = with_applications(
        chat={"models": ["big"]}, agent={"paths": ["/v1/embeddings"], "headers": {"x-kind": "agent"}}
    )
    async with running_sidecar(tmp_path, engine, config) as sidecar:
        address = sidecar.data_address
        await ask(address, KEY_A, {"model": "big"})
        form = {"content_type": "multipart/form-data; boundary=x"}
        await ask(address, KEY_A, FORM, "/v1/audio/transcriptions", **form)
        await ask(address, KEY_A, {"model": "big"}, "/v1/embeddings?x=1", x_kind="agent")
        await ask(address, KEY_A, {"model": "big"}, x_fairserve_application="agent")
        await ask(address, KEY_A, {"input": "x"}, "/v1/embeddings")
        assert calls_of(sidecar) == {("a", "chat"): 2, ("a", "agent"): 2, ("a", "_default"): 1}
        assert engine.seen[2].header("x-kind") == "agent"


async def test_users_are_told_apart_by_the_places_that_their_tenant_says(tmp_path, engine):
    once = {"count": 1, "window_s": 600}
    tenants = {"b": {"user_sources": ["body:metadata.who", "header:x-end-user"], "per_user": once}}
    async with running_sidecar(tmp_path, engine, with_identity(tenants=tenants)) as sidecar:
        armed = b'{"armed": true, "lease_s": 600, "reason": "a test"}'
        assert (await control(sidecar, "PUT", "/overload", armed)).status == 200

        async def status(body: dict, **headers: str) -> int:
            return (await ask(sidecar.data_address, KEY_B, body, **headers)).status

        assert await status({"metadata": {"who": "ann"}}, x_end_user="bob") == 200
        assert await status({"metadata": {"who": "ann"}}, x_end_user="cid") == 429
        assert await status({"user": "ann"}, x_end_user="bob", x_fairserve_user="ann") == 200
        assert await status({"user": "dee"}, x_end_user="bob") == 429
