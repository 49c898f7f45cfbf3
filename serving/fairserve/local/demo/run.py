"""Starts the stack, tells the story on it, and judges."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rich.console import Console

from fairserve.local.demo.observation import Observer
from fairserve.local.demo.screen import Screen, screen_for
from fairserve.local.demo.story import DemoError, Outcome, Story
from fairserve.local.demo.verdict import judge, show
from fairserve.local.engines import EngineChoice
from fairserve.local.stack import StackOptions, running_stack
from fairserve.local.up import run_until_signal

#: A small engine, so that a few dozen clients on one machine are more than it takes.
_ENGINE = EngineChoice(arguments=("--max-num-seqs", "16", "--kv-tokens", "16384"))
_INTERRUPTED = 130


def demo(folder: Path, pool: str | None, seconds: float, seed: int, console: Console) -> int:
    """Run the demo; 0 if every claim holds."""
    finished: list[int] = []

    async def work() -> int:
        finished.append(await _demo(folder, pool, seconds, seed, console))
        return finished[0]

    status = run_until_signal(work(), lambda line: console.print(line, highlight=False, markup=False))
    return status if finished or status else _INTERRUPTED


async def _demo(folder: Path, pool: str | None, seconds: float, seed: int, console: Console) -> int:
    screen = screen_for(console)
    options = StackOptions(folder, _ENGINE, port=0, control_port=0, pool=pool)
    with screen:
        try:
            outcome = await _tell(options, screen, seconds, seed)
        except DemoError as error:
            screen.say(f"error: {error}")
            return 1
    claims = judge(outcome)
    show(claims, console)
    failed = [claim.what.strip() for claim in claims if claim.holds is False]
    console.print(f"Failed: {'; '.join(failed)}" if failed else "All of this holds.", highlight=False)
    return 1 if failed else 0


async def _tell(options: StackOptions, screen: Screen, seconds: float, seed: int) -> Outcome:
    async with running_stack(options, screen.say) as stack:
        observer = Observer(stack.sidecar, screen.show)
        story = Story(stack, screen, observer, seconds, seed)
        background: list[asyncio.Task[None]] = [
            asyncio.create_task(stack.run()),
            asyncio.create_task(observer.run()),
        ]
        telling = asyncio.create_task(story.tell())
        try:
            await asyncio.wait([telling, *background], return_when=asyncio.FIRST_COMPLETED)
            for task in background:
                if task.done():
                    task.result()
            return await telling
        finally:
            telling.cancel()
            for task in background:
                task.cancel()
            await asyncio.gather(telling, *background, return_exceptions=True)
