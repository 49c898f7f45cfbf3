"""How the operator is asked to run, apart from where."""

from __future__ import annotations

from dataclasses import dataclass

LEASE_NAME = "fairserve-operator"


@dataclass(frozen=True, slots=True)
class Options:
    """The options of `python -m fairserve_operator` that reach its parts."""

    listen: tuple[str, int] | None = None  #: host and port of probes and metrics; None: no port
    leader_elect: bool = False
    lease_namespace: str | None = None  #: None: where we are at home
    lease_name: str = LEASE_NAME
    identity: str | None = None  #: None: the host's name
