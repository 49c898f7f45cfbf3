"""The `caBundle` of our webhook in its MutatingWebhookConfiguration: the only thing there that is touched."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

WEBHOOK = "inject.fairserve.dev"


def has_webhook(body: Mapping[str, Any]) -> bool:
    """Whether our webhook is in there."""
    return any(each["name"] == WEBHOOK for each in body.get("webhooks") or ())


def trusted(body: Mapping[str, Any]) -> bytes:
    """Whose certificates the API server trusts there, as PEM; empty: nobody's."""
    for webhook in body.get("webhooks") or ():
        if webhook["name"] == WEBHOOK:
            try:
                return base64.b64decode(str(webhook["clientConfig"].get("caBundle") or ""))
            except binascii.Error:
                return b""
    return b""


def trust_patch(body: Mapping[str, Any], bundle: bytes) -> list[dict[str, Any]]:
    """The JSON patch with which the API server trusts these and nobody else; empty where it does already.

    It holds for this version of the body alone: the API server answers 409 where that was changed meanwhile.
    """
    if trusted(body) == bundle:
        return []
    text = base64.b64encode(bundle).decode()
    version = body["metadata"]["resourceVersion"]
    operations = [
        {"op": "add", "path": f"/webhooks/{index}/clientConfig/caBundle", "value": text}
        for index, webhook in enumerate(body.get("webhooks") or ())
        if webhook["name"] == WEBHOOK
    ]
    if not operations:
        return []
    return [{"op": "replace", "path": "/metadata/resourceVersion", "value": version}, *operations]
