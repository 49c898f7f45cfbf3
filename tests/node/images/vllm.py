#!/app/bin/python
"""vLLM's command for tests: takes vLLM's own arguments, `vllm serve MODEL …`, and serves the engine emulator.

How fast it is comes from the environment, since vLLM has no argument for that.
"""

import argparse
import os

_TOKENS_A_BLOCK = 16

parser = argparse.ArgumentParser(prog="vllm")
parser.add_argument("command", choices=["serve"])
parser.add_argument("model")
parser.add_argument("--host", default="0.0.0.0")
parser.add_argument("--port", type=int, default=8000)
parser.add_argument("--served-model-name")
parser.add_argument("--max-num-seqs", type=int, default=64)
parser.add_argument("--max-num-batched-tokens", type=int, default=2048)
parser.add_argument("--max-model-len", type=int, default=8192)
parser.add_argument("--num-gpu-blocks-override", type=int, default=4096)
given = parser.parse_args()

os.execvp(
    "fairserve",
    [
        *("fairserve", "emulator"),
        f"--listen={given.host}:{given.port}",
        f"--served-model-name={given.served_model_name or given.model}",
        f"--max-num-seqs={given.max_num_seqs}",
        f"--max-num-batched-tokens={given.max_num_batched_tokens}",
        f"--max-model-len={given.max_model_len}",
        f"--kv-tokens={given.num_gpu_blocks_override * _TOKENS_A_BLOCK}",
        f"--step-ms={os.environ.get('EMULATOR_STEP_MS', '10')}",
        f"--cost-scale={os.environ.get('EMULATOR_COST_SCALE', '0.25')}",
    ],
)
