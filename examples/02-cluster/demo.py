"""The main job with the real parts: a Kubernetes API server, Prometheus, the operator, sidecars and vLLM.

`make demo-cluster` builds or installs the parts (once; they are cached) and runs this. There is no kubelet:
sidecars are processes on addresses in 127.0.0.0/8, and Pods that carry those addresses stand for them.
`--engine emulator` takes the engine emulator for vLLM, which needs 6 GB to install and some time to start.
Nothing is left running. Exits with 0 only if everything that it shows held.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "serving"), str(ROOT / "operator")]

from fairserve.local.load import ClientClass, Load, summarise  # noqa: E402
from tests.parts.controlplane import ControlPlane  # noqa: E402
from tests.parts.loopback import Client  # noqa: E402
from tests.parts.process import Process, free_port, poll  # noqa: E402
from tests.parts.prometheus import Prometheus  # noqa: E402
from tests.parts.stack import Stack  # noqa: E402
from tests.parts.vllm import MODEL, Vllm  # noqa: E402

TEAMS = {"team-a": "demo-key-of-team-a", "team-b": "demo-key-of-team-b"}
OVERLOAD = {
    "evaluationInterval": "1s",
    "staleAfter": "10s",
    "holdDown": "3s",
    "signals": [
        {"name": "queue-wait", "builtin": "QueueWait", "threshold": 3, "clearThreshold": 1, "for": "1s"}
    ],
}
#: While shares are measured a backlog is wanted: its wait must not arm OIT.
NEVER_OVERLOADED = {
    **OVERLOAD,
    "signals": [{"name": "queue-wait", "builtin": "QueueWait", "threshold": 3600, "clearThreshold": 1800}],
}
#: One vLLM takes about 3 GB and one core here.
MEMORY_PER_ENGINE = 5 * 2**30

console = Console()


class Checks:
    """What is shown, and whether it held."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str, bool]] = []

    def add(self, what: str, expected: str, measured: str, held: bool) -> None:
        self.rows.append((what, expected, measured, held))
        console.print(f"  [{'green' if held else 'red'}]{what}: {measured}[/] (expected {expected})")

    def report(self) -> bool:
        table = Table("shown", "expected", "measured", "", title="what happened")
        for what, expected, measured, held in self.rows:
            table.add_row(what, expected, measured, "[green]ok[/]" if held else "[red]failed[/]")
        console.print(table)
        return all(row[-1] for row in self.rows)


