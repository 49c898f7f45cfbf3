"""The Secret that a pool's pods boot from, and fall back to without the operator.

It is also the operator's memory: what it finds here after a restart tells the pool's salt, token,
generation and content, so that nothing has to be pushed again that has not changed.

A document that is too long for one Secret goes into numbered Secrets of one of two slots, and the pool's own
Secret says which slot, how many parts and their hash. Writers fill the slot that is not named and name it
then; readers believe only parts that have the hash. So nobody ever reads a mixture
(docs/reference/boot-secret.md).
"""

from __future__ import annotations

import base64
import binascii
import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from fairserve.config import SchedulerConfig
from fairserve_operator.api.v1alpha1 import API_VERSION
from fairserve_operator.decide.resources import Resource
from fairserve_operator.manifests.status_patch import FIELD_MANAGER

CONFIG_KEY = "config.json.gz"
INDEX_KEY = f"{CONFIG_KEY}.parts"  #: instead of CONFIG_KEY where the document is in parts
TOKEN_KEY = "control-token"  # noqa: S105 (the name of an entry)
POOL_LABEL = "fairserve.dev/pool"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"


#: Of a compressed document, in bytes. The API server takes 1 MiB of values in a Secret, and 1.5 MiB as JSON,
#: where they are a third longer.
LONGEST_PART = 1_000_000
_SLOTS = ("a", "b")
#: Fast: the level that compresses best saves 5 % and takes three times as long, on every change's way.
_LEVEL = 1


@dataclass(frozen=True, slots=True)
class Index:
    """Where the parts of a document are, and what they give together."""

    slot: str
    parts: int
    sha256: str  #: of all parts, one after the other

    def secrets(self, pool: str) -> list[str]:
        """Names of the Secrets that hold the parts, in order."""
        return [f"{boot_secret_name(pool)}-{self.slot}-{number}" for number in range(self.parts)]

    def key(self, number: int) -> str:
        """The entry of a part's Secret."""
        return f"{CONFIG_KEY}.{self.slot}.{number}"


@dataclass(frozen=True, slots=True)
class BootState:
    """What a boot Secret holds. None for what is missing or can't be read."""

    config: SchedulerConfig | None
    control_token: str | None


def boot_secret_name(pool: str) -> str:
    """Name of the Secret of a pool of this name."""
    return f"fairserve-{pool}"


def boot_secret(pool: Resource, document_gz: bytes | Index, control_token: str) -> dict[str, Any]:
    """The Secret, with the document or where it is. It is deleted with its pool."""
    match document_gz:
        case Index(slot, parts, sha256):
            index = json.dumps({"slot": slot, "parts": parts, "sha256": sha256}, sort_keys=True)
            content = {INDEX_KEY: index.encode()}
        case _:
            content = {CONFIG_KEY: document_gz}
    return _secret(pool, boot_secret_name(pool.key.name), {**content, TOKEN_KEY: control_token.encode()})


def in_parts(pool: Resource, document_gz: bytes, taken: str | None) -> tuple[Index, list[dict[str, Any]]]:
    """The Secrets of a long document, in the slot that is not `taken`."""
    chunks = [document_gz[at : at + LONGEST_PART] for at in range(0, len(document_gz), LONGEST_PART)]
    slot = next(slot for slot in _SLOTS if slot != taken)
    index = Index(slot, len(chunks), hashlib.sha256(document_gz).hexdigest())
    names = index.secrets(pool.key.name)
    return index, [
        _secret(pool, name, {index.key(number): chunk})
        for number, (name, chunk) in enumerate(zip(names, chunks, strict=True))
    ]


def _secret(pool: Resource, name: str, values: Mapping[str, bytes]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "namespace": pool.key.namespace,
            "labels": {MANAGED_BY_LABEL: FIELD_MANAGER, POOL_LABEL: pool.key.name},
            "ownerReferences": [
                {
                    "apiVersion": API_VERSION,
                    "kind": pool.key.kind,
                    "name": pool.key.name,
                    "uid": pool.uid,
                    "controller": True,
                    "blockOwnerDeletion": False,
                }
            ],
        },
        "type": "Opaque",
        "data": {key: _encoded(value) for key, value in values.items()},
    }


def compressed(document: bytes) -> bytes:
    """A document as the Secret holds it and as `PUT /config` takes it with Content-Encoding: gzip. Equal
    documents give equal bytes.
    """
    return gzip.compress(document, _LEVEL, mtime=0)


def is_boot_secret(data: Mapping[str, str]) -> bool:
    """Whether these are the entries of a boot Secret or of a part of one."""
    return any(key.startswith(CONFIG_KEY) for key in data)


def read_index(data: Mapping[str, str]) -> Index | None:
    """Where the parts are, None where the document is not in parts."""
    try:
        match json.loads(_decoded(data.get(INDEX_KEY)) or b""):
            case {"slot": "a" | "b" as slot, "parts": int(parts), "sha256": str(sha256)} if 0 < parts < 1000:
                return Index(slot, parts, sha256)
    except ValueError:
        pass
    return None


def read_boot_secret(data: Mapping[str, str], parts: Sequence[Mapping[str, str]] = ()) -> BootState:
    """What the `data` of a boot Secret says, with those of its parts in order. Somebody may have edited
    them, so nothing is taken on trust.
    """
    token = _decoded(data.get(TOKEN_KEY))
    index = read_index(data)
    packed = _decoded(data.get(CONFIG_KEY)) if index is None else _joined(index, parts)
    return BootState(_config(packed), (token or b"").decode("ascii", "ignore") or None)


def _joined(index: Index, parts: Sequence[Mapping[str, str]]) -> bytes | None:
    packed = b"".join(_decoded(part.get(index.key(number))) or b"" for number, part in enumerate(parts))
    return packed if hashlib.sha256(packed).hexdigest() == index.sha256 else None


def _config(packed: bytes | None) -> SchedulerConfig | None:
    if packed is None:
        return None
    try:
        return SchedulerConfig.from_bytes(gzip.decompress(packed))
    except (OSError, EOFError, zlib.error, ValidationError):
        return None


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _decoded(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return None
