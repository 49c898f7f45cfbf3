"""`fairserve up --engine vllm`: the same folder before a real vLLM on the CPU, from another environment."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import openai

from tests.parts.process import Process, free_port, group_members
from tests.parts.tiny_model import make_model
from tests.parts.vllm import ensure_env

ROOT = Path(__file__).parents[2]
ENV = {
    "PYTHONPATH": f"{ROOT / 'serving'}{os.pathsep}{ROOT / 'operator'}",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
ENGINE = (
    "--load-format=dummy",
    "--enforce-eager",
    "--dtype=float32",
    "--max-model-len=512",
    "--max-num-seqs=4",
)


def test_a_real_vllm_is_started_called_and_ended(tmp_path):
    folder = shutil.copytree(ROOT / "examples" / "01-two-teams", tmp_path / "manifests")
    model = make_model(tmp_path / "model")
    port = free_port()
    command = [sys.executable, "-m", "fairserve.cli", "up", "-f", folder]
    command += ["--port", str(port), "--control-port", str(free_port()), "--engine", "vllm"]
    command += ["--engine-python", ensure_env(), "--model", model, "--", *ENGINE]
    with Process("up", command, tmp_path / "up.log", env=ENV, cwd=tmp_path) as up:
        up.wait_until(lambda: "Ctrl-C stops everything" in up.log.read_text(), 300, "the start")
        assert re.search(r"generation 1, before the vLLM at http://127\.0\.0\.1:\d+", up.log.read_text())
        (engine,) = [pid for pid in _children(up.pid) if b"vllm.entrypoints" in _command(pid)]
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="demo-key-of-team-a") as client:
            (served,) = client.models.list().data
            answer = client.chat.completions.create(
                model=served.id,
                messages=[{"role": "user", "content": "hello"}],
                max_tokens=8,
                extra_body={"ignore_eos": True},
            )
        assert answer.usage.completion_tokens == 8
    assert group_members(engine) == []


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "stat").read_text().rpartition(")")[2].split()[1] == str(
                parent
            ):
                found.append(int(entry.name))
        except OSError:  # It ended in between.
            continue
    return found


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
