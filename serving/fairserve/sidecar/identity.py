"""Who calls: tenant, user, application and interaction, from credentials, headers and names in the body.

An API key is looked up by its keyed digest, so that the time of a look-up tells nothing about any key. A
token of a configured issuer is judged as one, and a bad one is nobody's. A header names a tenant only from a
trusted hop; from anybody else it is as if it were not there. Unless a token names the user, a user's or an
interaction's name is the tenant's own word: it divides that tenant's share and nothing else.

`authenticate` needs the head alone, so that a stranger's body is never read.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from fairserve.config import INTERACTION_SOURCES, IdentityConfig, SchedulerConfig, TenantConfig
from fairserve.core.settings import DEFAULT_APPLICATION, DEFAULT_TENANT
from fairserve.engine.requests import BodyField, EngineRequest
from fairserve.sidecar.claims import Claim
from fairserve.sidecar.matching import ApplicationMatches, application_matches
from fairserve.sidecar.messages import Headers
from fairserve.sidecar.refusals import Problem

if TYPE_CHECKING:
    from fairserve.sidecar.tokens import TokenIssuers

TENANT_HEADER: Final = b"x-fairserve-tenant"
USER_HEADER: Final = b"x-fairserve-user"
APPLICATION_HEADER: Final = b"x-fairserve-application"
#: The header by which a trusted hop at any address shows itself.
HOP_TOKEN_HEADER: Final = b"x-fairserve-hop-token"
#: Headers of gateways that hold a tenant's name; the second is the first one's old name.
_GATEWAY_TENANT_HEADERS: Final = (b"x-llm-d-inference-fairness-id", b"x-gateway-inference-fairness-id")
#: Where a key or a token is looked for: the first that is there counts. OpenAI's, Anthropic's, Azure's.
_CREDENTIAL_HEADERS: Final = (b"authorization", b"x-api-key", b"api-key")
_NAMING_HEADERS: Final = (USER_HEADER, APPLICATION_HEADER)
_PREVIOUS_RESPONSE: Final = "previous_response_id"
#: vLLM's header for a call's place in its queue.
PRIORITY_HEADER: Final = b"x-vllm-priority"
#: W3C Trace Context: version, trace id, parent id, flags. Version ff and the zero id are invalid.
_TRACEPARENT: Final = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?"
)
#: A longer name of a user or an interaction is kept as its digest.
_MAX_NAME: Final = 128

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(init=False)
class Caller:
    """Who calls. `interaction` is None for a call that names none.

    `previous_response` is set, and `interaction` its name, where only the answer that the call goes on from
    says which interaction it is.
    """

    tenant: str
    user: str
    application: str
    interaction: str | None
    previous_response: str | None

    def __init__(
        self,
        tenant: str,
        user: str,
        application: str,
        interaction: str | None,
        previous_response: str | None = None,
    ) -> None:
        self.tenant = tenant
        self.user = user
        self.application = application
        self.interaction = interaction
        self.previous_response = previous_response


class _Order:
    """Where an interaction's name is looked for, made of the configuration's words."""

    def __init__(self, sources: tuple[str, ...]) -> None:
        split = [source.partition(":") for source in sources]
        #: A header, or else a field of the body, or else the trace.
        self._steps = tuple(
            (name.encode() if kind == "header" else None, name if kind == "body" else None)
            for kind, _, name in split
        )
        self._headers = frozenset(
            name.encode() if kind == "header" else kind.encode() for kind, _, name in split if kind != "body"
        )

    def find(self, named: Mapping[bytes, bytes], said: Mapping[str, str]) -> tuple[str | None, bool]:
        """The first name in the headers or in what the body said, and whether it is a previous answer's."""
        if not said and self._headers.isdisjoint(named):
            return None, False
        for header, field in self._steps:
            if header is not None:
                value = named.get(header)
                name = value.decode("latin-1") if value else None
            else:
                name = _trace(named) if field is None else said.get(field)
            if name:
                return name, field == _PREVIOUS_RESPONSE
        return None, False


_DEFAULT_ORDER: Final = _Order(INTERACTION_SOURCES)


class UserOrder:
    """Where a tenant's users are named, made of the configuration's words."""

    def __init__(self, sources: tuple[str, ...]) -> None:
        split = [source.partition(":") for source in sources]
        #: A header, or else a field of the body.
        self._steps: tuple[tuple[bytes | None, BodyField], ...] = tuple(
            (name.encode(), ()) if kind == "header" else (None, tuple(name.split(".")))
            for kind, _, name in split
        )
        self.headers = tuple(header for header, _ in self._steps if header is not None)
        self.body_fields = tuple(field for header, field in self._steps if header is None)

    def find(
        self, pinned: str | None, named: Mapping[bytes, bytes], said: Mapping[BodyField, str], trusted: bool
    ) -> str:
        """The user whom the first of them names; empty where none does. Over one who is `pinned` only a
        trusted hop's header counts.
        """
        for header, field in self._steps:
            if header is not None:
                value = named.get(header)
                if value and (trusted or pinned is None):
                    return value.decode("latin-1")
            elif pinned is None:
                name = said.get(field)
                if name:
                    return name
        return pinned or ""


