"""Holding the Lease, or waiting for it.

`acts` is the fence: it turns false by the clock alone, before anybody else may take the Lease, whether or not
the API server answers and whether or not this process was held up meanwhile. The clients ask it before each
call, so that not even a task that doesn't know yet that it has lost does anything.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from fairserve_operator.clients.kubernetes_client import Written
from fairserve_operator.decide.leadership import TERMS, Bid, Election, Lease, Terms
from fairserve_operator.errors import ApiServerError, ConflictError
from fairserve_operator.manifests.lease import lease_body, read_lease

_log = logging.getLogger(__name__)


class Leases(Protocol):
    """The API server, as far as Leases go. Everything raises errors.ApiServerError or one of its kinds."""

    async def read_lease(self, namespace: str, name: str, timeout_s: float) -> Mapping[str, Any] | None:
        """One Lease, None where there is none."""
        ...

    async def write_lease(self, manifest: Mapping[str, Any], timeout_s: float) -> Written:
        """Replace it at its `resourceVersion`, or create it where the manifest has none."""
        ...


class Leadership:
    """One candidate for the Lease `namespace`/`name`.

    `turned` is called with true when we may act from now on, and with false when no longer. A part of chance
    is added to `identity`, so that candidates that are given the same one are told apart.
    """

    def __init__(
        self,
        leases: Leases,
        namespace: str,
        name: str,
        identity: str,
        turned: Callable[[bool], None],
        terms: Terms = TERMS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.identity = f"{identity}_{secrets.token_hex(4)}"
        self._leases = leases
        self._namespace = namespace
        self._name = name
        self._turned = turned
        self._terms = terms
        self._clock = clock
        self._election = Election(self.identity, terms)
        self._acting = False
        self._acquired: str | None = None
        self._problem = ""
        self._holder: str | None = None

    def acts(self) -> bool:
        """Whether we may act at this very moment."""
        return self._clock() < self._election.acts_until

    async def run(self) -> None:
        """Campaign and renew until cancelled."""
        look_first = True
        while True:
            look_first = not await self._attempt(look_first)
            self._tell()
            await asyncio.sleep(self._pause_s())
            self._tell()

    async def release(self) -> None:
        """Let somebody else have it at once. Call it when nothing acts any more and `run` has ended."""
        if (bid := self._election.resign()) is None:
            return
        freed = Lease(bid.version or "", "", 1, bid.transitions)
        try:
            async with asyncio.timeout(self._terms.call_s):
                await self._write(freed, None)
        except (ApiServerError, TimeoutError) as problem:
            _log.warning("Lease %s/%s is left to run out: %s", self._namespace, self._name, problem)
        else:
            _log.info("Lease %s/%s is released", self._namespace, self._name)

    async def _attempt(self, look_first: bool) -> bool:
        """Look, if it must be, and bid, if there is a chance; false if the next attempt must look."""
        left_s = self._election.acts_until - self._clock()
        longest_s = min(self._terms.call_s, left_s) if left_s > 0 else self._terms.call_s
        try:
            async with asyncio.timeout(longest_s):
                if look_first or not self._election.holds:
                    self._election.saw(await self._look(), self._clock())
                asked_at = self._clock()
                bid = self._election.bid(asked_at)
                if bid is not None:
                    self._election.won(await self._bid(bid), asked_at)
        except ConflictError:
            return False  # Somebody was faster.
        except (ApiServerError, TimeoutError) as problem:
            self._complain(str(problem) or "no answer in time")
            return False
        self._complain("")
        return True

    async def _look(self) -> Lease | None:
        body = await self._leases.read_lease(self._namespace, self._name, self._terms.call_s)
        return None if body is None else read_lease(body)

    async def _bid(self, bid: Bid) -> Lease:
        if not bid.renewal:
            self._acquired = _now()
        wanted = Lease(bid.version or "", self.identity, self._terms.lease_s, bid.transitions)
        return await self._write(wanted, self._acquired)

    async def _write(self, lease: Lease, acquired: str | None) -> Lease:
        body = lease_body(self._namespace, self._name, lease, acquired, _now())
        return read_lease((await self._leases.write_lease(body, self._terms.call_s)).body)

    def _pause_s(self) -> float:
        if not self._acting:
            return self._terms.look_s
        left_s = max(0.0, self._election.acts_until - self._clock())
        return min(self._terms.renew_s if not self._problem else self._terms.look_s, left_s)

    def _tell(self) -> None:
        acting = self.acts()
        holder = self._election.known.holder if self._election.known else None
        if holder != self._holder and not acting:
            _log.info("Lease %s/%s is held by %s; waiting", self._namespace, self._name, holder or "nobody")
        self._holder = holder
        if acting == self._acting:
            return
        self._acting = acting
        if acting:
            _log.info("Lease %s/%s is held by %s, which is us", self._namespace, self._name, self.identity)
        else:
            _log.warning("Lease %s/%s is lost: not acting any more", self._namespace, self._name)
        self._turned(acting)

    def _complain(self, problem: str) -> None:
        if problem and problem != self._problem:
            _log.warning("Lease %s/%s: %s", self._namespace, self._name, problem)
        self._problem = problem


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
