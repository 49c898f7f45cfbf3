"""JSON Web Tokens, a cluster's ServiceAccount tokens among them: who signed one, and what it claims.

A token's issuer is read before anything is verified, and decides by which keys and algorithms it is judged;
what a token says about itself decides nothing else. A verified token is remembered by its keyed digest until
it expires, so that a call costs no signature. Nothing of a token is logged or told.
"""

from __future__ import annotations

import base64
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from operator import is_
from typing import Any

import jwt
from jwt.types import Options

from fairserve.config import ClaimPath, TokenIssuerConfig
from fairserve.sidecar.claims import Claim
from fairserve.sidecar.refusals import Problem

#: Longer ones are not read, bytes. Identity providers' tokens are of 1 to 8 KiB.
MAX_TOKEN_BYTES = 16 * 1024
#: Verified tokens that are remembered, the latest used.
MAX_REMEMBERED = 10_000

_REQUIRED: Options = {"require": ["exp", "iss", "aud"]}


def _denied(code: str, message: str) -> Problem:
    return Problem(401, code, message)


_INVALID = _denied("token_invalid", "The token can't be verified.")
_UNKNOWN_KEY = _denied("token_key_unknown", "The token is signed with a key that is not known here.")
_WRONG_ALGORITHM = _denied("token_algorithm_not_allowed", "The token's algorithm is not allowed.")
_NO_TENANT = _denied("token_tenant_unknown", "The token is valid, but no tenant here is its.")
_NO_APPLICATION = Problem(
    403, "token_application_unknown", "The token is valid, but for an application that there is not."
)
#: PyJWT's refusals, the special before the general.
_REFUSALS: tuple[tuple[type[jwt.InvalidTokenError], Problem], ...] = (
    (jwt.ExpiredSignatureError, _denied("token_expired", "The token has expired.")),
    (jwt.ImmatureSignatureError, _denied("token_not_yet_valid", "The token is not valid yet.")),
    (jwt.InvalidAudienceError, _denied("token_audience_mismatch", "The token is for another audience.")),
)


