"""Who calls, by a signed token: what counts, what doesn't, and that nothing is checked twice."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fairserve.config import SchedulerConfig, key_digest
from fairserve.core.settings import DEFAULT_TENANT
from fairserve.difference import diff
from fairserve.engine.requests import EngineRequest
from fairserve.sidecar.claims import Claim
from fairserve.sidecar.configuration import DocumentError, read_difference, read_document
from fairserve.sidecar.identity import IdentityTable, Memory
from fairserve.sidecar.refusals import Problem
from fairserve.sidecar.tokens import MAX_TOKEN_BYTES, VerifiedTokens

SALT = "cd" * 16
ISSUER, CLUSTER = "https://id.example", "https://cluster.example"
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
#: By `kid`: the private key and the algorithm that a token of it is signed with.
KEYS = {"rsa": (RSA_KEY, "RS256"), "ec": (EC_KEY, "ES256"), "ed": (ED_KEY, "EdDSA")}
_ALGORITHMS = jwt.algorithms.get_default_algorithms()


def jwk(kid: str, key=None, algorithm: str | None = None, **members) -> dict:
    """A JSON Web Key; public for the keys in `KEYS`."""
    known, its_algorithm = KEYS.get(kid, (None, None))
    key = known.public_key() if key is None else key
    made = _ALGORITHMS[algorithm or its_algorithm].to_jwk(key, as_dict=True)
    return {**made, "kid": kid, **members}


def issuer(**changes) -> dict:
    return {
        "issuer": ISSUER,
        "audiences": ["llm", "llm-2"],
        "algorithms": ["RS256", "ES256", "EdDSA"],
        "keys": [jwk(kid) for kid in KEYS],
        "tenant_claim": ["org", "team"],
        **changes,
    }


def fields(*issuers: dict, **changes) -> dict:
    return {
        "pool": "n/p",
        "identity": {
            "salt": SALT,
            "api_keys": [{"digest": key_digest(SALT, "a.b.c"), "tenant": "b"}],
            "token_issuers": issuers or [issuer()],
        },
        "tenants": [{"name": "a", "cache_salt": "salt-of-a"}, {"name": "b"}],
        "applications": [{"name": "chat", "input_tokens": 1, "output_tokens": 1}],
        **changes,
    }


def table(*issuers: dict, **changes) -> IdentityTable:
    return IdentityTable(SchedulerConfig.model_validate(fields(*issuers, **changes)))


def claims(**changes) -> dict:
    now = time.time()
    said = {"iss": ISSUER, "aud": "llm", "exp": now + 600, "sub": "ann", "org": {"team": "a"}} | changes
    return {name: value for name, value in said.items() if value is not None}


def token(kid: str = "rsa", key=None, algorithm: str | None = None, headers=(), **changes) -> str:
    its_key, its_algorithm = KEYS.get(kid, KEYS["rsa"])
    header = {"kid": kid, **dict(headers)}
    return jwt.encode(claims(**changes), key or its_key, algorithm or its_algorithm, headers=header)


def handmade(header: dict, payload: dict | bytes, signature: bytes | None = None, secret: bytes = b"") -> str:
    """A token that no library would make, signed with `secret` by HMAC unless `signature` is given."""
    payload = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    parts = [base64.urlsafe_b64encode(p).rstrip(b"=") for p in (json.dumps(header).encode(), payload)]
    if signature is None:
        signature = hmac.digest(secret, b".".join(parts), hashlib.sha256)
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


def shown(identities: IdentityTable, bearer: str, header: str = "authorization") -> Claim | Problem:
    """Whose the call with this token is."""
    value = f"Bearer {bearer}" if header == "authorization" else bearer
    pairs = [(header.encode(), value.encode())]
    return identities.authenticate(pairs, dict(pairs), Memory(identities, "10.0.0.9"), trusted=False)


def code(result: Claim | Problem) -> str:
    assert isinstance(result, Problem), result
    assert result.status == 401
    return result.code


@pytest.mark.parametrize("kid", KEYS)
@pytest.mark.parametrize("header", ["authorization", "x-api-key", "api-key"])
def test_token_is_its_tenant_and_user(kid, header):
    assert shown(table(), token(kid), header) == Claim("a", None, "ann", "salt-of-a")


def test_key_that_looks_like_a_token_is_a_key():
    assert shown(table(), "a.b.c") == Claim("b")


REFUSED = [
    ({"exp": 1}, "token_expired"),
    ({"exp": None}, "token_invalid"),
    ({"exp": "soon"}, "token_invalid"),
    ({"exp": float("inf")}, "token_invalid"),
    ({"nbf": 99_999_999_999}, "token_not_yet_valid"),
    ({"iat": 99_999_999_999}, "token_not_yet_valid"),
    ({"aud": "other"}, "token_audience_mismatch"),
    ({"aud": ["other", "llm-3"]}, "token_audience_mismatch"),
    ({"aud": None}, "token_invalid"),
    ({"org": {"team": "nobody"}}, "token_tenant_unknown"),
    ({"org": {"team": ["a"]}}, "token_tenant_unknown"),
    ({"org": "a"}, "token_tenant_unknown"),
    ({"org": None}, "token_tenant_unknown"),
]


@pytest.mark.parametrize(("change", "why"), REFUSED)
def test_claims_that_do_not_count(change, why):
    assert code(shown(table(), token(**change))) == why


@pytest.mark.parametrize(("change", "why"), [pair for pair in REFUSED if pair[1] != "token_tenant_unknown"])
def test_bad_token_is_never_the_default_tenant(change, why):
    assert code(shown(table(default_tenant={"name": DEFAULT_TENANT}), token(**change))) == why


def test_good_token_of_an_unknown_tenant_is_the_default_tenant_with_a_user():
    identities = table(default_tenant={"name": DEFAULT_TENANT})
    assert shown(identities, token(org=None)) == Claim(DEFAULT_TENANT, user="ann")


def test_clocks_may_differ_by_the_leeway():
    late = token(exp=time.time() - 20)
    assert isinstance(shown(table(), late), Claim)
    assert code(shown(table(issuer(leeway_s=0)), late)) == "token_expired"


def test_any_of_the_audiences_will_do():
    assert isinstance(shown(table(), token(aud=["other", "llm-2"])), Claim)


def test_public_key_is_no_secret():
    """The oldest trick: a token signed by HMAC with the public key's bytes, in each form that it comes in."""
    public = RSA_KEY.public_key()
    formats = [
        public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo),
        json.dumps(jwk("rsa")).encode(),
        jwk("rsa")["n"].encode(),
    ]
    for secret in formats:
        forged = handmade({"alg": "HS256", "kid": "rsa"}, claims(), secret=secret)
        assert code(shown(table(), forged)) == "token_algorithm_not_allowed"
        forged = handmade({"alg": "RS256", "kid": "rsa"}, claims(), secret=secret)
        assert code(shown(table(), forged)) == "token_invalid"


