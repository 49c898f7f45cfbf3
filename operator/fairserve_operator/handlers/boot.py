"""Reading and writing the Secret that a pool's Pods boot from.

It is the operator's only memory: salt and token are made once and adopted for ever after, and the generation
in it is what the next one counts from. Whoever edits or deletes it gets it back.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

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
    INDEX_KEY,
    LONGEST_PART,
    POOL_LABEL,
    TOKEN_KEY,
    Index,
    boot_secret,
    boot_secret_name,
    in_parts,
    read_boot_secret,
    read_index,
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
    slot: str | None = None  #: where the parts of the document are; None: it is in one piece
    parts: Mapping[str, int] = field(default_factory=dict)  #: versions of the parts' Secrets, by name
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
        if (
            known
            and known.version is not None
            and self._as_known(namespace, {**known.parts, name: known.version})
        ):
            return known
        body = await self._cluster.read_secret(namespace, name)
        before = known or Boot(salt=secrets.token_hex(16), token=secrets.token_urlsafe(32))
        if body is None:
            return replace(before, version=None, intact=False)
        index = read_index(body.get("data") or {})
        names = [] if index is None else index.secrets(pool.key.name)
        parts = {part: await self._cluster.read_secret(namespace, part) for part in names}
        # In a thread: a large document takes long to read.
        return await asyncio.to_thread(_adopted, pool, body, before, parts, index)

    async def write(
        self,
        pool: Resource,
        boot: Boot,
        generation: int,
        content_hash: str,
        document_gz: bytes,
        keys: Mapping[str, KeySet],
    ) -> Boot:
        """Store this document unless it is stored already. `keys` are those of its token issuers.

        After a ConflictError read again, decide anew.
        """
        if boot.intact and (boot.generation, boot.content_hash) == (generation, content_hash):
            return boot
        content: bytes | Index = document_gz
        versions: dict[str, int] = {}
        if len(document_gz) > LONGEST_PART:
            # First the parts, where nobody looks yet.
            content, parts = in_parts(pool, document_gz, boot.slot)
            versions = {part["metadata"]["name"]: await self._write_part(part) for part in parts}
        manifest = boot_secret(pool, content, boot.token)
        if boot.version is not None:
            manifest["metadata"]["resourceVersion"] = str(boot.version)
        written = await self._cluster.write_secret(manifest)
        self._note(pool.key.namespace, manifest["metadata"]["name"], int(written.resource_version))
        _log.info(
            "Secret %s/%s holds generation %d of ServingPool %s",
            pool.key.namespace,
            manifest["metadata"]["name"],
            generation,
            pool.key.name,
            extra=about(pool.key),
        )
        return replace(
            boot,
            generation=generation,
            content_hash=content_hash,
            keys=keys,
            version=int(written.resource_version),
            slot=content.slot if isinstance(content, Index) else None,
            parts=versions,
            intact=True,
        )

    def _note(self, namespace: str, name: str, version: int) -> None:
        """Know a Secret before the watch tells it: our own writes are no news to act on."""
        seen = self._store.secret_version(namespace, name)
        if seen is None or seen < version:
            self._store.put_secret(namespace, name, version, {})

    async def _write_part(self, manifest: dict[str, Any]) -> int:
        metadata = manifest["metadata"]
        held = await self._cluster.read_secret(metadata["namespace"], metadata["name"])
        if held is not None:
            if (held["metadata"].get("labels") or {}).get(POOL_LABEL) != metadata["labels"][POOL_LABEL]:
                raise ForeignSecretError(
                    f"Secret {metadata['namespace']}/{metadata['name']} is somebody else's; "
                    f'ServingPool "{metadata["labels"][POOL_LABEL]}" needs its name'
                )
            metadata["resourceVersion"] = held["metadata"]["resourceVersion"]
        return int((await self._cluster.write_secret(manifest)).resource_version)

    def _as_known(self, namespace: str, versions: Mapping[str, int]) -> bool:
        """Whether the watch has seen these Secrets and nothing newer."""
        return all(
            (seen := self._store.secret_version(namespace, name)) is not None and seen <= version
            for name, version in versions.items()
        )


def _adopted(
    pool: Resource,
    body: Mapping[str, Any],
    before: Boot,
    parts: Mapping[str, Mapping[str, Any] | None],
    index: Index | None,
) -> Boot:
    data, metadata = body.get("data") or {}, body["metadata"]
    known_keys = {CONFIG_KEY, INDEX_KEY, TOKEN_KEY}
    owner = (metadata.get("labels") or {}).get(POOL_LABEL)
    if owner not in (None, pool.key.name) or (owner is None and not known_keys & data.keys()):
        raise ForeignSecretError(
            f"Secret {pool.key.namespace}/{metadata['name']} is somebody else's; {pool.key} needs its name"
        )
    state = read_boot_secret(data, [(part or {}).get("data") or {} for part in parts.values()])
    owners = {owner["uid"] for owner in metadata.get("ownerReferences") or ()}
    held = replace(
        before,
        token=state.control_token or before.token,
        version=version(body),
        slot=None if index is None else index.slot,
        parts={name: version(part) for name, part in parts.items() if part is not None},
        intact=False,
    )
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
