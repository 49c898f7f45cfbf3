"""Who calls: tenant, user, application and interaction, from headers and from names in the body.

An API key is looked up by its keyed digest, so that the time of a look-up tells nothing about any key. A
header names a tenant only from a trusted proxy; from anybody else it is as if it were not there. A user's
or an interaction's name is the tenant's own word: it divides that tenant's share and nothing else.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass

from fairserve.config import IdentityConfig, SchedulerConfig
from fairserve.core.settings import DEFAULT_APPLICATION, DEFAULT_TENANT
from fairserve.engine.requests import EngineRequest
from fairserve.sidecar.messages import Headers
from fairserve.sidecar.refusals import Problem

TENANT_HEADER = b"x-fairserve-tenant"
USER_HEADER = b"x-fairserve-user"
APPLICATION_HEADER = b"x-fairserve-application"
#: Where an interaction's identity is looked for, first match wins; then in the body, then in `traceparent`.
INTERACTION_HEADERS = (
    b"x-fairserve-interaction-id",
    b"x-claude-code-session-id",
    b"x-session-affinity",
    b"session-id",
    b"session_id",
    b"x-litellm-trace-id",
    b"x-dynamo-session-id",
    b"x-session-id",
)
#: vLLM's header for a call's place in its queue.
_PRIORITY_HEADER = b"x-vllm-priority"
#: W3C Trace Context: version, trace id, parent id, flags. Version ff and the zero id are invalid.
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
#: A longer name of a user or an interaction is kept as its digest.
_MAX_NAME = 128

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. `interaction` is None for a call that names none.

    `previous_response` is set, and `interaction` its name, where only the answer that the call goes on from
    says which interaction it is.
    """

    tenant: str
    user: str
    application: str
    interaction: str | None
    previous_response: str | None = None


@dataclass(frozen=True, slots=True)
class _Claim:
    """What an identity stands for. `application` is pinned unless None."""

    tenant: str
    application: str | None = None


class IdentityTable:
    """All identities of one configuration. Replaced whole, never changed."""

    def __init__(self, config: SchedulerConfig) -> None:
        identity: IdentityConfig = config.identity
        self._salt = bytes.fromhex(identity.salt)
        self._keys = {key.digest: _Claim(key.tenant, key.application) for key in identity.api_keys}
        self._headers: dict[bytes, dict[bytes, _Claim]] = {}
        for header in identity.headers:
            values = self._headers.setdefault(header.name.encode(), {})
            values[header.value.encode()] = _Claim(header.tenant)
        self._headers[TENANT_HEADER] = {
            **{tenant.name.encode(): _Claim(tenant.name) for tenant in config.tenants},
            **self._headers.get(TENANT_HEADER, {}),
        }
        self._applications = {a.name.encode(): a.name for a in config.applications}
        self._trusted: tuple[_Network, ...] = tuple(
            ipaddress.ip_network(block) for block in identity.trusted_proxies
        )
        self._default = None if config.default_tenant is None else _Claim(DEFAULT_TENANT)
        #: Headers that from an untrusted peer don't reach the engine: identity, and a place in its queue.
        self.header_names = frozenset(self._headers) | {_PRIORITY_HEADER}

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

    def identify(self, headers: Headers, asked: EngineRequest, *, trusted: bool) -> Caller | Problem:
        """The caller, or why it is turned away. `asked` holds the names that its body says."""
        named = dict(headers)
        claim: _Claim | Problem | None = self._claim_of_proxy(headers, named) if trusted else None
        if claim is None:
            claim = self._claim_of_key(named) or self._default
        if claim is None:
            return _UNKNOWN_KEY
        if isinstance(claim, Problem):
            return claim
        application = self._application(claim, named.get(APPLICATION_HEADER))
        if isinstance(application, Problem):
            return application
        user = named.get(USER_HEADER)
        interaction = _interaction(named)
        previous = None
        if interaction is None:
            previous = asked.previous_response or None
            interaction = previous or asked.conversation or _trace(named)
        return Caller(
            tenant=claim.tenant,
            user=_short(user.decode("latin-1") if user else asked.user),
            application=application,
            interaction=_short(interaction) if interaction else None,
            previous_response=previous,
        )

    def _claim_of_key(self, named: Mapping[bytes, bytes]) -> _Claim | None:
        key = named.get(b"authorization")
        if key is not None:
            scheme, _, key = key.partition(b" ")
            if scheme.lower() != b"bearer":
                return None
            key = key.strip()
        else:
            key = named.get(b"x-api-key")
        if not key:
            return None
        return self._keys.get(hmac.digest(self._salt, key, "sha256").hex())

    def _claim_of_proxy(self, headers: Headers, named: Mapping[bytes, bytes]) -> _Claim | Problem | None:
        """What a trusted proxy says. Two different values of one header mean that it let one through."""
        for name, claims in self._headers.items():
            value = named.get(name)
            if value is None:
                continue
            if any(key == name and other != value for key, other in headers):
                return Problem(400, "ambiguous_identity", f"The header {name.decode()} has several values.")
            claim = claims.get(value)
            if claim is not None:
                return claim
        return None

    def _application(self, claim: _Claim, header: bytes | None) -> str | Problem:
        if header is None:
            return claim.application or DEFAULT_APPLICATION
        name = self._applications.get(header)
        if name is None:
            shown = header[:_MAX_NAME].decode("latin-1")
            return Problem(
                400, "unknown_application", f"There is no application {shown!r}.", APPLICATION_HEADER.decode()
            )
        if claim.application is not None and name != claim.application:
            return Problem(
                403,
                "application_not_allowed",
                f"This API key is for application {claim.application!r}, not {name!r}.",
                APPLICATION_HEADER.decode(),
            )
        return name


_UNKNOWN_KEY = Problem(401, "invalid_api_key", "No valid API key was given.")


def _interaction(named: Mapping[bytes, bytes]) -> str | None:
    for header in INTERACTION_HEADERS:
        value = named.get(header)
        if value:
            return value.decode("latin-1")
    return None


def _trace(named: Mapping[bytes, bytes]) -> str | None:
    """The trace that a call is part of: its `traceparent`'s trace id."""
    value = named.get(b"traceparent")
    match = None if value is None else _TRACEPARENT.fullmatch(value.strip())
    return None if match is None else match[1].decode()


def _short(name: str) -> str:
    if len(name) <= _MAX_NAME:
        return name
    return "sha256:" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