class Memory:
    """What is known of one connection under one table: whether its peer is trusted, and its last API key,
    which most connections repeat.
    """

    __slots__ = ("claim", "key", "table", "trusted")

    def __init__(self, table: IdentityTable, peer: str) -> None:
        self.table = table
        self.trusted = table.trusts(peer)
        self.key = b""
        self.claim: Claim | None = None


class IdentityTable:
    """All identities of one configuration. Replaced whole; only the tokens seen so far are learned.

    `clock` gives seconds since the epoch. Raises ValueError for an issuer's key that can't be used.
    """

    def __init__(self, config: SchedulerConfig, clock: Callable[[], float] = time.time) -> None:
        identity: IdentityConfig = config.identity
        self._salt = bytes.fromhex(identity.salt)
        #: None where no application has any, so that no call pays for it.
        self._matches: ApplicationMatches | None = application_matches(config.applications)
        claims = {tenant.name: self._claim_of(tenant.name, tenant) for tenant in config.tenants}
        self._keys = {
            key.digest: replace(claims[key.tenant], application=key.application) for key in identity.api_keys
        }
        self._headers: dict[bytes, dict[bytes, Claim]] = {}
        for header in identity.headers:
            values = self._headers.setdefault(header.name.encode(), {})
            values[header.value.encode()] = claims[header.tenant]
        by_name = {name.encode(): claim for name, claim in claims.items()}
        for name in (TENANT_HEADER, *_GATEWAY_TENANT_HEADERS):
            self._headers[name] = {**by_name, **self._headers.get(name, {})}
        self._applications = {a.name.encode(): a.name for a in config.applications}
        self._orders = {a.name: _Order(a.interaction_sources) for a in config.applications}
        self._trusted: tuple[_Network, ...] = tuple(
            ipaddress.ip_network(block) for block in identity.trusted_proxies
        )
        self._hop_tokens = identity.hop_tokens
        default = config.default_tenant
        self._default = None if default is None else self._claim_of(DEFAULT_TENANT, default)
        #: Of two values one may be a hop's and the other its client's.
        self._naming_headers = (
            *_NAMING_HEADERS,
            *(() if self._matches is None else sorted(self._matches.headers)),
        )
        self._issuers: TokenIssuers | None = None
        if identity.token_issuers:
            # Cryptography is megabytes that a pool without tokens doesn't load.
            from fairserve.sidecar.tokens import TokenIssuers

            self._issuers = TokenIssuers(
                identity.token_issuers, claims, self._default, frozenset(self._orders), clock
            )
        #: Headers that from an untrusted peer don't reach the engine: identity, and a place in its queue.
        self.header_names = frozenset(self._headers) | {PRIORITY_HEADER}

    def trusts(self, peer: str) -> bool:
        """Whether identity headers from that address are believed."""
        if not self._trusted:
            return False
        try:
            address = ipaddress.ip_address(peer.partition("%")[0])
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._trusted)

    def trusts_token(self, headers: Headers) -> bool:
        """Whether a hop shows a token by which it is believed, whatever its address. Two tokens mean that it
        let one through.
        """
        if not self._hop_tokens:
            return False
        tokens = [value for name, value in headers if name == HOP_TOKEN_HEADER]
        if len(tokens) != 1:
            return False
        digest = self._digest(tokens[0])
        # All of them, so that the time doesn't tell which one was nearly right.
        return sum(hmac.compare_digest(digest, token) for token in self._hop_tokens) > 0

    def authenticate(
        self, headers: Headers, named: Mapping[bytes, bytes], memory: Memory, *, trusted: bool
    ) -> Claim | Problem:
        """Whose the call is, or why it is turned away. `named` is `dict(headers)`; `memory` is of the
        connection.
        """
        problem = _ambiguity(headers, named, self._naming_headers)
        if problem is not None:
            return problem
        claim: Claim | Problem | None = self._claim_of_proxy(headers, named) if trusted else None
        if claim is None:
            claim = _ambiguity(headers, named, _CREDENTIAL_HEADERS)
        if claim is None:
            claim = self._claim_of_credential(named, memory) or self._default
        if claim is None:
            return _UNKNOWN_KEY
        if len(named) != len(headers) and isinstance(claim, Claim) and claim.users is not None:
            return _ambiguity(headers, named, claim.users.headers) or claim
        return claim

    def identify(
        self,
        claim: Claim,
        named: Mapping[bytes, bytes],
        asked: EngineRequest,
        *,
        trusted: bool,
        target: bytes = b"",
    ) -> Caller | Problem:
        """The caller, or why it is turned away. `asked` holds the names that its body says, `target` is as
        the request has it.
        """
        application = self._application(claim, named.get(APPLICATION_HEADER))
        if isinstance(application, Problem):
            return application
        if application is None:
            matches = self._matches
            if matches is None:
                application = DEFAULT_APPLICATION
            else:
                application = _matched(matches.find(named, asked.said, target), claim)
                if isinstance(application, Problem):
                    return application
        order = claim.users
        header = named.get(USER_HEADER)
        if order is not None:
            user = order.find(claim.user, named, asked.said, trusted)
        elif claim.user is not None and not (trusted and header):
            user = claim.user
        else:
            user = header.decode("latin-1") if header else asked.user
        interactions = self._orders.get(application, _DEFAULT_ORDER)
        interaction, is_previous = interactions.find(named, asked.interaction)
        return Caller(
            tenant=claim.tenant,
            user=_short(user),
            application=application,
            interaction=_short(interaction) if interaction else None,
            previous_response=interaction if is_previous else None,
        )

    def _claim_of_credential(self, named: Mapping[bytes, bytes], memory: Memory) -> Claim | Problem | None:
        """What a key or a token stands for; None for what nobody here gave out."""
        key = named.get(b"authorization")
        if key is not None:
            scheme, _, key = key.partition(b" ")
            if scheme.lower() != b"bearer":
                return None
            key = key.strip()
        else:
            key = named.get(b"x-api-key") or named.get(b"api-key")
        if not key:
            return None
        if memory.claim is not None and hmac.compare_digest(key, memory.key):
            return memory.claim
        digest = self._digest(key)
        claim = self._keys.get(digest)
        if claim is not None:
            memory.key, memory.claim = key, claim
        elif self._issuers is not None:
            return self._issuers.claim(key, digest)
        return claim

    def _digest(self, secret: bytes) -> str:
        return hmac.digest(self._salt, secret, "sha256").hex()

    def _claim_of_proxy(self, headers: Headers, named: Mapping[bytes, bytes]) -> Claim | Problem | None:
        """What a trusted proxy says. Two different values of one header mean that it let one through."""
        for name, claims in self._headers.items():
            value = named.get(name)
            if value is None:
                continue
            if _is_ambiguous(headers, name, value):
                return _ambiguous(name)
            claim = claims.get(value)
            if claim is not None:
                return claim
        return None

    def _claim_of(self, name: str, tenant: TenantConfig) -> Claim:
        users = None if tenant.user_sources is None else UserOrder(tenant.user_sources)
        fields = () if users is None else users.body_fields
        if self._matches is not None:
            fields = (*self._matches.body_fields, *fields)
        return Claim(
            name,
            cache_salt=tenant.cache_salt,
            applications=None if tenant.applications is None else frozenset(tenant.applications),
            users=users,
            body_fields=fields,
        )

    def _application(self, claim: Claim, header: bytes | None) -> str | Problem | None:
        """The application that the header, the key or the token names; None where none does."""
        if header is None:
            pinned = claim.application
            if pinned is None or claim.applications is None or pinned in claim.applications:
                return pinned
            return _not_allowed(f"Tenant {claim.tenant!r} may not use application {pinned!r}.")
        name = self._applications.get(header)
        if name is None:
            shown = header[:_MAX_NAME].decode("latin-1")
            return Problem(
                400, "unknown_application", f"There is no application {shown!r}.", APPLICATION_HEADER.decode()
            )
        if claim.application is not None and name != claim.application:
            return _not_allowed(
                f"This key or token is for application {claim.application!r}, not {name!r}.",
                APPLICATION_HEADER.decode(),
            )
        if claim.applications is not None and name not in claim.applications:
            return _not_allowed(
                f"Tenant {claim.tenant!r} may not use application {name!r}.", APPLICATION_HEADER.decode()
            )
        return name


