"""What the handlers need of the world, so that a test can be the world.

The classes of `fairserve_operator.clients` fit these; so do the fakes of the unit tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from fairserve_operator.clients.jwks import Unfetched
from fairserve_operator.clients.kubernetes_client import Census, Written
from fairserve_operator.clients.prometheus import Reading, Source
from fairserve_operator.clients.sidecars import (
    ControlPort,
    Newer,
    OverloadTaken,
    Rejected,
    Running,
    State,
    Unreachable,
)

#: Unix time, seconds.
Clock = Callable[[], float]


class Cluster(Protocol):
    """The API server. Everything raises errors.ApiServerError or one of its kinds."""

    async def read_secret(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        """One Secret, None where there is none."""
        ...

    async def write_secret(self, manifest: Mapping[str, Any]) -> Written:
        """Replace a Secret at its `resourceVersion`, or create it where the manifest has none."""
        ...

    async def apply_status(self, manifest: Mapping[str, Any], field_manager: str) -> Written:
        """Server-side apply of a status."""
        ...

    async def issuer_keys(self) -> tuple[str, bytes]:
        """The issuer of the cluster's ServiceAccount tokens, and its key set as JSON."""
        ...

    async def create_event(self, manifest: Mapping[str, Any]) -> None:
        """Record an Event."""
        ...

    async def inference_pools(self, namespace: str | None) -> Sequence[Mapping[str, Any]]:
        """All InferencePools of a namespace or, for None, of the cluster."""
        ...

    async def census(self, kind: str, namespace: str | None, field_selector: str = "") -> Census:
        """Who exists of a kind; `namespace` None means everywhere."""
        ...

    async def latest_version(self, kind: str, namespace: str | None) -> int:
        """The resource version of the list of a kind at this moment."""
        ...


class KeySets(Protocol):
    """Issuers that publish their keys."""

    async def fetch(self, url: str) -> bytes | Unfetched:
        """What is published at a URL."""
        ...


class Sidecars(Protocol):
    """The control ports."""

    async def put_config(
        self, port: ControlPort, document_gz: bytes
    ) -> Running | Newer | Rejected | Unreachable:
        """Give a sidecar a document, gzipped JSON."""
        ...

    async def put_difference(
        self, port: ControlPort, difference: bytes
    ) -> Running | Newer | Rejected | Unreachable:
        """Give a sidecar what changes in its document, gzipped or not."""
        ...

    async def put_overload(
        self, port: ControlPort, armed: bool, lease_s: float, reason: str
    ) -> OverloadTaken | Rejected | Unreachable:
        """Arm or disarm OIT for `lease_s` seconds."""
        ...

    async def get_state(self, port: ControlPort) -> State | Rejected | Unreachable:
        """What a sidecar runs and does."""
        ...


class MetricsConnection(Protocol):
    """One pool's way to its Prometheus. No method takes longer than `timeout_s` seconds."""

    @property
    def source(self) -> Source:
        """Where it leads."""
        ...

    async def query(self, promql: str, timeout_s: float) -> Reading:
        """The value of a query that yields one number."""
        ...

    async def query_jointly(
        self, promql: str, label: str, names: Sequence[str], timeout_s: float
    ) -> Mapping[str, Reading] | None:
        """The values of the series that carry these names as `label`; None if the query was refused."""
        ...

    def close(self) -> None:
        """Ask no more."""
        ...


class Metrics(Protocol):
    """Prometheus servers."""

    def connect(self, source: Source) -> MetricsConnection:
        """Make a way to one of them."""
        ...
