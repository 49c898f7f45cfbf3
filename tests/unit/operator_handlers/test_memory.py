"""What lives after the start is left alone by the collector."""

from __future__ import annotations

import asyncio
import gc

from fairserve_operator.handlers import memory
from tests.unit.operator_handlers.world import until


async def test_collector_leaves_alone_what_lives_after_the_start() -> None:
    started = asyncio.Event()
    before = gc.get_freeze_count()
    tending = asyncio.ensure_future(memory.tend(started))
    try:
        await asyncio.sleep(0)
        assert gc.get_freeze_count() == before
        started.set()
        await until(lambda: gc.get_freeze_count() > before + 1000, "the objects of this process")
        assert not tending.done()
    finally:
        tending.cancel()
        gc.unfreeze()
