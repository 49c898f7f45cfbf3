"""The Secret that a pool's pods boot from, and fall back to without the operator.

It is also the operator's memory: what it finds here after a restart tells the pool's salt, token,
generation and content, so that nothing has to be pushed again that has not changed.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from fairserve.config import SchedulerConfig
from fairserve_operator.api.v1alpha1 import API_VERSION
from fairserve_operator.decide.resources import Resource
from fairserve_operator.manifests.status_patch import FIELD_MANAGER

CONFIG_KEY = "config.json.gz"
TOKEN_KEY = "control-token"  # noqa: S105 (the name of an entry)
POOL_LABEL = "fairserve.dev/pool"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"


@dataclass(frozen=True, slots=True)
class BootState:
    """What a boot Secret holds. None for what is missing or can't be read."""

    config: SchedulerConfig | None
    control_token: str | None


def boot_secret_name(pool: str) -> str:
    """Name of the Secret of a pool of this name."""
    return f"fairserve-{pool}"


def boot_secret(pool: Resource, config: SchedulerConfig, control_token: str) -> dict[str, Any]:
    """The Secret. Equal configurations give equal bytes. It is deleted with its pool."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": boot_secret_name(pool.key.name),
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
        "data": {CONFIG_KEY: _encoded(compressed(config)), TOKEN_KEY: _encoded(control_token.encode())},
    }


def compressed(config: SchedulerConfig) -> bytes:
    """The configuration as the Secret holds it and as `PUT /config` takes it with Content-Encoding: gzip."""
    return gzip.compress(config.to_bytes(), mtime=0)


def read_boot_secret(data: Mapping[str, str]) -> BootState:
    """What the `data` of a boot Secret says. Somebody may have edited it, so nothing is taken on trust."""
    token = _decoded(data.get(TOKEN_KEY))
    return BootState(
        _config(_decoded(data.get(CONFIG_KEY))), (token or b"").decode("ascii", "ignore") or None
    )


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
