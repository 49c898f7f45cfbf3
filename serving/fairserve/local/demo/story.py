"""What happens in the demo: who calls, when, and what is measured meanwhile.

One round is the same load under one policy: both teams with more work than the engine takes, then quiet
clients beside a flood. It is told twice, with the folder's own policy and with FCFS and throttling in
Shadow mode, which is what an engine does by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fairserve.local.demo.observation import Observer, shares
from fairserve.local.demo.screen import Screen
from fairserve.local.load import CallRecord, ClientClass, Load, Summary, summarise
from fairserve.local.stack import Stack
from fairserve_operator.decide.resources import TENANT, SecretRef

TEAM_A, TEAM_B = "team-a", "team-b"
FLOODER = "team-b flooder"
QUIET = ("team-a chat", "team-b chat", "team-b agents")

#: Laid over the pool for the second round: arrival order, and nobody is refused.
AS_AN_ENGINE_ALONE: Mapping[str, Any] = {
    "scheduler": {"policy": "FCFS", "normalisation": None, "continuationHeadStart": None},
    "throttling": {"mode": "Shadow"},
}

#: Parts of the measured time.
_SHARES, _FLOOD, _FCFS_SHARES, _FCFS_FLOOD = 0.20, 0.35, 0.13, 0.32
_WARM_UP_S = 3.0
#: Quiet clients start when the flood has filled the queue.
_FLOOD_LEAD_S = 4.0
_DRAIN_S = 20.0


class DemoError(RuntimeError):
    """The folder is not one that the story can be told with; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one policy made of the load."""

    policy: str
    shares: Mapping[str, float]  #: of the service while both teams were backlogged
    fewest_waiting: Mapping[str, int]  #: per team over the same time
    classes: Mapping[str, Summary]  #: of the flood; delays are of calls that were sent while it lasted
    was_armed: bool  #: at any time in the flood
    wasted_tokens: float  #: by the sidecar's own count
    flood_ended_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """Both rounds."""

    weights: Mapping[str, float]
    fair: Round
    fcfs: Round
    disarmed_after_s: float | None  #: after the flood had ended; None: it stayed armed


class Story:
    """The demo on one running stack. `seconds` is the time that is measured, over all."""

    def __init__(self, stack: Stack, screen: Screen, observer: Observer, seconds: float, seed: int) -> None:
        self._stack = stack
        self._screen = screen
        self._observer = observer
        self._seconds = seconds
        self._seed = seed
        self._keys = {team: team_key(stack, team) for team in (TEAM_A, TEAM_B)}

    async def tell(self) -> Outcome:
        """Run it all."""
        await self._observer.look()
        tenants = {tenant.name: tenant.weight for tenant in self._stack.config.tenants}
        weights = {team: tenants[team] for team in (TEAM_A, TEAM_B)}
        fair = await self._round(_SHARES, _FLOOD, 1)
        disarmed = await self._until_disarmed(fair.flood_ended_s)
        await self._stack.override_pool(AS_AN_ENGINE_ALONE, "policy → FCFS, throttling → Shadow, in memory")
        fcfs = await self._round(_FCFS_SHARES, _FCFS_FLOOD, 3)
        return Outcome(weights, fair, fcfs, disarmed)

    async def _round(self, shares_part: float, flood_part: float, chapter: int) -> Round:
        before = await self._observer.look()
        async with Load(self._stack.sidecar.data_url, self._stack.model, seed=self._seed) as load:
            given, fewest = await self._shares(load, self._seconds * shares_part, chapter)
        async with Load(self._stack.sidecar.data_url, self._stack.model, seed=self._seed) as load:
            first = len(self._observer.observations)
            flood_ended_s = await self._flood(load, self._seconds * flood_part, chapter + 1)
            after = await self._observer.look()
            return Round(
                policy=after.policy,
                shares=given,
                fewest_waiting=fewest,
                classes={
                    name: _summary([r for r in load.records if r.client_class == name], flood_ended_s)
                    for name in (*QUIET, FLOODER)
                },
                was_armed=any(seen.armed for seen in self._observer.observations[first:]),
                wasted_tokens=after.wasted_tokens - before.wasted_tokens,
                flood_ended_s=flood_ended_s,
            )

    async def _shares(
        self, load: Load, seconds: float, chapter: int
    ) -> tuple[dict[str, float], dict[str, int]]:
        text = "Both teams send more than the engine takes. Their shares follow their weights."
        if chapter > 1:
            text = (
                "The same load and manifests but policy FCFS, which is what an engine does by itself: calls "
                "are served as they arrive,\nand throttling only watches (Shadow): nobody is refused."
            )
        self._phase(chapter, "two busy teams", text, _WARM_UP_S + seconds)
        load.start(self._busy())
        await asyncio.sleep(_WARM_UP_S)
        begin = await self._observer.look()
        first = len(self._observer.observations)
        await asyncio.sleep(seconds)
        end = await self._observer.look()
        await load.stop(drain_s=0.0)
        window = self._observer.observations[first:]
        fewest = {team: min(seen.waiting(team) for seen in window) for team in (TEAM_A, TEAM_B)}
        return shares(begin, end, (TEAM_A, TEAM_B)), fewest

    async def _flood(self, load: Load, seconds: float, chapter: int) -> float:
        """Flood, and return when it ended; the quiet clients' interactions are waited for."""
        text = (
            "One user of team B sends 64 long calls at a time and ignores refusals. Others chat, and agents "
            "make four calls per interaction."
        )
        self._phase(chapter, "a flood", text, _FLOOD_LEAD_S + seconds)
        load.start([self._flooder()])
        await asyncio.sleep(_FLOOD_LEAD_S)
        load.start(self._quiet())
        await asyncio.sleep(seconds)
        ended_s = asyncio.get_running_loop().time()
        await load.stop([FLOODER], drain_s=0.0)
        await load.stop(drain_s=_DRAIN_S)
        return ended_s

    async def _until_disarmed(self, flood_ended_s: float) -> float | None:
        """Wait for the end of overload; how long after the flood that is, or None if it does not come."""
        plan = self._stack.overload.plan
        slack_s = 10.0
        limit_s = plan.settings.hold_down_s + 2 * plan.interval_s + slack_s
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while (await self._observer.look()).armed:
            if loop.time() - begun > limit_s:
                return None
            await asyncio.sleep(0.25)
        return loop.time() - flood_ended_s

    def _phase(self, number: int, title: str, text: str, seconds: float) -> None:
        policy = self._observer.observations[-1].policy
        now = asyncio.get_running_loop().time()
        self._screen.phase(f"{number}. {policy}: {title}", text, now, seconds)

    def _busy(self) -> list[ClientClass]:
        return [
            ClientClass(
                name=f"{team} busy",
                api_key=self._keys[team],
                application="chat",
                users=("busy",),
                # More than the engine's 16 places for each team, and short calls: no wait that is overload.
                clients_per_user=18,
                prompt_tokens=48,
                max_tokens=16,
            )
            for team in (TEAM_A, TEAM_B)
        ]

    def _flooder(self) -> ClientClass:
        return ClientClass(
            name=FLOODER,
            api_key=self._keys[TEAM_B],
            application="chat",
            users=("mallory",),
            clients_per_user=64,
            prompt_tokens=64,
            max_tokens=160,
            honours_retry_after=False,
            impatient_s=0.5,
        )

    def _quiet(self) -> list[ClientClass]:
        a_chat, b_chat, agents = QUIET
        chat = ClientClass(
            a_chat, self._keys[TEAM_A], "chat", _users("a", 6), max_tokens=24, think_s=(0.5, 1.5)
        )
        return [
            chat,
            # Slow enough to stay within the ten interactions a minute that team B's users have.
            replace(chat, name=b_chat, api_key=self._keys[TEAM_B], users=_users("b", 4), think_s=(6.0, 8.0)),
            ClientClass(
                agents,
                self._keys[TEAM_B],
                application="agent",
                users=_users("agent", 4),
                prompt_tokens=100,
                max_tokens=24,
                calls_per_interaction=4,
                think_s=(4.0, 6.0),
                tool_s=(0.2, 0.6),
            ),
        ]


def _summary(records: list[CallRecord], flood_ended_s: float) -> Summary:
    during = summarise(record for record in records if record.started_s < flood_ended_s)
    return replace(summarise(records), first_token_s=during.first_token_s)


def team_key(stack: Stack, team: str) -> str:
    """The team's API key, from the folder. Raises DemoError."""
    namespace = stack.pool.namespace
    for tenant in stack.desired.objects.resources(TENANT, namespace):
        if tenant.key.name != team:
            continue
        for identity in tenant.spec.get("identity", ()):
            if reference := identity.get("apiKey", {}).get("secretRef"):
                value = stack.desired.objects.secret_value(SecretRef(namespace, **reference))
                return str(value)
    raise DemoError(f'the demo needs a Tenant "{team}" with an apiKey in the folder')


def _users(prefix: str, count: int) -> tuple[str, ...]:
    return tuple(f"{prefix}{number}" for number in range(1, count + 1))
