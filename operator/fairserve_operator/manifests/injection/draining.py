"""Ending a Pod without cutting a stream: who waits for whom (docs/reference/injection.md, "How a Pod ends").

The kubelet runs all preStop hooks at once, then stops the containers, and the native sidecars only when all
containers have ended. Left to that, vLLM would end first, under the streams that the sidecar carries. So the
sidecar's hook starts its drain, and vLLM's hook waits for the drain's end.
"""

from __future__ import annotations

from typing import Any

from fairserve_operator.manifests.injection.engine import Engine
from fairserve_operator.manifests.injection.reading import Handler
from fairserve_operator.manifests.injection.refusal import RefusedError

#: Seconds in which Services and gateways hear that the Pod leaves, before it takes no more connections.
LEAVE_DELAY_S = 5
#: Seconds after which vLLM's hook no longer expects that the sidecar leaves: only vLLM is restarted then.
_PATIENCE_S = LEAVE_DELAY_S + 5
#: Seconds for what comes after the drain: the last words to clients, the snapshot, vLLM's own end.
_AFTER_DRAIN_S = 15
_MARK = "fairserve-wait"
_DEFAULT_GRACE_S = 30

#: Runs in vLLM's container, which has a Python. First what its author wanted to run there. The control port
#: is the last thing that a sidecar closes.
WAIT_SCRIPT = """\
import http.client, subprocess, sys, time
port, patience_s, hook = int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]
begun, leaving = time.monotonic(), False
if hook:
    try:
        subprocess.run(hook)
    except OSError as error:
        print(error, file=sys.stderr)
while True:
    control = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        control.request("GET", "/readyz")
        leaving = leaving or b"shutting down" in control.getresponse().read()
    except ConnectionRefusedError:
        break
    except (OSError, http.client.HTTPException):
        pass
    finally:
        control.close()
    if not leaving and time.monotonic() - begun > patience_s:
        break
    time.sleep(0.5)
"""


def started(folder: str) -> list[str]:
    """The sidecar's command. It notes its process, which is not the first with `hostPID` or a shared
    namespace. In commands the kubelet makes one $ of two.
    """
    return ["sh", "-c", f'echo $$$$ > {folder}/pid; exec fairserve sidecar "$@"', "fairserve"]


def leave_hook(folder: str) -> dict[str, Any]:
    """The sidecar's preStop hook: begin to drain once everybody knows that the Pod leaves."""
    return {"exec": {"command": ["sh", "-c", f'sleep {LEAVE_DELAY_S}; kill -TERM "$(cat {folder}/pid)"']}}


def let_engine_wait(container: dict[str, Any], engine: Engine, control_port: int) -> None:
    """Let vLLM end when the sidecar has drained. Changes `container`; raises RefusedError for a hook of
    another kind that would be lost.
    """
    python = "python3" if engine.line is None else engine.line.python
    lifecycle = engine.container.lifecycle
    own = _own_hook(
        None if lifecycle is None else lifecycle.pre_stop, python, f"{engine.field}.lifecycle.preStop"
    )
    command = [python, "-c", WAIT_SCRIPT, _MARK, str(control_port), str(_PATIENCE_S), *own]
    container["lifecycle"] = {**(container.get("lifecycle") or {}), "preStop": {"exec": {"command": command}}}


def grace_s(drain_s: int, given: int | None) -> int:
    """A Pod's termination grace period, in seconds: what is given, where that is enough."""
    return max(_DEFAULT_GRACE_S if given is None else given, LEAVE_DELAY_S + drain_s + _AFTER_DRAIN_S)


def _own_hook(hook: Handler | None, python: str, field: str) -> list[str]:
    """The command of the author's own hook, empty if there is none."""
    if hook is None:
        return []
    if hook.exec is not None:
        command = hook.exec.get("command")
        if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
            raise RefusedError(f"{field}.exec.command", "is no list of texts")
        return command[6:] if command[3:4] == [_MARK] else command
    if hook.sleep is not None:
        seconds = hook.sleep.get("seconds")
        if not isinstance(seconds, int):
            raise RefusedError(f"{field}.sleep.seconds", "is no whole number")
        return [python, "-c", f"import time; time.sleep({seconds})"]
    raise RefusedError(
        field,
        "vLLM must wait there until the sidecar has drained, and a container has one hook: make it an exec "
        "hook, which is run before",
    )
