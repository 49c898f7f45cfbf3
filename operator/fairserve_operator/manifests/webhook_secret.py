"""The Secret with the webhook's certificate and the authority that signed it: one for all replicas."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fairserve_operator.manifests.boot_secret import MANAGED_BY_LABEL
from fairserve_operator.manifests.certificates import (
    Certificate,
    Pair,
    is_authority,
    is_pair,
    is_signed_by,
    read_certificates,
)
from fairserve_operator.manifests.status_patch import FIELD_MANAGER

CERTIFICATE, KEY = "tls.crt", "tls.key"
_AUTHORITIES, _AUTHORITY_KEY = "ca.crt", "ca.key"


@dataclass(frozen=True, slots=True)
class Keys:
    """What the Secret holds."""

    authority: Pair  #: the newest, which signs
    former: tuple[Certificate, ...]  #: other authorities, trusted while somebody may still serve by them
    serving: Pair | None  #: signed by `authority`; None where it is missing, or signed by somebody else

    @property
    def trusted(self) -> tuple[Certificate, ...]:
        """All authorities, for `caBundle`."""
        return (self.authority.certificate, *self.former)


def webhook_secret(namespace: str, name: str, keys: Keys, version: str | None) -> dict[str, Any]:
    """The Secret; `version` is the resource version that it replaces, None where there is none."""
    assert keys.serving is not None
    values = {
        CERTIFICATE: keys.serving.certificate.pem,
        KEY: keys.serving.key,
        _AUTHORITIES: b"".join(each.pem for each in keys.trusted),
        _AUTHORITY_KEY: keys.authority.key,
    }
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": namespace,
        "labels": {MANAGED_BY_LABEL: FIELD_MANAGER},
    }
    if version is not None:
        metadata["resourceVersion"] = version
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "type": "kubernetes.io/tls",
        "data": {key: base64.b64encode(value).decode() for key, value in values.items()},
    }


def is_ours(body: Mapping[str, Any]) -> bool:
    """Whether the operator made this Secret, so that it may be made anew."""
    return (body["metadata"].get("labels") or {}).get(MANAGED_BY_LABEL) == FIELD_MANAGER


def read_keys(body: Mapping[str, Any]) -> Keys | None:
    """What a Secret holds; None where there is no authority in it by which anything could be signed."""
    data = body.get("data") or {}
    try:
        newest, *former = read_certificates(_value(data, _AUTHORITIES))
        authority = Pair(newest, _value(data, _AUTHORITY_KEY))
        if not is_pair(newest, authority.key) or not is_authority(newest):
            return None
    except ValueError:
        return None
    return Keys(authority, tuple(former), _serving(data, newest))


def _serving(data: Mapping[str, Any], authority: Certificate) -> Pair | None:
    try:
        (certificate,) = read_certificates(_value(data, CERTIFICATE))
        key = _value(data, KEY)
        if not is_pair(certificate, key) or not is_signed_by(certificate, authority):
            return None
    except ValueError:
        return None
    return Pair(certificate, key)


def _value(data: Mapping[str, Any], key: str) -> bytes:
    try:
        return base64.b64decode(str(data.get(key, "")), validate=True)
    except binascii.Error as error:
        raise ValueError(key) from error