@pytest.mark.parametrize("algorithm", ["none", "None", "nOnE", "", None, ["RS256"], 5])
def test_unsigned_token_is_nobodys(algorithm):
    for signature in (b"", b"x"):
        forged = handmade({"alg": algorithm, "kid": "rsa"}, claims(), signature)
        assert code(shown(table(), forged)) == "token_algorithm_not_allowed"
    assert code(shown(table(), handmade({"kid": "rsa"}, claims(), b""))) == "token_algorithm_not_allowed"


@pytest.mark.parametrize(
    ("kid", "algorithm"),
    [("rsa", "RS512"), ("rsa", "PS256"), ("rsa", "ES256"), ("ec", "RS256"), ("ed", "ES256")],
)
def test_algorithm_is_one_that_is_allowed_for_the_key(kid, algorithm):
    forged = handmade({"alg": algorithm, "kid": kid}, claims(), b"x" * 64)
    assert code(shown(table(), forged)) == "token_algorithm_not_allowed"


def test_key_that_names_its_algorithm_is_for_no_other():
    both = issuer(algorithms=["RS256", "RS512"], keys=[jwk("rsa")])
    one = issuer(algorithms=["RS256", "RS512"], keys=[jwk("rsa", alg="RS512")])
    assert isinstance(shown(table(both), token()), Claim)
    assert isinstance(shown(table(both), token(algorithm="RS512")), Claim)
    assert isinstance(shown(table(one), token(algorithm="RS512")), Claim)
    assert code(shown(table(one), token())) == "token_algorithm_not_allowed"


@pytest.mark.parametrize("header", [{"kid": "nope"}, {"kid": "rsa "}, {"kid": ""}])
def test_unknown_key_is_refused(header):
    assert code(shown(table(), token(headers=header))) == "token_key_unknown"


@pytest.mark.parametrize("kid", [None, 5, ["rsa"]])
def test_token_without_the_name_of_a_key_is_refused(kid):
    forged = handmade({"alg": "RS256", "kid": kid}, claims(), b"x")
    assert code(shown(table(), forged)) in ("token_key_unknown", "token_invalid")


def test_key_of_another_is_no_good():
    assert code(shown(table(), token(key=OTHER_RSA_KEY))) == "token_invalid"


