"""A real Prometheus 3 on loopback, whose targets can be changed and which can be killed while a test runs."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NotRequired, Self, TypedDict
from urllib.parse import urlencode

from tests.parts import cache, golang
from tests.parts.loopback import Client
from tests.parts.process import Process, free_port

MODULE = cache.REPOSITORY / "tests" / "prometheus"

_PROGRAMS = {
    "prometheus": "github.com/prometheus/prometheus/cmd/prometheus",
    "promtool": "github.com/prometheus/prometheus/cmd/promtool",
}

#: Of the service discoveries only files (always there) and Kubernetes: one of the others needs a module that
#: cannot be had from the Go proxy.
_TAGS = ("netgo", "remove_all_sd", "enable_kubernetes_sd")

_START_DEADLINE_S = 60.0


def ensure_programs() -> Path:
    """Return the cached folder with prometheus and promtool."""
    announcement = "building prometheus and promtool (about 3 minutes the first time)"
    return golang.ensure("prometheus", MODULE, _PROGRAMS, announcement, tags=_TAGS)


def promtool(*args: str | Path) -> str:
    """Run promtool (`check rules`, …) and return its stdout; raises PromtoolError with all it said."""
    command = [ensure_programs() / "promtool", *args]
    finished = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if finished.returncode != 0:
        raise PromtoolError(
            f"promtool {' '.join(map(str, args))}: {finished.stdout}{finished.stderr}".strip()
        )
    return finished.stdout


class PromtoolError(RuntimeError):
    """promtool found a mistake."""


class TargetGroup(TypedDict):
    """Addresses ("host:port") to scrape, and labels that their series get."""

    targets: list[str]
    labels: NotRequired[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Sample:
    """One series of an instant query's answer; `labels` holds `__name__` where the series has a name."""

    labels: Mapping[str, str]
    value: float
    time_s: float


class Prometheus:
    """A Prometheus of its own, started on entering the context and gone after it.

    `legacy_names` makes it ask for and store names as Prometheus 2 does: exporters that negotiate answer
    `vllm_num_requests_waiting` instead of `vllm:num_requests_waiting`. `scrape_configs` are added as they are
    to the configuration (for Kubernetes service discovery, say), `rule_files` likewise.
    """

    def __init__(
        self,
        targets: Sequence[TargetGroup] = (),
        *,
        scrape_interval_s: float = 1.0,
        legacy_names: bool = False,
        scrape_configs: Sequence[Mapping[str, Any]] = (),
        rule_files: Sequence[Path] = (),
        directory: Path | None = None,
    ) -> None:
        """Write the configuration; builds the programs if they are not in the cache."""
        programs = ensure_programs()
        self._temporary = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="fairserve-prometheus-"))
        self.directory.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._client = Client(self.url)
        self._targets = self.directory / "targets.json"
        self.set_targets(targets)

        interval = f"{math.ceil(scrape_interval_s * 1000)}ms"
        names = {"metric_name_validation_scheme": "legacy"} if legacy_names else {}
        discovered = {"files": [str(self._targets)], "refresh_interval": "1s"}
        config = {
            "global": {
                "scrape_interval": interval,
                "scrape_timeout": interval,
                "evaluation_interval": interval,
                **names,
            },
            "rule_files": [str(path) for path in rule_files],
            "scrape_configs": [{"job_name": "test", "file_sd_configs": [discovered]}, *scrape_configs],
        }
        config_file = self.directory / "prometheus.yml"
        config_file.write_text(json.dumps(config, indent=2))  # JSON is YAML.
        self.process = Process(
            "prometheus",
            [
                programs / "prometheus",
                f"--config.file={config_file}",
                f"--storage.tsdb.path={self.directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                # Changed targets take effect at once; the default gathers them for five seconds.
                "--scrape.discovery-reload-interval=100ms",
            ],
            self.directory / "prometheus.log",
        )

    def start(self) -> Self:
        """Start it and wait until it answers queries; a restarted one has its address and data."""
        self.process.start()
        try:
            self.process.wait_until(lambda: self._client.answers("/-/ready"), _START_DEADLINE_S, "/-/ready")
        except BaseException:
            self.process.kill()
            raise
        return self

    def stop(self) -> None:
        """Stop it in order; its data stay until the context ends."""
        self.process.stop()

    def kill(self) -> None:
        """Kill it, as a crash would; its data stay until the context ends."""
        self.process.kill()

    def close(self) -> None:
        """Stop it, and delete its files unless a directory was given."""
        self.process.stop()
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def set_targets(self, targets: Sequence[TargetGroup]) -> None:
        """Replace what is scraped; it takes effect within about a second and a scrape interval."""
        # It reads the file whenever it changes: renaming keeps it from reading half of one.
        written = self._targets.with_suffix(".new")
        written.write_text(json.dumps(list(targets)))
        os.replace(written, self._targets)

    def query(self, promql: str) -> list[Sample]:
        """Answer an instant query that gives a vector or a scalar.

        Raises urllib.error.HTTPError, with Prometheus's words, for a query that it refuses, and another
        OSError when it does not answer.
        """
        data = self._client.json("GET", f"/api/v1/query?{urlencode({'query': promql})}")["data"]
        if data["resultType"] == "scalar":
            return [_sample({}, data["result"])]
        if data["resultType"] != "vector":
            raise ValueError(f"{promql} gives a {data['resultType']}, not a vector")
        return [_sample(series["metric"], series["value"]) for series in data["result"]]


def _sample(labels: Mapping[str, str], value: Sequence[Any]) -> Sample:
    return Sample(dict(labels), float(value[1]), float(value[0]))
