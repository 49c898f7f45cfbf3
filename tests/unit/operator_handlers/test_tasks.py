"""Background tasks: none dies unnoticed, none outlives its owner."""

from __future__ import annotations

import asyncio

from fairserve_operator.handlers.tasks import Tasks, wait_for_event
from tests.unit.operator_handlers.world import until


async def test_death_of_a_task_is_told_and_cancellation_is_not() -> None:
    deaths: list[BaseException] = []
    tasks = Tasks(deaths.append)

    async def die() -> None:
        raise RuntimeError("a mistake")

    async def wait() -> None:
        await asyncio.Event().wait()

    tasks.start(die(), "dies")
    waiting = tasks.start(wait(), "waits")
    await until(lambda: deaths, "the report")
    await tasks.cancel()
    assert waiting.cancelled()
    assert [str(death) for death in deaths] == ["a mistake"]


async def test_event_is_cleared_only_by_whoever_saw_it() -> None:
    event = asyncio.Event()
    assert not await wait_for_event(event, 0.001)
    event.set()
    assert await wait_for_event(event, 10)
    assert not event.is_set()