def engines() -> int:
    """How many engines this machine carries: two want a core each beside the rest."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 2 if (os.cpu_count() or 1) >= 4 and memory >= 3 * MEMORY_PER_ENGINE else 1


def services(stack: Stack) -> dict[str, float]:
    """Service of each team so far, over all sidecars."""
    total = dict.fromkeys(TEAMS, 0.0)
    for sidecar in stack.sidecars:
        for tenant in sidecar.state()["tenants"]:
            if tenant["name"] in total:
                total[tenant["name"]] += tenant["service"]
    return total


async def measure(stack: Stack, seconds: float) -> float:
    """Service of team A over that of team B in the next `seconds`."""
    before = await asyncio.to_thread(services, stack)
    with console.status("measuring shares") as status:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            status.update(f"measuring shares, {left:.0f} s left")
            await asyncio.sleep(min(1.0, left))
    after = await asyncio.to_thread(services, stack)
    a, b = (after[name] - before[name] for name in TEAMS)
    return a / b


async def shares(stack: Stack, checks: Checks, seconds: float) -> None:
    """Both teams backlogged, then one patch."""
    console.rule("two teams, weights 3 and 1, both with work waiting")
    teams = [
        ClientClass(name, key, application="chat", clients_per_user=40, prompt_tokens=20, max_tokens=96)
        for name, key in TEAMS.items()
    ]
    async with (
        Load(stack.sidecars[0].url, MODEL, seed=1) as first,
        Load(stack.sidecars[-1].url, MODEL, seed=2) as last,
    ):
        for load in (first, last):
            load.start(teams)
        await asyncio.sleep(5.0)
        ratio = await measure(stack, seconds)
        checks.add("service A : B", "3.0 ± 15 %", f"{ratio:.2f}", 2.55 <= ratio <= 3.45)
        show(stack, "tenants.fairserve.dev")
        started = time.monotonic()
        console.print(
            '$ kubectl patch tenants.fairserve.dev team-a --type=merge -p \'{"spec":{"weight":1}}\''
        )
        await asyncio.to_thread(
            stack.kubectl,
            "patch",
            "tenants.fairserve.dev",
            "team-a",
            "--type=merge",
            '-p={"spec":{"weight":1}}',
        )
        await asyncio.to_thread(stack.wait_condition, "tenants", "team-a", "Programmed", "True")
        console.print(f"  acknowledged by every sidecar after {time.monotonic() - started:.2f} s")
        await asyncio.sleep(3.0)
        ratio = await measure(stack, seconds)
        checks.add("service A : B after the patch", "1.0 ± 15 %", f"{ratio:.2f}", 0.85 <= ratio <= 1.15)
        for load in (first, last):
            await load.stop(drain_s=60.0)
        records = [*first.records, *last.records]
    failed = summarise(records).failed_calls
    checks.add("calls lost", "0", str(failed), failed == 0)


async def flood(stack: Stack, checks: Checks, seconds: float) -> None:
    """One user of team B overloads the pool; agents and a quiet user carry on."""
    console.rule("one user of team B floods the pool; agents and a quiet user carry on")
    console.print(
        "$ kubectl apply -f examples/01-two-teams   # queue-wait: 3 s is overload now, team A is back at 3"
    )
    stack.apply_example(overload=OVERLOAD)
    for name in TEAMS:
        await asyncio.to_thread(stack.wait_condition, "tenants", name, "Programmed", "True")
    classes = [
        ClientClass(
            "flooder",
            TEAMS["team-b"],
            application="chat",
            users=("flooder",),
            clients_per_user=80,
            max_tokens=96,
            honours_retry_after=False,
            impatient_s=1.0,
        ),
        ClientClass(
            "agents",
            TEAMS["team-b"],
            application="agent",
            users=("agent-1", "agent-2"),
            calls_per_interaction=5,
            max_tokens=16,
            tool_s=(0.1, 0.3),
            think_s=(8.0, 10.0),
        ),
        ClientClass(
            "quiet", TEAMS["team-a"], application="chat", users=("q",), max_tokens=16, think_s=(1.0, 2.0)
        ),
    ]
    async with Load(stack.sidecars[0].url, MODEL, seed=3) as load:
        load.start(classes)
        started = time.monotonic()
        with console.status("waiting for Prometheus to tell of overload"):
            condition = await asyncio.to_thread(
                stack.wait_condition, "servingpools", "llm", "Overloaded", "True"
            )
            await asyncio.to_thread(poll, lambda: all(armed(stack)), 10.0, "OIT armed in every sidecar")
        console.print(
            f"  overloaded and armed after {time.monotonic() - started:.1f} s: {condition['message']}"
        )
        show(stack, "servingpools.fairserve.dev")
        with console.status("the flood goes on under throttling"):
            await asyncio.sleep(seconds)
        await load.stop(drain_s=60.0)
        summary = {
            each.name: summarise(record for record in load.records if record.client_class == each.name)
            for each in classes
        }
    show(stack, "tenants.fairserve.dev")
    checks.add("refused: flooder", "> 0", str(summary["flooder"].refused), summary["flooder"].refused > 0)
    others = summary["agents"].refused + summary["quiet"].refused
    checks.add("refused: agents and quiet user", "0", str(others), others == 0)
    cut = sum(each.cut for each in summary.values())
    checks.add("interactions cut", "0", str(cut), cut == 0)
    wasted = sum(each.wasted_tokens for each in summary.values())
    checks.add("tokens wasted", "0", str(wasted), wasted == 0)
    with console.status("the load is gone; waiting for the pool to clear"):
        condition = await asyncio.to_thread(
            stack.wait_condition, "servingpools", "llm", "Overloaded", "False"
        )
        await asyncio.to_thread(poll, lambda: not any(armed(stack)), 10.0, "OIT disarmed in every sidecar")
    checks.add("after the load", "disarmed", condition["reason"], True)


def armed(stack: Stack) -> list[bool]:
    return [sidecar.state()["overload"]["armed"] for sidecar in stack.sidecars]


def show(stack: Stack, what: str) -> None:
    console.print(f"$ kubectl get {what}")
    console.print(stack.kubectl("get", what), highlight=False)


def start_engines(kind: str, running: ExitStack, directory: Path) -> list[str]:
    """Start engines of this kind and return their URLs, one for each of two sidecars."""
    if kind == "emulator":
        urls = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
        for url in urls:
            address = url.removeprefix("http://")
            command = [sys.executable, "-m", "fairserve.cli", "emulator", "--listen", address]
            command += ["--served-model-name", MODEL, "--max-num-seqs", "8", "--step-ms", "6"]
            environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
            engine = Process("emulator", command, directory / f"{address}.log", env=environment)
            running.enter_context(engine).wait_until(
                lambda url=url: Client(url).answers("/health"),  # type: ignore[misc]
                60.0,
                "the emulator",
            )
        console.print("2 engine emulators: made-up text, real contention")
        return urls
    count = engines()
    note = "" if count == 2 else " (two sidecars share it: this machine has too few cores for two engines)"
    with console.status(f"starting {count} vLLM on the CPU{note}, about half a minute each"):
        vllms = [running.enter_context(Vllm(num_gpu_blocks=32, max_num_seqs=8)) for _ in range(count)]
    console.print(f"{count} real vLLM on the CPU{note}")
    return [vllms[number % count].url for number in range(2)]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=("vllm", "emulator"), default="vllm")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="how long each of three measurements takes"
    )
    return parser.parse_args()


def main() -> int:
    chosen = arguments()
    checks = Checks()
    with ExitStack() as running, tempfile.TemporaryDirectory(prefix="fairserve-demo-") as folder:
        directory = Path(folder)
        with console.status("starting etcd, the API server and the controller manager"):
            control_plane = running.enter_context(ControlPlane())
            prometheus = running.enter_context(Prometheus())
        urls = start_engines(chosen.engine, running, directory)
        with console.status("starting the operator and two sidecars"):
            stack = running.enter_context(Stack(control_plane, prometheus, "demo", directory))
            console.print("$ kubectl apply -f examples/01-two-teams   # ports and Prometheus of this machine")
            stack.apply_example(overload=NEVER_OVERLOADED)
            for url in urls:
                stack.add_sidecar(url)
            for name in TEAMS:
                stack.wait_condition("tenants", name, "Programmed", "True")
        show(stack, "tenants.fairserve.dev,applications.fairserve.dev,servingpools.fairserve.dev")
        asyncio.run(shares(stack, checks, chosen.seconds))
        asyncio.run(flood(stack, checks, chosen.seconds))
    console.print("everything that was started is stopped")
    return 0 if checks.report() else 1


if __name__ == "__main__":
    sys.exit(main())
