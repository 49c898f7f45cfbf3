"""Key sets: what is kept is what the sidecar's own library takes, whatever an issuer publishes."""

from __future__ import annotations

import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from fairserve.config import ALGORITHMS, IdentityConfig, SchedulerConfig
from fairserve.sidecar.identity import IdentityTable
from fairserve_operator.decide.jwks import MAX_KEYS, KeySet, KeysProblem, read_jwks

SECRETS = {
    "rsa": (rsa.generate_private_key(public_exponent=65537, key_size=2048), "RS256"),
    "weak": (rsa.generate_private_key(public_exponent=65537, key_size=1024), "RS256"),
    "p256": (ec.generate_private_key(ec.SECP256R1()), "ES256"),
    "p384": (ec.generate_private_key(ec.SECP384R1()), "ES384"),
    "p521": (ec.generate_private_key(ec.SECP521R1()), "ES512"),
    "k1": (ec.generate_private_key(ec.SECP256K1()), "ES256K"),
    "ed25519": (ed25519.Ed25519PrivateKey.generate(), "EdDSA"),
    "ed448": (ed448.Ed448PrivateKey.generate(), "EdDSA"),
}
GOOD = ("ed25519", "ed448", "p256", "p384", "p521", "rsa")
_KINDS = jwt.algorithms.get_default_algorithms()
PRIVATE = {kid: _KINDS[kind].to_jwk(key, as_dict=True) | {"kid": kid} for kid, (key, kind) in SECRETS.items()}
PUBLIC = {
    kid: _KINDS[kind].to_jwk(key.public_key(), as_dict=True) | {"kid": kid}
    for kid, (key, kind) in SECRETS.items()
}


def read(*keys: Any) -> KeySet | KeysProblem:
    return read_jwks(json.dumps({"keys": keys}).encode())


def accepted(keys: KeySet) -> None:
    """The sidecar takes a document with these keys."""
    issuer = {
        "issuer": "https://id.example",
        "audiences": ["llm"],
        "algorithms": ALGORITHMS,
        "keys": [dict(key) for key in keys.keys],
        "tenant_claim": ["team"],
    }
    identity = IdentityConfig.model_validate({"salt": "5a" * 16, "token_issuers": [issuer]})
    config = SchedulerConfig(pool="ns/llm", identity=identity)
    IdentityTable(SchedulerConfig.from_bytes(config.to_bytes()))


def test_good_public_keys_are_kept_in_order_with_what_makes_them_public() -> None:
    keys = read(*(PUBLIC[kid] | {"x5c": ["..."], "use": "sig"} for kid in reversed(GOOD)))
    assert isinstance(keys, KeySet)
    assert [key["kid"] for key in keys.keys] == list(GOOD)
    assert all("x5c" not in key and "key_ops" not in key for key in keys.keys)
    accepted(keys)


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        ("text", "a key is no JSON object"),
        ({}, "a key has no usable kid"),
        (PUBLIC["p256"] | {"kid": ""}, "key '' has no usable kid"),
        (PUBLIC["p256"] | {"kid": "\ud800"}, "key '\\ud800' has no usable kid"),
        (PUBLIC["p256"] | {"use": "\ud800"}, "key 'p256' is malformed"),
        (PRIVATE["p256"], "key 'p256' is private or symmetric"),
        (PRIVATE["rsa"], "key 'rsa' is private or symmetric"),
        ({"kty": "oct", "kid": "s", "k": "c2VjcmV0"}, "key 's' is private or symmetric"),
        (PUBLIC["p256"] | {"use": "enc"}, "key 'p256' is not for signatures"),
        (PUBLIC["p256"] | {"alg": "ECDH-ES"}, "key 'p256' is not for signatures"),
        (PUBLIC["p256"] | {"key_ops": ["sign"]}, "key 'p256' is not for signatures"),
        (PUBLIC["p256"] | {"crv": ["P-256"]}, "key 'p256' is malformed"),
        (PUBLIC["k1"], "key 'k1' is of an unknown kind"),
        (PUBLIC["weak"], "key 'weak' is malformed or weak"),
        (PUBLIC["p256"] | {"y": PUBLIC["p256"]["x"]}, "key 'p256' is malformed or weak"),
        (PUBLIC["p384"] | {"x": "AA"}, "key 'p384' is malformed or weak"),
        (PUBLIC["ed25519"] | {"x": PUBLIC["ed448"]["x"]}, "key 'ed25519' is malformed or weak"),
    ],
)
def test_a_key_that_no_sidecar_can_use_is_left_out_and_told_where_no_other_is(key: Any, fault: str) -> None:
    problem = read(key)
    assert isinstance(problem, KeysProblem)
    assert problem.reason == "KeysMalformed"
    assert problem.message == f"the key set holds no key that a token can be checked with; {fault}"
    for private in (PRIVATE["p256"]["d"], PRIVATE["rsa"]["d"], "c2VjcmV0"):
        assert private not in problem.message
    others = read(PUBLIC["ed448"], key)
    assert isinstance(others, KeySet)
    assert [kept["kid"] for kept in others.keys] == ["ed448"]


def test_the_first_of_two_keys_of_one_id_is_kept() -> None:
    keys = read(PUBLIC["rsa"], PUBLIC["p256"] | {"kid": "rsa"})
    assert isinstance(keys, KeySet)
    assert [key["kty"] for key in keys.keys] == ["RSA"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no JSON"),
        (b"<html>", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", 'no JSON object with "keys"'),
        (b'{"keys": {}}', 'no JSON object with "keys"'),
        (b'{"keys": []}', "no key that a token can be checked with"),
        (json.dumps({"keys": [{}] * (MAX_KEYS + 1)}).encode(), "33 keys, more than 32"),
    ],
)
def test_what_is_no_key_set_is_told(data: bytes, words: str) -> None:
    assert read_jwks(data) == KeysProblem("KeysMalformed", f"the key set holds {words}")


scraps = st.sampled_from(
    [None, 0, "", "AA", "!", "AQAB", "sig", "enc", "RS256", "P-256", "Ed25519", "RSA", "EC", "OKP", [], {}]
)
members = st.sampled_from(["kty", "crv", "n", "e", "x", "y", "kid", "use", "alg", "key_ops", "d"])


@st.composite
def bent_keys(draw: st.DrawFn) -> dict[str, Any]:
    """A key with members of others, or of none."""
    key = dict(draw(st.sampled_from([*PUBLIC.values(), *PRIVATE.values()])))
    for _ in range(draw(st.integers(0, 3))):
        name = draw(members)
        donor = draw(st.sampled_from(list(PUBLIC.values())))
        key[name] = draw(st.one_of(scraps, st.just(donor.get(name, "AA")), st.text(max_size=8)))
    return key


@settings(deadline=None)
@given(st.lists(st.one_of(bent_keys(), scraps), max_size=4))
def test_whatever_is_kept_the_sidecar_takes(keys: list[Any]) -> None:
    found = read(*keys)
    if isinstance(found, KeySet):
        assert found.keys
        accepted(found)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_crash_it(data: bytes) -> None:
    assert isinstance(read_jwks(data), KeySet | KeysProblem)
