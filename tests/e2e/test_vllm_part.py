"""The real vLLM works: it answers a chat call with its usage, counts it, and leaves nothing behind."""

import json
import urllib.request
from typing import Any

from tests.parts.process import group_members
from tests.parts.vllm import MODEL, Vllm, _shared_memory


def _chat(vllm: Vllm, **options: Any) -> dict[str, Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Tell me a story."}], **options}
    request = urllib.request.Request(
        f"{vllm.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return dict(json.load(answer))


def test_chat_call_is_answered_and_counted(vllm: Vllm) -> None:
    answer = _chat(vllm, max_tokens=12, ignore_eos=True, priority=5)
    assert answer["usage"]["completion_tokens"] == 12
    assert 0 < answer["usage"]["prompt_tokens"] < 40
    assert answer["choices"][0]["message"]["content"]
    metrics = vllm.metrics()
    assert "vllm:num_requests_waiting{" in metrics
    assert "vllm:kv_cache_usage_perc{" in metrics


def test_nothing_of_a_killed_vllm_is_left(vllm: Vllm) -> None:
    group = vllm.process.pid
    segments = _shared_memory(vllm.process)
    assert segments
    assert len(group_members(group)) > 1, "its engine is a process of its own"
    vllm.kill()
    assert group_members(group) == []
    assert [segment for segment in segments if segment.exists()] == []
    vllm.start()
    assert _chat(vllm, max_tokens=1)["usage"]["completion_tokens"] == 1
