"""A pool on one machine: a folder of manifests, an engine, and the same sidecar that runs in a pod.

It starts the processes, keeps the sidecar's configuration equal to the folder, and evaluates overload. A
bad edit leaves what is in force as it is. Everything it learns and does it says in one line each.
"""

from __future__ import annotations

import asyncio
import gzip
import secrets
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from watchfiles import Change as FileChange
from watchfiles import awatch

from fairserve.config import SchedulerConfig
from fairserve.local.addresses import free_port, is_free
from fairserve.local.children import Child
from fairserve.local.compilation import FolderError
from fairserve.local.control import Sidecar, SidecarError
from fairserve.local.desired import Desired, Target
from fairserve.local.engines import OWN_PATH, Engine, EngineChoice
from fairserve.local.manifests import SUFFIXES
from fairserve.local.overload_watch import OverloadWatch
from fairserve_operator.decide.generations import next_generation

_READY_TIMEOUT_S = 60.0
#: Running calls may go on this long after Ctrl-C, and the processes a little longer.
_STREAM_GRACE_S = 2.0
_STOP_GRACE_S = 5.0
#: Editors write a file in several steps; changes closer together than this are one.
_BURST_MS = 50
_LONGEST_BURST_MS = 400
#: One look after the watch has begun finds what was edited while the engine started.
_FIRST_LOOK_MS = 500


class StackError(RuntimeError):
    """It can't be started as asked; the message says what to do."""


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What to run, and where. A port of None is the pool's own, 0 is any free one."""

    folder: Path
    engine: EngineChoice
    host: str = "127.0.0.1"
    port: int | None = None
    control_port: int | None = None
    pool: str | None = None
    prometheus: str | None = None


class Stack:
    """A running pool. `running_stack` makes one."""

    def __init__(
        self,
        options: StackOptions,
        say: Callable[[str], None],
        desired: Desired,
        target: Target,
        config: SchedulerConfig,
        parts: _Parts,
    ) -> None:
        self.pool = target.pool
        self.desired = desired
        self.sidecar = parts.sidecar
        self.model = parts.model
        self.token_file = parts.token_file
        self.engine = parts.engine.description
        self.overload = OverloadWatch(parts.sidecar, target.overload, options.prometheus, say)
        self._options = options
        self._say = say
        self._config = config
        self._parts = parts
        self._override: Mapping[str, Any] = {}
        self._applying = asyncio.Lock()
        self._warned: tuple[str, ...] = ()
        self._warn_of_unanswered()

    @property
    def config(self) -> SchedulerConfig:
        """The configuration in force."""
        return self._config

    async def run(self) -> None:
        """Follow the folder and evaluate overload until cancelled. Raises ChildEndedError if a child ends."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.watch())
            tasks.create_task(self.overload.run())
            for child in self._parts.children:
                tasks.create_task(child.ended())

    async def watch(self) -> None:
        """Apply the folder whenever it changes, until cancelled."""
        folder = self._options.folder
        looked = False
        async for changes in awatch(
            # An editor may replace a file; only the folder around it tells.
            folder if folder.is_dir() else folder.parent,
            watch_filter=_is_manifest,
            debounce=_LONGEST_BURST_MS,
            step=_BURST_MS,
            rust_timeout=_FIRST_LOOK_MS,
            yield_on_timeout=True,
            recursive=False,
        ):
            if changes or not looked:
                await self.apply()
                looked = True

    async def override_pool(self, override: Mapping[str, Any], text: str) -> bool:
        """Lay these fields over the pool's spec, in memory only, and apply; `text` says it to people."""
        self._override = override
        return await self.apply(text)

    async def apply(self, text: str = "") -> bool:
        """Put in force what the folder says now; False if that failed and what was in force stays."""
        async with self._applying:
            begun = asyncio.get_running_loop().time()
            try:
                target = self.desired.look(self._override)
                config = self._numbered(target.config)
                if config.generation != self._config.generation:
                    await self.sidecar.put_config(config)
            except (FolderError, SidecarError) as error:
                self._say(f"generation {self._config.generation} stays in force: {error}")
                return False
            self.overload.follow(target.overload)
            self._warn_of_unanswered()
            told = [text] if text else []
            what = ", ".join([*map(str, target.changes), *told]) or "compiled anew"
            if config.generation != self._config.generation:
                took_ms = (asyncio.get_running_loop().time() - begun) * 1000
                self._say(f"generation {config.generation}: {what}, live in {took_ms:.0f} ms")
            elif target.changes:
                self._say(f"generation {config.generation} stays: {what}")
            self._config = config
            return True

    def _numbered(self, config: SchedulerConfig) -> SchedulerConfig:
        """The configuration under its generation: a new one exactly if its content is new."""
        current = self._config
        number = next_generation(current.content_hash, current.generation, config.content_hash)
        return config.model_copy(update={"generation": number})

    def _warn_of_unanswered(self) -> None:
        unanswered = self.overload.unanswered
        if unanswered and unanswered != self._warned:
            names = ", ".join(unanswered)
            self._say(
                f"overload signal {names} has no value without a Prometheus: "
                "give --prometheus URL to evaluate it"
            )
        self._warned = unanswered


