"""Giving back what the start took: 10,000 objects pass through memory several times, and stay there once.

glibc keeps freed memory for each thread that ever asked for some, and the collector goes through all that
lives each time it looks for garbage. Elsewhere than on glibc the first part does nothing.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
from contextlib import suppress

_M_ARENA_MAX = -8
#: One for the event loop, one that the threads share: they mostly wait.
_ARENAS = 2
#: New objects before the collector looks at the young ones; its default of 700 costs a third of the time.
_YOUNG = 20_000
#: Old objects are looked at after so many looks at younger ones: nearly all of them are there to stay.
_OLD = 100
#: Between two times that freed memory is returned, in seconds. Whoever only waits for the Lease has started
#: by then as well.
_INTERVAL_S = 60.0


def prepare() -> None:
    """Call it before the first thread is started."""
    gc.set_threshold(_YOUNG, 10, _OLD)
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)


async def tend(started: asyncio.Event) -> None:
    """Keep what the start made, and return now and then what was freed. Runs until cancelled."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_INTERVAL_S):
            await started.wait()
    gc.unfreeze()  # of an earlier start
    gc.collect()
    gc.freeze()
    while True:
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)
        await asyncio.sleep(_INTERVAL_S)
