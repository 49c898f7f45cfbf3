"""What a pool's sidecars do, put together from what each tells when it is asked what it runs.

A round lasts as long as it takes to have asked each. A sidecar that doesn't answer is left out of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from fairserve_operator.decide.activity import Report, Tally, read_report

#: The first round is over once everybody has answered, and at the latest after so many seconds.
_FIRST_S = 5.0
_LOOK_S = 0.05


class Survey:
    """Rounds. `told` is called at the end of each in which anybody told anything, or nobody was there."""

    def __init__(self, told: Callable[[Report], None]) -> None:
        self._told = told
        self._tally = Tally()
        self._counted: set[str] = set()  #: Pods whose sidecars have told in this round
        self.begun = False  #: whether the first round is over

    def heard(self, pod: str, state: Mapping[str, Any]) -> None:
        """Take what the sidecar of a Pod tells of itself."""
        if pod not in self._counted:
            self._counted.add(pod)
            self._tally.add(read_report(state))

    async def run(self, all_asked: Callable[[], bool], round_s: Callable[[], float | None]) -> None:
        """Go on until cancelled. `round_s` is how long it takes to ask each, None where nobody is there."""
        clock = asyncio.get_running_loop().time
        latest = clock() + _FIRST_S
        while not all_asked() and clock() < latest:  # noqa: ASYNC110 (a thousand answers would wake it)
            await asyncio.sleep(_LOOK_S)
        while True:
            lasts = round_s()
            if self._counted or lasts is None:
                self._told(self._tally.report())
            self._tally, self._counted, self.begun = Tally(), set(), True
            await asyncio.sleep(lasts or _FIRST_S)
