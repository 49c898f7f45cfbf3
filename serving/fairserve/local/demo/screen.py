"""What people see while the demo runs: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fairserve.local.demo.observation import Observation, shares

#: Shares and rates are taken over this many observations.
_WINDOW = 6
_PLAIN_EVERY_S = 2.0


class Screen(Protocol):
    """Where the story is told."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def phase(self, title: str, text: str, now: float, seconds: float) -> None:
        """Begin a chapter that takes about that long."""

    def show(self, seen: Observation) -> None:
        """Take in an observation."""

    def say(self, line: str) -> None:
        """Print one line that stays."""


def screen_for(console: Console) -> Screen:
    """The kind of screen that suits the console."""
    return LiveScreen(console) if console.is_terminal else PlainScreen(console)


class _Recent:
    """The last observations."""

    def __init__(self) -> None:
        self._seen: deque[Observation] = deque(maxlen=_WINDOW)

    def add(self, seen: Observation) -> None:
        self._seen.append(seen)

    def share(self, name: str) -> float | None:
        first, last = self._seen[0], self._seen[-1]
        return shares(first, last, last.tenants).get(name)

    def tokens_per_s(self, name: str) -> float:
        first, last = self._seen[0], self._seen[-1]
        before = first.tenants.get(name)
        if before is None or last.at_s <= first.at_s:
            return 0.0
        return (last.tenants[name].tokens - before.tokens) / (last.at_s - first.at_s)


class LiveScreen:
    """A table that is redrawn in place, under the lines that were said."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._recent = _Recent()
        self._title = ""
        self._begun_s = 0.0
        self._seconds = 1.0

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def phase(self, title: str, text: str, now: float, seconds: float) -> None:
        """Begin a chapter."""
        self._title, self._begun_s, self._seconds = title, now, max(seconds, 0.1)
        self._console.print(f"\n[bold]{title}[/bold]\n{text}", highlight=False)

    def show(self, seen: Observation) -> None:
        """Take in an observation."""
        self._recent.add(seen)
        self._live.update(self._render(seen))

    def say(self, line: str) -> None:
        """Print one line that stays."""
        self._console.print(f"  {line}", highlight=False, markup=False)

    def _render(self, seen: Observation) -> RenderableType:
        done_s = min(seen.at_s - self._begun_s, self._seconds)
        state = Text("throttling ON", "bold red") if seen.armed else Text("throttling off", "green")
        head = Table.grid(padding=(0, 2))
        head.add_row(
            ProgressBar(total=self._seconds, completed=done_s, width=24),
            Text(f"{seen.policy}, generation {seen.generation}"),
            state,
            Text(f"longest wait {seen.oldest_wait_s:.1f} s"),
        )
        table = Table("Tenant", "Weight", "Share", "Waiting", "Running", "Tokens/s", "Refused calls")
        for view in seen.tenants.values():
            share = self._recent.share(view.name)
            table.add_row(
                view.name,
                f"{view.weight:g}",
                "–" if share is None else f"{share:.0%}",
                str(view.waiting),
                str(view.running),
                f"{self._recent.tokens_per_s(view.name):.0f}",
                str(view.refused),
            )
        return Group(head, table)


class PlainScreen:
    """Lines, for files and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._recent = _Recent()
        self._last_s = float("-inf")
        self._first_s: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def phase(self, title: str, text: str, now: float, seconds: float) -> None:
        """Begin a chapter."""
        self._line(f"\n{title} (about {seconds:.0f} s)\n{text}")

    def show(self, seen: Observation) -> None:
        """Take in an observation."""
        self._recent.add(seen)
        self._first_s = seen.at_s if self._first_s is None else self._first_s
        if seen.at_s - self._last_s < _PLAIN_EVERY_S:
            return
        self._last_s = seen.at_s
        parts = [f"[{seen.at_s - self._first_s:3.0f} s]", seen.policy]
        for view in seen.tenants.values():
            share = self._recent.share(view.name)
            parts.append(
                f"| {view.name}: weight {view.weight:g}, share {'–' if share is None else f'{share:.0%}'}, "
                f"{view.waiting} waiting, {view.running} running, "
                f"{self._recent.tokens_per_s(view.name):.0f} tokens/s, {view.refused} refused"
            )
        parts.append(f"| throttling {'ON' if seen.armed else 'off'}")
        self._line(" ".join(parts))

    def say(self, line: str) -> None:
        """Print one line that stays."""
        self._line(f"  {line}")

    def _line(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