def _matched(name: str | None, claim: Claim) -> str | Problem:
    """The application of a call that names none and matches this one."""
    if name is None:
        return DEFAULT_APPLICATION
    if claim.applications is not None and name not in claim.applications:
        return _not_allowed(
            f"This call is of application {name!r} by its model, path or headers, and tenant "
            f"{claim.tenant!r} may not use it."
        )
    return name


def _not_allowed(message: str, param: str | None = None) -> Problem:
    return Problem(403, "application_not_allowed", message, param)


_UNKNOWN_KEY: Final = Problem(401, "invalid_api_key", "No valid API key was given.")


def _ambiguity(headers: Headers, named: Mapping[bytes, bytes], names: tuple[bytes, ...]) -> Problem | None:
    """The first of these headers that has several values; most heads repeat no header at all."""
    if len(named) != len(headers):
        for name in names:
            if _is_ambiguous(headers, name, named.get(name)):
                return _ambiguous(name)
    return None


def _is_ambiguous(headers: Headers, name: bytes, value: bytes | None) -> bool:
    return any(key == name and other != value for key, other in headers)


def _ambiguous(name: bytes) -> Problem:
    return Problem(400, "ambiguous_identity", f"The header {name.decode()} has several values.")


def _trace(named: Mapping[bytes, bytes]) -> str | None:
    """The trace that a call is part of: its `traceparent`'s trace id."""
    value = named.get(b"traceparent")
    match = None if value is None else _TRACEPARENT.fullmatch(value.strip())
    return None if match is None else match[1].decode()


def _short(name: str) -> str:
    if len(name) <= _MAX_NAME:
        return name
    return "sha256:" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
