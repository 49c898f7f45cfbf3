"""A real vLLM on the CPU, serving a tiny model: the real scheduler, KV cache, API and metrics.

It lives in an environment of its own, since its requirements would fight those of the tests.
"""

from __future__ import annotations

import re
import shutil
import signal
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from tests.parts import cache, environment
from tests.parts.loopback import Client
from tests.parts.process import Process, free_port, group_members
from tests.parts.tiny_model import make_model

__all__ = ["MODEL", "Vllm", "ensure_env", "make_model"]

LOCK = cache.REPOSITORY / "requirements" / "vllm.lock"

#: The name that calls ask for.
MODEL = "tiny"

#: Its three processes import thousands of modules each: compiled beforehand, it starts in half the time.
_SYNC_FLAGS = ("--compile-bytecode",)

#: It imports PyTorch three times over; with other builds on the same cores that takes minutes.
_START_DEADLINE_S = 300.0


def ensure_env() -> Path:
    """Return the Python of the cached vLLM environment, installed first from its lock if there is none.

    Raises BuildError when the installation fails.
    """
    announcement = "installing vLLM for the CPU (5 GB, a few minutes the first time)"
    return environment.ensure("vllm", LOCK, announcement, *_SYNC_FLAGS) / "bin" / "python"


class Vllm:
    """A vLLM OpenAI server of its own, started on entering the context and gone after it.

    The options that decide when it is overloaded: `num_gpu_blocks` KV blocks of 128 tokens each (None: 1 GiB
    of them), `max_num_seqs` calls that run at once, `max_model_len` tokens of one call.
    """

    def __init__(
        self,
        *,
        num_gpu_blocks: int | None = None,
        max_num_seqs: int = 8,
        max_model_len: int = 1024,
        scheduling_policy: Literal["fcfs", "priority"] = "priority",
        host: str = "127.0.0.1",
        port: int | None = None,
        threads: int = 1,
        extra_args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        directory: Path | None = None,
    ) -> None:
        """Make the model; installs vLLM if it is not in the cache.

        `host` is any loopback address, `extra_args` and `env` are added to the command. With `directory` all
        files stay there after the end; without, they live in a temporary folder.
        """
        python = ensure_env()
        self._temporary = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="fairserve-vllm-"))
        model = make_model(self.directory / "model")
        self.port = port or free_port()
        self.url = f"http://{host}:{self.port}"
        self._client = Client(self.url)
        blocks = [] if num_gpu_blocks is None else [f"--num-gpu-blocks-override={num_gpu_blocks}"]
        self.process = Process(
            "vllm",
            [
                # It stands for a GPU, which takes no core from the processes in front of it.
                "nice",
                "--adjustment=10",
                python,
                "-m",
                "vllm.entrypoints.openai.api_server",
                f"--model={model}",
                f"--served-model-name={MODEL}",
                "--load-format=dummy",
                # Compiling costs minutes for nothing here; bfloat16 is an illegal instruction on some CPUs.
                "--enforce-eager",
                "--dtype=float32",
                f"--scheduling-policy={scheduling_policy}",
                f"--max-num-seqs={max_num_seqs}",
                f"--max-model-len={max_model_len}",
                f"--host={host}",
                f"--port={self.port}",
                "--disable-uvicorn-access-log",
                *blocks,
                *extra_args,
            ],
            self.directory / "vllm.log",
            cwd=self.directory,
            env={
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "VLLM_HOST_IP": "127.0.0.1",
                # A tiny model is slower on more threads, and the other cores belong to the rest of the test.
                "OMP_NUM_THREADS": str(threads),
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                "HF_HUB_OFFLINE": "1",
                "VLLM_NO_USAGE_STATS": "1",
                "DO_NOT_TRACK": "1",
                **(env or {}),
            },
            # Its engine is a process of its own, which it takes along on TERM but not when killed.
            death_signal=signal.SIGTERM,
        )

    def start(self) -> Self:
        """Start it, anew after `stop` or `kill` with the same address, and wait until it takes calls."""
        self.process.start()
        try:
            self.process.wait_until(lambda: self._client.answers("/health"), _START_DEADLINE_S, "/health")
        except BaseException:
            self.process.kill()
            raise
        return self

    def stop(self) -> None:
        """Stop it in order."""
        self.process.stop()

    def kill(self) -> None:
        """Kill it and its engine, as a crash would."""
        # Killed like this they leave hundreds of megabytes of shared memory behind, under names nobody knows.
        segments = _shared_memory(self.process)
        self.process.kill()
        for segment in segments:
            segment.unlink(missing_ok=True)

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

    def metrics(self) -> str:
        """Return its metrics in Prometheus's text format."""
        return self._client.call("GET", "/metrics")


def _shared_memory(process: Process) -> set[Path]:
    """Return the files of the shared memory that Python processes of the group have mapped."""
    members = group_members(process.pid) if process.alive else []
    found: set[Path] = set()
    for member in members:
        with suppress(OSError):  # It ended in between.
            maps = Path(f"/proc/{member}/maps").read_text()
            found.update(Path(name) for name in re.findall(r"/dev/shm/psm_\w+$", maps, re.MULTILINE))
    return found
