"""`fairserve up`: runs a folder of manifests until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fairserve.config import SchedulerConfig
from fairserve.local.children import ChildEndedError
from fairserve.local.compilation import FolderError
from fairserve.local.engines import EngineError
from fairserve.local.manifests import SECRET
from fairserve.local.stack import Stack, StackError, StackOptions, running_stack
from fairserve_operator.decide.resources import TENANT

#: What ends a command with a message instead of a traceback.
EXPECTED_ERRORS = (FolderError, EngineError, StackError, ChildEndedError)


def up(options: StackOptions, say: Callable[[str], None]) -> int:
    """Run the folder until SIGINT or SIGTERM; the exit status."""
    return run_until_signal(_up(options, say), say)


def run_until_signal(work: Coroutine[Any, Any, int], say: Callable[[str], None]) -> int:
    """Run something that cleans up when cancelled, and cancel it on SIGINT or SIGTERM, which is no error."""

    async def guarded() -> int:
        task = asyncio.create_task(work)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            say("stopped")
            return 0
        except EXPECTED_ERRORS as error:
            say(f"error: {error}")
            return 1
        except BaseExceptionGroup as group:
            expected, other = group.split(EXPECTED_ERRORS)
            if other is not None or expected is None:
                raise
            for leaf in _leaves(expected):
                say(f"error: {leaf}")
            return 1

    return asyncio.run(guarded())


async def _up(options: StackOptions, say: Callable[[str], None]) -> int:
    async with running_stack(options, say) as stack:
        for line in directions(stack):
            say(line)
        await stack.run()
    return 0


def directions(stack: Stack) -> list[str]:
    """How to use what runs. Keys are named and not shown: terminals are logged too."""
    sidecar = stack.sidecar
    control = f'curl -H "Authorization: Bearer $(cat {stack.token_file})" {sidecar.control_url}/state'
    body = f'{{"model": "{stack.model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    return [
        "",
        f"ServingPool {stack.pool.namespace}/{stack.pool.name}, generation {stack.config.generation}, "
        f"before the {stack.engine}",
        f"  base URL   {sidecar.data_url}/v1   (any OpenAI client; the API key says who calls)",
        *_callers(stack),
        f'  call       curl {sidecar.data_url}/v1/chat/completions -H "Authorization: Bearer $KEY" '
        f"-H 'Content-Type: application/json' -d '{body}'",
        f"  state      {control}",
        f"  metrics    curl {sidecar.data_url}/metrics",
        f"  overload   {_signals(stack)}, evaluated every {stack.overload.plan.interval_s:g} s",
        "  Edit the folder to change weights and limits while it runs. Ctrl-C stops everything.",
        "",
    ]


def _callers(stack: Stack) -> list[str]:
    """Where each tenant's keys are, what tokens are its, and what becomes of anybody else."""
    lines = []
    for tenant in stack.desired.objects.resources(TENANT, stack.pool.namespace):
        for identity in tenant.spec.get("identity", ()):
            lines += _key(stack.config, tenant.key.name, identity.get("apiKey"))
            lines += _token(stack.config, tenant.key.name, identity.get("jwt"))
    default = stack.config.default_tenant
    if default is not None:
        lines.append(f"  anybody else: the default tenant, of weight {default.weight:g}")
    return lines


def _key(config: SchedulerConfig, tenant: str, key: Mapping[str, Any] | None) -> list[str]:
    if key is None or tenant not in {held.tenant for held in config.identity.api_keys}:
        return []
    reference = key["secretRef"]
    return [f"  KEY of {tenant}: {SECRET} {reference['name']}, key {reference['key']}"]


def _token(config: SchedulerConfig, tenant: str, token: Mapping[str, Any] | None) -> list[str]:
    if token is None or not any(
        issuer.issuer == token["issuer"] and tenant in (issuer.tenant, *(issuer.tenants or {}).values())
        for issuer in config.identity.token_issuers
    ):
        return []
    whose = f", {'.'.join(token['claim'])} {token['value']}" if token.get("claim") else ""
    return [f"  TOKEN of {tenant}: of {token['issuer']}, for {token['audience']}{whose}"]


def _signals(stack: Stack) -> str:
    """Each overload signal with where it is read from here."""
    plan = stack.overload.plan
    return ", ".join(
        f"{name} (from these metrics)" if name in plan.builtins else f"{name} (query)"
        for name in plan.queries
    )


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
