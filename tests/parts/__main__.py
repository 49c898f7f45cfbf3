"""Prepares the real parts ahead of the tests: `python -m tests.parts [PART]...`, all where none is named."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.parts import cache, controlplane, envoy, helm, images, prometheus, vllm

_PARTS: dict[str, Callable[[], Path]] = {
    "controlplane": controlplane.ensure_programs,
    "envoy": envoy.ensure_program,
    "helm": helm.ensure_programs,
    "prometheus": prometheus.ensure_programs,
    "vllm": vllm.ensure_env,
}
#: Only when they are named: a real node installs Debian packages and needs root.
_ON_REQUEST: dict[str, Callable[[], Path]] = {
    "node": controlplane.ensure_node_programs,
    "images": images.ensure_archive,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare the named parts, or all, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.parts",
        description="Build or install the real parts that tests and demos start. "
        "Each is done once and kept in $FAIRSERVE_CACHE (~/.cache/fairserve when unset).",
    )
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="part",
        help=f"{', '.join(_PARTS)} (all these when none is named), {', '.join(_ON_REQUEST)}",
    )
    named = parser.parse_args(arguments).parts
    known = _PARTS | _ON_REQUEST
    unknown = sorted(set(named) - set(known))
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)} (there are {', '.join(known)})")
    for part in dict.fromkeys(named or _PARTS):
        started = time.monotonic()
        try:
            path = known[part]()
        except cache.BuildError as error:
            cache.say(f"{part}: {error}")
            return 1
        print(f"{part}\t{time.monotonic() - started:.1f} s\t{path}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