def test_changed_token_is_no_good():
    head, _, signature = token().split(".")
    payload = base64.urlsafe_b64encode(json.dumps(claims(org={"team": "b"})).encode()).rstrip(b"=").decode()
    assert code(shown(table(), f"{head}.{payload}.{signature}")) == "token_invalid"


def test_extensions_that_must_be_understood_are_not():
    assert code(shown(table(), token(headers={"crit": ["exp"], "exp": 1}))) == "token_invalid"


def test_two_issuers_vouch_for_their_own():
    their_key = jwk("rsa", OTHER_RSA_KEY.public_key())
    theirs = {"issuer": "https://other.example", "algorithms": ["RS256"], "keys": [their_key]}
    second = issuer(tenant="b", tenant_claim=None, **theirs)
    identities = table(issuer(), second)
    assert shown(identities, token()).tenant == "a"
    assert shown(identities, token(key=OTHER_RSA_KEY, iss="https://other.example")).tenant == "b"
    assert code(shown(identities, token(iss="https://other.example"))) == "token_invalid"
    assert code(shown(identities, token(key=OTHER_RSA_KEY))) == "token_invalid"


@pytest.mark.parametrize("iss", ["https://id.example/", "HTTPS://id.example", "https://unknown.example", ""])
def test_token_of_an_unknown_issuer_is_an_unknown_key(iss):
    assert code(shown(table(), token(iss=iss))) == "invalid_api_key"
    assert shown(table(default_tenant={"name": DEFAULT_TENANT}), token(iss=iss)).tenant == DEFAULT_TENANT


@pytest.mark.parametrize(
    "bearer",
    ["..", "a..b", "x" * 100_000, "." * 50_000, handmade({}, b"[" * 5000), handmade({}, b'{"iss": ["x"]}')],
)
def test_what_is_no_token_is_an_unknown_key(bearer):
    assert code(shown(table(), bearer)) == "invalid_api_key"


def test_huge_token_is_not_even_read():
    huge = token(filler="x" * MAX_TOKEN_BYTES)
    assert code(shown(table(), huge)) == "token_invalid"
    assert isinstance(shown(table(), token(filler="x" * 8000)), Claim)


WHOLE = token(exp=9_999_999_999).encode()


@given(st.integers(0, len(WHOLE)), st.integers(0, 6), st.binary(max_size=6))
def test_no_change_of_a_token_is_believed_or_raises(at, cut, put):
    changed = WHOLE[:at] + put + WHOLE[at + cut :]
    identities = table(default_tenant={"name": DEFAULT_TENANT})
    pairs = [(b"x-api-key", changed)]
    claim = identities.authenticate(pairs, dict(pairs), Memory(identities, "10.0.0.9"), trusted=False)
    assert isinstance(claim, Problem) or claim.tenant == DEFAULT_TENANT or _same(changed, WHOLE)


def _same(changed: bytes, whole: bytes) -> bool:
    """Whether two tokens are the same but for bits of base64 that hold nothing."""

    def parts(said: bytes) -> list[bytes]:
        return [base64.urlsafe_b64decode(part + b"==") for part in said.split(b".")]

    return parts(changed) == parts(whole)


SERVICE_ACCOUNT = {
    "iss": CLUSTER,
    "sub": "system:serviceaccount:team-a:app",
    "org": None,
    "kubernetes.io": {"namespace": "team-a", "serviceaccount": {"name": "app", "uid": "1"}},
}


def cluster(**changes) -> dict:
    return issuer(issuer=CLUSTER, tenant_claim=None, kubernetes=True, **changes)


def test_service_account_is_its_namespaces_tenant():
    identities = table(cluster(tenants={"team-a": "a"}))
    claim = shown(identities, token(**SERVICE_ACCOUNT))
    assert (claim.tenant, claim.user) == ("a", "system:serviceaccount:team-a:app")
    elsewhere = SERVICE_ACCOUNT | {"kubernetes.io": {"namespace": "a"}}
    assert code(shown(identities, token(**elsewhere))) == "token_tenant_unknown"
    assert shown(table(cluster()), token(**elsewhere)).tenant == "a"


def test_service_account_that_is_named_is_not_its_namespaces_tenant():
    tenants = {"team-a": "a", "system:serviceaccount:team-a:app": "b"}
    identities = table(cluster(tenants=tenants))
    assert shown(identities, token(**SERVICE_ACCOUNT)).tenant == "b"
    other = SERVICE_ACCOUNT | {"sub": "system:serviceaccount:team-a:other"}
    assert shown(identities, token(**other)).tenant == "a"
    # A claim of another issuer that looks like an account is no account.
    stranger = issuer(tenants={"x": "a", "system:serviceaccount:team-a:app": "b"})
    claims = {"org": {"team": "x"}, "sub": "system:serviceaccount:team-a:app"}
    assert shown(table(stranger), token(**claims)).tenant == "a"


