"""How many calls to sidecars are in flight at once, so that those that hang hold up nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

#: Calls in flight at once, over all pools: to sidecars that answered last time, and to those that did not.
_LANE = 128
_SLOW_LANE = 32
#: How long a call may hold its slot, in seconds: who takes longer hangs, and holds up nobody else.
_LONGEST_HOLD_S = 1.0


class Lanes:
    """Bounds the calls in flight of all pools together."""

    def __init__(self, lane: int = _LANE, slow_lane: int = _SLOW_LANE) -> None:
        self._lane = asyncio.Semaphore(lane)
        self._slow_lane = asyncio.Semaphore(slow_lane)

    @asynccontextmanager
    async def slot(self, failed_before: bool) -> AsyncIterator[None]:
        """Hold a slot during one call, but not for longer than a second where nothing failed before."""
        if failed_before:
            async with self._slow_lane:
                yield
            return
        held = True

        def give_back() -> None:
            nonlocal held
            if held:
                held = False
                self._lane.release()

        await self._lane.acquire()
        timer = asyncio.get_running_loop().call_later(_LONGEST_HOLD_S, give_back)
        try:
            yield
        finally:
            timer.cancel()
            give_back()
