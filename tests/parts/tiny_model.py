"""Makes the folder of a language model that is tiny and nonsense, but that vLLM serves like any other.

The configuration is a Llama's with random weights (vLLM's `--load-format dummy` makes those). The tokenizer
is a byte-level BPE trained here on a few sentences, so that any text has tokens, the same ones every time.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

_VOCABULARY = 512
_SPECIAL_TOKENS = ("<|begin|>", "<|end|>", "<|turn|>")

_TEXT = """
A team that sends many calls at once makes the other teams wait, unless the server shares itself out fairly.
The scheduler counts the tokens that each team has used and lets the one with the fewest go first.
When the engine is full, new calls wait in a queue; when it is empty, anyone may use all of it.
Tell me a story about a river, a bridge and the people who cross it every morning.
What is the answer? Numbers such as 0123456789 have no meaning here, and neither has anything else.
Please summarize the following document in three short paragraphs, then translate them into another language.
Yesterday a heavy storm closed the northern railway; engineers hope to open one track again this weekend.
def handle(request): return {"status": 200, "body": "hello, world"}
Every morning the baker opens his shop at six, sells warm bread until noon, and spends the afternoon reading.
"""

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def make_model(directory: Path) -> Path:
    """Write the model's files into the folder, which is made if missing, and return it."""
    directory.mkdir(parents=True, exist_ok=True)
    begin, end, _ = range(len(_SPECIAL_TOKENS))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,  # vLLM's attention on a CPU refuses 16.
        "vocab_size": _VOCABULARY,
        "max_position_embeddings": 8192,
        "bos_token_id": begin,
        "eos_token_id": end,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _SPECIAL_TOKENS[begin],
        "eos_token": _SPECIAL_TOKENS[end],
        "chat_template": _CHAT_TEMPLATE,
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
    }
    files = {
        "config.json": config,
        "generation_config.json": {"bos_token_id": begin, "eos_token_id": end},
        "tokenizer.json": _tokenizer(),
        "tokenizer_config.json": tokenizer_config,
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=2))
    return directory


def _tokenizer() -> dict[str, object]:
    """Return a tokenizer in the format of Hugging Face's `tokenizers`."""
    letters = _byte_letters()
    merges = _train(letters, _VOCABULARY - len(_SPECIAL_TOKENS) - len(letters))
    vocabulary = [*_SPECIAL_TOKENS, *letters, *(left + right for left, right in merges)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, token in enumerate(_SPECIAL_TOKENS)
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: number for number, token in enumerate(vocabulary)},
            "merges": [list(pair) for pair in merges],
        },
    }


def _byte_letters() -> list[str]:
    """Return the printable letter that byte-level BPE writes for each byte (GPT-2's table)."""
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    letters = []
    others = 0
    for byte in range(256):
        letters.append(chr(byte if byte in printable else 256 + others))
        others += byte not in printable
    return letters


def _train(letters: list[str], count: int) -> list[tuple[str, str]]:
    """Return the `count` most frequent pairs, each merged before the next is looked for."""
    words = Counter(
        tuple(letters[byte] for byte in word.encode()) for word in re.findall(r" ?\w+| ?[^\s\w]+|\s+", _TEXT)
    )
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                pairs[pair] += times
        if not pairs:
            raise ValueError(f"the text gives only {len(merges)} of {count} merges")
        # The pair itself breaks ties, so that the result never depends on the order of a dictionary.
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        merged: Counter[tuple[str, ...]] = Counter()
        for word, times in words.items():
            merged[_merge(word, best)] += times
        words = merged
    return merges


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """Return the word with each occurrence of the pair as one token."""
    result: list[str] = []
    for letter in word:
        if result and (result[-1], letter) == pair:
            result[-1] += letter
        else:
            result.append(letter)
    return tuple(result)