@dataclass(frozen=True, slots=True)
class _Parts:
    engine: Engine
    sidecar: Sidecar
    children: tuple[Child, ...]
    model: str
    token_file: Path


@asynccontextmanager
async def running_stack(options: StackOptions, say: Callable[[str], None]) -> AsyncIterator[Stack]:
    """Start a pool and stop it again; nothing that was started outlives the block.

    Raises FolderError, EngineError, StackError or ChildEndedError, each with a message for people.
    """
    async with AsyncExitStack() as cleanup:
        desired = Desired(options.folder, options.pool, secrets.token_hex(16), say)
        target = desired.look()
        config = target.config.model_copy(update={"generation": 1})
        # Only this user can read it: mkdtemp makes it so. It holds the control token and the logs.
        directory = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="fairserve-")))
        ports = _ports(options, target)
        engine = Engine(options.engine, directory)
        cleanup.push_async_callback(engine.stop)
        say(f"starting the {engine.description}")
        model = await engine.start()
        child, sidecar = await _start_sidecar(options.host, ports, engine.url, config, directory, cleanup)
        children = (child,) if engine.child is None else (engine.child, child)
        parts = _Parts(engine, sidecar, children, model, directory / "control-token")
        yield Stack(options, say, desired, target, config, parts)


async def _start_sidecar(
    host: str,
    ports: tuple[int, int],
    engine_url: str,
    config: SchedulerConfig,
    directory: Path,
    cleanup: AsyncExitStack,
) -> tuple[Child, Sidecar]:
    token = secrets.token_urlsafe(32)
    (directory / "control-token").write_text(token)
    (directory / "config.json.gz").write_bytes(gzip.compress(config.to_bytes()))
    port, control_port = ports
    command = [sys.executable, "-m", "fairserve.cli", "sidecar", "--engine", engine_url]
    command += ["--listen", f"{host}:{port}", "--control", f"{host}:{control_port}"]
    command += ["--config", str(directory / "config.json.gz")]
    command += ["--control-token-file", str(directory / "control-token")]
    command += ["--grace-s", str(_STREAM_GRACE_S)]
    child = Child("sidecar", command, directory / "sidecar.log", env={"PYTHONPATH": OWN_PATH})
    cleanup.push_async_callback(child.stop, _STOP_GRACE_S)
    await child.start()
    sidecar = Sidecar(f"http://{host}:{port}", f"http://{host}:{control_port}", token)
    await cleanup.enter_async_context(sidecar)
    await _until_ready(sidecar, child)
    return child, sidecar


async def _until_ready(sidecar: Sidecar, child: Child) -> None:
    """Wait until the sidecar takes calls. Raises StackError or ChildEndedError."""
    end = asyncio.create_task(child.ended())
    try:
        async with asyncio.timeout(_READY_TIMEOUT_S):
            while not await sidecar.ready():
                if end.done():
                    end.result()
                await asyncio.sleep(0.05)
    except TimeoutError:
        words = child.last_words()
        raise StackError(f"the sidecar is not ready after {_READY_TIMEOUT_S:g} s:\n{words}") from None
    finally:
        end.cancel()
        await asyncio.gather(end, return_exceptions=True)


def _ports(options: StackOptions, target: Target) -> tuple[int, int]:
    """The data and the control port. Raises StackError naming the option if one is taken."""
    chosen = []
    for option, wanted, default in (
        ("--port", options.port, target.spec.sidecar.port),
        ("--control-port", options.control_port, target.spec.sidecar.control_port),
    ):
        try:
            port = default if wanted is None else wanted or free_port(options.host)
        except OSError as error:
            raise StackError(f"--host: nothing can listen on {options.host}: {error.strerror}") from error
        if not is_free(options.host, port):
            raise StackError(
                f"port {port} of {options.host} is taken; choose another with {option} N (0: any)"
            )
        chosen.append(port)
    return chosen[0], chosen[1]


def _is_manifest(_change: FileChange, path: str) -> bool:
    return path.endswith(SUFFIXES)
