"""The sidecar as a process: event loop, logging, signals. The entry that `fairserve sidecar` calls."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import signal
import sys
import time

import uvloop

from fairserve.sidecar.options import OptionError, SidecarOptions
from fairserve.sidecar.service import Sidecar

_LOG = logging.getLogger(__name__)

#: Objects between two young collections: calls leave few cycles behind, and a pause is a client's wait.
_GC_THRESHOLD = 50_000


class _Lines(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def run(options: SidecarOptions) -> int:
    """Serve until SIGTERM or SIGINT; the process's exit status."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(_serve(options))
        except OptionError as error:
            _LOG.error("%s", error)
            return 2
        except OSError as error:
            _LOG.error("can't listen on %s and %s: %s", options.listen, options.control, error)
            return 1
    return 0


def tune_collector() -> None:
    """Collect garbage seldom, and never what the process has now: calls leave no cycles behind."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD, 20, 50)


async def _serve(options: SidecarOptions) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    sidecar = Sidecar(options)
    await sidecar.start()
    tune_collector()
    stop, broken = asyncio.create_task(stopping.wait()), asyncio.create_task(sidecar.broken())
    await asyncio.wait((stop, broken), return_when=asyncio.FIRST_COMPLETED)
    if broken.done():
        await broken
    broken.cancel()
    _LOG.info("stopping; running calls have %g s", options.grace_s)
    await sidecar.stop(options.grace_s)
