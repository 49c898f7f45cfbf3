"""Reading and writing the Secret that a pool's Pods boot from.

It is the operator's only memory: salt and token are made once and adopted for ever after, and the generation
in it is what the next one counts from. Whoever edits or deletes it gets it back.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fairserve.config import SchedulerConfig
from fairserve_operator.decide.issuers import issuers_keys
from fairserve_operator.decide.jwks import KeySet
from fairserve_operator.decide.resources import Resource
from fairserve_operator.errors import ForeignSecretError
from fairserve_operator.handlers.bodies import version
from fairserve_operator.handlers.contracts import Cluster
from fairserve_operator.handlers.store import Store
from fairserve_operator.logs import about
from fairserve_operator.manifests.boot_secret import (
    CONFIG_KEY,
    POOL_LABEL,
    TOKEN_KEY,
    boot_secret,
    boot_secret_name,
    read_boot_secret,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Boot:
    """What a pool's boot Secret holds, or will hold."""

    salt: str
    token: str
    generation: int = 0
    content_hash: str | None = None  #: None: no document yet
    #: Of the document's token issuers, by where they were fetched: good until they are fetched again.
    keys: Mapping[str, KeySet] = field(default_factory=dict)
    version: int | None = None  #: of the Secret; None: there is none, or it should be read again
    intact: bool = False  #: whether the Secret holds all of this and belongs to this very pool

    def unread(self) -> Boot:
        """The same, to be read again before it is believed."""
        return replace(self, version=None)


class BootSecrets:
    """The boot Secrets of one API server. Its methods raise ApiServerError."""

    def __init__(self, store: Store, cluster: Cluster) -> None:
        self._store = store
        self._cluster = cluster

    async def read(self, pool: Resource, known: Boot | None) -> Boot:
        """Tell what is stored for a pool; where nothing is, what should be: `known`, or a new salt and token.

        Raises ForeignSecretError where the name is taken.
        """
        namespace, name = pool.key.namespace, boot_secret_name(pool.key.name)
        seen = self._store.secret_version(namespace, name)
        if known and known.version is not None and seen is not None and seen <= known.version:
            return known
        body = await self._cluster.read_secret(namespace, name)
        before = known or Boot(salt=secrets.token_hex(16), token=secrets.token_urlsafe(32))
        if body is None:
            return replace(before, version=None, intact=False)
        return _adopted(pool, body, before)

    async def write(self, pool: Resource, boot: Boot, config: SchedulerConfig, content_hash: str) -> Boot:
        """Store this document unless it is stored already. After a ConflictError read again, decide anew."""
        if boot.intact and (boot.generation, boot.content_hash) == (config.generation, content_hash):
            return boot
        manifest = boot_secret(pool, config, boot.token)
        if boot.version is not None:
            manifest["metadata"]["resourceVersion"] = str(boot.version)
        written = await self._cluster.write_secret(manifest)
        _log.info(
            "Secret %s/%s holds generation %d of ServingPool %s",
            pool.key.namespace,
            manifest["metadata"]["name"],
            config.generation,
            pool.key.name,
            extra=about(pool.key),
        )
        return replace(
            boot,
            generation=config.generation,
            content_hash=content_hash,
            keys=issuers_keys(config.identity.token_issuers),
            version=int(written.resource_version),
            intact=True,
        )


def _adopted(pool: Resource, body: Mapping[str, Any], before: Boot) -> Boot:
    data, metadata = body.get("data") or {}, body["metadata"]
    if POOL_LABEL not in (metadata.get("labels") or {}) and not {CONFIG_KEY, TOKEN_KEY} & data.keys():
        raise ForeignSecretError(
            f"Secret {pool.key.namespace}/{metadata['name']} is somebody else's; {pool.key} needs its name"
        )
    state = read_boot_secret(data)
    owners = {owner["uid"] for owner in metadata.get("ownerReferences") or ()}
    held = replace(before, token=state.control_token or before.token, version=version(body), intact=False)
    if state.config is None:
        return held
    return replace(
        held,
        salt=state.config.identity.salt,
        generation=state.config.generation,
        content_hash=state.config.content_hash,
        keys=issuers_keys(state.config.identity.token_issuers),
        intact=state.control_token is not None and pool.uid in owners,
    )