class VerifiedTokens:
    """Remembers what a verified token stands for, until it expires and as long as there is room."""

    def __init__(self, capacity: int = MAX_REMEMBERED) -> None:
        self._capacity = capacity
        self._claims: OrderedDict[str, tuple[Claim, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._claims)

    def get(self, digest: str, now: float) -> Claim | None:
        """The claim, None if it is not known or its time is over. `now` is in seconds since the epoch."""
        found = self._claims.get(digest)
        if found is None:
            return None
        if now >= found[1]:
            del self._claims[digest]
            return None
        self._claims.move_to_end(digest)
        return found[0]

    def put(self, digest: str, claim: Claim, expires: float) -> None:
        """Remember a claim until `expires`, seconds since the epoch."""
        self._claims[digest] = (claim, expires)
        self._claims.move_to_end(digest)
        if len(self._claims) > self._capacity:
            self._claims.popitem(last=False)


class TokenIssuers:
    """The issuers of one configuration. Raises ValueError for a key that can't be used."""

    def __init__(
        self,
        issuers: tuple[TokenIssuerConfig, ...],
        tenants: Mapping[str, Claim],
        default: Claim | None,
        applications: frozenset[str],
        clock: Callable[[], float],
    ) -> None:
        self.configs = issuers
        self._issuers = {issuer.issuer: _Issuer(issuer) for issuer in issuers}
        self._tenants = tenants
        self._default = default
        self._applications = applications
        self._clock = clock
        self._verified = VerifiedTokens()

    def serves(
        self,
        issuers: tuple[TokenIssuerConfig, ...],
        tenants: Mapping[str, Claim],
        default: Claim | None,
        applications: frozenset[str],
    ) -> bool:
        """Whether these issuers are the same, and their tokens stand for the same."""
        return (
            len(issuers) == len(self.configs)
            and all(map(is_, issuers, self.configs))
            and tenants is self._tenants
            and default == self._default
            and applications == self._applications
        )

    def claim(self, token: bytes, digest: str) -> Claim | Problem | None:
        """What a token stands for, or why it stands for nothing; None for what is no token of these issuers.
        `digest` is its keyed digest.
        """
        if token.count(b".") != 2:
            return None
        known = self._verified.get(digest, self._clock())
        if known is not None:
            return known
        if len(token) > MAX_TOKEN_BYTES:
            return _INVALID
        said = _issuer_of(token)
        issuer = self._issuers.get(said) if isinstance(said, str) else None
        if issuer is None:
            return None
        claims = issuer.verify(token)
        if isinstance(claims, Problem):
            return claims
        claim = self._claim_of(issuer.config, claims)
        if isinstance(claim, Claim):
            self._verified.put(digest, claim, int(claims["exp"]) + issuer.config.leeway_s)
        return claim

    def _claim_of(self, config: TokenIssuerConfig, claims: Mapping[str, Any]) -> Claim | Problem:
        name = config.tenant
        if config.tenant_path is not None:
            name = _text_at(claims, config.tenant_path)
            if name is not None and config.tenants is not None:
                name = _listed(config, claims) or config.tenants.get(name)
        claim = self._default if name is None else self._tenants.get(name, self._default)
        if claim is None:
            return _NO_TENANT
        application = _text_at(claims, config.application_claim)
        if application is not None and application not in self._applications:
            return _NO_APPLICATION
        return replace(claim, user=_text_at(claims, config.user_claim), application=application)


class _Issuer:
    """One issuer and its keys by their ids."""

    def __init__(self, config: TokenIssuerConfig) -> None:
        self.config = config
        self._keys = {
            str(key["kid"]): {
                algorithm: _key(config, key, algorithm) for algorithm in config.algorithms_of(key)
            }
            for key in config.keys
        }

    def verify(self, token: bytes) -> Mapping[str, Any] | Problem:
        """The claims of a token that says it is this issuer's."""
        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError:
            return _INVALID
        kid, algorithm = header.get("kid"), header.get("alg")
        keys = self._keys.get(kid) if isinstance(kid, str) else None
        if keys is None:
            return _UNKNOWN_KEY
        key = keys.get(algorithm) if isinstance(algorithm, str) else None  # type: ignore[call-overload]
        if key is None:
            return _WRONG_ALGORITHM
        config = self.config
        try:
            return jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                audience=config.audiences,
                issuer=config.issuer,
                leeway=config.leeway_s,
                options=_REQUIRED,
            )
        except jwt.InvalidTokenError as error:
            return next((problem for kind, problem in _REFUSALS if isinstance(error, kind)), _INVALID)


def _key(config: TokenIssuerConfig, key: Mapping[str, Any], algorithm: str) -> jwt.PyJWK:
    try:
        made = jwt.PyJWK(dict(key), algorithm)
        weakness = made.Algorithm.check_key_length(made.key)
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        # Not what the library says: it may repeat the key.
        raise ValueError(
            f"identity.token_issuers: {config.issuer}: key {key['kid']!r} can't be read"
        ) from error
    if weakness is not None:
        raise ValueError(f"identity.token_issuers: {config.issuer}: key {key['kid']!r}: {weakness}")
    return made


def _issuer_of(token: bytes) -> object:
    """Whose a token says it is. Lenient: whatever may be an issuer's is that issuer's to refuse."""
    payload = token.split(b".")[1]
    try:
        claims = json.loads(base64.urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)))
    except (ValueError, RecursionError):
        return None
    return claims.get("iss") if isinstance(claims, dict) else None


def _listed(config: TokenIssuerConfig, claims: Mapping[str, Any]) -> str | None:
    """Whose a ServiceAccount is by its own name, whatever its namespace."""
    account = _text_at(claims, ("sub",)) if config.kubernetes else None
    return None if account is None or config.tenants is None else config.tenants.get(account)


def _text_at(claims: Mapping[str, Any], path: ClaimPath | None) -> str | None:
    """The string at that path; None without a path, where there is none, and for an empty one."""
    value: Any = claims
    for name in path or ():
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, str) and value else None
