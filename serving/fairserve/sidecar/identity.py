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
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from fairserve.config import (
    INTERACTION_SOURCES,
    ApplicationConfig,
    HeaderIdentityConfig,
    IdentityConfig,
    SchedulerConfig,
    TenantConfig,
)
from fairserve.core.settings import DEFAULT_APPLICATION, DEFAULT_TENANT, changed
from fairserve.engine.requests import BodyField, EngineRequest
from fairserve.sidecar.claims import Claim
from fairserve.sidecar.matching import ApplicationMatches, application_matches
from fairserve.sidecar.messages import Headers
from fairserve.sidecar.naming import InteractionOrder, UserOrder
from fairserve.sidecar.refusals import Problem

if TYPE_CHECKING:
    from fairserve.difference import Held
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
#: vLLM's header for a call's place in its queue.
PRIORITY_HEADER: Final = b"x-vllm-priority"
#: A longer name of a user or an interaction is kept as its digest.
_MAX_NAME: Final = 128

#: Headers that hold a tenant's name, in the order in which they count.
_TENANT_HEADERS: Final = (TENANT_HEADER, *_GATEWAY_TENANT_HEADERS)
_KEYS: Final = "identity.api_keys"
_HEADERS: Final = "identity.headers"

_Entries = Mapping[str, Mapping[str, Any]]
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


_DEFAULT_ORDER: Final = InteractionOrder(INTERACTION_SOURCES)


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


class _Claims:
    """What tenants' names, keys and headers stand for. Never changed: another one comes after it."""

    def __init__(
        self,
        tenants: dict[str, Claim],
        by_header: dict[bytes, Claim],
        keys: dict[str, Claim],
        headers: dict[bytes, dict[bytes, Claim]],
    ) -> None:
        self.tenants = tenants
        self.by_header = by_header  #: tenants, by their names as a header has them
        self.keys = keys  #: by digest
        self.headers = headers  #: by header and value; those that hold a tenant's name are always there

    def after(self, before: _Entries, now: _Entries) -> _Claims:
        """The claims of entries some of which are other objects than before."""
        made = {
            name: _claim(name, now["tenants"][name]) for name in changed(now["tenants"], before["tenants"])
        }
        fresh = {name: claim for name, claim in made.items() if self.tenants.get(name) != claim}
        gone = self.tenants.keys() - now["tenants"].keys()
        tenants, by_header = self.tenants, self.by_header
        if fresh or gone:
            tenants = {**tenants, **fresh}
            by_header = {**by_header, **{name.encode(): claim for name, claim in fresh.items()}}
            for name in gone:
                del tenants[name], by_header[name.encode()]
        # Who had a key or a header and is told of otherwise now, which is rare.
        other = frozenset(name for name in fresh if name in self.tenants)
        keys = self.keys
        if other or now[_KEYS] is not before[_KEYS]:
            known = now[_KEYS]
            keys = dict(keys)
            for digest in (*changed(known, before[_KEYS]), *_of(known, other)):
                keys[digest] = replace(tenants[known[digest].tenant], application=known[digest].application)
            for digest in keys.keys() - known.keys():
                del keys[digest]
        headers = self.headers
        if other or now[_HEADERS] is not before[_HEADERS]:
            headers = _header_claims(now[_HEADERS].values(), tenants)
        return _Claims(tenants, by_header, keys, headers)


def _claims_of(config: SchedulerConfig) -> _Claims:
    tenants = {tenant.name: _claim(tenant.name, tenant) for tenant in config.tenants}
    return _Claims(
        tenants,
        {name.encode(): claim for name, claim in tenants.items()},
        {
            key.digest: replace(tenants[key.tenant], application=key.application)
            for key in config.identity.api_keys
        },
        _header_claims(config.identity.headers, tenants),
    )


def _claim(name: str, tenant: TenantConfig) -> Claim:
    """What a tenant says of itself alone, so that it stays while other objects change."""
    return Claim(
        name,
        cache_salt=tenant.cache_salt,
        applications=None if tenant.applications is None else frozenset(tenant.applications),
        users=None if tenant.user_sources is None else UserOrder(tenant.user_sources),
    )


