"""Leadership over a Lease in memory: one acts, others wait, and who can't renew stops by itself."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from typing import Any

import pytest

from fairserve_operator.clients.kubernetes_client import Written
from fairserve_operator.decide.leadership import Terms
from fairserve_operator.errors import ConflictError, UnreachableError
from fairserve_operator.handlers.leadership import Leadership
from fairserve_operator.manifests.lease import read_lease
from tests.unit.operator_handlers.world import until

TERMS = Terms(lease_s=1, renew_s=0.05, look_s=0.01, margin_s=0.5, call_s=0.1)


class FakeLeases:
    """One Lease. It is `away`, or `hangs`, when told so."""

    def __init__(self) -> None:
        self.body: Mapping[str, Any] | None = None
        self.away = False
        self.hangs = False
        self._versions = itertools.count(1)

    @property
    def holder(self) -> str:
        return "" if self.body is None else read_lease(self.body).holder

    async def read_lease(self, namespace: str, name: str, timeout_s: float) -> Mapping[str, Any] | None:
        await self._answer()
        return self.body

    async def write_lease(self, manifest: Mapping[str, Any], timeout_s: float) -> Written:
        await self._answer()
        held = None if self.body is None else self.body["metadata"]["resourceVersion"]
        if manifest["metadata"].get("resourceVersion") != held:
            raise ConflictError("Lease", 409, "it changed")
        version = str(next(self._versions))
        self.body = {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": version}}
        return Written(version, self.body)

    async def _answer(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        if self.away:
            raise UnreachableError("Lease", 0, "refused")


class Running:
    """A candidate that campaigns. `turns` is what it was told."""

    def __init__(self, leases: FakeLeases, identity: str) -> None:
        self.turns: list[bool] = []
        self.leadership = Leadership(leases, "ns", "lease", identity, self.turns.append, TERMS)
        self._task = asyncio.create_task(self.leadership.run())

    async def die(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def test_one_acts_and_another_follows_when_it_dies() -> None:
    leases = FakeLeases()
    first = Running(leases, "same")
    await until(first.leadership.acts, "the first to act")
    second = Running(leases, "same")  # Told apart although both were given one name.
    await asyncio.sleep(2 * TERMS.renew_s)
    assert (first.turns, second.turns) == ([True], [])
    await first.die()
    await until(lambda: second.turns, "the second to act")
    assert not first.leadership.acts()
    await second.die()


async def test_who_leaves_in_order_is_followed_before_its_lease_ends() -> None:
    leases = FakeLeases()
    first = Running(leases, "a")
    await until(first.leadership.acts, "the first to act")
    await first.die()
    await first.leadership.release()
    assert leases.holder == ""
    assert not first.leadership.acts()
    second = Running(leases, "b")
    await until(second.leadership.acts, "the second to act")
    assert leases.body is not None
    assert read_lease(leases.body).transitions == 1
    await second.die()


@pytest.mark.parametrize("how", ["away", "hangs"])
async def test_who_cannot_renew_stops_by_itself_and_acts_again_when_it_can(how: str) -> None:
    leases = FakeLeases()
    only = Running(leases, "a")
    await until(only.leadership.acts, "it to act")
    setattr(leases, how, True)
    await until(lambda: only.turns == [True, False], "it to stop")
    assert not only.leadership.acts()
    assert leases.holder == only.leadership.identity  # Though nobody took anything from it.
    setattr(leases, how, False)
    await until(lambda: only.turns == [True, False, True], "it to act again")
    await only.die()


async def test_release_where_nothing_is_held_or_nobody_answers_does_nothing() -> None:
    leases = FakeLeases()
    waiting = Leadership(leases, "ns", "lease", "a", lambda acting: None, TERMS)
    await waiting.release()
    assert leases.body is None
    holding = Running(leases, "b")
    await until(holding.leadership.acts, "it to act")
    await holding.die()
    leases.hangs = True
    await holding.leadership.release()
    assert not holding.leadership.acts()
