"""Issuers' public keys: which of a JSON Web Key Set's are of use, and what is known where there are none.

A sidecar refuses a document with a key that it can't use, whole. So what a key set holds is looked at here,
by the numbers themselves, and what no sidecar could use is left out: private and symmetric keys, keys for
encryption, weak ones, points that are on no curve. Only the members that make a public key travel.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from fairserve.config import PRIVATE_MEMBERS, algorithms_of
from fairserve_operator.decide.resources import SecretProblem, SecretRef

#: Where keys come from: a URL, an entry of a Secret, or the API server's own.
KeySource: TypeAlias = str | SecretRef
CLUSTER: Final = "cluster"

MAX_KEYS = 32
_MAX_ID = 128
_MAX_RSA_BITS = 8192
_MEMBERS = ("alg", "crv", "e", "kid", "kty", "n", "use", "x", "y")
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")

PublicKey: TypeAlias = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class KeySet:
    """Keys that are good. `issuer` is set where the source says it: the cluster's own."""

    keys: tuple[PublicKey, ...]
    issuer: str = ""
    problem: str = ""  #: why these are not known to be the newest; empty if they are


@dataclass(frozen=True, slots=True)
class KeysProblem:
    """Why there are no keys."""

    reason: str
    message: str


Keys: TypeAlias = Mapping[KeySource, KeySet | KeysProblem]

PENDING = KeysProblem("KeysPending", "the keys have not been fetched yet")


def known_keys(found: KeySet | KeysProblem | None, before: KeySet | None) -> KeySet | KeysProblem:
    """What to go by: what was found, else the keys that were good before."""
    if isinstance(found, KeySet) or before is None:
        return PENDING if found is None else found
    return KeySet(before.keys, before.issuer, "" if found is None else found.message)


def read_jwks(data: bytes) -> KeySet | KeysProblem:
    """The usable keys of a key set (RFC 7517 §5), in order of their ids."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return _malformed("no JSON")
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        return _malformed('no JSON object with "keys"')
    if len(listed) > MAX_KEYS:
        return _malformed(f"{len(listed)} keys, more than {MAX_KEYS}")
    good: dict[str, PublicKey] = {}
    faults: list[str] = []
    for key in listed:
        fault = _fault(key) or ("is there twice" if key["kid"] in good else "")
        if fault:
            faults.append(f"{_name(key)} {fault}")
        else:
            good[key["kid"]] = {name: key[name] for name in _MEMBERS if name in key}
    if not good:
        return _malformed("; ".join(["no key that a token can be checked with", *faults[:3]]))
    return KeySet(tuple(good[kid] for kid in sorted(good)))


def secret_keys(ref: SecretRef, value: bytes | SecretProblem) -> KeySet | KeysProblem:
    """The keys that an entry of a Secret holds."""
    if isinstance(value, SecretProblem):
        return KeysProblem(value.value, f"jwksSecretRef: {value.of(ref.name, ref.key)}")
    keys = read_jwks(value)
    if isinstance(keys, KeySet):
        return keys
    return KeysProblem(keys.reason, f'jwksSecretRef: key "{ref.key}" of Secret "{ref.name}": {keys.message}')


def _malformed(what: str) -> KeysProblem:
    return KeysProblem("KeysMalformed", f"the key set holds {what}")


def _name(key: Any) -> str:
    kid = key.get("kid") if isinstance(key, dict) else None
    return f"key {kid[:_MAX_ID]!r}" if isinstance(kid, str) else "a key"


def _fault(key: Any) -> str:
    """Why a key can't be used; empty if it can."""
    return next((fault for check, fault in _CHECKS if not check(key)), "")


def _is_text(value: Any) -> bool:
    """JSON may hold half a surrogate pair, which no document can."""
    return isinstance(value, str) and not any("\ud800" <= each <= "\udfff" for each in value)


def _is_for_verifying(key: Mapping[str, Any]) -> bool:
    operations = key.get("key_ops", ["verify"])
    return isinstance(operations, list) and "verify" in operations and bool(algorithms_of(key))


def _is_sound(key: Mapping[str, Any]) -> bool:
    match key["kty"]:
        case "RSA":
            n, e = _number(key, "n"), _number(key, "e")
            return 2048 <= n.bit_length() <= _MAX_RSA_BITS and n % 2 == 1 and e % 2 == 1 and 3 <= e < n
        case "EC":
            return _is_on_curve(_CURVES[key["crv"]], key)
        case _:
            return len(_octets(key, "x")) == _EDWARDS[key["crv"]]


@dataclass(frozen=True, slots=True)
class _Curve:
    """y² = x³ - 3x + b modulo p (FIPS 186-4, D.1.2)."""

    size: int  #: octets of a coordinate
    p: int
    b: int


_CURVES = {
    "P-256": _Curve(
        32,
        2**256 - 2**224 + 2**192 + 2**96 - 1,
        0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B,
    ),
    "P-384": _Curve(
        48,
        2**384 - 2**128 - 2**96 + 2**32 - 1,
        0xB3312FA7E23EE7E4988E056BE3F82D19181D9C6EFE8141120314088F5013875AC656398D8A2ED19D2A85C8EDD3EC2AEF,
    ),
    "P-521": _Curve(
        66,
        2**521 - 1,
        (0x51953EB9618E1C9A1F929A21A0B68540EEA2DA725B99B315F3B8B489918EF109 << 264)
        | 0xE156193951EC7E937B1652C0BD3BB1BF073573DF883D2C34F1EF451FD46B503F00,
    ),
}
#: Octets of a public key.
_EDWARDS = {"Ed25519": 32, "Ed448": 57}
_KINDS: Mapping[str, Sequence[str]] = {"EC": tuple(_CURVES), "OKP": tuple(_EDWARDS)}


def _is_on_curve(curve: _Curve, key: Mapping[str, Any]) -> bool:
    if any(len(_octets(key, name)) != curve.size for name in ("x", "y")):
        return False
    x, y = _number(key, "x"), _number(key, "y")
    return max(x, y) < curve.p and (y * y - x * x * x + 3 * x - curve.b) % curve.p == 0


def _is_of_known_kind(key: Mapping[str, Any]) -> bool:
    kind = key.get("kty")
    return kind == "RSA" or (isinstance(kind, str) and key.get("crv") in _KINDS.get(kind, ()))


def _number(key: Mapping[str, Any], member: str) -> int:
    return int.from_bytes(_octets(key, member))


def _octets(key: Mapping[str, Any], member: str) -> bytes:
    """A member's octets; none where it is missing or not what it should be."""
    text = key.get(member, "")
    if not _BASE64URL.fullmatch(text) or len(text) % 4 == 1:
        return b""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


#: In this order, each relying on those before it.
_CHECKS: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (lambda key: isinstance(key, dict), "is no JSON object"),
    (lambda key: _is_text(key.get("kid")) and 0 < len(key["kid"]) <= _MAX_ID, "has no usable kid"),
    (lambda key: PRIVATE_MEMBERS.isdisjoint(key), "is private or symmetric"),
    (lambda key: all(_is_text(key.get(name, "")) for name in _MEMBERS), "is malformed"),
    (_is_of_known_kind, "is of an unknown kind"),
    (_is_for_verifying, "is not for signatures"),
    (_is_sound, "is malformed or weak"),
)