def _header_claims(
    headers: Iterable[HeaderIdentityConfig], tenants: Mapping[str, Claim]
) -> dict[bytes, dict[bytes, Claim]]:
    claims: dict[bytes, dict[bytes, Claim]] = {}
    for header in headers:
        claims.setdefault(header.name.encode(), {})[header.value.encode()] = tenants[header.tenant]
    for name in _TENANT_HEADERS:
        claims.setdefault(name, {})
    return claims


def _of(entries: Mapping[str, Any], tenants: frozenset[str]) -> list[str]:
    return [name for name, entry in entries.items() if entry.tenant in tenants] if tenants else []


class _Applications:
    """What applications are called and match, and where their interactions are named. Never changed."""

    def __init__(
        self, applications: Iterable[ApplicationConfig], orders: Mapping[str, InteractionOrder]
    ) -> None:
        """`orders` are those that are known."""
        applications = list(applications)
        self.names = {application.name.encode(): application.name for application in applications}
        self.orders = {
            application.name: orders.get(application.name)
            or InteractionOrder(application.interaction_sources)
            for application in applications
        }
        #: None where no application has any, so that no call pays for it.
        self.matches: ApplicationMatches | None = application_matches(applications)

    def after(self, before: _Entries, now: _Entries) -> _Applications:
        """Those of entries some of which are other objects than before."""
        if now["applications"] is before["applications"]:
            return self
        orders = dict(self.orders)
        for name in changed(now["applications"], before["applications"]):
            orders.pop(name, None)
        return _Applications(now["applications"].values(), orders)


class IdentityTable:
    """All identities of one configuration. Replaced whole; only the tokens seen so far are learned.

    `clock` gives seconds since the epoch. Raises ValueError for an issuer's key that can't be used.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        clock: Callable[[], float] = time.time,
        claims: _Claims | None = None,
        applications: _Applications | None = None,
        issuers: TokenIssuers | None = None,
    ) -> None:
        """`claims` and `applications` are those of this document where they are known, and `issuers` what may
        still serve.
        """
        identity: IdentityConfig = config.identity
        self._clock = clock
        self._salt = bytes.fromhex(identity.salt)
        self._claims = claims = _claims_of(config) if claims is None else claims
        # Looked up for each call.
        self._keys, self._headers, self._tenants = claims.keys, claims.headers, claims.by_header
        if applications is None:
            applications = _Applications(config.applications, {})
        self._known_applications = applications
        self._applications, self._orders = applications.names, applications.orders
        self._matches = applications.matches
        self._trusted: tuple[_Network, ...] = tuple(
            ipaddress.ip_network(block) for block in identity.trusted_proxies
        )
        self._hop_tokens = identity.hop_tokens
        default = config.default_tenant
        self._default = None if default is None else _claim(DEFAULT_TENANT, default)
        #: Of two values one may be a hop's and the other its client's.
        self._naming_headers = (
            *_NAMING_HEADERS,
            *(() if self._matches is None else sorted(self._matches.headers)),
        )
        self._issuers: TokenIssuers | None = None
        if identity.token_issuers:
            # Cryptography is megabytes that a pool without tokens doesn't load.
            from fairserve.sidecar.tokens import TokenIssuers

            arguments = identity.token_issuers, claims.tenants, self._default, frozenset(self._orders)
            if issuers is None or not issuers.serves(*arguments):
                issuers = TokenIssuers(*arguments, clock)
            self._issuers = issuers
        #: Headers that from an untrusted peer don't reach the engine: identity, and a place in its queue.
        self.header_names = frozenset(self._headers) | {PRIORITY_HEADER}

    def after(self, before: Held, now: Held) -> IdentityTable:
        """The table of the document that follows this one's: what they have in common is taken over. Raises
        ValueError as for a new one.
        """
        claims = self._claims.after(before.entries, now.entries)
        applications = self._known_applications.after(before.entries, now.entries)
        return IdentityTable(now.config, self._clock, claims, applications, self._issuers)

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

    def wanted(self, claim: Claim) -> tuple[BodyField, ...]:
        """What a body is read for besides the usual names."""
        users = () if claim.users is None else claim.users.body_fields
        return users if self._matches is None else (*self._matches.body_fields, *users)

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
            if claim is None and name in _TENANT_HEADERS:
                claim = self._tenants.get(value)
            if claim is not None:
                return claim
        return None

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


def _short(name: str) -> str:
    if len(name) <= _MAX_NAME:
        return name
    return "sha256:" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