def caller(identities: IdentityTable, *, trusted: bool = False, body_user: str = "", **headers: str):
    pairs = [(b"x-api-key", token(app="chat").encode())]
    pairs += [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    claim = identities.authenticate(pairs, dict(pairs), Memory(identities, "10.0.0.9"), trusted=trusted)
    assert isinstance(claim, Claim)
    return identities.identify(claim, dict(pairs), EngineRequest(b"", user=body_user), trusted=trusted)


def test_user_of_a_token_is_nobodys_to_change_but_a_trusted_hops():
    assert caller(table(), x_fairserve_user="bob", body_user="bob").user == "ann"
    assert caller(table(), x_fairserve_user="bob", trusted=True).user == "bob"
    assert caller(table(), body_user="bob", trusted=True).user == "ann"
    assert caller(table(issuer(user_claim=None)), body_user="bob").user == "bob"
    assert caller(table(issuer(user_claim=["missing"])), body_user="bob").user == "bob"


def test_users_places_change_nothing_of_whom_a_token_names():
    places = {"tenants": [{"name": "a", "user_sources": ["body:user", "header:x-user"]}, {"name": "b"}]}
    identities = table(**places)
    assert caller(identities, x_user="bob").user == "ann"
    assert caller(identities, x_user="bob", trusted=True).user == "bob"
    assert caller(identities, x_fairserve_user="bob", trusted=True).user == "ann"
    assert caller(table(issuer(user_claim=["missing"]), **places), x_user="bob").user == "bob"


def test_token_for_an_application_that_is_not_its_tenants_is_refused():
    tenants = [{"name": "a", "applications": []}, {"name": "b"}]
    refused = caller(table(issuer(application_claim=["app"]), tenants=tenants))
    assert (refused.status, refused.code) == (403, "application_not_allowed")


def test_token_may_pin_the_application():
    identities = table(issuer(application_claim=["app"]))
    assert caller(identities).application == "chat"
    refused = shown(identities, token(app="nope"))
    assert isinstance(refused, Problem)
    assert (refused.status, refused.code) == (403, "token_application_unknown")


def test_verified_token_is_not_verified_again_until_it_expires():
    now = [time.time()]
    identities = IdentityTable(SchedulerConfig.model_validate(fields()), lambda: now[0])
    signed, seen = token(exp=now[0] + 600), []
    issuers = identities._issuers
    assert issuers is not None
    its_issuer = issuers._issuers[ISSUER]

    class Counting:
        config = its_issuer.config

        def verify(self, said):
            seen.append(said)
            return its_issuer.verify(said)

    issuers._issuers[ISSUER] = Counting()
    for _ in range(3):
        assert shown(identities, signed).tenant == "a"
    assert len(seen) == 1
    now[0] += 600 + 29
    shown(identities, signed)
    assert len(seen) == 1
    now[0] += 1
    shown(identities, signed)
    assert len(seen) == 2


def test_bad_token_is_not_remembered():
    identities = table()
    for _ in range(2):
        shown(identities, token(exp=1))
    assert len(identities._issuers._verified) == 0


def test_memory_of_tokens_is_bounded_and_forgets_the_longest_unused():
    remembered = VerifiedTokens(capacity=2)
    for digest in "abc":
        remembered.get("a", 0.0)
        remembered.put(digest, Claim(digest), 10.0)
    assert [remembered.get(digest, 9.9) for digest in "abc"] == [Claim("a"), None, Claim("c")]
    assert remembered.get("a", 10.0) is None
    assert len(remembered) == 1


RSA_PRIVATE = jwk("rsa", RSA_KEY)
EC_PRIVATE = jwk("ec", EC_KEY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithms": ["HS256"]}, "algorithms"),
        ({"algorithms": ["none"]}, "algorithms"),
        ({"algorithms": []}, "algorithms"),
        ({"audiences": []}, "audiences"),
        ({"issuer": ""}, "issuer"),
        ({"keys": []}, "keys"),
        ({"keys": [RSA_PRIVATE]}, "'rsa' is a private key"),
        ({"keys": [EC_PRIVATE]}, "'ec' is a private key"),
        ({"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "s"}]}, "'s' is a private key"),
        ({"keys": [{"kty": "oct", "kid": "s"}]}, "none of the algorithms"),
        ({"keys": [jwk("rsa"), jwk("rsa")]}, "appears twice"),
        ({"keys": [{**jwk("rsa"), "kid": None}]}, "no kid"),
        ({"keys": [jwk("rsa", use="enc")]}, "none of the algorithms"),
        ({"keys": [jwk("rsa", alg="RS384")]}, "none of the algorithms"),
        ({"algorithms": ["RS256"], "keys": [jwk("ec")]}, "none of the algorithms"),
        ({"leeway_s": -1}, "leeway_s"),
        ({"leeway_s": 3600}, "leeway_s"),
        ({"keys": [{"kty": "EC", "kid": "k", "crv": ["P-256"]}]}, "'k' is for none of the algorithms"),
        ({"surprise": 1}, "surprise"),
        ({"tenant": "a"}, "exactly one"),
        ({"kubernetes": True}, "exactly one"),
        ({"tenant_claim": None}, "exactly one"),
        ({"tenant_claim": []}, "tenant_claim"),
        ({"tenant_claim": None, "tenant": "a", "tenants": {"x": "a"}}, "tenants maps a claim"),
        ({"tenant_claim": None, "tenant": "nope"}, "unknown tenant 'nope'"),
        ({"tenants": {"x": "nope"}}, "unknown tenant 'nope'"),
    ],
)
def test_wrong_issuer_is_refused(change, message):
    with pytest.raises(ValidationError, match=message) as refused:
        table(issuer(**change))
    for secret in (RSA_PRIVATE["d"], EC_PRIVATE["d"], "c2VjcmV0"):
        assert secret[:12] not in str(refused.value)


def test_two_issuers_of_one_name_are_refused():
    with pytest.raises(ValidationError, match="appears twice"):
        table(issuer(), issuer())


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ({"kty": "RSA", "kid": "k", "n": "!", "e": "AQAB"}, "'k' can't be read"),
        ({"kty": "RSA", "kid": "k"}, "'k' can't be read"),
        (
            jwk("k", rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key(), "RS256"),
            "2048",
        ),
        ({**jwk("ec"), "kid": "k", "x": "AA"}, "'k' can't be read"),
    ],
)
def test_document_with_a_key_that_cannot_be_used_is_refused(key, message):
    with pytest.raises(DocumentError, match=message):
        read_document(json.dumps(fields(issuer(keys=[key]))).encode())


