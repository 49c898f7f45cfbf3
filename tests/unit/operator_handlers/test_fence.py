"""The fence around the API server: who may not act writes nothing but Leases, and reads on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairserve_operator.clients.kubernetes_client import KubernetesClient
from fairserve_operator.errors import FencedError

METADATA = {"name": "a", "namespace": "ns"}
HELD = {**METADATA, "resourceVersion": "1"}


class Recording(KubernetesClient):
    """A client that notes what it would send."""

    def __init__(self, kubeconfig: Path) -> None:
        super().__init__(str(kubeconfig))
        self.sent: list[str] = []
        self.seen: list[str] = []
        self.observer = lambda call, outcome, seconds: self.seen.append(call)

    def _request(self, method: str, *_: Any) -> dict[str, Any]:
        self.sent.append(method)
        return {"metadata": {"resourceVersion": "7"}, "items": []}

    async def write_all(self) -> list[str]:
        """Write in every way; which ways were fenced."""
        fenced = []
        for what, write in {
            "create": lambda: self.write_secret({"metadata": METADATA}),
            "replace": lambda: self.write_secret({"metadata": HELD}),
            "apply": lambda: self.apply_status({"kind": "Tenant", "metadata": METADATA}, "me"),
            "record": lambda: self.create_event({"metadata": METADATA}),
        }.items():
            try:
                await write()
            except FencedError:
                fenced.append(what)
        return fenced


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Recording]:
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
        "users": [{"name": "u", "user": {}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    client = Recording(tmp_path / "kubeconfig")
    yield client
    client.close()


async def test_who_may_not_act_writes_nothing(client: Recording) -> None:
    client.may_write = lambda: False
    assert await client.write_all() == ["create", "replace", "apply", "record"]
    assert client.sent == client.seen == []


async def test_who_may_act_writes(client: Recording) -> None:
    acts = False
    client.may_write = lambda: acts
    await client.write_all()
    acts = True  # Asked at each call: a Lease comes and goes.
    assert await client.write_all() == []
    assert client.sent == ["POST", "PUT", "PATCH", "POST"]
    assert len(client.seen) == 4


async def test_who_may_not_act_reads_and_campaigns(client: Recording) -> None:
    client.may_write = lambda: False
    await client.read_secret("ns", "a")
    await client.census("Tenant", None)
    await client.read_lease("ns", "a", 1.0)
    await client.write_lease({"metadata": HELD}, 1.0)
    assert client.sent == ["GET", "GET", "GET", "PUT"]