def test_a_connection_remembers_no_token_which_has_an_end():
    identities = table()
    memory, pairs = Memory(identities, "10.0.0.9"), [(b"authorization", b"Bearer " + token().encode())]
    assert identities.authenticate(pairs, dict(pairs), memory, trusted=False).tenant == "a"
    assert memory.claim is None


def tenants(weight: float = 1.0, salt: str = "salt-of-a") -> list[dict]:
    return [{"name": "a", "cache_salt": salt, "weight": weight}, {"name": "b"}]


@pytest.mark.parametrize(
    ("changes", "remembered"),
    [
        ({"tenants": tenants(weight=2)}, 1),
        ({"mode": "Shadow"}, 1),
        ({"tenants": tenants(salt="another")}, 0),
        ({"tenants": [*tenants(), {"name": "c"}]}, 0),
        ({"applications": []}, 0),
        ({"default_tenant": {"name": "d"}}, 0),
        ({"identity": fields(issuer(audiences=["llm"]))["identity"]}, 0),
    ],
)
def test_verified_tokens_are_remembered_where_they_stand_for_the_same(changes, remembered):
    running = read_document(SchedulerConfig.model_validate(fields(tenants=tenants())).to_bytes())
    signed = token()
    assert shown(running.table, signed) == Claim("a", user="ann", cache_salt="salt-of-a")
    wanted = SchedulerConfig.model_validate(fields(**{"tenants": tenants(), **changes, "generation": 1}))
    made = read_difference(diff(running.document, wanted).to_bytes(), running)
    assert len(made.table._issuers._verified) == remembered
    salt = wanted.tenants[0].cache_salt
    assert shown(made.table, signed) == Claim("a", user="ann", cache_salt=salt)


@pytest.mark.parametrize("whole", [True, False])
def test_a_key_that_is_none_is_refused_whole_or_as_a_difference(whole):
    running = read_document(SchedulerConfig.model_validate(fields()).to_bytes())
    unusable = issuer(keys=[{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "k"}])
    wanted = SchedulerConfig.model_validate(fields(unusable, generation=running.generation + 1))
    data = wanted.to_bytes() if whole else diff(running.document, wanted).to_bytes()
    with pytest.raises(DocumentError):
        _ = read_document(data) if whole else read_difference(data, running)
